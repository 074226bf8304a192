"""Preferences between pairs of answers, from log-probabilities of whole sequences. Depends on torch alone.

    chosen_P, rejected_P = sequence_logprobs(token_logprobs(...).view(B, L), mask_BL, segments_BL)[pairs]

Shape legend: B batch, L length, S sequences, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lmdistill.objectives.segments import segment_lengths, segment_sums


def sequence_logprobs(
    logprobs_BL: Tensor, mask_BL: Tensor, segments_BL: Tensor | None = None, *, mean: bool = False
) -> Tensor:
    """log q(y) of each sequence, (S,), with gradient; `mean` divides by its number of unmasked tokens."""
    sums_S = segment_sums(logprobs_BL, mask_BL, segments_BL)
    return sums_S / segment_lengths(mask_BL, segments_BL).clamp_min(1) if mean else sums_S


@dataclass(frozen=True)
class PreferenceParts:
    """A preference loss and what to watch of it."""

    loss: Tensor
    """Scalar with gradient."""
    accuracy: Tensor
    """Share of the weight on pairs whose chosen answer is ahead; scalar without gradient."""
    margin: Tensor
    """Mean of beta times the lead; scalar without gradient."""
    pair_loss_P: Tensor
    """What each pair added before normalisation, without gradient."""


def preference_loss(
    chosen_P: Tensor,
    rejected_P: Tensor,
    reference_chosen_P: Tensor | None = None,
    reference_rejected_P: Tensor | None = None,
    *,
    beta: float = 0.1,
    form: Literal["sigmoid", "ipo"] = "sigmoid",
    label_smoothing: float = 0.0,
    target_margin: float = 0.0,
    weight_P: Tensor | None = None,
    num_items: float | Tensor | None = None,
) -> PreferenceParts:
    """How far the student's preference between two answers is from that of the data.

    With the lead h = (log q(y_w) - log q(y_l)) - (log ref(y_w) - log ref(y_l)):

        sigmoid   -(1 - e) log sigma(beta h - m) - e log sigma(m - beta h)    DPO 2305.18290, eq. 7
        ipo       (h - 1 / (2 beta))²    IPO 2310.12036, eq. 17

    e = `label_smoothing` (conservative DPO), m = `target_margin`. With the teacher for a reference, y_w its answer and
    y_l the student's, `sigmoid` is DPKD (2406.19774). Without a reference, on mean log-probabilities, it is SimPO
    (2405.14734; beta 2, margin 1).

    Args:
        chosen_P, rejected_P: the student's log-probabilities, summed or averaged over tokens, (P,), with gradient.
        reference_chosen_P, reference_rejected_P: the same of the reference; held fixed.
        weight_P: factor of each pair.
        num_items: what the sum is divided by; the number of pairs where absent.

    Raises:
        ValueError: shapes that do not fit, half a reference, or settings out of their range.
    """
    _check(chosen_P, rejected_P, reference_chosen_P, reference_rejected_P, weight_P, beta, label_smoothing)
    lead_P = chosen_P - rejected_P
    if reference_chosen_P is not None and reference_rejected_P is not None:
        lead_P = lead_P - (reference_chosen_P - reference_rejected_P).detach()
    if form == "ipo":
        cost_P = (lead_P - 1 / (2 * beta)).square()
    else:
        logits_P = beta * lead_P - target_margin
        cost_P = -(1 - label_smoothing) * F.logsigmoid(logits_P) - label_smoothing * F.logsigmoid(-logits_P)
    weight_P = torch.ones_like(cost_P) if weight_P is None else weight_P.detach().to(cost_P.dtype)
    cost_P = cost_P * weight_P
    total = weight_P.sum().clamp_min(torch.finfo(cost_P.dtype).tiny)
    return PreferenceParts(
        loss=cost_P.sum() / (max(1, len(cost_P)) if num_items is None else num_items),
        accuracy=((lead_P > 0) * weight_P).detach().sum() / total,
        margin=(beta * lead_P * weight_P).detach().sum() / total,
        pair_loss_P=cost_P.detach(),
    )


def _check(
    chosen_P: Tensor,
    rejected_P: Tensor,
    reference_chosen_P: Tensor | None,
    reference_rejected_P: Tensor | None,
    weight_P: Tensor | None,
    beta: float,
    label_smoothing: float,
) -> None:
    rows = {
        "rejected_P": rejected_P,
        "reference_chosen_P": reference_chosen_P,
        "reference_rejected_P": reference_rejected_P,
        "weight_P": weight_P,
    }
    for name, values in rows.items():
        if values is not None and values.shape != chosen_P.shape:
            raise ValueError(
                f"{len(chosen_P)} chosen answers but {name} has shape {tuple(values.shape)}; they go in pairs"
            )
    if (reference_chosen_P is None) != (reference_rejected_P is None):
        raise ValueError(
            "a reference speaks of both answers: give reference_chosen_P and reference_rejected_P, or neither"
        )
    if not beta > 0:
        raise ValueError(f"beta = {beta} must be above 0")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing = {label_smoothing} must lie from 0 to below 0.5, where pairs say nothing")
