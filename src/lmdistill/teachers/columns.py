"""Columns of a batch that hold what the teacher reads in the student's place: another prompt, another chat template.

The answer is the same in both texts, so that the teacher speaks of the student's tokens; what comes before differs: a
demonstration, a solution or feedback that only the teacher sees (SDFT 2601.19897, SDPO 2601.20802, OPSD 2601.18734), a
system prompt that the student shall learn by heart, or the teacher's own chat template.

Shape legend: B batch, L length of the student's text, L' of the teacher's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby
from typing import Any

import torch

from lmdistill.data import Collator, Document, EncodedRow, RowEncoder
from lmdistill.data.packing import IGNORED
from lmdistill.errors import DataError
from lmdistill.teachers.reading import IDS, PLACES, POSITIONS, PackedRow, packed_rows, trained_positions


@dataclass(frozen=True)
class Retold:
    """One packed row as the teacher reads it."""

    ids: Sequence[int]
    places: Sequence[int]
    """For each token of the student's row, the token of `ids` that predicts the same next one; -1 for none."""


@dataclass(frozen=True)
class Unsaid:
    """Of which tokens of an answer a teacher under another chat template does not speak."""

    first: bool = False
    """Of the first, which its template would join with the white space before it."""
    ends: frozenset[int] = frozenset()
    """Of the student's end marker, where its own is another."""

    def leave_out(self, told: Retold, ids: Sequence[int], prompt_tokens: int) -> Retold:
        """A row of a prompt and an answer without the places that predict these tokens."""
        places = list(told.places)
        if self.first and prompt_tokens > 0:
            places[prompt_tokens - 1] = -1
        for place, following in enumerate(ids[1:]):
            if following in self.ends:
                places[place] = -1
        return Retold(told.ids, places)


def with_context(ids: Sequence[int], prompt_tokens: int, context_ids: Sequence[int]) -> Retold:
    """A row whose first `prompt_tokens` tokens, the prompt, are `context_ids` for the teacher.

    What follows the prompt stays: the first answer token is predicted from the end of the context, each other one from
    the same answer tokens. The last token predicts nothing. An empty context leaves the first answer token without a
    teacher. Raises ValueError for a prompt longer than the row.
    """
    if not 0 <= prompt_tokens <= len(ids):
        raise ValueError(f"a prompt of {prompt_tokens} tokens in a row of {len(ids)}; it must be its beginning")
    answer = list(ids[prompt_tokens:])
    shift = len(context_ids) - prompt_tokens
    places = [-1] * len(ids)
    for place in range(max(0, prompt_tokens - 1), len(ids) - 1):
        places[place] = max(-1, place + shift)
    return Retold([*context_ids, *answer], places)


def teacher_columns(
    batch: Mapping[str, Any],
    retold: Sequence[Sequence[Retold | None]],
    *,
    pad_id: int = 0,
    max_length: int | None = None,
) -> dict[str, torch.Tensor]:
    """`teacher_input_ids`, `teacher_position_ids` (B, L') and `teacher_places` (B, L) for a batch, packed or padded.

    `retold` has for each row of the batch one entry for each packed row in it, None where the teacher reads the same as
    the student. Raises ValueError for entries that do not belong to the batch, DataError naming the row that is longer
    than `max_length`, the teacher's context.
    """
    rows = packed_rows(batch["position_ids"])
    trained = trained_positions(batch)
    if len(retold) != len(rows):
        raise ValueError(f"{len(rows)} rows in the batch but {len(retold)} were retold; give a list for each")
    told = [_of_batch_row(batch, found, given, trained) for found, given in zip(rows, retold, strict=True)]
    if max_length is not None:
        _check_length(batch, told, max_length)
    width = max(1, *(sum(len(item.ids) for item in row) for row in told))
    shape = (len(told), width)
    ids, positions = torch.full(shape, pad_id), torch.zeros(shape, dtype=torch.long)
    places = torch.full_like(batch["input_ids"], -1)
    for number, (found, row) in enumerate(zip(rows, told, strict=False)):
        filled = 0
        for packed, item in zip(found, row, strict=False):
            end, base = filled + len(item.ids), number * width + filled
            ids[number, filled:end] = torch.tensor(item.ids, dtype=torch.long)
            positions[number, filled:end] = torch.arange(len(item.ids))
            local = torch.tensor(item.places, dtype=torch.long)
            places[number, packed.first : packed.end] = torch.where(local < 0, -1, local + base)
            filled = end
        positions[number, filled:] = torch.arange(width - filled)
    device = batch["input_ids"].device
    return {IDS: ids.to(device), POSITIONS: positions.to(device), PLACES: places}


def context_columns(
    batch: Mapping[str, Any],
    prompt_tokens: Sequence[int],
    contexts: Sequence[Sequence[int]],
    *,
    pad_id: int = 0,
    max_length: int | None = None,
    unsaid: Unsaid | None = None,
) -> dict[str, torch.Tensor]:
    """`teacher_columns` for a batch of one text a row: what the teacher reads in place of each prompt.

    An empty context stands for the prompt itself. `unsaid`: the contexts are of another chat template, and of these
    tokens the teacher does not speak. Raises what `teacher_columns` raises.
    """
    retold = []
    for rows, prompt, context in zip(packed_rows(batch["position_ids"]), prompt_tokens, contexts, strict=True):
        ids = batch["input_ids"][rows[0].batch_row, rows[0].first : rows[0].end].tolist()
        told = with_context(ids, prompt, context) if len(context) else None
        retold.append([told if told is None or unsaid is None else unsaid.leave_out(told, ids, prompt)])
    return teacher_columns(batch, retold, pad_id=pad_id, max_length=max_length)


