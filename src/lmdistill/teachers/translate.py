"""A student's tokens as the teacher's: ids to bytes, bytes to the teacher's ids, and which tokens cover the same bytes.

Only ids are needed, so that what a student wrote is read like what a data set holds. Each token covers a number of
*units*: its bytes; the spelling of a control token counts as its bytes. Both sides cover the same units in the same
order, whatever either tokenizer does to the text (see `lmdistill.objectives.alignment`).

- What a tokenizer puts before a text by itself (BOS) is no text: it is in no group, and the teacher gets its own.
- The space that some tokenizers add before a text is no byte of it.
- A byte that is no valid UTF-8, such as half a character at the end of a rollout, becomes the teacher's byte token.
- Where the teacher's tokenizer changes the text (lower case, Unicode normal forms), its tokens are placed by the
  characters that they were made from.
- A group with an unknown token or a character that the teacher's vocabulary lacks, with a control token without a
  counterpart or with a chat template's header is not comparable: its tokens do not say the same.

Shape legend: n student tokens, m teacher tokens of one row, G groups.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmdistill.data.encode import CLOSE, OPEN, Encoding
from lmdistill.errors import ModelError
from lmdistill.objectives.alignment import Alignment, align_spans
from lmdistill.teachers.control_map import ControlMap, match_controls
from lmdistill.teachers.token_bytes import TokenBytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Units = NDArray[np.int64]

# A byte that is no valid UTF-8, as Python's "surrogateescape" spells it.
_ESCAPED = "\udc80-\udcff"
# As many bytes as the reserved brackets have, which no text may hold.
_REPLACEMENT = {ord(OPEN): "\ufffd", ord(CLOSE): "\ufffd"}


@dataclass(frozen=True)
class TranslatedRow:
    """One row of the student's tokens and the same in the teacher's."""

    teacher_ids: list[int]
    alignment: Alignment
    comparable_G: Tensor
    """False for groups whose tokens do not say the same."""
    student_units: Units
    """How many bytes each of the student's tokens covers, (n,); 0 for BOS."""
    teacher_units: Units
    """The same of the teacher's, (m,)."""


