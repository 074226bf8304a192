"""Distances between attention maps. Depends on torch alone.

All take the scores before the softmax, with the mask added as models add it (blocked entries hold a very negative
number); what is a distance between probabilities takes the softmax in float32 itself, without dropout. Only the rows of
queries that count are looked at; where all are masked, loss and gradient are 0.

Shape legend: B batch, A heads, L length (queries and keys), n queries that count.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from lmdistill.objectives.hints.pieces import exact, piecewise_sum, wide

BLOCKED = -100.0
"""Scores at or below this are taken to be masked, as in TinyBERT's code."""

Heads = Literal["each", "mean"]


def attention_scores_mse(
    student_BALL: Tensor,
    teacher_BALL: Tensor,
    mask_BL: Tensor | None = None,
    *,
    reduction: Literal["published", "visible"] = "published",
    heads: Heads = "each",
) -> Tensor:
    """Mean squared difference of scores before the softmax, a scalar with gradient.

    TinyBERT (1909.10351, eq. 7). As in its code, scores at or below -100 are set to 0 in either model and all keys
    count in the mean (`reduction: published`), so that a long padding, or the half that a causal mask hides, makes the
    value smaller; `visible` averages over the keys that both models see. The code averages over queries that are
    padding too; here they do not count.

    Args:
        student_BALL, teacher_BALL: scores with the mask added, (B, A, L, L).
        mask_BL: queries that count, (B, L); all do where absent.
        heads: compare head with head, or the means over heads, which may then differ in number.

    Raises:
        ValueError: shapes that differ, another number of heads with `each`.
    """
    if reduction not in ("published", "visible"):
        raise ValueError(f"reduction = {reduction!r}; it is published or visible")

    def squares(student_nAL: Tensor, teacher_nAL: Tensor) -> Tensor:
        hidden_s, hidden_t = student_nAL <= BLOCKED, teacher_nAL <= BLOCKED
        student_nAL, teacher_nAL = student_nAL.masked_fill(hidden_s, 0.0), teacher_nAL.masked_fill(hidden_t, 0.0)
        if heads == "mean":
            student_nAL, teacher_nAL = student_nAL.mean(1, keepdim=True), teacher_nAL.mean(1, keepdim=True)
            hidden_s, hidden_t = hidden_s.all(1, keepdim=True), hidden_t.all(1, keepdim=True)
        squares_nAL = (student_nAL - teacher_nAL).square()
        if reduction == "published":
            return squares_nAL.mean((1, 2)).sum()
        seen_nAL = ~(hidden_s | hidden_t)
        count_n = seen_nAL.sum((1, 2)).clamp_min(1)
        return ((squares_nAL * seen_nAL).sum((1, 2)) / count_n).sum()

    return _by_query(squares, student_BALL, teacher_BALL, mask_BL, heads)


def attention_mse(
    student_BALL: Tensor, teacher_BALL: Tensor, mask_BL: Tensor | None = None, *, heads: Heads = "each"
) -> Tensor:
    """Squared difference of attention probabilities, summed over keys, mean over queries and heads; with gradient.

    The distance of TinyBERT's ablation and of TextBrewer's `attention_mse` with normalised maps; a mean over keys
    would vanish with their number. See `attention_scores_mse` for arguments and errors.
    """

    def squares(student_nAL: Tensor, teacher_nAL: Tensor) -> Tensor:
        student_nAL, teacher_nAL = _logs(student_nAL, heads).exp(), _logs(teacher_nAL, heads).exp()
        return (student_nAL - teacher_nAL).square().sum(-1).mean(1).sum()

    return _by_query(squares, student_BALL, teacher_BALL, mask_BL, heads)


def attention_kl(
    student_BALL: Tensor, teacher_BALL: Tensor, mask_BL: Tensor | None = None, *, heads: Heads = "each"
) -> Tensor:
    """KL(teacher‖student) of attention distributions, mean over queries and heads; a scalar with gradient.

    MiniLM's attention term (2002.10957, eq. 4) and MobileBERT's attention transfer (2004.02984, eq. 2). See
    `attention_scores_mse` for arguments and errors.
    """

    def divergences(student_nAL: Tensor, teacher_nAL: Tensor) -> Tensor:
        log_s_nAL, log_t_nAL = _logs(student_nAL, heads), _logs(teacher_nAL, heads)
        return (log_t_nAL.exp() * (log_t_nAL - log_s_nAL)).sum(-1).mean(1).sum()

    return _by_query(divergences, student_BALL, teacher_BALL, mask_BL, heads)


_FLOOR = -1e4
"""Stands for a masked score: its exponential is 0 in every format and its differences are finite."""


def _logs(scores_nAL: Tensor, heads: Heads) -> Tensor:
    """Log-probabilities over the keys; over the mean distribution of all heads where asked."""
    # A score is masked by what models add (half of the smallest number, or infinity), not by being small.
    masked_nAL = scores_nAL <= torch.finfo(torch.float16).min / 2
    logs_nAL = scores_nAL.masked_fill(masked_nAL, _FLOOR).log_softmax(-1)
    if heads == "mean":
        logs_nAL = logs_nAL.logsumexp(1, keepdim=True) - math.log(scores_nAL.shape[1])
    return logs_nAL


def _by_query(
    distances: Callable[[Tensor, Tensor], Tensor],
    student_BALL: Tensor,
    teacher_BALL: Tensor,
    mask_BL: Tensor | None,
    heads: Heads,
) -> Tensor:
    """The mean over queries of `distances`, which sums over those that it is given, (n, A, L) each."""
    if heads not in ("each", "mean"):
        raise ValueError(f"heads = {heads!r}; compare each head, or the mean over heads")
    shapes = [tuple(scores.shape) for scores in (student_BALL, teacher_BALL)]
    if student_BALL.ndim != 4 or shapes[0][2:] != shapes[1][2:] or shapes[0][0] != shapes[1][0]:
        raise ValueError(f"attention maps of the student {shapes[0]} and the teacher {shapes[1]}: not the same texts")
    if heads == "each" and shapes[0][1] != shapes[1][1]:
        raise ValueError(
            f"{shapes[0][1]} heads of the student but {shapes[1][1]} of the teacher: set heads: mean, or compare "
            "query_relation and value_relation, which any number of heads allows"
        )
    student_BLAL, teacher_BLAL = student_BALL.transpose(1, 2), teacher_BALL.detach().transpose(1, 2)
    if mask_BL is not None:
        if mask_BL.shape != student_BLAL.shape[:2]:
            raise ValueError(f"attention of {tuple(student_BLAL.shape[:2])} queries but a mask {tuple(mask_BL.shape)}")
        kept_BL = mask_BL.to(torch.bool)
        student_nAL, teacher_nAL = student_BLAL[kept_BL], teacher_BLAL[kept_BL]
    else:
        student_nAL, teacher_nAL = student_BLAL.flatten(0, 1), teacher_BLAL.flatten(0, 1)
    with exact(student_nAL):
        total = piecewise_sum(
            lambda s_nAL, t_nAL: distances(wide(s_nAL), wide(t_nAL)),
            student_nAL,
            teacher_nAL,
            numbers_a_row=max(shapes[0][1], shapes[1][1]) * shapes[0][3],
        )
    return total / max(1, len(student_nAL))
