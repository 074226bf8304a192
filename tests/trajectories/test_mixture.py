"""Who answers each prompt, what is replayed, and how long the student may write."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmdistill.data import PromptRow
from lmdistill.recipe import LengthSpec, ReplaySpec, ShareSchedule, TrajectoriesSpec
from lmdistill.trajectories.length import REPEATS, LengthBudget, effective_length
from lmdistill.trajectories.mixture import Mixture
from lmdistill.trajectories.replay import AdaptiveShare, ReplayBuffer
from lmdistill.trajectories.types import Author, Trajectory


def rows(count: int, answers: bool = True, taught: bool = True) -> list[PromptRow]:
    return [
        PromptRow([1, 2], [3, 4] if answers else [], f"row{n}", teacher_answer_ids=[5] if taught else [])
        for n in range(count)
    ]


def spec(**mixture: object) -> TrajectoriesSpec:
    return TrajectoriesSpec.model_validate({"source": "mixture", "mixture": mixture})


def written(ids: list[int], step: int = 0) -> Trajectory:
    return Trajectory([1], ids, [3] * len(ids), [0.0] * len(ids), finished=False, step=step, row_id="r")


@pytest.mark.parametrize(("student", "teacher"), [(0.5, 0.0), (0.25, 0.5), (1.0, 0.0), (0.0, 1.0)])
def test_shares_are_kept_sample_by_sample(student: float, teacher: float) -> None:
    mixture = Mixture(spec(student={"start": student}, teacher={"start": teacher}), seed=0)
    found = Counter(choice.author for step in range(40) for choice in mixture.choose(rows(50), step, progress=0.0))
    assert sum(found.values()) == 2000
    wanted = {Author.STUDENT: student, Author.TEACHER: teacher, Author.DATASET: 1 - student - teacher}
    for author, share in wanted.items():
        assert found[author] / 2000 == pytest.approx(share, abs=0.04)


def test_within_one_window_samples_differ() -> None:
    mixture = Mixture(spec(student={"start": 0.5}), seed=0)
    assert len({choice.author for choice in mixture.choose(rows(64), 0, 0.0)}) == 2


def test_the_same_step_makes_the_same_choice_and_another_seed_another() -> None:
    first, again, other = (Mixture(spec(student={"start": 0.5}), seed) for seed in (0, 0, 1))
    first.choose(rows(50), 3, 0.0)  # what came before does not matter
    picked = [mixture.choose(rows(50), 4, 0.0) for mixture in (first, again, other)]
    assert picked[0] == picked[1] != picked[2]


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.sampled_from(["linear", "cosine"]))
def test_a_schedule_stays_between_its_ends(start: float, end: float, progress: float, shape: str) -> None:
    schedule = ShareSchedule.model_validate({"start": start, "end": end, "shape": shape})
    assert min(start, end) - 1e-9 <= schedule.at(progress) <= max(start, end) + 1e-9
    assert schedule.at(0.0) == pytest.approx(start)
    assert schedule.at(1.0) == pytest.approx(end)


def test_a_row_without_the_answer_that_was_drawn_takes_what_there_is() -> None:
    mixture = Mixture(spec(student={"start": 0.0}, teacher={"start": 0.0}), seed=0)
    assert {c.author for c in mixture.choose(rows(5, answers=False), 0, 0.0)} == {Author.TEACHER}
    assert {c.author for c in mixture.choose(rows(5, answers=False, taught=False), 0, 0.0)} == {Author.STUDENT}


def test_pairs_hold_the_other_text_first_and_leave_out_prompts_without_one() -> None:
    mixture = Mixture(spec(paired=True, teacher={"start": 1.0}), seed=0, samples_per_prompt=2)
    found = mixture.choose([*rows(1), *rows(1, taught=False)], 0, 0.0)
    assert [choice.author for choice in found] == [Author.TEACHER, Author.STUDENT, Author.STUDENT]


def test_adaptive_replay_rises_with_the_loss_alone() -> None:
    share = AdaptiveShare(ReplaySpec(start=0.0, rise=0.1, tolerance=0.1))
    for loss, phi in [(2.0, 0.0), (2.05, 0.0), (2.2, 0.1), (1.0, 0.1), (2.25, 0.1), (2.35, 0.2)]:
        share.heard(loss)
        assert share.phi == pytest.approx(phi)
    assert share.written_anew(0.25) == pytest.approx(0.2 * 0.75)
    again = AdaptiveShare(ReplaySpec())
    again.restore(json.loads(json.dumps(share.state())))
    again.heard(2.5)
    assert again.phi == pytest.approx(0.3)


def test_a_share_of_the_students_samples_comes_from_the_buffer() -> None:
    mixture = Mixture(spec(replay={"start": 0.8}), seed=0)
    found = Counter(
        (choice.author is Author.STUDENT, choice.replayed)
        for step in range(40)
        for choice in mixture.choose(rows(50), step, progress=0.5)
    )
    assert found[True, False] / 2000 == pytest.approx(0.4, abs=0.04)
    assert found[True, True] / 2000 == pytest.approx(0.4, abs=0.04)
    filling = mixture.choose(rows(50), 0, progress=0.5, buffer_full=False)
    assert not any(choice.replayed for choice in filling)
    assert [c.author for c in filling] == [c.author for c in mixture.choose(rows(50), 0, progress=0.5)]


def test_the_buffer_gives_out_fresh_texts_only_and_forgets_the_oldest() -> None:
    buffer = ReplayBuffer(capacity=3, max_staleness=4)
    buffer.add(written([n], step=n) for n in range(5))
    assert len(buffer) == 3
    chance = random.Random(0)
    assert {text.step for text in buffer.draw(50, step=7, chance=chance)} == {3, 4}
    assert buffer.draw(5, step=100, chance=chance) == []
    again = ReplayBuffer(capacity=3, max_staleness=4)
    again.restore(json.loads(json.dumps(buffer.state())))
    assert again.draw(9, 7, random.Random(1)) == buffer.draw(9, 7, random.Random(1))


@given(st.lists(st.integers(0, 3), max_size=30), st.lists(st.integers(4, 9), min_size=1, max_size=8), st.integers(3, 6))
def test_a_repeating_end_counts_once(begin: list[int], piece: list[int], copies: int) -> None:
    found = effective_length([*begin, *piece * copies])
    assert found <= len(begin) + len(piece)
    assert effective_length(begin) <= len(begin)


def test_text_that_does_not_repeat_itself_counts_whole() -> None:
    assert effective_length(list(range(40))) == 40
    assert effective_length([1, 2] * (REPEATS - 1)) == 2 * (REPEATS - 1)
    assert effective_length([]) == 0


def test_the_guard_against_inflation_and_the_effective_budget() -> None:
    assert LengthBudget(LengthSpec(), 128, reference=10.0).limit == 30
    assert LengthBudget(LengthSpec(), 128, reference=None).limit == 128
    assert LengthBudget(LengthSpec(inflation=None), 128, reference=10.0).limit == 128
    budget = LengthBudget(LengthSpec(effective=True, shortest=8, inflation=None), 128, None)
    assert budget.limit == 128
    budget.saw([written([7] * 100)] * 300)
    assert budget.limit == 8
    budget.saw([written(list(range(100)))] * 300)
    assert budget.limit == 125
    again = LengthBudget(LengthSpec(effective=True, shortest=8, inflation=None), 128, None)
    again.restore(json.loads(json.dumps(budget.state())))
    assert again.limit == 125
