"""A cross-encoder that says how much a demonstration helps to answer a question (LLM-R, Wang et al., arXiv 2307.07164).

It reads the question with its right answer on one side and the demonstration on the other, and learns the order that a
language model's likelihoods give: with b one of the best demonstrations and W those ranked behind all of the best,

    L = - log( exp s_b / (exp s_b + sum over w in W of exp s_w) ).

Shape legend: Q questions, C candidates of each, B pairs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmdistill.generation.retrieval.dual_encoder import MINI_LM, Ranked
from lmdistill.generation.retrieval.steps import adamw_steps
from lmdistill.models import load_auto, save_model
from lmdistill.packages import resolve_path
from lmdistill.recipe import ModelSpec


def reward_loss(scores_QC: Tensor, rewards_QC: Tensor, best_Q: Tensor, positives: int) -> Tensor:
    """Mean over questions of the cross-entropy of candidate `best_Q` against those that `positives` others outrank.

    `rewards_QC` rank the candidates; -inf is none. Raises ValueError where `best_Q` is not among the best ones.
    """
    rank_QC = rewards_QC.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    if bool((rank_QC.gather(1, best_Q[:, None]) >= positives).any()):
        raise ValueError(f"a better demonstration must be among the {positives} with the highest rewards")
    against_QC = (rank_QC >= positives) & (rewards_QC > -torch.inf)
    against_QC = against_QC.scatter(1, best_Q[:, None], True)
    return F.cross_entropy(scores_QC.masked_fill(~against_QC, -torch.inf), best_Q)


class RewardModel:
    """An encoder with a head that gives one number to a pair of texts."""

    def __init__(self, folder: str | Path = MINI_LM, *, longest: int = 128, seed: int = 0) -> None:
        """A head that the folder lacks is drawn by the seed. Raises ModelError where there is no encoder."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        path = resolve_path(str(folder))
        self.model, _ = load_auto(
            AutoModelForSequenceClassification,
            ModelSpec(model=str(path)),
            dtype=torch.float32,
            device=torch.device("cpu"),
            seed=seed,
            num_labels=1,
        )
        self.tokenizer: Any = AutoTokenizer.from_pretrained(str(path))
        self.longest = longest

    def scores(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
        """The score of each (question with its answer, demonstration), (B,), with gradient where one is wanted."""
        batch = self.tokenizer(
            [one for one, _ in pairs],
            [other for _, other in pairs],
            padding=True,
            truncation="longest_first",
            max_length=2 * self.longest,
            return_tensors="pt",
        )
        found: Tensor = self.model(**batch).logits[:, 0]
        return found

    @torch.inference_mode()
    def judge(self, query: str, candidates: Sequence[str], batch_size: int = 64) -> list[float]:
        """The scores of candidates for one query, without gradient."""
        pairs = [(query, candidate) for candidate in candidates]
        return [
            float(score)
            for at in range(0, len(pairs), batch_size)
            for score in self.scores(pairs[at : at + batch_size])
        ]

    def save(self, folder: Path) -> None:
        """Write it as a folder of safetensors that `RewardModel` reads again."""
        save_model(self.model, self.tokenizer, folder)


def train_reward_model(
    reward: RewardModel,
    examples: Sequence[Ranked],
    *,
    steps: int,
    learning_rate: float,
    positives: int,
    batch_size: int = 4,
    seed: int = 0,
    told: Callable[[int, float], None] = lambda step, loss: None,
) -> list[float]:
    """Train in place with AdamW on questions whose candidates have rewards; the loss of each step.

    Raises ValueError where no question has more than `positives` candidates.
    """
    usable = [one for one in examples if len(one.candidates) > positives]
    if not usable:
        raise ValueError(f"no question has more than {positives} candidates, so that none is worse than another")
    draws = random.Random(seed)

    def loss() -> Tensor:
        return _loss(reward, draws.sample(usable, min(batch_size, len(usable))), positives, draws)

    return adamw_steps(reward.model.parameters(), loss, steps=steps, learning_rate=learning_rate, told=told)


def _loss(reward: RewardModel, examples: Sequence[Ranked], positives: int, draws: random.Random) -> Tensor:
    """The loss of some questions, one of the best demonstrations of each drawn."""
    most = max(len(one.candidates) for one in examples)
    mask_QC = torch.zeros(len(examples), most, dtype=torch.bool)
    rewards_QC = torch.full((len(examples), most), -torch.inf)
    best = []
    for number, one in enumerate(examples):
        mask_QC[number, : len(one.candidates)] = True
        rewards_QC[number, : len(one.scores)] = torch.tensor(one.scores)
        best.append(_best_first(one.scores)[draws.randrange(positives)])
    scores_B = reward.scores([(one.query, candidate) for one in examples for candidate in one.candidates])
    scores_QC = torch.zeros(mask_QC.shape).masked_scatter(mask_QC, scores_B)
    return reward_loss(scores_QC, rewards_QC, torch.tensor(best), positives)


def _best_first(scores: Sequence[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda place: -scores[place])
