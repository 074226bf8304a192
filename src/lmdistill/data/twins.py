"""Rows that belong together in pairs: two ways to one answer, whose tokens are to be predicted alike.

A pair is one sequence, whatever packing does with other rows, so that every batch that has one row has the other too.
Attention never crosses from one to the other: positions restart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lmdistill.data.packing import Piece

NO_TWIN = -1


def split_pairs(pieces: Sequence[Piece]) -> tuple[list[list[Piece]], list[Piece]]:
    """The pieces of whole pairs, two and two, and the others, in their order."""
    by_name: dict[str, list[Piece]] = {}
    for piece in pieces:
        if piece.row.twin:
            by_name.setdefault(piece.row.twin, []).append(piece)
    pairs = [found for found in by_name.values() if len(found) == 2]
    together = {id(piece) for pair in pairs for piece in pair}
    return pairs, [piece for piece in pieces if id(piece) not in together]


def twins_of(sequence: Sequence[Piece]) -> Any:
    """For each token of a sequence, the place in it of the token that shall be predicted alike; -1 where there is none.

    Places are given at the first row of a pair alone. Spans that were cut, or whose tokens differ, have none.
    """
    starts = np.cumsum([0] + [len(piece) for piece in sequence])
    twins_L = np.full(starts[-1], NO_TWIN, dtype=np.int32)
    if len(sequence) == 2 and sequence[0].row.twin and sequence[0].row.twin == sequence[1].row.twin:
        (first, second), (at_first, at_second) = [_span(piece) for piece in sequence], starts[:2]
        if first is not None and second is not None and _same_tokens(sequence, first, second):
            count = first[1] - first[0]
            twins_L[at_first + first[0] : at_first + first[1]] = at_second + second[0] + np.arange(count)
    return twins_L


def _span(piece: Piece) -> tuple[int, int] | None:
    """Where a row's span begins and ends; None where it has none, or nothing stands before it."""
    span = piece.row.span
    if span is None:
        return None
    first, end = len(piece) - span[0], len(piece) - span[1]
    return (first, end) if 1 <= first < end else None


def _same_tokens(sequence: Sequence[Piece], first: tuple[int, int], second: tuple[int, int]) -> bool:
    left, right = (piece.row.ids_L[slice(*span)] for piece, span in zip(sequence, (first, second), strict=True))
    return bool(np.array_equal(left, right))
