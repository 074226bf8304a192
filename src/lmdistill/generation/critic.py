"""A critic of short texts: logistic regression on sentence vectors of a frozen encoder, from a few labelled rows.

West et al. (arXiv 2110.07178) fine-tune RoBERTa on ten thousand labelled triples; with a hundred, a linear model on
frozen vectors is what can be fitted. What it reads of a triple is the vector of the head with its relation, that of the
whole sentence, and their product, so that it can weigh how the two fit.

Shape legend: B rows, D features.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from lmdistill.generation.retrieval.dual_encoder import DualEncoder

PENALTY = 1e-2


@dataclass(frozen=True)
class Point:
    """What a threshold keeps, and how much of it is valid."""

    threshold: float
    kept: float
    """Share of all rows."""
    precision: float
    """Share of the kept that are valid."""


@dataclass(frozen=True)
class Critic:
    """A fitted critic."""

    weight_D: Tensor
    bias: Tensor

    def probabilities(self, features_BD: Tensor) -> list[float]:
        """How likely each row is to be valid."""
        import torch

        return [float(found) for found in torch.sigmoid(features_BD @ self.weight_D + self.bias)]


def triple_features(encoder: DualEncoder, heads: Sequence[str], wholes: Sequence[str]) -> Tensor:
    """What the critic reads of triples, (B, D): the head in the words of its relation, and the whole sentence."""
    import torch
    import torch.nn.functional as F

    head_BH, whole_BH = (F.normalize(encoder.encode(texts), dim=-1) for texts in (heads, wholes))
    return torch.cat([head_BH, whole_BH, head_BH * whole_BH * head_BH.shape[-1]], dim=-1).clone()


def fit_critic(features_BD: Tensor, valid: Sequence[bool], penalty: float = PENALTY) -> Critic:
    """The minimum of mean logistic loss + penalty/2 |weights|^2, by L-BFGS in float64; there is one, and one alone.

    Raises ValueError where all rows are of one kind.
    """
    import torch
    import torch.nn.functional as F

    if len(set(valid)) < 2:
        raise ValueError("a critic needs valid and invalid rows to learn from")
    features_BD = features_BD.double()
    target_B = torch.tensor([float(one) for one in valid], dtype=torch.float64)
    weight_D = torch.zeros(features_BD.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight_D, bias], max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def loss() -> Tensor:
        optimiser.zero_grad()
        found = F.binary_cross_entropy_with_logits(features_BD @ weight_D + bias, target_B)
        found = found + penalty / 2 * weight_D.square().sum()
        found.backward()
        return found

    optimiser.step(loss)
    return Critic(weight_D.detach().float(), bias.detach().float())


def cross_validated(
    features_BD: Tensor, valid: Sequence[bool], groups: Sequence[str], folds: int, seed: int
) -> list[float]:
    """The probability of each row by a critic that saw no row of its group. Raises ValueError for fewer groups than
    folds."""
    names = sorted(set(groups))
    if len(names) < folds:
        raise ValueError(f"{len(names)} heads cannot be parted into {folds} folds; lower generation.triples.folds")
    random.Random(seed).shuffle(names)
    fold_of = {name: number % folds for number, name in enumerate(names)}
    found = [0.0] * len(valid)
    for fold in range(folds):
        inside = [place for place, name in enumerate(groups) if fold_of[name] == fold]
        outside = [place for place, name in enumerate(groups) if fold_of[name] != fold]
        critic = fit_critic(features_BD[outside], [valid[place] for place in outside])
        for place, probability in zip(inside, critic.probabilities(features_BD[inside]), strict=True):
            found[place] = probability
    return found


def precision_curve(probabilities: Sequence[float], valid: Sequence[bool], points: int = 10) -> list[Point]:
    """What thresholds keep and how precise that is: for the best 100 %, 90 %, ... of the rows."""
    order = sorted(range(len(valid)), key=lambda place: -probabilities[place])
    found = []
    for number in range(points, 0, -1):
        best = order[: max(1, round(len(order) * number / points))]
        right = sum(valid[place] for place in best)
        found.append(Point(probabilities[best[-1]], len(best) / len(order), right / len(best)))
    return found
