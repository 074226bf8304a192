"""MiniLM's relations: which positions of a text are alike, in queries, keys or values. Depends on torch alone.

Shape legend: B batch, L length, A heads, D head size, R relation heads, n positions that count.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lmdistill.objectives.hints.pieces import exact, piecewise_sum, wide


def relation_kl(
    student_BLAD: Tensor,
    teacher_BLAD: Tensor,
    mask_BL: Tensor | None = None,
    *,
    segments_BL: Tensor | None = None,
    relation_heads: int | None = None,
    causal: bool = False,
) -> Tensor:
    """KL(teacher‖student) of self-relations softmax(X X^T / sqrt(d)), mean over positions and heads; with gradient.

    X are queries, keys or values of one layer. MiniLM's value relation (2002.10957, eq. 5 and 6: relation heads are the
    heads) and MiniLMv2's Q-Q, K-K and V-V relations (2012.15828, eq. 5 to 7), where all heads are put side by side and
    cut into R relation heads, so that both models may differ in heads and in width; d is the size of a relation head.
    Published R: 48 for base-sized models, 64 for large ones.

    Args:
        student_BLAD, teacher_BLAD: projections by head, (B, L, A, D); with grouped-query attention keys and values
            repeated for each query head. Before rotary embedding, as the projection returns them.
        mask_BL: positions whose relations count, (B, L); all do where absent.
        segments_BL: the text that each position belongs to, negative for padding; a relation goes to the positions of
            the same text. None: each row is one text.
        relation_heads: R; the teacher's number of heads where absent.
        causal: relations to positions that came before only (and to itself), as a decoder sees; published: to all.

    Raises:
        ValueError: shapes that differ, or widths that R does not divide.
    """
    _check(student_BLAD, teacher_BLAD, mask_BL)
    heads = relation_heads or teacher_BLAD.shape[2]
    B, L = student_BLAD.shape[:2]
    student_ZLD = _relation_heads(student_BLAD, heads, "student", teacher_BLAD)
    teacher_ZLD = _relation_heads(teacher_BLAD.detach(), heads, "teacher", student_BLAD)
    counted_BL = torch.ones(B, L, dtype=torch.bool, device=student_BLAD.device)
    counted_BL = counted_BL if mask_BL is None else mask_BL.to(torch.bool)
    segments_BL = counted_BL.new_zeros(B, L, dtype=torch.long) if segments_BL is None else segments_BL
    before_LL = torch.ones(L, L, dtype=torch.bool, device=student_BLAD.device)
    before_LL = before_LL.tril() if causal else before_LL
    itself_LL = torch.eye(L, dtype=torch.bool, device=student_BLAD.device)

    def divergences(s_zLD: Tensor, t_zLD: Tensor, counted_zL: Tensor, segments_zL: Tensor) -> Tensor:
        seen_zLL = (segments_zL[:, :, None] == segments_zL[:, None]) & (segments_zL >= 0)[:, None] & before_LL
        seen_zLL |= itself_LL  # a row of padding would have nothing to divide by
        log_s_zLL, log_t_zLL = (_relation(wide(x_zLD), counted_zL, seen_zLL) for x_zLD in (s_zLD, t_zLD))
        terms_zL = (log_t_zLL.exp() * (log_t_zLL - log_s_zLL)).sum(-1)
        return torch.where(counted_zL, terms_zL, 0.0).sum()

    with exact(student_BLAD):
        total = piecewise_sum(
            divergences,
            student_ZLD,
            teacher_ZLD,
            counted_BL.repeat_interleave(heads, 0),
            segments_BL.repeat_interleave(heads, 0),
            numbers_a_row=L * L,
        )
    return total / (heads * counted_BL.sum().clamp_min(1))


def _relation(x_zLD: Tensor, counted_zL: Tensor, seen_zLL: Tensor) -> Tensor:
    """Log-probabilities of the relation of each position to those that it sees, (z, L, L)."""
    # Padding may hold NaN; it is neither looked at nor looks, and must not spoil the products of others.
    needed_zL = counted_zL | (seen_zLL & counted_zL[:, :, None]).any(1)
    x_zLD = x_zLD.masked_fill(~needed_zL[..., None], 0.0)
    scores_zLL = x_zLD @ x_zLD.transpose(1, 2) / math.sqrt(x_zLD.shape[-1])
    return scores_zLL.masked_fill(~seen_zLL, -1e4).log_softmax(-1)


def _relation_heads(x_BLAD: Tensor, heads: int, name: str, other_BLAD: Tensor) -> Tensor:
    """All heads side by side, cut into relation heads: (B * R, L, D)."""
    width, other = (math.prod(each.shape[2:]) for each in (x_BLAD, other_BLAD))
    if heads < 1 or width % heads:
        shared = [r for r in range(1, math.gcd(width, other) + 1) if math.gcd(width, other) % r == 0 and r <= 128]
        raise ValueError(
            f"{heads} relation heads do not divide the {name}'s width of {width}; set relation_heads to one of "
            f"{', '.join(map(str, shared))}"
        )
    B, L = x_BLAD.shape[:2]
    return x_BLAD.reshape(B, L, heads, width // heads).transpose(1, 2).flatten(0, 1)


def _check(student_BLAD: Tensor, teacher_BLAD: Tensor, mask_BL: Tensor | None) -> None:
    if student_BLAD.ndim != 4 or teacher_BLAD.ndim != 4 or student_BLAD.shape[:2] != teacher_BLAD.shape[:2]:
        raise ValueError(
            f"projections of the student {tuple(student_BLAD.shape)} and the teacher {tuple(teacher_BLAD.shape)} must "
            "be (B, L, A, D) of the same texts"
        )
    if mask_BL is not None and mask_BL.shape != student_BLAD.shape[:2]:
        raise ValueError(f"projections of {tuple(student_BLAD.shape[:2])} positions but a mask {tuple(mask_BL.shape)}")
