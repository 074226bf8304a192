"""The two sides of DistiLLM-2's pairs (2503.07067): weights and alphas of the teacher's texts and of the student's.

Shape legend: B batch, L length, N = B * L positions, S sequences (here one a row).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmdistill.objectives.contrastive import adaptive_alpha, contrastive_weights, curriculum_beta
from lmdistill.objectives.segments import to_tokens
from lmdistill.recipe import ContrastiveSpec
from lmdistill.training.groups import IGNORED, next_labels
from lmdistill.training.policy import own_tokens

GAPS, TYPICAL = "likelihood_gaps", "typical_gaps"
"""Where a batch of a prepared window holds how much likelier each row is under the teacher, (B,), and the means over
the window of that, at other texts, and of minus that, at the student's, (2,)."""


@dataclass(frozen=True)
class Side:
    """How the tokens of one side count."""

    weight_N: Tensor
    """0 at the other side's tokens."""
    setting_N: Tensor | None
    """alpha of each token's skew divergence; None: the divergence's own."""
    num_items: Tensor | float
    """Pairs of the whole window."""


def typical_gaps(
    batches: Sequence[Mapping[str, Any]],
    gaps: Sequence[Tensor],
    total: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> Tensor:
    """The means that alpha refers to, (2,): see `TYPICAL`.

    `gaps` are (B,) for each batch; `total` sums over all ranks. The publication's mean is over a mini-batch; over the
    whole window, it does not depend on how the window is cut.
    """
    sums_22 = torch.zeros(2, 2, device=gaps[0].device)
    for batch, gap_S in zip(batches, gaps, strict=True):
        own_S, trained_S = _owners(batch)
        for side, (sign, of_side_S) in enumerate(((1.0, ~own_S), (-1.0, own_S))):
            chosen_S = of_side_S & trained_S
            sums_22[side] += torch.stack([(sign * gap_S[chosen_S]).sum(), chosen_S.sum()])
    sums_22 = total(sums_22)
    return sums_22[:, 0] / sums_22[:, 1].clamp_min(1)


def sides_of(
    spec: ContrastiveSpec,
    batch: Mapping[str, Any],
    gap_S: Tensor | None,
    typical_2: Tensor | None,
    *,
    progress: float,
    num_pairs: Tensor | float | None,
) -> tuple[Side, Side]:
    """The teacher's side and the student's.

    `gap_S` says how much likelier each row is under the teacher, `typical_2` what is usual; both are needed where alpha
    adapts.
    """
    mask_BL = next_labels(batch["labels"]) != IGNORED
    own_S, _ = _owners(batch)
    beta = curriculum_beta(progress, end=spec.beta_end) if spec.published else 1.0
    weights = contrastive_weights(mask_BL, ~own_S, beta=beta)
    count = num_pairs if num_pairs is not None else max(1, int(own_S.sum()))
    if not spec.published:
        return Side(weights[0].flatten(), None, count), Side(weights[1].flatten(), None, count)
    assert gap_S is not None
    assert typical_2 is not None
    sides = []
    for sign, typical, weight_BL in zip((1.0, -1.0), typical_2.tolist(), weights, strict=True):
        alpha_S = adaptive_alpha(sign * gap_S, typical, base=spec.alpha)
        sides.append(Side(weight_BL.flatten(), _everywhere(alpha_S, mask_BL), count))
    return sides[0], sides[1]


def _owners(batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Whether the student wrote each row, and whether anything in it is trained, (B,) each."""
    return own_tokens(batch).any(-1), (next_labels(batch["labels"]) != IGNORED).any(-1)


def _everywhere(alpha_S: Tensor, mask_BL: Tensor) -> Tensor:
    """Each row's alpha at all its positions, (N,): masked ones need a valid value too."""
    return to_tokens(alpha_S, mask_BL.new_ones(mask_BL.shape)).flatten()
