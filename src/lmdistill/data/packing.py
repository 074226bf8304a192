"""From encoded rows to sequences: truncation by a declared policy, packing, positions and labels.

Truncation (`DataSpec.truncation`) of a row of more than `max_length` tokens:

- `split`: plain text becomes consecutive pieces of at most `max_length`; a row with an answer keeps its **end** (the
  left of the prompt goes), and is dropped where its last answer does not fit with one token of prompt before it;
  earlier answers that lose their beginning are not trained;
- `left` keeps the end, `right` the beginning, whatever they cut; `drop` leaves the row out; `error` refuses it.

The BOS token, where the tokenizer puts one, stays in front of whatever is kept. What is kept of the rest is always a
prefix, a suffix or (split) a run.

Packing puts whole rows into sequences, best fit first within a window of rows; no row is cut for it. Attention does
not cross rows, because every row's positions restart at 0 and transformers builds the mask from that **when the model
is called without a cache** (`use_cache=False`) and without an attention mask.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from lmdistill.data.chat import EncodedRow
from lmdistill.data.documents import DataReport
from lmdistill.errors import DataError
from lmdistill.recipe import DataSpec

IGNORED = -100
"""Label of a token without loss."""

WINDOW = 8192
"""Rows among which packing chooses: enough to fill 99 %, few enough to stay near the shuffled order."""


@dataclass(frozen=True)
class Piece:
    """A stretch of one row that goes into a sequence whole."""

    row: EncodedRow
    number: int
    """Place in the order of the rows."""

    def __len__(self) -> int:
        return len(self.row.ids_L)


def truncate(row: EncodedRow, spec: DataSpec, report: DataReport) -> list[EncodedRow]:
    """What the policy leaves of a row: nothing, one, or (split) several. Counts into the report; raises DataError."""
    length, limit = len(row.ids_L), spec.max_length
    report.longest = max(report.longest, length)
    if length <= limit:
        return [row]
    if spec.truncation == "error":
        raise DataError(
            f"{row.origin}: {length} tokens, more than max_length {limit}; raise data.max_length, or set "
            "data.truncation to split, drop, left or right"
        )
    if spec.truncation == "drop":
        report.dropped += 1
        return []
    if spec.truncation == "split" and row.last_answer is None:
        pieces = _split(row, limit)
        report.split += 1
        report.pieces += len(pieces)
        return pieces
    if spec.truncation == "split":
        return _keep_answer(row, limit, report)
    if spec.truncation == "left":
        kept = _suffix(row, limit)
    else:
        kept = replace(row, ids_L=row.ids_L[:limit], trained_L=row.trained_L[:limit], span=None)
    report.truncated += 1
    if row.last_answer is not None and kept.trained_L.sum() < row.trained_L.sum():
        report.answers_cut += 1
    return [kept]


def _split(row: EncodedRow, limit: int) -> list[EncodedRow]:
    """Consecutive pieces, each with the BOS in front where there is one."""
    lead = min(row.lead, limit - 1)
    room, body = limit - lead, len(row.ids_L) - lead
    cuts = [*range(0, body, room), body]
    # A last piece of one token would have nothing before it to be predicted from.
    if lead == 0 and cuts[-1] - cuts[-2] == 1 and room > 2:
        cuts[-2] -= 1
    return [_cut(row, lead, lead + start, lead + end) for start, end in pairwise(cuts)]


def _suffix(row: EncodedRow, limit: int) -> EncodedRow:
    lead = min(row.lead, limit - 1)
    return _cut(row, lead, len(row.ids_L) - (limit - lead), len(row.ids_L))


def _cut(row: EncodedRow, lead: int, start: int, end: int) -> EncodedRow:
    """The first `lead` tokens and those from start to end."""
    keep = np.r_[0:lead, start:end]
    return replace(row, ids_L=row.ids_L[keep], trained_L=row.trained_L[keep])


def _keep_answer(row: EncodedRow, limit: int, report: DataReport) -> list[EncodedRow]:
    """The end of a row, if its last answer fits there behind at least one token."""
    assert row.last_answer is not None
    lead = min(row.lead, limit - 1)
    start = len(row.ids_L) - (limit - lead)
    if row.last_answer < start + (1 if lead == 0 else 0):
        report.dropped += 1
        return []
    kept = _cut(row, lead, start, len(row.ids_L))
    # an earlier answer whose beginning is gone: a student cannot know what it continues
    if row.trained_L[start] and row.trained_L[start - 1] and start != row.last_answer:
        trained_L = kept.trained_L.copy()
        run_end = lead + int(np.argmin(np.append(trained_L[lead:], False)))
        trained_L[lead:run_end] = False
        kept = replace(kept, trained_L=trained_L)
    report.truncated += 1
    return [kept]


def pieces_of(rows: Iterable[EncodedRow], spec: DataSpec, report: DataReport) -> Iterator[Piece]:
    """Truncate rows and leave out those in which nothing is trained; the first token of a row never is, because there
    is nothing before it to predict it from."""
    number = 0
    for row in rows:
        for part in truncate(row, spec, report):
            if not part.trained_L[1:].any():
                report.fully_masked += 1
                continue
            yield Piece(part, number)
            number += 1


def pack(pieces: Sequence[Piece], max_length: int, window: int = WINDOW) -> list[list[Piece]]:
    """Group pieces into sequences of at most max_length tokens: best fit, longest first, window by window.

    Deterministic. Sequences come in the order of their first piece, and pieces keep their order inside: sorted by
    length only, training would see the longest rows first.
    """
    sequences: list[list[Piece]] = []
    for start in range(0, len(pieces), window):
        part = sorted(pieces[start : start + window], key=lambda piece: (-len(piece), piece.number))
        sequences += _best_fit(part, max_length)
    for sequence in sequences:
        sequence.sort(key=lambda piece: piece.number)
    return sorted(sequences, key=lambda sequence: sequence[0].number)


def _best_fit(pieces: Sequence[Piece], max_length: int) -> list[list[Piece]]:
    """Each piece goes where least room is left over; a new sequence where none fits."""
    sequences: list[list[Piece]] = []
    free: list[tuple[int, int]] = []  # (room, sequence), sorted
    for piece in pieces:
        at = bisect.bisect_left(free, (len(piece), 0))
        if at == len(free):
            room, index = max_length, len(sequences)
            sequences.append([])
        else:
            room, index = free.pop(at)
        sequences[index].append(piece)
        if room > len(piece):
            bisect.insort(free, (room - len(piece), index))
    return sequences
