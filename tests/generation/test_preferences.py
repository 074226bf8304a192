"""Preference pairs: better minus worse is at least the margin, ties make none, and every prompt is accounted for."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from generation.rows import row, split
from lmdistill.generation.preferences import Scored, mine_pairs, score
from lmdistill.generation.types import Drop, Example, Provenance
from lmdistill.recipe.generation_preferences import CompositeReward, PreferenceSpec


def judged(*scores: float, seed: str = "s") -> list[Example]:
    return [
        row(f"text {number}", f"Question {seed}", f"{seed}{number}", seed=seed, fields={"judge": value})
        for number, value in enumerate(scores)
    ]


def spec(**more: Any) -> PreferenceSpec:
    return PreferenceSpec(reward=CompositeReward(verdict=0, judge=1), **more)


def pairs_of(examples: list[Example], spec: PreferenceSpec, seed: int = 0) -> list[tuple[str, str]]:
    kept, _ = split(list(mine_pairs(examples, spec, seed)))
    return [(each.fields["chosen_id"], each.fields["rejected_id"]) for each in kept]


def test_the_reward_is_the_weighted_sum_of_its_parts() -> None:
    weights = CompositeReward(verdict=2, length=0.5, length_free=3, judge=0.1, votes=-1, fields={"clarity": 3})
    fields = {"judge": 8, "votes": 0.25, "clarity": 0.5}
    found = score(row("one two three four five", verdict="correct", fields=fields), weights)
    assert isinstance(found, Scored)
    assert found.parts == pytest.approx({"verdict": 2, "length": -0.01, "judge": 0.8, "votes": -0.25, "clarity": 1.5})
    assert found.reward == pytest.approx(4.04)
    for verdict, value in (("incorrect", 0), ("unverifiable", 0.5), (None, 0.5)):
        each = score(row("x", verdict=verdict), CompositeReward())
        assert isinstance(each, Scored)
        assert each.reward == value


@pytest.mark.parametrize("value", [None, "8", True, float("nan"), float("inf")])
def test_an_answer_without_its_number_is_a_drop_and_no_zero(value: object) -> None:
    rows = [row("x", name="a", fields={"judge": value}), row("y", name="b"), *judged(1, 2)]
    kept, drops = split(list(mine_pairs(rows, spec())))
    assert [drop.example.id for drop in drops] == ["a", "b"]
    assert all(drop.by == "preference" and "field 'judge'" in drop.reason for drop in drops)
    assert len(kept) == 1


def test_the_three_ways_to_pair() -> None:
    rows = judged(0.0, 1.0, 0.4, 0.95)
    assert pairs_of(rows, spec()) == [("s1", "s0")]
    assert pairs_of(rows, spec(pairs="all", pairs_per_prompt=9)) == [
        ("s1", "s0"), ("s3", "s0"), ("s1", "s2"), ("s3", "s2"), ("s2", "s0")
    ]  # fmt: skip
    assert pairs_of(rows, spec(pairs="all", pairs_per_prompt=2)) == [("s1", "s0"), ("s3", "s0")]
    drawn = {tuple(pairs_of(rows, spec(pairs="best_random"), seed)) for seed in range(30)}
    assert drawn == {(("s1", "s0"),), (("s1", "s2"),)}
    both = pairs_of(rows, spec(pairs="best_random", pairs_per_prompt=5), 3)
    assert sorted(both) == [("s1", "s0"), ("s1", "s2")]


def test_thresholds_of_both_sides() -> None:
    rows = judged(0.0, 0.5, 1.0)
    assert pairs_of(rows, spec(chosen_at_least=0.9, pairs="all", pairs_per_prompt=9)) == [("s2", "s0"), ("s2", "s1")]
    assert pairs_of(rows, spec(rejected_at_most=0.2, pairs="all", pairs_per_prompt=9)) == [("s2", "s0"), ("s1", "s0")]
    (drop,) = mine_pairs(rows, spec(chosen_at_least=1.5))
    assert isinstance(drop, Drop)
    assert "none is at least 1.5" in drop.reason


def test_prompts_without_a_pair_say_why() -> None:
    same = [row("same", "q", "d1", fields={"judge": 1}), row("same", "q", "d2", fields={"judge": 5})]
    rows = [*judged(0.5, 0.5, seed="tie"), *judged(0.5, seed="one"), *same, *judged(0.1, 0.15, seed="near")]
    kept, drops = split(list(mine_pairs(rows, spec())))
    assert not kept
    reasons = [drop.reason for drop in drops]
    assert [reason.split(";")[0] for reason in reasons] == [
        "2 answers with rewards from 0.5 to 0.5: closer than margin = 0.1",
        "one answer with a reward makes no pair",
        "all 2 answers are the same text",
        "2 answers with rewards from 0.1 to 0.15: closer than margin = 0.1",
    ]


def test_a_pair_holds_both_texts_and_where_they_come_from() -> None:
    good = row("good", "q", "g", verdict="correct", provenance=Provenance(teacher="t", requests=("k1",)))
    bad = row("bad", "q", "b", verdict="incorrect", provenance=Provenance(teacher="u", requests=("k2",)))
    (pair,) = mine_pairs([bad, good], PreferenceSpec())
    assert isinstance(pair, Example)
    assert (pair.task, pair.response, pair.fields["rejected"], pair.fields["margin"]) == (
        "preference",
        "good",
        "bad",
        1,
    )
    assert pair.provenance.requests == ("k1", "k2")
    assert pair.fields["rejected_provenance"] == {"teacher": "u", "requests": ["k2"]}
    assert Example.of(pair.row()) == pair


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 6)), max_size=14),
    st.sampled_from(["best_worst", "best_random", "all"]),
    st.integers(1, 4),
    st.integers(0, 99),
)
def test_pairs_keep_their_promises_in_any_order(drawn: list[tuple[str, int]], way: str, most: int, seed: int) -> None:
    rows = [
        row(f"{prompt} {number}", prompt, f"{prompt}{number}", seed=prompt, fields={"judge": value / 10})
        for number, (prompt, value) in enumerate(drawn)
    ]
    wanted = spec(pairs=way, margin=0.2, pairs_per_prompt=most)
    kept, drops = split(list(mine_pairs(rows, wanted, seed)))
    value_of = {each.id: each.fields["judge"] for each in rows}
    for pair in kept:
        chosen, rejected = pair.fields["chosen_id"], pair.fields["rejected_id"]
        assert chosen[0] == rejected[0] == pair.prompt
        assert value_of[chosen] - value_of[rejected] >= 0.2 - 1e-9
        assert pair.fields["margin"] == pytest.approx(value_of[chosen] - value_of[rejected])
    for prompt in {each.prompt for each in rows}:
        values = [each.fields["judge"] for each in rows if each.prompt == prompt]
        count = sum(pair.prompt == prompt for pair in kept)
        possible = max(values) - min(values) >= 0.2 - 1e-9
        assert (1 <= count <= most) if possible else count == 0
        assert sum(drop.example.prompt == prompt for drop in drops) == (not possible)
    mixed = rows[:]
    random.Random(seed).shuffle(mixed)
    again, _ = split(list(mine_pairs(mixed, wanted, seed)))
    assert sorted(each.id for each in again) == sorted(each.id for each in kept)


def test_settings_that_make_no_pair_are_refused() -> None:
    with pytest.raises(ValidationError, match="every weight is 0"):
        CompositeReward(verdict=0)
    with pytest.raises(ValidationError, match=r"set reward\.judge"):
        CompositeReward(fields={"judge": 1})
    with pytest.raises(ValidationError):
        PreferenceSpec(margin=0)
