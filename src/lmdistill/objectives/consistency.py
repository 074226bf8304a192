"""Agreement of a model with itself: the same tokens, reached in two ways, predicted alike.

For a pair of texts whose tokens a_1..a_n and b_1..b_n are the same answer, with p_i and q_i what the model predicts
there, MCC-KD (Chen et al., arXiv 2310.14747, equation 5) adds

    1/n sum_i 1/2 [KL(p_i || q_i) + KL(q_i || p_i)],   averaged over pairs.

As in the publication's code, each distribution is smoothed first: (p + epsilon) / (1 + V epsilon).

Shape legend: N positions, P pairs of positions, V vocabulary, H hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lmdistill.objectives.rows import LogitsView


def pair_consistency(
    hidden_NH: Tensor,
    head_VH: Tensor,
    first_P: Tensor,
    second_P: Tensor,
    weight_P: Tensor,
    *,
    epsilon: float = 7e-5,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
    compute_dtype: torch.dtype | None = None,
) -> Tensor:
    """The weighted sum over pairs of positions of half of both divergences, a scalar with gradient.

    Args:
        hidden_NH, head_VH, bias, logit_scale, softcap, vocab_size, compute_dtype: as in `distillation_loss`.
        first_P, second_P: the positions in `hidden_NH` whose predictions are compared.
        weight_P: the weight of each pair of positions, such as 1 / (its text's number of them times that of texts).

    All logits of the P pairs are kept for the gradient, 2 P V numbers: answers are short.
    """
    vocabulary = vocab_size or len(head_VH)
    compute = compute_dtype or hidden_NH.dtype
    head_vH = head_VH[:vocabulary].to(compute)
    bias_v = None if bias is None else bias[:vocabulary].to(compute)
    view = LogitsView(logit_scale, softcap)
    work = torch.promote_types(hidden_NH.dtype, torch.float32)
    logs_2PV = []
    with torch.autocast(hidden_NH.device.type, enabled=False):
        for places_P in (first_P, second_P):
            raw_PV = torch.nn.functional.linear(hidden_NH[places_P].to(compute), head_vH, bias_v)
            logs_PV = torch.log_softmax(view.logits(raw_PV.to(work)) / temperature, dim=-1)
            logs_2PV.append(_smoothed(logs_PV, epsilon))
        first_PV, second_PV = logs_2PV
        both_P = ((first_PV.exp() - second_PV.exp()) * (first_PV - second_PV)).sum(-1) / 2
        return (both_P * weight_P.to(work)).sum()


def _smoothed(logs_PV: Tensor, epsilon: float) -> Tensor:
    """Log-probabilities of (p + epsilon) / (1 + V epsilon)."""
    if epsilon == 0:
        return logs_PV
    whole = 1 + logs_PV.shape[-1] * epsilon
    return torch.log((logs_PV.exp() + epsilon) / whole)
