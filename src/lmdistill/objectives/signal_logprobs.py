"""What a teacher's signal says of given tokens: one log-probability each. Depends on torch alone.

Shape legend: N tokens, k kept entries a token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lmdistill.objectives.token_logprobs import token_logprobs
from lmdistill.signals.types import DenseSignal, HiddenSignal, Signal, TokenSignal, TopKSignal


@torch.no_grad()
def signal_logprobs(
    signal: Signal,
    ids_N: Tensor,
    mask_N: Tensor,
    *,
    vocabulary_size: int,
    compute_dtype: torch.dtype | None = None,
    compiled: bool = True,
) -> Tensor:
    """log p(id) of one id a token at unmasked tokens, 0 elsewhere, (N,), float32.

    A token that a top-k signal does not hold gets an even share of what the k leave: all that is known of it. Raises
    ValueError for a signal that cannot say it (draws, sums over the head), or that speaks of other tokens.
    """
    if isinstance(signal, HiddenSignal):
        return token_logprobs(
            signal.hidden_NK,
            signal.head_VK,
            ids_N,
            mask_N=mask_N,
            bias=signal.bias,
            logit_scale=signal.logit_scale,
            softcap=signal.softcap,
            vocab_size=vocabulary_size,
            compute_dtype=compute_dtype,
            compiled=compiled,
        )
    if isinstance(signal, DenseSignal):
        logs_NV = signal.logits_NV[:, :vocabulary_size].float().log_softmax(-1)
        found_N = logs_NV.gather(1, ids_N[:, None])[:, 0]
    elif isinstance(signal, TopKSignal):
        found_N = _among_the_kept(signal, ids_N, vocabulary_size)
    elif isinstance(signal, TokenSignal):
        if bool((signal.ids_N != ids_N)[mask_N].any()):
            raise ValueError("the signal speaks of other tokens than those asked for; ask the teacher about this text")
        found_N = signal.logprobs_N
    else:
        raise ValueError(f"a {type(signal).__name__} does not say how likely a given token is; use another signal")
    return torch.where(mask_N, found_N.float(), 0.0)


def _among_the_kept(signal: TopKSignal, ids_N: Tensor, vocabulary_size: int) -> Tensor:
    logs_Nk = signal.logprobs_Nk.float()
    kept_Nk = torch.isfinite(logs_Nk)
    hit_Nk = (signal.ids_Nk == ids_N[:, None]) & kept_Nk
    tail_N = (1 - logs_Nk.exp().sum(-1)).clamp_min(1e-9)
    even_N = (tail_N / (vocabulary_size - kept_Nk.sum(-1)).clamp_min(1)).log()
    return torch.where(hit_Nk.any(-1), logs_Nk.masked_fill(~hit_Nk, -torch.inf).amax(-1), even_N)
