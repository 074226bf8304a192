"""Votes and chances, against counting every choice."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmdistill.generation.votes import majority_at_k, pass_at_k, pass_hat_k, vote


def same(one: str, other: str) -> bool:
    return one.strip() == other.strip()


def chance(right: list[bool], k: int, counts: object) -> float:
    choices = list(itertools.combinations(right, k))
    return sum(counts(choice) for choice in choices) / len(choices)  # type: ignore[operator]


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_pass_at_k_counts_every_choice(right: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(right)))
    assert pass_at_k(len(right), sum(right), k) == pytest.approx(chance(right, k, any), abs=1e-12)
    assert pass_hat_k(len(right), sum(right), k) == pytest.approx(chance(right, k, all), abs=1e-12)


@given(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=8), st.booleans(), st.data())
def test_majority_at_k_counts_every_choice(answers: list[str | None], ties_count: bool, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(answers)))
    names = sorted({answer for answer in answers if answer})
    groups = [answers.count(name) for name in names]
    right = names.index("a") if "a" in names else None

    def share(choice: tuple[str | None, ...]) -> float:
        votes = Counter(answer for answer in choice if answer)
        best = max(votes.values(), default=0)
        winners = [name for name, count in votes.items() if count == best]
        if "a" not in winners or (len(winners) > 1 and not ties_count):
            return 0.0
        return 1 / len(winners)

    choices = list(itertools.combinations(answers, k))
    expected = sum(map(share, choices)) / len(choices)
    found = majority_at_k(groups, right, k, silent=answers.count(None), ties_count=ties_count)
    assert found == pytest.approx(expected, abs=1e-12)


def test_the_majority_wins_and_keeps_its_first_wording() -> None:
    found = vote(["5 ", "6", "5", None], same)
    assert (found.answer, found.members, found.agreement) == ("5 ", (0, 2), 0.5)
    assert "2 of 4 samples agree" in found.reason


def test_a_tie_is_nobodys() -> None:
    found = vote(["5", "6"], same)
    assert found.answer is None
    assert found.members == ()
    assert "2 answers have 50%" in found.reason


def test_weights_decide_and_are_added_exactly() -> None:
    assert vote(["5", "6", "6"], same, [3.0, 1.0, 1.0]).answer == "5"
    tenths = vote(["5", "6", "6", "6"], same, [0.375, 0.125, 0.125, 0.125])
    assert tenths.answer is None


@pytest.mark.parametrize("weights", [[1.0], [1.0, float("nan")], [1.0, -1.0]])
def test_bad_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights"):
        vote(["5", "6"], same, weights)


@given(st.lists(st.sampled_from(["1", "2", "3"]), min_size=1, max_size=9), st.randoms())
def test_the_order_of_the_samples_does_not_matter(answers: list[str], chance_of: object) -> None:
    shuffled = list(answers)
    chance_of.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = vote(answers, same), vote(shuffled, same)
    assert (one.answer, one.agreement) == (other.answer, other.agreement)


def test_nobody_answers() -> None:
    assert vote([None, None], same).answer is None
    assert vote([], same).agreement == 0.0


@pytest.mark.parametrize(("samples", "right", "k"), [(4, 1, 0), (4, 1, 5), (4, 5, 1), (0, 0, 1)])
def test_impossible_numbers_are_refused(samples: int, right: int, k: int) -> None:
    with pytest.raises(ValueError, match=r"k is|cannot be"):
        pass_at_k(samples, right, k)
