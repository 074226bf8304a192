"""The loss that users write: whole logits of both models, float32 log-softmax, the paper's formula, autograd.

Shape legend: N tokens, V vocabulary, H student hidden, K teacher hidden.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def forward_kl(log_s_NV: Tensor, log_t_NV: Tensor) -> Tensor:
    """KL(t‖s)."""
    return (log_t_NV.exp() * (log_t_NV - log_s_NV)).sum(-1)


def reverse_kl(log_s_NV: Tensor, log_t_NV: Tensor) -> Tensor:
    """KL(s‖t)."""
    return (log_s_NV.exp() * (log_s_NV - log_t_NV)).sum(-1)


def jsd(log_s_NV: Tensor, log_t_NV: Tensor, teacher_weight: float = 0.5) -> Tensor:
    """w KL(t‖m) + (1 - w) KL(s‖m)."""
    w = teacher_weight
    log_m_NV = torch.logaddexp(log_t_NV + math.log(w), log_s_NV + math.log(1 - w))
    return w * forward_kl(log_m_NV, log_t_NV) + (1 - w) * reverse_kl(log_s_NV, log_m_NV)


def skew_forward_kl(log_s_NV: Tensor, log_t_NV: Tensor, alpha: float = 0.1) -> Tensor:
    """KL(t‖alpha t + (1 - alpha) s)."""
    log_m_NV = torch.logaddexp(log_t_NV + math.log(alpha), log_s_NV + math.log(1 - alpha))
    return forward_kl(log_m_NV, log_t_NV)


def skew_reverse_kl(log_s_NV: Tensor, log_t_NV: Tensor, alpha: float = 0.1) -> Tensor:
    """KL(s‖alpha s + (1 - alpha) t)."""
    log_m_NV = torch.logaddexp(log_s_NV + math.log(alpha), log_t_NV + math.log(1 - alpha))
    return reverse_kl(log_s_NV, log_m_NV)


def skew_reverse_kl_detached(log_s_NV: Tensor, log_t_NV: Tensor, alpha: float = 0.1) -> Tensor:
    """KL(s‖alpha s + (1 - alpha) t), the mixture held fixed."""
    log_m_NV = torch.logaddexp(log_s_NV.detach() + math.log(alpha), log_t_NV + math.log(1 - alpha))
    return reverse_kl(log_s_NV, log_m_NV)


def total_variation(log_s_NV: Tensor, log_t_NV: Tensor) -> Tensor:
    """Half the summed distance."""
    return 0.5 * (log_s_NV.exp() - log_t_NV.exp()).abs().sum(-1)


def alpha_beta(log_s_NV: Tensor, log_t_NV: Tensor, alpha: float = 0.2, beta: float = 0.7) -> Tensor:
    """ABKD 2505.04560, eq. 5."""
    s_NV, t_NV = log_s_NV.exp(), log_t_NV.exp()
    both = alpha + beta
    inner_NV = t_NV**alpha * s_NV**beta - alpha / both * t_NV**both - beta / both * s_NV**both
    return -inner_NV.sum(-1) / (alpha * beta)


def adaptive_kl(log_s_NV: Tensor, log_t_NV: Tensor, mu: float = 0.5) -> Tensor:
    """AKL 2404.02657, with a whole sort as its authors have it."""
    with torch.no_grad():
        t_NV = log_t_NV.exp()
        gap_NV = (t_NV - log_s_NV.exp()).abs()
        sorted_NV, order_NV = t_NV.sort(-1, descending=True)
        in_head_NV = sorted_NV.cumsum(-1) <= mu
        in_head_NV[:, 0] = True
        head_N = (gap_NV.gather(-1, order_NV) * in_head_NV).sum(-1) / gap_NV.sum(-1)
    return head_N * forward_kl(log_s_NV, log_t_NV) + (1 - head_N) * reverse_kl(log_s_NV, log_t_NV)


def taid(log_s_NV: Tensor, log_t_NV: Tensor, interpolation: float = 0.4) -> Tensor:
    """KL to the interpolated teacher. TAID 2501.16937."""
    log_p_NV = ((1 - interpolation) * log_s_NV.detach() + interpolation * log_t_NV).log_softmax(-1)
    return forward_kl(log_s_NV, log_p_NV)


NAIVE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    f.__name__: f
    for f in (
        forward_kl,
        reverse_kl,
        jsd,
        skew_forward_kl,
        skew_reverse_kl,
        skew_reverse_kl_detached,
        total_variation,
        alpha_beta,
        adaptive_kl,
        taid,
    )
}


def naive_loss(
    kind: str, student_hidden_NH: Tensor, student_head_VH: Tensor, teacher_hidden_NK: Tensor, teacher_head_VK: Tensor
) -> Tensor:
    """Mean divergence over the tokens, with autograd's own graph."""
    with torch.no_grad():
        log_t_NV = (teacher_hidden_NK @ teacher_head_VK.T).float().log_softmax(-1)
    log_s_NV = (student_hidden_NH @ student_head_VH.T).float().log_softmax(-1)
    return NAIVE[kind](log_s_NV, log_t_NV).mean()
