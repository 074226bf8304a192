"""Pass-rate curves against counting, and spending that stops where they flatten."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lmdistill.generation.pass_rate import keep_sampling, pass_rate_curve, unsolved_questions
from lmdistill.generation.types import Verdict
from lmdistill.recipe.generation_verify import PassRateSpec

verdicts = st.sampled_from(["correct", "incorrect", "unverifiable"])


@given(
    st.integers(1, 5).flatmap(lambda n: st.lists(st.lists(verdicts, min_size=n, max_size=n), min_size=1, max_size=5))
)
def test_each_point_is_the_mean_over_all_choices(found: list[list[Verdict]]) -> None:
    curve = pass_rate_curve(found)
    for k, share in enumerate(curve.solved, start=1):
        by_question = []
        for one in found:
            choices = list(itertools.combinations(one, k))
            by_question.append(sum("correct" in choice for choice in choices) / len(choices))
        assert share == pytest.approx(sum(by_question) / len(found), abs=1e-12)
    assert list(curve.solved) == sorted(curve.solved)
    # With a window of one: the share of questions right exactly once, by the samples (Good and Turing).
    once = sum(one.count("correct") == 1 for one in found) / len(found[0])
    assert curve.gain(1) == pytest.approx(once / len(found), abs=1e-12)


def drawn(questions: int, samples: int, seed: int = 0) -> list[list[Verdict]]:
    """Samples of questions whose chances lie between 0 and 1, the first half of them without any."""
    chance = random.Random(seed)
    shares = [0.0 if place % 2 else chance.random() for place in range(questions)]
    return [["correct" if chance.random() < share else "incorrect" for _ in range(samples)] for share in shares]


def test_spending_stops_where_the_curve_flattens() -> None:
    spec = PassRateSpec(smallest_gain=0.01, window=3, least_samples=2, most_samples=64)
    found = drawn(200, 64)
    samples = 0
    while keep_sampling(pass_rate_curve([one[:samples] for one in found]), spec).go_on:
        samples += 1
    assert 4 < samples < 40  # of half the questions nothing can be got, and the others are solved soon
    decision = keep_sampling(pass_rate_curve([one[:samples] for one in found]), spec)
    assert "less than 1.00%" in decision.reason
    curve = pass_rate_curve([one[: samples + 3] for one in found])
    assert curve.gain(3) < 0.015  # going on would not have paid either


def test_the_reasons() -> None:
    spec = PassRateSpec(window=2, least_samples=2, most_samples=4)
    wrong: list[list[Verdict]] = [["incorrect"] * 4]
    assert keep_sampling(pass_rate_curve([]), spec).reason == "there are no questions"
    assert "fewer than least_samples, 2" in keep_sampling(pass_rate_curve([wrong[0][:1]]), spec).reason
    assert "most_samples" in keep_sampling(pass_rate_curve(wrong), spec).reason
    assert "flat at 0.0%" in keep_sampling(pass_rate_curve([wrong[0][:3]]), spec).reason
    solved = keep_sampling(pass_rate_curve([["correct", "correct"]]), spec)
    assert not solved.go_on
    assert "every question is solved" in solved.reason


def test_what_is_unknown_is_counted() -> None:
    curve = pass_rate_curve([["unverifiable", "incorrect"], ["correct", "unverifiable"], ["incorrect", "incorrect"]])
    assert (curve.unknown, curve.questions, curve.solved) == (1, 3, (1 / 6, 1 / 3))


def test_where_to_spend() -> None:
    found: list[list[Verdict]] = [["correct"], ["incorrect"], ["unverifiable"], []]
    assert unsolved_questions(found) == [1, 2, 3]
    assert unsolved_questions(found, wanted=2) == [0, 1, 2, 3]


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ValidationError, match="least_samples is 9 and most_samples 4"):
        PassRateSpec(least_samples=9, most_samples=4)
