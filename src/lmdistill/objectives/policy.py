"""Policy gradient over sampled tokens, in one projection of the student. Depends on torch alone.

Shape legend: N tokens, V vocabulary, H hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lmdistill.objectives.chunked import LossParts, distillation_loss
from lmdistill.objectives.surrogate import ClipMode, PolicyTerm


def policy_loss(
    student_hidden_NH: Tensor,
    student_head_VH: Tensor,
    ids_N: Tensor,
    advantages_N: Tensor,
    *,
    old_logprobs_N: Tensor | None = None,
    importance_N: Tensor | None = None,
    clip: ClipMode = "ratio",
    low: float = 0.8,
    high: float = 1.2,
    reference_logprobs_N: Tensor | None = None,
    reference_weight: float = 0.0,
    temperature: float = 1.0,
    mask_N: Tensor | None = None,
    weight_N: Tensor | None = None,
    num_items: float | Tensor | None = None,
    student_bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
    chunk_tokens: int | None = None,
    compute_dtype: torch.dtype | None = None,
    compiled: bool = True,
) -> LossParts:
    """The clipped, importance-weighted policy gradient of sampled tokens; `PolicyTerm` says what each clip costs.

    Args:
        ids_N: the sampled tokens, (N,); position n of the hidden states predicts ids_N[n].
        advantages_N: how much better each was than expected, (N,); held fixed. See `lmdistill.objectives.advantages`.
        old_logprobs_N: log q_old(y) of the student that made the advantages, at the same `temperature`; None where it
            is the present one, whose ratio is 1.
        importance_N: w, for text that was not drawn from q_old.
        clip, low, high, reference_logprobs_N, reference_weight, temperature: see `PolicyTerm`.
        Others: as in `distillation_loss`, conventions of mask, weight and num_items included.

    Returns:
        `loss` is the sum over unmasked tokens of weight * cost / num_items, with gradient; `policy` the same without.

    Raises:
        ValueError: shapes or settings that do not fit, or ids outside the vocabulary at unmasked tokens.

    To train it beside a divergence on the same text with one projection, give `distillation_loss` a `PolicyTerm`.
    """
    term = PolicyTerm(
        advantages_N,
        old_logprobs_N,
        importance_N,
        clip=clip,
        low=low,
        high=high,
        reference_logprobs_N=reference_logprobs_N,
        reference_weight=reference_weight,
        temperature=temperature,
    )
    return distillation_loss(
        student_hidden_NH,
        student_head_VH,
        None,
        labels_N=ids_N,
        policy=term,
        mask_N=mask_N,
        weight_N=weight_N,
        num_items=num_items,
        student_bias=student_bias,
        logit_scale=logit_scale,
        softcap=softcap,
        vocab_size=vocab_size,
        chunk_tokens=chunk_tokens,
        compute_dtype=compute_dtype,
        compiled=compiled,
    )
