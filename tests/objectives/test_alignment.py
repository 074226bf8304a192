"""Groups of equal bytes: against a naive twin, smallest, covering, and at tokens without bytes."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmdistill.objectives.alignment import Alignment, align_spans, covers, join, pair_positions, tokens_of


def cut(total: int, borders: list[int]) -> list[int]:
    """Lengths of the pieces of `total` bytes cut at some places; a place that occurs twice makes a piece of none."""
    places = sorted(min(border, total) for border in borders)
    ends = [place for place in places if place < total] + [total] if total else [0] * len(places)
    return [end - start for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def by_walking(student: list[int], teacher: list[int]) -> list[tuple[int, int, int, int]]:
    """Two pointers: whoever is behind takes its next token; a group closes where both stand at one byte."""
    groups, i, j, a, b, first = [], 0, 0, 0, 0, (0, 0)
    while i < len(student) or j < len(teacher):
        if (a <= b and i < len(student)) or j == len(teacher):
            a, i = a + student[i], i + 1
        else:
            b, j = b + teacher[j], j + 1
        if a == b and a > sum(student[: first[0]]) and i > first[0] and j > first[1]:
            groups.append([first[0], i, first[1], j])
            first = (i, j)
    if groups:
        groups[-1][1], groups[-1][3] = len(student), len(teacher)
    return [tuple(group) for group in groups]


def as_tuples(alignment: Alignment) -> list[tuple[int, ...]]:
    return list(
        zip(
            alignment.student_first_G.tolist(),
            alignment.student_end_G.tolist(),
            alignment.teacher_first_G.tolist(),
            alignment.teacher_end_G.tolist(),
            strict=True,
        )
    )


def align(student: list[int], teacher: list[int]) -> Alignment:
    return align_spans(torch.tensor(student, dtype=torch.long), torch.tensor(teacher, dtype=torch.long))


borders = st.lists(st.integers(0, 30), max_size=25)


@settings(max_examples=150, deadline=None)
@given(total=st.integers(1, 30), one=borders, other=borders)
def test_groups_cover_both_sides_with_equal_bytes_and_none_can_be_split(
    total: int, one: list[int], other: list[int]
) -> None:
    student, teacher = cut(total, one), cut(total, other)
    groups = as_tuples(align(student, teacher))
    assert groups[0][0] == groups[0][2] == 0
    assert (groups[-1][1], groups[-1][3]) == (len(student), len(teacher))
    for before, after in pairwise(groups):
        assert (before[1], before[3]) == (after[0], after[2])
    for i0, i1, j0, j1 in groups:
        assert i1 > i0
        assert j1 > j0
        assert sum(student[i0:i1]) == sum(teacher[j0:j1]) > 0
        inner = {sum(student[i0:i]) for i in range(i0 + 1, i1)} & {sum(teacher[j0:j]) for j in range(j0 + 1, j1)}
        assert inner <= {0, sum(student[i0:i1])}, "a smaller group was there"


@settings(max_examples=150, deadline=None)
@given(total=st.integers(1, 30), one=st.sets(st.integers(1, 29)), other=st.sets(st.integers(1, 29)))
def test_equals_two_pointers(total: int, one: set[int], other: set[int]) -> None:
    student, teacher = cut(total, list(one)), cut(total, list(other))
    assert as_tuples(align(student, teacher)) == by_walking(student, teacher)


def test_tokens_without_bytes_go_with_the_next_or_the_last() -> None:
    assert as_tuples(align([0, 3, 0, 2, 0], [3, 2])) == [(0, 2, 0, 1), (2, 5, 1, 2)]
    assert as_tuples(align([5], [0, 5])) == [(0, 1, 0, 2)]


def test_nothing_and_one_side_of_nothing() -> None:
    assert len(align([], [])) == 0
    assert len(align([0, 0], [])) == 0
    assert len(join([])) == 0


def test_refuses() -> None:
    with pytest.raises(ValueError, match="student's tokens cover 3 bytes but the teacher's 4"):
        align([3], [4])
    with pytest.raises(ValueError, match="must cover a number of bytes each"):
        align([3, -1], [2])
    with pytest.raises(ValueError, match="four ends"):
        Alignment(*(torch.zeros(n, dtype=torch.long) for n in (2, 2, 3, 2)))


def test_sizes_shifts_and_joins() -> None:
    one = align([2, 1, 3], [2, 4])
    assert one.student_sizes.tolist() == [1, 2]
    assert one.teacher_sizes.tolist() == [1, 1]
    assert one.one_to_one.tolist() == [True, False]
    both = join([one, one.shifted(3, 2)])
    assert as_tuples(both) == [(0, 1, 0, 1), (1, 3, 1, 2), (3, 4, 2, 3), (4, 6, 3, 4)]
    tokens, owner = tokens_of(both.student_first_G, both.student_end_G)
    assert tokens.tolist() == [0, 1, 2, 3, 4, 5]
    assert owner.tolist() == [0, 1, 1, 2, 3, 3]
    kept = both.select(torch.tensor([True, False, False, True]))
    assert covers(kept.student_first_G, kept.student_end_G, 7).tolist() == [
        True,
        False,
        False,
        False,
        True,
        True,
        False,
    ]


def test_positions_are_paired_from_the_start_of_each_answer() -> None:
    """Three groups, the middle one untrained: two answers, each paired by itself and cut at its shorter side."""
    groups = align([1, 1, 2, 1, 1, 1], [2, 2, 3])  # groups of 2-1, 1-1 and 3-1 tokens
    assert as_tuples(groups) == [(0, 2, 0, 1), (2, 3, 1, 2), (3, 6, 2, 3)]
    apart = pair_positions(groups, torch.tensor([True, False, True]))
    assert as_tuples(apart) == [(0, 1, 0, 1), (3, 4, 2, 3)]
    together = pair_positions(groups, torch.ones(3, dtype=torch.bool))
    assert as_tuples(together) == [(0, 1, 0, 1), (1, 2, 1, 2), (2, 3, 2, 3)]
    assert len(pair_positions(groups, torch.zeros(3, dtype=torch.bool))) == 0
