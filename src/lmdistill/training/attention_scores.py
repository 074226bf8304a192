"""An attention that hands out its scores in the layers where they are asked for, and is fused in all others.

Fused kernels never make the scores. transformers takes an attention function by the name in a model's configuration:
this registers one. A layer that is tapped computes its scores in full, as `eager` does; the others go on with sdpa,
under the same mask, where `eager` for the whole model would make the map of every layer.

Shape legend: B batch, A query heads, G key heads, L length, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from lmdistill.errors import ModelError

NAME = "lmdistill_scores"
"""What the attention is called among those of transformers."""
_HANDLE = "_lmdistill_hand_out"


def attention_with_scores(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention as transformers calls it: queries (B, A, L, D), keys and values (B, G, L, D), a mask that is added.

    Returns the output (B, L, A, D), and the probabilities where they exist. Raises ModelError for kinds of attention
    whose scores are more than that.
    """
    hand_out: Callable[[Tensor], None] | None = getattr(module, _HANDLE, None)
    if hand_out is None and softcap is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    strange = [name for name in ("s_aux", "position_bias") if kwargs.get(name) is not None]
    if strange:
        raise ModelError(f"{type(module).__name__}: attention with {strange[0]} has no scores to compare here")
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores_BALL = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores_BALL = (scores_BALL / softcap).tanh() * softcap
    if attention_mask is not None:
        scores_BALL = scores_BALL + attention_mask
    elif getattr(module, "is_causal", True) and scores_BALL.shape[2] > 1:
        blocked_LL = torch.ones(scores_BALL.shape[2:], dtype=torch.bool, device=query.device).triu(1)
        scores_BALL = scores_BALL.masked_fill(blocked_LL, torch.finfo(scores_BALL.dtype).min)
    if hand_out is not None:
        hand_out(scores_BALL)
    probabilities_BALL = scores_BALL.softmax(-1, dtype=torch.float32).to(query.dtype)
    dropped_BALL = F.dropout(probabilities_BALL, p=dropout, training=module.training)
    return (dropped_BALL @ value).transpose(1, 2).contiguous(), probabilities_BALL


def ask_for_scores(
    model: PreTrainedModel, attentions: list[nn.Module], hand_out: list[Callable[[Tensor], None]]
) -> Any:
    """Let these attentions of a model hand out their scores. Returns what undoes it.

    The attention stays switched between calls: gradient checkpointing calls layers again in the backward pass, and
    must find them as they were. Raises ModelError for a model whose attention cannot be chosen.
    """
    before = model.config._attn_implementation
    if before != NAME:
        model.set_attn_implementation(NAME)
        if model.config._attn_implementation != NAME:
            raise ModelError(f"{type(model).__name__} has an attention of its own, whose scores cannot be had")
    for attention, give in zip(attentions, hand_out, strict=True):
        setattr(attention, _HANDLE, give)

    def undo() -> None:
        for attention in attentions:
            if hasattr(attention, _HANDLE):
                delattr(attention, _HANDLE)
        if before != NAME:
            model.set_attn_implementation(before)

    return undo


AttentionInterface.register(NAME, attention_with_scores)
AttentionMaskInterface.register(NAME, eager_mask)
