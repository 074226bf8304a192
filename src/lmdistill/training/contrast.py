"""The two sides of DistiLLM-2's pairs (2503.07067): weights and alphas of the teacher's texts and of the student's.

Shape legend: B batch, L length, N = B * L positions, S sequences (here one a row).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lmdistill.objectives.contrastive import adaptive_alpha, contrastive_weights, curriculum_beta, likelihood_gap
from lmdistill.objectives.segments import to_tokens
from lmdistill.recipe import ContrastiveSpec
from lmdistill.training.groups import IGNORED, next_labels
from lmdistill.training.policy import own_tokens


@dataclass(frozen=True)
class Side:
    """How the tokens of one side count."""

    weight_N: Tensor
    """0 at the other side's tokens."""
    setting_N: Tensor | None
    """alpha of each token's skew divergence; None: the divergence's own."""
    num_items: Tensor | float
    """Pairs of the whole window."""


def sides_of(
    spec: ContrastiveSpec,
    batch: Mapping[str, Any],
    teacher_BL: Tensor | None,
    student_BL: Tensor | None,
    *,
    progress: float,
    num_pairs: Tensor | float | None,
) -> tuple[Side, Side]:
    """The teacher's side and the student's.

    `teacher_BL` and `student_BL` are both models' log-probabilities of the text's tokens, needed where alpha adapts.
    The typical gap that alpha refers to is the mean over the batch's sequences of a side.
    """
    mask_BL = next_labels(batch["labels"]) != IGNORED
    own_S = own_tokens(batch).any(-1)
    beta = curriculum_beta(progress, end=spec.beta_end) if spec.published else 1.0
    weights = contrastive_weights(mask_BL, ~own_S, beta=beta)
    count = num_pairs if num_pairs is not None else max(1, int(own_S.sum()))
    if not spec.published:
        return Side(weights[0].flatten(), None, count), Side(weights[1].flatten(), None, count)
    assert teacher_BL is not None
    assert student_BL is not None
    gap_S = likelihood_gap(teacher_BL, student_BL, mask_BL)
    sides = []
    for sign, of_side_S, weight_BL in ((1.0, ~own_S, weights[0]), (-1.0, own_S, weights[1])):
        chosen_S = sign * gap_S[of_side_S]
        typical = float(chosen_S.mean()) if len(chosen_S) else 0.0
        alpha_S = adaptive_alpha(sign * gap_S, typical, base=spec.alpha)
        sides.append(Side(weight_BL.flatten(), _everywhere(alpha_S, mask_BL), count))
    return sides[0], sides[1]


def _everywhere(alpha_S: Tensor, mask_BL: Tensor) -> Tensor:
    """Each row's alpha at all its positions, (N,): masked ones need a valid value too."""
    return to_tokens(alpha_S, mask_BL.new_ones(mask_BL.shape)).flatten()
