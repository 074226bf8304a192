"""Distributions that intermediate layers would give: each layer's state through the final norm and the head.

Shape legend: N positions, H student hidden, K teacher hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lmdistill.objectives.chunked import distillation_loss
from lmdistill.signals.types import HiddenSignal


def layer_logits(
    student_NH: Tensor,
    head_VH: Tensor,
    teacher: HiddenSignal,
    mask_N: Tensor | None = None,
    *,
    temperature: float = 1.0,
    **engine: Any,
) -> Tensor:
    """Forward KL of what a layer of the student says from what a layer of the teacher says, mean over positions.

    Deep supervision of early exits (1909.10351's prediction-layer loss taken at inner layers; BERxiT, LayerSkip
    2404.16710); both states are taken behind the final norm. Through the loss engine: no tensor of positions times
    vocabulary. Where all positions are masked, loss and gradient are 0.

    Args:
        student_NH: the student's states behind the norm, (N, H); they and the head get gradients.
        head_VH: the student's output head, (V, H).
        teacher: the teacher's states behind its norm and its head.
        mask_N: positions that count, (N,).
        temperature: softens both.
        engine: `student_bias`, `logit_scale`, `softcap`, `vocab_size`, `compute_dtype`, `compiled`, `chunk_tokens` of
            `distillation_loss`.
    """
    count = len(student_NH) if mask_N is None else int(mask_N.sum())
    if count == 0:
        return torch.zeros((), device=student_NH.device) + 0.0 * (student_NH[:0].sum() + head_VH[:0].sum())
    return distillation_loss(
        student_NH,
        head_VH,
        teacher,
        "forward_kl",
        mask_N=mask_N,
        num_items=count,
        temperature=temperature,
        **engine,
    ).loss