def privileged_batch(
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    context_ids: Sequence[Sequence[int]],
    *,
    row_ids: Sequence[str] | None = None,
    pad_id: int = 0,
    max_length: int | None = None,
) -> dict[str, Any]:
    """A padded batch of prompts and answers, (prompt ids, answer ids), whose answers are trained, for a teacher that
    reads `context_ids` in place of each prompt: the prompt with the demonstration, solution or feedback inside.

    Raises ValueError for unequal numbers of rows and contexts, DataError for a teacher's row beyond `max_length`.
    """
    if len(rows) != len(context_ids):
        raise ValueError(f"{len(rows)} rows but {len(context_ids)} contexts; they go in pairs")
    names = list(row_ids) if row_ids is not None else [str(number) for number in range(len(rows))]
    columns = []
    for name, (prompt, answer) in zip(names, rows, strict=True):
        ids = [*prompt, *answer]
        labels = [IGNORED] * max(1, len(prompt)) + ids[max(1, len(prompt)) :]
        columns.append({"input_ids": ids, "labels": labels, "position_ids": list(range(len(ids))), "row_ids": [name]})
    batch = Collator(pad_id)(columns)
    lengths = [len(prompt) for prompt, _ in rows]
    return {**batch, **context_columns(batch, lengths, context_ids, pad_id=pad_id, max_length=max_length)}


def retemplate(document: Document, student: RowEncoder, teacher: RowEncoder) -> tuple[EncodedRow, Retold]:
    """A conversation under the student's chat template, and as the teacher reads it under its own.

    Both encoders have the same vocabulary. An answer's tokens are matched from the first to the last that are the same
    in both: an end marker that the teacher would write otherwise, or a first token that one template joins with the
    white space before it, is not spoken of. Raises DataError where one template knows of fewer answers.
    """
    (row,), (other,) = student.encode([document]), teacher.encode([document])
    answers, others = _runs(row), _runs(other)
    if len(answers) != len(others):
        raise DataError(
            f"{document.origin}: {len(answers)} answers under the student's chat template but {len(others)} under the "
            "teacher's; leave the conversation out, or let the teacher read the student's template"
        )
    ids, other_ids = row.ids_L.tolist(), other.ids_L.tolist()
    places = [-1] * len(ids)
    for mine, theirs in zip(answers, others, strict=True):
        matcher = SequenceMatcher(None, ids[mine], other_ids[theirs], autojunk=False)
        match = matcher.find_longest_match()
        for step in range(match.size):
            before, there = mine.start + match.a + step - 1, theirs.start + match.b + step - 1
            if before >= 0 and there >= 0:
                places[before] = there
    return row, Retold(other_ids, places)


def unsaid_of(student: RowEncoder, teacher: RowEncoder) -> Unsaid:
    """What two chat templates do not share of an answer, found on a conversation of one."""
    document = Document(prompt="Which city is it?", response="Paris is the city.", origin="chat templates")
    row, retold = retemplate(document, student, teacher)
    answer = _runs(row)[-1]
    said = [retold.places[place - 1] >= 0 for place in range(answer.start, answer.stop)]
    return Unsaid(first=not said[0], ends=frozenset() if said[-1] else frozenset({int(row.ids_L[answer.stop - 1])}))


def _runs(row: EncodedRow) -> list[slice]:
    """Where the trained stretches of a row are."""
    found, place = [], 0
    for trained, group in groupby(row.trained_L.tolist()):
        length = len(list(group))
        if trained:
            found.append(slice(place, place + length))
        place += length
    return found


def _of_batch_row(
    batch: Mapping[str, Any], found: list[PackedRow], given: Sequence[Retold | None], trained: torch.Tensor
) -> list[Retold]:
    """The rows of one row of a batch as the teacher reads them; untrained padding at the end has none."""
    number = found[0].batch_row
    extra = found[len(given) :]
    padding = len(extra) == 1 and not bool(trained[number, extra[0].first :].any())
    if len(given) > len(found) or (extra and not padding):
        raise ValueError(f"row {number} of the batch holds {len(found)} packed rows but {len(given)} were retold")
    told = []
    for packed, item in zip(found, given, strict=False):
        ids = batch["input_ids"][number, packed.first : packed.end].tolist()
        item = item or Retold(ids, range(len(ids)))
        if len(item.places) != len(ids):
            raise ValueError(
                f"row {number} of the batch: a packed row of {len(ids)} tokens but {len(item.places)} places; was it "
                "cut after it was retold?"
            )
        if len(item.places) and not -1 <= min(item.places) <= max(item.places) < len(item.ids):
            raise ValueError(
                f"row {number} of the batch: places from {min(item.places)} to {max(item.places)} in a teacher's row "
                f"of {len(item.ids)} tokens"
            )
        told.append(item)
    return told


def _check_length(batch: Mapping[str, Any], told: Sequence[Sequence[Retold]], max_length: int) -> None:
    for number, row in enumerate(told):
        for place, item in enumerate(row):
            if len(item.ids) > max_length:
                names = batch.get("row_ids")
                name = names[number][place] if names is not None else f"{number}.{place}"
                raise DataError(
                    f"{name}: with its context the teacher's text has {len(item.ids)} tokens, but the teacher reads at "
                    f"most {max_length}; shorten the context or the answer"
                )
