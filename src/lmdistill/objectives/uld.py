"""Universal logit distillation: distributions over two vocabularies compared by size alone. Depends on torch alone.

ULD (2402.12030) takes the Wasserstein distance between the two sorted lists of probabilities, the shorter filled up
with zeros: which token is likely does not count, only how likely the likeliest are. Positions are paired from the start
of the answer, whatever they cover, and the longer side's rest is dropped; `pair_positions` makes such pairs. Over
aligned groups instead, it is `gold_loss` without a match.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lmdistill.objectives.alignment import Alignment
from lmdistill.objectives.gold import gold_loss
from lmdistill.objectives.grouped import GroupLoss
from lmdistill.signals.types import DenseSignal, HiddenSignal


def uld_loss(
    student_hidden_NH: Tensor,
    student_head_VH: Tensor,
    teacher: HiddenSignal | DenseSignal,
    pairs: Alignment,
    *,
    temperature: float = 1.0,
    mask_G: Tensor | None = None,
    weight_G: Tensor | None = None,
    num_items: float | Tensor | None = None,
    student_bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
    teacher_vocab_size: int | None = None,
    chunk_tokens: int | None = None,
    compute_dtype: torch.dtype | None = None,
    compiled: bool = True,
) -> GroupLoss:
    """Sum over pairs of sum_i |p_(i) - q_(i)| / num_items, p and q the sorted probabilities (2402.12030).

    The released code adds 1.5 times it to the cross-entropy. `pairs` are groups of one token each: row first - 1 of
    either side holds the distribution. Other arguments as in `gold_loss`. Raises ValueError for a pair of several
    tokens.
    """
    if len(pairs) and not bool(pairs.one_to_one.all()):
        raise ValueError("ULD pairs single positions; make them with pair_positions, or use gold_loss(match=None)")
    return gold_loss(
        student_hidden_NH,
        student_head_VH,
        torch.zeros(len(student_hidden_NH), dtype=torch.long, device=student_hidden_NH.device),
        teacher,
        torch.zeros(len(teacher), dtype=torch.long, device=student_hidden_NH.device),
        pairs,
        None,
        temperature=temperature,
        mask_G=mask_G,
        weight_G=weight_G,
        num_items=num_items,
        student_bias=student_bias,
        logit_scale=logit_scale,
        softcap=softcap,
        vocab_size=vocab_size,
        teacher_vocab_size=teacher_vocab_size,
        chunk_tokens=chunk_tokens,
        compute_dtype=compute_dtype,
        compiled=compiled,
    )
