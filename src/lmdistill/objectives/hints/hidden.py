"""Distances between vectors of both models, position by position: each is a mean over the masked positions.

All take vectors of any leading shape and a mask of that shape, compute in at least float32 without autocast, and give
no gradient to the teacher. What masked positions hold, NaN too, has no effect; where all are masked, loss and gradient
are 0. Depends on torch alone.

Shape legend: `...` positions, n positions that count, H width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from lmdistill.objectives.hints.cosine import direction
from lmdistill.objectives.hints.pieces import exact, piecewise_sum, wide

Reduction = Literal["mean", "sum"]


def hidden_mse(
    student_H: Tensor, teacher_H: Tensor, mask: Tensor | None = None, *, reduction: Reduction = "mean"
) -> Tensor:
    """Mean squared difference: mean over positions of (1 / H) ||s - t||^2, a scalar with gradient.

    TinyBERT (1909.10351, eq. 8 and 9), FitNets. `reduction: sum` leaves out 1 / H (the squared length). TinyBERT's code
    averages over padding too; here it does not count.

    Args:
        student_H, teacher_H: vectors of the same positions, (..., H).
        mask: True where a position counts, (...); all do where absent.
        reduction: what becomes of the H numbers of a position.

    Raises:
        ValueError: shapes that differ, or a mask of another shape.
    """
    return _by_row(_squares, student_H, teacher_H, mask, reduction)


def hidden_cosine(student_H: Tensor, teacher_H: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of 1 - cos(s, t), as DistilBERT's (1910.01108); see `hidden_mse` for arguments and errors."""
    return _by_row(_cosines, student_H, teacher_H, mask, "sum")


def hidden_normalised_mse(
    student_H: Tensor, teacher_H: Tensor, mask: Tensor | None = None, *, reduction: Reduction = "mean"
) -> Tensor:
    """Squared difference of directions, ||s / ||s|| - t / ||t|| ||^2, a scalar with gradient.

    PKD (1908.09355, eq. 7). The equation sums over the width (`reduction: sum`); the released code averages, so that
    its values are 1 / H of it, and the published weights (10 to 1000) belong to that: it is the default. The code
    also casts to half precision, which is left out. A vector of zeros has no direction and counts as zeros.
    See `hidden_mse` for arguments and errors.
    """
    return _by_row(_direction_squares, student_H, teacher_H, mask, reduction)


def hidden_residual_mse(
    student_H: Tensor, teacher_H: Tensor, mask: Tensor | None = None, *, reduction: Reduction = "mean"
) -> Tensor:
    """Squared difference relative to the teacher's length, ||s - t||^2 / ||t||^2, a scalar with gradient.

    FLRT (2407.17447): a distance on the residual stream that early and late layers, whose lengths differ by orders of
    magnitude, may share. The mean over the width is the published one. Where the teacher's vector is all zeros there is
    nothing to be relative to: such positions add 0. See `hidden_mse` for arguments and errors.
    """
    return _by_row(_relative_squares, student_H, teacher_H, mask, reduction)


def selected(
    student_H: Tensor, teacher_H: Tensor, mask: Tensor | None, *, same_width: bool = True
) -> tuple[Tensor, Tensor]:
    """The vectors that count, (n, H) each; the teacher's without gradient. Raises ValueError for shapes that differ."""
    same = student_H.shape == teacher_H.shape if same_width else student_H.shape[:-1] == teacher_H.shape[:-1]
    if student_H.ndim < 2 or not same:
        raise ValueError(
            f"the student's vectors {tuple(student_H.shape)} and the teacher's {tuple(teacher_H.shape)} must be of the "
            f"same positions{' and width; another width needs a projector' if same_width else ''}"
        )
    if mask is None:
        return student_H.flatten(0, -2), teacher_H.detach().flatten(0, -2)
    if mask.shape != student_H.shape[:-1]:
        raise ValueError(f"vectors at {tuple(student_H.shape[:-1])} positions but a mask of {tuple(mask.shape)}")
    kept = mask.to(torch.bool)
    return student_H[kept], teacher_H.detach()[kept]


def _by_row(
    distances: Callable[[Tensor, Tensor], Tensor],
    student_H: Tensor,
    teacher_H: Tensor,
    mask: Tensor | None,
    reduction: Reduction,
) -> Tensor:
    """The mean over positions of what `distances` makes of each, over the width where the reduction says so."""
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction = {reduction!r}; it is mean or sum, over the width of a vector")
    student_nH, teacher_nH = selected(student_H, teacher_H, mask)
    width = student_nH.shape[1]
    with exact(student_nH):
        total = piecewise_sum(
            lambda s_nH, t_nH: distances(wide(s_nH), wide(t_nH)).sum(), student_nH, teacher_nH, numbers_a_row=width
        )
    return total / (max(1, len(student_nH)) * (width if reduction == "mean" else 1))


def _squares(student_nH: Tensor, teacher_nH: Tensor) -> Tensor:
    return (student_nH - teacher_nH).square()


def _cosines(student_nH: Tensor, teacher_nH: Tensor) -> Tensor:
    return 1 - (direction(student_nH) * direction(teacher_nH)).sum(-1)


def _direction_squares(student_nH: Tensor, teacher_nH: Tensor) -> Tensor:
    return (direction(student_nH) - direction(teacher_nH)).square()


def _relative_squares(student_nH: Tensor, teacher_nH: Tensor) -> Tensor:
    length_n1 = teacher_nH.square().sum(-1, keepdim=True)
    # The two factors one after the other: the square of a short vector may be 0 in float32.
    scale_n1 = torch.where(length_n1 > 0, length_n1, 1.0).rsqrt() * (length_n1 > 0)
    return ((student_nH - teacher_nH) * scale_n1).square()
