"""The codec gives back what it was given, whatever that is, in fewer bytes than plain packing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lmdistill.signals import codec
from lmdistill.signals.codec import SetCodec, Sets, compress, decompressor


def random_sets(seed: int, positions: int, slots: int, vocabulary: int, largest: int) -> Sets:
    rng = np.random.default_rng(seed)
    ids = (
        np.stack([rng.permutation(vocabulary)[:slots] for _ in range(positions)]) if positions else np.zeros((0, slots))
    )
    numbers = rng.integers(0, largest + 1, (positions, slots))
    return Sets(ids.astype(np.int32), numbers)


def as_dicts(sets: Sets) -> list[dict[int, int]]:
    return [
        {int(i): int(n) for i, n in zip(ids, numbers, strict=True) if n > 0}
        for ids, numbers in zip(sets.ids_Nk, sets.numbers_Nk, strict=True)
    ]


def round_trip(coder: SetCodec, sets: Sets) -> Sets:
    return coder.read(decompressor(compress(coder.steps(sets))), len(sets))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    positions=st.integers(0, 20),
    slots=st.integers(1, 12),
    vocabulary=st.sampled_from([12, 50, 1000, 2**20]),
    largest=st.sampled_from([0, 1, 3, 100, 2**20]),
)
def test_what_goes_in_comes_out(seed: int, positions: int, slots: int, vocabulary: int, largest: int) -> None:
    small = min(vocabulary, 5000)  # permutations of a million are slow; the highest ids matter and are put in below
    learnt = SetCodec.learn([random_sets(1, 30, slots, small, 3)], vocabulary, slots)
    sets = random_sets(seed, positions, slots, small, largest)
    if positions:
        sets.ids_Nk[0, 0] = vocabulary - 1
    unique = [len(set(row)) == len(row) for row in sets.ids_Nk.tolist()]
    sets = Sets(sets.ids_Nk[unique], sets.numbers_Nk[unique])
    assert as_dicts(round_trip(learnt, sets)) == as_dicts(sets)


@given(arrays(np.int64, st.integers(0, 200), elements=st.integers(0, 2**21)))
def test_numbers_split_into_symbols_and_bits_and_back(values: np.ndarray) -> None:
    symbols, low, widths = codec._split(values)
    base, again = codec._base(symbols)
    assert (widths == again).all()
    assert (low >= 0).all()
    assert (low < (1 << widths)).all()
    assert (base + low == values).all()
    assert (symbols < codec._SYMBOLS).all()


def test_bytes_do_not_depend_on_the_order_of_the_ids() -> None:
    sets = random_sets(3, 10, 8, 500, 5)
    learnt = SetCodec.learn([sets], 500, 8)
    order = np.random.default_rng(0).permutation(8)
    assert compress(learnt.steps(sets)) == compress(
        learnt.steps(Sets(sets.ids_Nk[:, order], sets.numbers_Nk[:, order]))
    )


def test_frequent_ids_cost_fewer_bytes_than_their_plain_numbers() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(400):  # ids as skewed as words are
        ids = np.unique(np.minimum(rng.zipf(1.3, 60) - 1, 40_000))[:16]
        rows.append(np.pad(ids, (0, 16 - len(ids)), constant_values=-1))
    ids = np.stack(rows)
    sets = Sets(np.maximum(ids, 0), (ids >= 0).astype(np.int64))
    learnt = SetCodec.learn([Sets(sets.ids_Nk[:200], sets.numbers_Nk[:200])], 40_001, 16)
    held = Sets(sets.ids_Nk[200:], sets.numbers_Nk[200:])
    assert len(compress(learnt.steps(held))) < 0.7 * 2 * held.numbers_Nk.sum()  # two bytes an id
    assert as_dicts(round_trip(learnt, held)) == as_dicts(held)


@pytest.mark.parametrize("positions", [0, 1])
def test_nothing_at_all_is_fine(positions: int) -> None:
    learnt = SetCodec.learn([random_sets(0, 5, 4, 20, 3)], 20, 4)
    empty = Sets(np.zeros((positions, 4), dtype=np.int64), np.zeros((positions, 4), dtype=np.int64))
    assert as_dicts(round_trip(learnt, empty)) == [{}] * positions
