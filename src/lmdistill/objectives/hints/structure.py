"""Distances between what vectors are to each other: Gram matrices, flows, CKA, relations, contrast. Torch alone.

Those over many positions at once (`cka`, `rkd_*`, `contrastive`) take at most `rows` of the masked positions, evenly
spaced, since their cost grows with the square or the cube of the number. Where too few positions count for a distance
to be defined, loss and gradient are 0.

Shape legend: B batch, L length, H width of the student, K of the teacher, n positions that count, m of them taken.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lmdistill.objectives.hints.cosine import direction
from lmdistill.objectives.hints.hidden import selected
from lmdistill.objectives.hints.pieces import exact, piecewise_sum, wide


def gram(student_BLH: Tensor, teacher_BLH: Tensor, mask_BL: Tensor | None = None) -> Tensor:
    """Mean squared difference of X^T X / n of each row, which of a width's channels go together; with gradient.

    Style matrices (1508.06576) and TextBrewer's gram of one layer. Rows without a position that counts are left out.

    Args:
        student_BLH, teacher_BLH: vectors of the same positions, (B, L, H).
        mask_BL: positions that count, (B, L); all do where absent.

    Raises:
        ValueError: shapes that differ.
    """
    return fsp((student_BLH, student_BLH), (teacher_BLH, teacher_BLH), mask_BL)


def fsp(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], mask_BL: Tensor | None = None) -> Tensor:
    """Mean squared difference of the flows X1^T X2 / n from one layer to a later one, row by row; with gradient.

    FSP (Yim 2017, CVPR, eq. 1 and 2). Each pair holds the vectors of two layers, (B, L, H) and (B, L, H'). See `gram`.
    """
    for student_BLH, teacher_BLH in zip(student, teacher, strict=True):
        selected(student_BLH, teacher_BLH, mask_BL)  # checks the shapes
    mask_BL = torch.ones_like(student[0][..., 0], dtype=torch.bool) if mask_BL is None else mask_BL.to(torch.bool)
    rows_B = mask_BL.any(1)
    mask_bL = mask_BL[rows_B]
    first_bLH, second_bLH = (_only(x[rows_B], mask_bL) for x in student)
    with exact(first_bLH):
        return piecewise_sum(
            lambda pair_bLH, *others: _flow_difference(pair_bLH, *others, split=first_bLH.shape[-1]),
            torch.cat([first_bLH, second_bLH], -1),
            *(_only(x.detach()[rows_B], mask_bL) for x in teacher),
            mask_bL.sum(1),
            numbers_a_row=first_bLH.shape[-1] * second_bLH.shape[-1],
        ) / max(1, len(mask_bL))


def similarity(student_BLH: Tensor, teacher_BLK: Tensor, mask_BL: Tensor | None = None) -> Tensor:
    """Mean squared difference of X X^T / width of each row, which of its positions are alike; with gradient.

    TextBrewer's `mmd` (after NST, 1707.01219, with the kernel (x y)^1) and similarity-preserving distillation
    (1907.09682) within a text. Widths may differ. The mean is over pairs of positions that count.
    """
    selected(student_BLH, teacher_BLK, mask_BL, same_width=False)
    mask_BL = torch.ones_like(student_BLH[..., 0], dtype=torch.bool) if mask_BL is None else mask_BL.to(torch.bool)
    rows_B = mask_BL.any(1)
    mask_bL = mask_BL[rows_B]

    def squares(s_bLH: Tensor, t_bLK: Tensor, count_b: Tensor) -> Tensor:
        alike = [wide(x) @ wide(x).transpose(1, 2) / x.shape[-1] for x in (s_bLH, t_bLK)]
        return ((alike[0] - alike[1]).square().sum((1, 2)) / count_b.square()).sum()

    with exact(student_BLH):
        return piecewise_sum(
            squares,
            _only(student_BLH[rows_B], mask_bL),
            _only(teacher_BLK.detach()[rows_B], mask_bL),
            mask_bL.sum(1),
            numbers_a_row=mask_bL.shape[1] ** 2,
        ) / max(1, len(mask_bL))


def cka(student_H: Tensor, teacher_K: Tensor, mask: Tensor | None = None, *, rows: int = 4096) -> Tensor:
    """1 - linear CKA of both sets of vectors, between 0 and 1; a scalar with gradient.

    CKA = ||X^T Y||_F^2 / (||X^T X||_F ||Y^T Y||_F), both centred (Kornblith 2019, 1905.00414, eq. 4); any widths.
    Undefined, and 0 here, for fewer than two positions or where a model says the same at all of them.
    """
    student_mH, teacher_mK = _spread(*selected(student_H, teacher_K, mask, same_width=False), rows)
    nothing = student_mH.sum() * 0.0
    if len(student_mH) < 2:
        return wide(nothing)
    with exact(student_mH):
        student_mH, teacher_mK = _centred(student_mH), _centred(teacher_mK)
        both, own, other = (_cross(a, b) for a, b in _pairs(student_mH, teacher_mK))
        if not bool((own > 0) & (other > 0)):
            return wide(nothing)
        return 1 - both / (own * other).sqrt()


def rkd_distance(student_H: Tensor, teacher_K: Tensor, mask: Tensor | None = None, *, rows: int = 256) -> Tensor:
    """Huber distance between all distances of pairs, each model's divided by their mean; with gradient.

    RKD-D (1904.05068, eq. 5 to 8); as in the released code the mean is over all m^2 pairs, a point with itself too, and
    the scale over those with a distance above 0. Any widths. The student's scale gets a gradient, as there.
    """
    student_mH, teacher_mK = _spread(*selected(student_H, teacher_K, mask, same_width=False), rows)
    if len(student_mH) < 2:
        return wide(student_mH.sum() * 0.0)
    with exact(student_mH):
        student_mm, teacher_mm = _distances(wide(student_mH)), _distances(wide(teacher_mK))
        return F.smooth_l1_loss(student_mm, teacher_mm)


def rkd_angle(student_H: Tensor, teacher_K: Tensor, mask: Tensor | None = None, *, rows: int = 64) -> Tensor:
    """Huber distance between the cosines of all angles that triples of points make; with gradient.

    RKD-A (1904.05068, eq. 9 to 11); as in the released code the mean is over all m^3 triples. Any widths.
    """
    student_mH, teacher_mK = _spread(*selected(student_H, teacher_K, mask, same_width=False), rows)
    if len(student_mH) < 2:
        return wide(student_mH.sum() * 0.0)
    with exact(student_mH):
        return F.smooth_l1_loss(_angles(wide(student_mH)), _angles(wide(teacher_mK)))


def contrastive(
    student_H: Tensor,
    teacher_H: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 0.07,
    rows: int = 1024,
) -> Tensor:
    """-log of the share of the teacher's vector of the same position among those of all, by cosine; with gradient.

    InfoNCE between both models: CRD (1910.10699) with the other positions of the batch for negatives in place of its
    memory bank and noise-contrastive estimate (temperature 0.07 as there). Equal widths, or a projector.

    Raises:
        ValueError: a temperature that is not above 0, shapes that differ.
    """
    if not temperature > 0:
        raise ValueError(f"temperature = {temperature} must be above 0")
    student_mH, teacher_mH = _spread(*selected(student_H, teacher_H, mask), rows)
    with exact(student_mH):
        keys_mH = direction(teacher_mH)

        def surprise(s_mH: Tensor, places_m: Tensor) -> Tensor:
            return F.cross_entropy(direction(s_mH) @ keys_mH.t() / temperature, places_m, reduction="sum")

        places_m = torch.arange(len(student_mH), device=student_mH.device)
        if not len(student_mH):
            return wide(student_mH.sum() * 0.0)
        total = piecewise_sum(surprise, student_mH, places_m, numbers_a_row=len(student_mH))
    return total / len(student_mH)


def linear_cka(x_nH: Tensor, y_nK: Tensor) -> Tensor:
    """Linear CKA of two sets of vectors of the same n >= 2 things, a scalar; 0 where one of them never varies."""
    return 1 - cka(x_nH, y_nK, rows=len(x_nH)) if _varies(x_nH) and _varies(y_nK) else x_nH.new_zeros(())


def _flow_difference(pair_bLH: Tensor, first_bLH: Tensor, second_bLH: Tensor, count_b: Tensor, *, split: int) -> Tensor:
    own = (pair_bLH[..., :split], pair_bLH[..., split:])
    flows = [wide(a).transpose(1, 2) @ wide(b) / count_b[:, None, None] for a, b in (own, (first_bLH, second_bLH))]
    return (flows[0] - flows[1]).square().mean((1, 2)).sum()


def _only(x_bLH: Tensor, mask_bL: Tensor) -> Tensor:
    """Zeros where a position does not count."""
    return x_bLH.masked_fill(~mask_bL[..., None], 0.0)


def _spread(student_nH: Tensor, teacher_nK: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """At most so many rows of both, evenly spaced. Raises ValueError for fewer than one."""
    if rows < 1:
        raise ValueError(f"rows = {rows} must be at least 1")
    count = len(student_nH)
    if count <= rows:
        return student_nH, teacher_nK
    places_m = torch.arange(rows, device=student_nH.device) * count // rows
    return student_nH[places_m], teacher_nK[places_m]


def _centred(x_mH: Tensor) -> Tensor:
    """Minus the mean, and scaled to a largest entry of 1: CKA does not see the scale, and fourth powers overflow."""
    x_mH = wide(x_mH)
    x_mH = x_mH - x_mH.mean(0)
    largest = x_mH.detach().abs().amax()
    return x_mH / torch.where(largest > 0, largest, 1.0)


def _pairs(x_mH: Tensor, y_mK: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    return (x_mH, y_mK), (x_mH, x_mH), (y_mK, y_mK)


def _cross(x_mH: Tensor, y_mK: Tensor) -> Tensor:
    """||X^T Y||_F^2, by whichever products are smaller."""
    if x_mH.shape[1] * y_mK.shape[1] <= len(x_mH) ** 2:
        return (x_mH.t() @ y_mK).square().sum()
    return ((x_mH @ x_mH.t()) * (y_mK @ y_mK.t())).sum()


def _varies(x_nH: Tensor) -> bool:
    return len(x_nH) > 1 and bool((x_nH != x_nH[:1]).any())


def _distances(x_mH: Tensor) -> Tensor:
    """Distances of all pairs, divided by their mean over pairs that are apart; the gradient of a distance of 0 is 0."""
    square_m = x_mH.square().sum(1)
    square_mm = (square_m[:, None] + square_m[None] - 2 * x_mH @ x_mH.t()).clamp_min(0)
    # A point is at distance 0 of itself whatever rounding says.
    apart_mm = (square_mm > 1e-12 * square_m.detach().amax()) & ~torch.eye(len(x_mH), dtype=torch.bool).to(x_mH.device)
    distance_mm = torch.where(apart_mm, square_mm, 1.0).sqrt() * apart_mm
    return distance_mm / torch.where(apart_mm.any(), distance_mm.sum() / apart_mm.sum().clamp_min(1), 1.0)


def _angles(x_mH: Tensor) -> Tensor:
    """Cosines of the angles at each point to each two others, (m, m, m); 0 where two of them coincide."""
    towards_mmH = direction((x_mH[None] - x_mH[:, None]).flatten(0, 1)).view(len(x_mH), len(x_mH), -1)
    return towards_mmH @ towards_mmH.transpose(1, 2)
