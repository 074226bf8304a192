"""How far the direction of the student's hidden states lies from the teacher's. Depends on torch alone.

Shape legend: N tokens, n unmasked tokens, H hidden width of both models.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cosine_distance(
    student_hidden_NH: Tensor,
    teacher_hidden_NH: Tensor,
    mask_N: Tensor | None = None,
    num_items: float | Tensor | None = None,
) -> Tensor:
    """Mean of 1 - cos(student, teacher) over unmasked tokens, a scalar with gradient; between 0 and 2.

    DistilBERT (1910.01108, section 3) adds it to align the directions of both models' hidden states. Computed in at
    least float32. A vector of zeros has no direction: its cosine is 0 and its gradient too.

    Args:
        student_hidden_NH, teacher_hidden_NH: hidden states of the same tokens, (N, H); the teacher's get no gradient.
        mask_N: True where a token counts, (N,); all do where absent. What masked rows hold, NaN too, has no effect.
        num_items: what the sum is divided by, for accumulation over micro-batches and ranks; the number of unmasked
            tokens where absent.

    Raises:
        ValueError: shapes that differ, or a mask of another length.
    """
    if student_hidden_NH.ndim != 2 or student_hidden_NH.shape != teacher_hidden_NH.shape:
        raise ValueError(
            f"student hidden states {tuple(student_hidden_NH.shape)} and teacher hidden states "
            f"{tuple(teacher_hidden_NH.shape)} must be (N, H) with the same N and H; a student of another width needs "
            "a projection first"
        )
    if mask_N is not None:
        if mask_N.shape != student_hidden_NH.shape[:1]:
            raise ValueError(f"{len(student_hidden_NH)} tokens but a mask of shape {tuple(mask_N.shape)}")
        kept = mask_N.to(torch.bool)
        student_hidden_NH, teacher_hidden_NH = student_hidden_NH[kept], teacher_hidden_NH[kept]
    cosine_n = (direction(student_hidden_NH) * direction(teacher_hidden_NH.detach())).sum(-1)
    count = num_items if num_items is not None else max(1, len(cosine_n))
    return (1 - cosine_n).sum() / count


def direction(hidden_nH: Tensor) -> Tensor:
    """Rows of length 1; rows of zeros stay zeros, and their gradient is 0 rather than 0 / 0."""
    x_nH = hidden_nH.to(torch.float64 if hidden_nH.dtype == torch.float64 else torch.float32)
    # Scaled by the largest entry first: squares of 1e30 overflow, those of 1e-30 vanish.
    largest_n1 = x_nH.detach().abs().amax(-1, keepdim=True) if x_nH.shape[1] else x_nH.new_ones(len(x_nH), 1)
    zero_n1 = largest_n1 == 0
    x_nH = x_nH / largest_n1.masked_fill(zero_n1, 1.0)
    square_n1 = x_nH.square().sum(-1, keepdim=True)
    return x_nH * torch.where(zero_n1, 0.0, square_n1.masked_fill(zero_n1, 1.0).rsqrt())
