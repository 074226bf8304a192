"""What a prediction rests on: integrated gradients of a model's scores, and the distance between both models' (AD-KD).

Depends on torch alone.

Shape legend: B batch, L length, C classes (views), H embedding width of the student, K of the teacher.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lmdistill.objectives.hints.pieces import exact, wide


def integrated_gradients(
    scores_of: Callable[[Tensor], Tensor], embeddings_BLH: Tensor, *, steps: int = 1, create_graph: bool = False
) -> Tensor:
    """Attributions of each class's score to each embedding entry, (B, C, L, H).

    IG = x * mean over steps k of dF(k / steps x) / dx (1703.01365, eq. 3, whose baseline is the zero vector here),
    by which AD-KD (2305.10010) explains predictions. One step is gradient times input. Each class and step costs a
    backward pass.

    Args:
        scores_of: from embeddings (B, L, H) to scores (B, C); each row's scores depend on its own embeddings alone.
        embeddings_BLH: embeddings of the text; what made them gets no gradient.
        create_graph: whether the attributions are to have a gradient themselves: the student's.

    Raises:
        ValueError: fewer than one step, or scores of another shape.
    """
    if steps < 1:
        raise ValueError(f"steps = {steps}; integrated gradients need at least 1")
    total: Tensor | None = None
    for step in range(1, steps + 1):
        with torch.enable_grad():
            point_BLH = (embeddings_BLH.detach() * (step / steps)).requires_grad_()
            scores_BC = scores_of(point_BLH)
            if scores_BC.ndim != 2 or len(scores_BC) != len(point_BLH):
                raise ValueError(f"scores {tuple(scores_BC.shape)} of {len(point_BLH)} texts; they must be (B, C)")
            sums_C = scores_BC.sum(0)
            last = len(sums_C) - 1
            found = [
                torch.autograd.grad(
                    each, point_BLH, create_graph=create_graph, retain_graph=create_graph or number < last
                )[0]
                for number, each in enumerate(sums_C)
            ]
        gradient_BCLH = torch.stack(found, 1)
        total = gradient_BCLH if total is None else total + gradient_BCLH
    assert total is not None
    return total * embeddings_BLH.detach()[:, None] / steps


def attribution_distance(
    student_BCLH: Tensor, teacher_BCLK: Tensor, mask_BL: Tensor | None = None, *, top: int | None = None
) -> Tensor:
    """||a_T / ||a_T|| - a_S / ||a_S|| ||^2 of attribution maps, mean over rows; a scalar with gradient.

    AD-KD (2305.10010, eq. 2 to 6): a token's attribution is the L2 norm of its `top` largest entries by size, which
    leaves out the noise of the rest; the maps of all classes are put side by side and divided by their length. The
    teacher's map gets no gradient. Widths and `top` of both models need not agree. A map of zeros has no direction
    and counts as zeros; rows without a position that counts are left out.

    Args:
        student_BCLH, teacher_BCLK: attributions, (B, C, L, H) and (B, C, L, K), or without C.
        mask_BL: positions that count, (B, L); all do where absent.
        top: entries of each token that count; all where absent (or where there are fewer).

    Raises:
        ValueError: shapes that differ, or a `top` below 1.
    """
    if student_BCLH.shape[:-1] != teacher_BCLK.shape[:-1] or student_BCLH.ndim not in (3, 4):
        raise ValueError(
            f"attributions of the student {tuple(student_BCLH.shape)} and the teacher {tuple(teacher_BCLK.shape)} must "
            "be of the same rows, classes and positions"
        )
    if top is not None and top < 1:
        raise ValueError(f"top = {top}; at least one entry of each token must count")
    if student_BCLH.ndim == 3:
        student_BCLH, teacher_BCLK = student_BCLH[:, None], teacher_BCLK[:, None]
    mask_BL = torch.ones_like(student_BCLH[:, 0, :, 0], dtype=torch.bool) if mask_BL is None else mask_BL.bool()
    rows_B = mask_BL.any(1)
    with exact(student_BCLH):
        own_bM, other_bM = (
            _map(x_BCLH[rows_B], mask_BL[rows_B], top) for x_BCLH in (student_BCLH, teacher_BCLK.detach())
        )
        return (own_bM - other_bM).square().sum() / max(1, len(own_bM))


def _map(attribution_bCLH: Tensor, mask_bL: Tensor, top: int | None) -> Tensor:
    """One number a class and token, all divided by their length, (b, C * L)."""
    x_bCLH = wide(attribution_bCLH).masked_fill(~mask_bL[:, None, :, None], 0.0)
    square_bCLH = x_bCLH.square()
    if top is not None and top < x_bCLH.shape[-1]:
        square_bCLH = square_bCLH.topk(top, dim=-1).values
    square_bM = square_bCLH.sum(-1).flatten(1)
    # sqrt has no finite slope at 0: tokens without any attribution stay at 0 with a gradient of 0.
    some_bM = square_bM > 0
    norm_bM = torch.where(some_bM, square_bM, 1.0).sqrt() * some_bM
    length_b1 = square_bM.sum(1, keepdim=True)
    return norm_bM * torch.where(length_b1 > 0, length_b1, 1.0).rsqrt()
