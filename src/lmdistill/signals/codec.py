"""Sets of token ids with a small whole number each, in as few bytes as a simple model of them allows.

Ids are replaced by their frequency ranks (how often the teacher keeps a token, learnt on calibration text), sorted, and
written as gaps; a gap's size is coded given the rank before it and how many ids are still to come, a number given its
id's rank. The coder is an asymmetric numeral system of the library `constriction`. The order of the ids is not kept:
it follows from the numbers. Torch is not imported here.

Shape legend: N positions, k slots of a position, E entries of all positions, V vocabulary, C contexts, S symbols.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Step = tuple[Array, Any, Array | tuple[Array, Array]]
"""Symbols, the family of their distributions, and its parameters, one row a symbol."""

_DIRECT = 16
"""Numbers below it are symbols of their own; above, a symbol names half an octave and the rest are plain bits."""
_SYMBOLS = 64
_RANK_CLASSES, _SIZE_CLASSES = 22, 16
_PRIOR = 8.0
"""Weight of the average over all contexts in each context's distribution, in observations."""

_CATEGORICAL = constriction.stream.model.Categorical(perfect=False)
_UNIFORM = constriction.stream.model.Uniform()


@dataclass(frozen=True)
class Sets:
    """For each of N positions some ids, each with a whole number above 0; slots with number 0 are empty."""

    ids_Nk: Array
    numbers_Nk: Array

    def __len__(self) -> int:
        return len(self.ids_Nk)


class SetCodec:
    """Codes `Sets` by tables that were learnt on others like them."""

    def __init__(self, tables: Mapping[str, Array]) -> None:
        self.tables = dict(tables)
        self._rank_V = tables["rank"].astype(np.int64)
        self._id_of_rank_V = np.argsort(self._rank_V)

    @classmethod
    def learn(cls, examples: Sequence[Sets], vocabulary_size: int, slots: int) -> SetCodec:
        """Learn the tables. `slots` is the largest number of ids at a position that will ever be coded."""
        counts_V = np.zeros(vocabulary_size)
        for sets in examples:
            np.add.at(counts_V, sets.ids_Nk[sets.numbers_Nk > 0], 1)
        order_V = np.lexsort((np.arange(vocabulary_size), -counts_V))
        rank_V = np.empty(vocabulary_size, dtype=np.uint32)
        rank_V[order_V] = np.arange(vocabulary_size, dtype=np.uint32)
        empty = {
            "size": np.ones((1, slots + 1)),
            "gap": np.ones((_RANK_CLASSES * _SIZE_CLASSES, _SYMBOLS)),
            "number": np.ones((_RANK_CLASSES * _SIZE_CLASSES, _SYMBOLS)),
        }
        learner = cls({"rank": rank_V, **empty})
        observed = {name: np.zeros_like(table) for name, table in empty.items()}
        for sets in examples:
            for name, contexts_E, symbols_E in learner._observations(sets):
                np.add.at(observed[name], (contexts_E, symbols_E), 1)
        return cls({"rank": rank_V, **{name: _smoothed(table) for name, table in observed.items()}})

    def steps(self, sets: Sets) -> list[Step]:
        """What a decoder will read, in its order."""
        ranks_NK, numbers_NK, sizes_N = self._sorted(sets)
        found: list[Step] = [(sizes_N.astype(np.int32), _CATEGORICAL, self.tables["size"][np.zeros_like(sizes_N)])]
        before_N = np.full(len(sizes_N), -1, dtype=np.int64)
        ranks, sizes, numbers = [], [], []
        for slot in range(int(sizes_N.max(initial=0))):
            active_N = sizes_N > slot
            rank_n, before_n, size_n = ranks_NK[active_N, slot], before_N[active_N], sizes_N[active_N]
            found += _coded(rank_n - before_n - 1, self.tables["gap"][_gap_context(before_n, size_n - slot)])
            before_N[active_N] = rank_n
            ranks.append(rank_n)
            sizes.append(size_n)
            numbers.append(numbers_NK[active_N, slot])
        if ranks:
            contexts_E = _number_context(np.concatenate(ranks), np.concatenate(sizes))
            found += _coded(np.concatenate(numbers) - 1, self.tables["number"][contexts_E])
        return found

    def read(self, coder: Any, positions: int) -> Sets:
        """Read what `steps` wrote for so many positions."""
        if positions == 0:
            return Sets(np.zeros((0, 0), dtype=np.int64), np.zeros((0, 0), dtype=np.int64))
        sizes_N = coder.decode(_CATEGORICAL, self.tables["size"][np.zeros(positions, dtype=np.int64)]).astype(np.int64)
        slots = int(sizes_N.max(initial=0))
        ranks_Nk = np.zeros((positions, slots), dtype=np.int64)
        numbers_Nk = np.zeros((positions, slots), dtype=np.int64)
        before_N = np.full(positions, -1, dtype=np.int64)
        ranks, sizes = [], []
        for slot in range(slots):
            active_N = sizes_N > slot
            before_n, size_n = before_N[active_N], sizes_N[active_N]
            gap_n = _decoded(coder, self.tables["gap"][_gap_context(before_n, size_n - slot)])
            rank_n = before_n + 1 + gap_n
            ranks_Nk[active_N, slot] = before_N[active_N] = rank_n
            ranks.append(rank_n)
            sizes.append(size_n)
        if ranks:
            contexts_E = _number_context(np.concatenate(ranks), np.concatenate(sizes))
            numbers_E = _decoded(coder, self.tables["number"][contexts_E]) + 1
            # Entries were written slot by slot.
            filled_kN = np.arange(slots)[:, None] < sizes_N[None, :]
            numbers_Nk.T[filled_kN] = numbers_E
        return Sets(np.where(numbers_Nk > 0, self._id_of_rank_V[ranks_Nk], 0), numbers_Nk)

    def _sorted(self, sets: Sets) -> tuple[Array, Array, Array]:
        """Ranks in ascending order, the numbers beside them, and how many there are."""
        filled_Nk = sets.numbers_Nk > 0
        ranks_Nk = np.where(filled_Nk, self._rank_V[np.where(filled_Nk, sets.ids_Nk, 0)], np.iinfo(np.int64).max)
        order_Nk = np.argsort(ranks_Nk, axis=1, kind="stable")
        ranks_Nk = np.take_along_axis(ranks_Nk, order_Nk, axis=1)
        numbers_Nk = np.take_along_axis(sets.numbers_Nk.astype(np.int64), order_Nk, axis=1)
        return ranks_Nk, numbers_Nk, filled_Nk.sum(1)

    def _observations(self, sets: Sets) -> list[tuple[str, Array, Array]]:
        """(table, contexts, symbols) of everything that these sets would write."""
        ranks_NK, numbers_NK, sizes_N = self._sorted(sets)
        found = [("size", np.zeros_like(sizes_N), sizes_N)]
        before_N = np.full(len(sizes_N), -1, dtype=np.int64)
        for slot in range(int(sizes_N.max(initial=0))):
            active_N = sizes_N > slot
            rank_n, before_n, size_n = ranks_NK[active_N, slot], before_N[active_N], sizes_N[active_N]
            found.append(("gap", _gap_context(before_n, size_n - slot), _symbols(rank_n - before_n - 1)[0]))
            numbers_n = numbers_NK[active_N, slot] - 1
            found.append(("number", _number_context(rank_n, size_n), _symbols(numbers_n)[0]))
            before_N[active_N] = rank_n
        return found