class Translator:
    """Puts one tokenizer's tokens into another's. Making one takes seconds for a large vocabulary; keep it."""

    def __init__(
        self,
        student_tokenizer: PreTrainedTokenizerBase,
        teacher_tokenizer: PreTrainedTokenizerBase,
        *,
        controls: Mapping[str, str] | None = None,
        max_length: int | None = None,
    ) -> None:
        """`controls` names control tokens of the student and those of the teacher that play their part, beyond what
        is found; `max_length` is the longest row that the teacher reads: what lies beyond is cut and not compared.

        Raises ModelError for tokenizers whose tokens cannot be laid beside others.
        """
        self.student = TokenBytes(student_tokenizer)
        self.teacher = TokenBytes(teacher_tokenizer)
        self.controls: ControlMap = match_controls(self.student, self.teacher, controls)
        self.max_length = max_length
        self._place_id = _placeholder(self.teacher)
        self._placeholder = self.teacher.encoder.control(self.teacher.names[self._place_id])
        told = {header: self.teacher.encode(text).ids_L.tolist() for header, text in self.controls.headers.items()}
        # The units of a header, and the teacher's ids; one that the teacher's template leaves out is read as text.
        self._headers = {header: (self._units(header), ids) for header, ids in told.items() if ids}
        headers = "|".join(re.escape(header) for header in sorted(self._headers, key=len, reverse=True))
        either = f"(?P<header>{headers})|" if headers else ""
        self._special = re.compile(f"{either}{OPEN}c(?P<control>\\d+){CLOSE}|(?P<byte>[{_ESCAPED}])")

    def row(self, ids: Sequence[int]) -> TranslatedRow:
        """One row: a text with its control tokens, from its beginning or from where it was cut.

        Raises DataError for an id that the student's tokenizer does not have.
        """
        ids_n = self.student.check(ids)
        lead = len(self.student.lead_ids)
        lead = lead if ids_n[:lead].tolist() == self.student.lead_ids else 0
        text, units_n, opaque_n = _spelled(self.student, ids_n[lead:])
        told = self._tell(text)
        before = len(self.teacher.lead_ids)
        aligned = align_spans(torch.from_numpy(units_n), torch.from_numpy(told.units)) if told.ids else _NOTHING
        ends_n = units_n.cumsum()
        for first, end in told.opaque:
            opaque_n[np.searchsorted(ends_n, first, "right") : np.searchsorted(ends_n - units_n, end, "left")] = True
        opaque_m = self.teacher.is_opaque_V[told.ids] if told.ids else np.zeros(0, bool)
        comparable_G = ~_any_in(opaque_n, aligned.student_first_G, aligned.student_end_G)
        comparable_G &= ~_any_in(opaque_m, aligned.teacher_first_G, aligned.teacher_end_G)
        found = TranslatedRow(
            teacher_ids=[*self.teacher.lead_ids, *told.ids],
            alignment=aligned.shifted(lead, before),
            comparable_G=comparable_G,
            student_units=np.concatenate([np.zeros(lead, np.int64), units_n]),
            teacher_units=np.concatenate([np.zeros(before, np.int64), told.units]),
        )
        return _cut(found, self.max_length)

    def _tell(self, text: str) -> _Told:
        """A spelled text in the teacher's tokens."""
        draft = _Draft()
        at = 0
        matches: Iterator[re.Match[str]] = iter(())
        if OPEN in text or not text.isascii():
            matches = self._special.finditer(text)
        for match in matches:
            draft.add(text[at : match.start()])
            at = match.end()
            self._mark(draft, match)
        draft.add(text[at:])
        return self._finish(draft)

    def _mark(self, draft: _Draft, match: re.Match[str]) -> None:
        """What stands for a header, a control token, or a byte that is no character."""
        if match["byte"] is not None:
            byte_id = self.teacher.byte_ids.get(ord(match["byte"]) - 0xDC00)
            if byte_id is None:
                draft.add_opaque("?")
            else:
                draft.mark([byte_id], 1)
        elif match["control"] is not None:
            control_id = int(match["control"])
            name, other = self.student.names[control_id], self.controls.pairs.get(control_id)
            if other is None:
                draft.add_opaque(name)
            else:
                draft.mark([other], len(name.encode()))
        else:
            units, ids = self._headers[match["header"]]
            draft.mark(ids, units, opaque=True)

    def _finish(self, draft: _Draft) -> _Told:
        """Encode the runs of text in one go, marks between them, and put both together."""
        runs = draft.runs()
        encoding = self.teacher.encode(self._placeholder.join(runs))
        places = np.flatnonzero(encoding.ids_L == self._place_id)
        if len(places) != len(draft.marks):
            raise ModelError(
                f"the teacher's tokenizer read {len(draft.marks)} marks in a text as {len(places)}; its control token "
                f"{self.teacher.names[self._place_id]!r} does not stand by itself"
            )
        ids: list[int] = []
        units: list[Units] = []
        opaque = list(draft.opaque)
        first = character = position = carried = 0
        for number, run in enumerate(runs):
            end = int(places[number]) if number < len(places) else len(encoding.ids_L)
            run_units, lost = self._run_units(run, encoding, slice(first, end), character)
            opaque += [(position + begun, position + ended) for begun, ended in lost]
            size = len(run.encode())
            if len(run_units) == 0:  # the tokenizer left it out: no token of the teacher's says it
                carried += size
            ids += encoding.ids_L[first:end].tolist()
            units.append(run_units)
            position += size
            if number < len(places):
                mark_ids, mark_units = draft.marks[number]
                ids += mark_ids
                units.append(np.array([0] * (len(mark_ids) - 1) + [mark_units], np.int64))
                position += mark_units
            first, character = end + 1, character + len(run) + len(self._placeholder)
            carried = _carry(units, carried)
        return _Told(ids, _settled(units, carried), opaque)

    def _run_units(
        self, run: str, encoding: Encoding, part: slice, character: int
    ) -> tuple[Units, list[tuple[int, int]]]:
        """How many bytes of a run of text each of its tokens covers, and stretches that the tokenizer cannot say."""
        ids_m = encoding.ids_L[part]
        units_m = self.teacher.length_V[ids_m]
        said, meant = self.teacher.join(ids_m.tolist()), run.encode()
        if said == meant:
            return units_m, []
        if said == b" " + meant:
            units_m[np.flatnonzero(units_m)[0]] -= 1
            return units_m, []
        if len(ids_m) == 0:
            return units_m, [(0, len(meant))]
        units_m = _by_characters(run, encoding.start_L[part] - character, encoding.end_L[part] - character)
        pieces = [self.teacher.pieces[token_id] for token_id in ids_m.tolist()]
        return units_m, _lost(pieces, units_m, meant, alters=self.teacher.alters)

    def _units(self, spelled: str) -> int:
        """Units of a spelled text: bytes, and those of the names of control tokens."""
        named = re.sub(f"{OPEN}c(\\d+){CLOSE}", lambda found: self.student.names[int(found[1])], spelled)
        return len(named.encode())


@dataclass(frozen=True)
class _Told:
    """A text in the teacher's tokens, without what comes before every text."""

    ids: list[int]
    units: Units
    opaque: list[tuple[int, int]]
    """Stretches of units that do not say the same on both sides."""