def compress(steps: Sequence[Step]) -> bytes:
    """The bytes from which the same steps can be read, in this order."""
    coder = constriction.stream.stack.AnsCoder()
    for symbols, family, parameters in reversed(steps):
        if len(symbols):
            coder.encode_reverse(symbols, family, *(parameters if isinstance(parameters, tuple) else (parameters,)))
    return bytes(coder.get_compressed().astype("<u4").tobytes())


def decompressor(data: bytes) -> Any:
    """The coder that reads what `compress` wrote."""
    return constriction.stream.stack.AnsCoder(np.frombuffer(data, dtype="<u4").astype(np.uint32))


def _coded(values_E: Array, table_ES: Array) -> list[Step]:
    symbols_E, low_E, widths_E = _split(values_E)
    wide_E = widths_E > 0
    return [
        (symbols_E.astype(np.int32), _CATEGORICAL, table_ES),
        (low_E[wide_E].astype(np.int32), _UNIFORM, (1 << widths_E[wide_E]).astype(np.int32)),
    ]


def _decoded(coder: Any, table_ES: Array) -> Array:
    symbols_E = coder.decode(_CATEGORICAL, table_ES).astype(np.int64)
    base_E, widths_E = _base(symbols_E)
    wide_E = widths_E > 0
    if wide_E.any():
        base_E[wide_E] += coder.decode(_UNIFORM, (1 << widths_E[wide_E]).astype(np.int32))
    return base_E


def _split(values_E: Array) -> tuple[Array, Array, Array]:
    """Symbol, low bits and their number, for whole numbers from 0."""
    symbols_E, widths_E = _symbols(values_E)
    return symbols_E, values_E & ((1 << widths_E) - 1), widths_E


def _symbols(values_E: Array) -> tuple[Array, Array]:
    octave_E = _bit_length(values_E) - 1
    half_E = (values_E >> np.maximum(octave_E - 1, 0)) & 1
    first = _DIRECT.bit_length() - 1
    above_E = values_E >= _DIRECT
    return (
        np.where(above_E, _DIRECT + 2 * (octave_E - first) + half_E, values_E),
        np.where(above_E, octave_E - 1, 0),
    )


def _base(symbols_E: Array) -> tuple[Array, Array]:
    """The smallest number of a symbol, and how many low bits follow."""
    above_E = symbols_E >= _DIRECT
    octave_E = (symbols_E - _DIRECT) // 2 + _DIRECT.bit_length() - 1
    widths_E = np.where(above_E, octave_E - 1, 0)
    half_E = (symbols_E - _DIRECT) % 2
    return np.where(above_E, (2 + half_E) << np.maximum(widths_E, 0), symbols_E), widths_E


def _bit_length(values_E: Array) -> Array:
    # frexp is exact for whole numbers below 2^53; a floating logarithm would err at powers of two.
    found: Array = np.frexp(values_E.astype(np.float64))[1].astype(np.int64)
    return found


def _size_class(sizes_E: Array) -> Array:
    """Half octaves of how many ids there are."""
    found: Array = np.minimum(_symbols(np.maximum(sizes_E, 1) * _DIRECT)[0] - _DIRECT, _SIZE_CLASSES - 1)
    return found


def _gap_context(before_E: Array, left_E: Array) -> Array:
    return _bit_length(before_E + 1) * _SIZE_CLASSES + _size_class(left_E)


def _number_context(ranks_E: Array, sizes_E: Array) -> Array:
    return _bit_length(ranks_E) * _SIZE_CLASSES + _size_class(sizes_E)


def _smoothed(counts_CS: Array) -> Array:
    """Distributions that give every symbol a chance, drawn towards the average where little was seen."""
    average_S = counts_CS.sum(0) + 0.05
    average_S /= average_S.sum()
    probabilities_CS = (counts_CS + _PRIOR * average_S) / (counts_CS.sum(1, keepdims=True) + _PRIOR)
    found: Array = probabilities_CS.astype(np.float32)
    return found