class _Draft:
    """What the teacher shall read: runs of text with marks between them, each some of its ids."""

    def __init__(self) -> None:
        self.marks: list[tuple[list[int], int]] = []
        self.opaque: list[tuple[int, int]] = []
        self._texts: list[list[str]] = [[]]
        self._units = 0

    def add(self, text: str) -> None:
        """Ordinary text."""
        self._texts[-1].append(text)
        self._units += len(text.encode())

    def add_opaque(self, text: str) -> None:
        """Ordinary text that stands for something else."""
        self.opaque.append((self._units, self._units + len(text.encode())))
        self.add(text)

    def mark(self, ids: list[int], units: int, *, opaque: bool = False) -> None:
        """Ids of the teacher that stand for so many units."""
        if opaque:
            self.opaque.append((self._units, self._units + units))
        self.marks.append((ids, units))
        self._texts.append([])
        self._units += units

    def runs(self) -> list[str]:
        """The texts before, between and behind the marks."""
        return ["".join(parts) for parts in self._texts]


def _spelled(table: TokenBytes, ids_n: NDArray[np.int64]) -> tuple[str, Units, NDArray[np.bool_]]:
    """The text of some ids with control tokens spelled, the units of each id, and which ids say nothing."""
    units_n, opaque_n = table.length_V[ids_n], table.is_opaque_V[ids_n].copy()
    parts: list[str] = []
    first = 0
    for border in [*np.flatnonzero(table.is_control_V[ids_n]).tolist(), len(ids_n)]:
        data = table.join(ids_n[first:border].tolist())
        adds_space = table.space_first if first == 0 else table.space_after_control
        if adds_space and data.startswith(b" "):
            data = data[1:]
            units_n[first + np.flatnonzero(units_n[first:border])[0]] -= 1
        text = data.decode("utf-8", "surrogateescape")
        parts.append(text.translate(_REPLACEMENT) if OPEN in text or CLOSE in text else text)
        if border < len(ids_n):
            parts.append(f"{OPEN}c{int(ids_n[border])}{CLOSE}")
        first = border + 1
    return "".join(parts), units_n, opaque_n


def _by_characters(text: str, start_m: NDArray[np.int64], end_m: NDArray[np.int64]) -> Units:
    """Bytes that tokens cover, from the characters that they were made from.

    Of several tokens made from one character all but the last cover nothing, so that the alignment keeps them together.
    Characters between two tokens, which the tokenizer left out, belong to the second.
    """
    byte_at = np.cumsum([0, *(len(character.encode()) for character in text)])
    end_m = np.minimum(end_m, np.append(start_m[1:], len(text)))
    end_m[-1] = len(text)
    ends_m = np.maximum.accumulate(byte_at[end_m])
    return np.diff(ends_m, prepend=0)


def _lost(pieces: list[bytes], units_m: Units, meant: bytes, *, alters: bool) -> list[tuple[int, int]]:
    """Stretches of units that the tokens do not say, because the vocabulary lacks their bytes and they were dropped.

    A tokenizer that `alters` texts may say something else, but still whole characters.
    """
    found = []
    data, begun, at = b"", 0, 0
    for piece, units in zip(pieces, units_m.tolist(), strict=True):
        data, at = data + piece, at + units
        if units:
            said = data.removeprefix(b" ") if begun == 0 else data
            whole = _is_text(data) if alters else said == meant[begun:at] or data == meant[begun:at]
            if not whole:
                found.append((begun, at))
            data, begun = b"", at
    return found


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _carry(units: list[Units], carried: int) -> int:
    """Give units that no token covers to the first token of the last part, if it has one; what is left over."""
    if carried and len(units[-1]):
        units[-1][0] += carried
        return 0
    return carried


def _settled(units: list[Units], carried: int) -> Units:
    """All parts in one; units left over at the end go to the last token."""
    all_m = np.concatenate(units)
    if carried and len(all_m):
        all_m[-1] += carried
    return all_m


def _any_in(mask_n: NDArray[np.bool_], first_G: Tensor, end_G: Tensor) -> Tensor:
    """Whether any token of each group is in the mask, (G,)."""
    counts = torch.from_numpy(np.concatenate([np.zeros(1, np.int64), np.cumsum(mask_n, dtype=np.int64)]))
    return counts[end_G] > counts[first_G]


def _cut(row: TranslatedRow, limit: int | None) -> TranslatedRow:
    """Leave out what lies beyond the teacher's context."""
    if limit is None or len(row.teacher_ids) <= limit:
        return row
    kept_G = row.alignment.teacher_end_G <= limit
    return replace(
        row,
        teacher_ids=row.teacher_ids[:limit],
        alignment=row.alignment.select(kept_G),
        comparable_G=row.comparable_G[kept_G],
        teacher_units=row.teacher_units[:limit],
    )


def _placeholder(teacher: TokenBytes) -> int:
    """A control token that stands for whatever comes between runs of text. Raises ModelError where there is none."""
    possible = [token_id for token_id in teacher.names if token_id != teacher.unknown_id]
    if not possible:
        raise ModelError("the teacher's tokenizer has no control token, not even one that ends a text; give it one")
    end = teacher.tokenizer.eos_token_id
    return int(end) if end in possible else possible[0]


_NOTHING = align_spans(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long))
