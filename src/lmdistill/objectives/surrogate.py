"""The policy gradient of one sampled token: what it costs, and how that changes with the token's log-probability.

Everything here is a function of log q(y), one number a token; the loss engine turns its slope into the gradient of the
logits. Depends on torch alone.

Shape legend: N tokens, n tokens of one chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

ClipMode = Literal["ratio", "product", "truncate", "none"]
_MODES = ("ratio", "product", "truncate", "none")

# e^20 is far beyond any ratio that means something; e^89 is infinite in float32, and times an advantage of 0 NaN.
_LARGEST_LOG_RATIO = 20.0


@dataclass(frozen=True)
class PolicyTerm:
    """Advantages of the text's own tokens, and how far one update may follow them.

    With ratio rho = q(y) / q_old(y), advantage A and importance weight w, a token costs by `clip`:

        ratio      max(-A w rho, -A w clip(rho, low, high))    PPO 1707.06347, eq. 7; GRPO 2402.03300
        product    max(-A w rho, -A clip(w rho, low, high))    MiniLLM as released
        truncate   -A w min(rho, high) log q(y), the minimum held fixed    CISPO 2506.13585
        none       -A w rho    importance sampling; on-policy distillation of Thinking Machines

    and `reference_weight` times exp(d) - d - 1, d = log reference(y) - log q(y), is added: the low-variance estimate of
    KL(q‖reference) of GRPO. Log-ratios are cut at +-20.
    """

    advantages_N: Tensor
    """Held fixed, as everything here is."""
    old_logprobs_N: Tensor | None = None
    """Log-probabilities under the student that made the advantages. None: the present one, so that rho is 1 while its
    gradient is that of log q(y)."""
    importance_N: Tensor | None = None
    """Weights w, for text that was drawn from something else than the student (`advantages.importance_weights`)."""
    clip: ClipMode = "ratio"
    low: float = 0.8
    high: float = 1.2
    reference_logprobs_N: Tensor | None = None
    reference_weight: float = 0.0
    weight: float = 1.0
    """Factor of the whole term."""
    temperature: float = 1.0
    """q is the softmax of the logits over this. Another one than 1 cannot share a projection with other terms."""

    def __post_init__(self) -> None:
        if self.clip not in _MODES:
            raise ValueError(f"clip={self.clip!r} is not known; use {', '.join(map(repr, _MODES))}")
        if self.clip != "none" and not 0 <= self.low <= 1 <= self.high:
            raise ValueError(f"low = {self.low} and high = {self.high} must enclose 1, the ratio of the first update")
        if self.reference_weight and self.reference_logprobs_N is None:
            raise ValueError(f"reference_weight = {self.reference_weight} needs reference_logprobs_N")
        if not self.temperature > 0:
            raise ValueError(f"temperature = {self.temperature} must be above 0")
        if self.advantages_N.ndim != 1:
            raise ValueError(f"advantages_N must have shape (N,), not {tuple(self.advantages_N.shape)}; flatten first")
        for name in ("old_logprobs_N", "importance_N", "reference_logprobs_N"):
            values = getattr(self, name)
            if values is not None and values.shape != self.advantages_N.shape:
                raise ValueError(
                    f"{name} has shape {tuple(values.shape)} but advantages_N {tuple(self.advantages_N.shape)}; "
                    "one number a token"
                )

    def __len__(self) -> int:
        return len(self.advantages_N)

    @property
    def rule(self) -> PolicyRule:
        """The settings without the tokens."""
        kl = self.reference_weight if self.reference_logprobs_N is not None else 0.0
        return PolicyRule(self.clip, self.low, self.high, kl, on_policy=self.old_logprobs_N is None)

    def rows(self, dtype: torch.dtype) -> Tensor:
        """Advantage, old log-probability, importance weight and the reference's log-probability, (N, 4)."""
        advantages_N = self.advantages_N.detach().to(dtype)
        zeros_N, ones_N = torch.zeros_like(advantages_N), torch.ones_like(advantages_N)
        columns = (
            advantages_N,
            zeros_N if self.old_logprobs_N is None else self.old_logprobs_N.detach().to(dtype),
            ones_N if self.importance_N is None else self.importance_N.detach().to(dtype),
            zeros_N if self.reference_logprobs_N is None else self.reference_logprobs_N.detach().to(dtype),
        )
        return torch.stack(columns, 1)


@dataclass(frozen=True)
class PolicyRule:
    """How advantages become costs; see `PolicyTerm`."""

    clip: ClipMode
    low: float
    high: float
    reference_weight: float
    on_policy: bool

    def costs(self, log_q_n: Tensor, rows_n4: Tensor) -> tuple[Tensor, Tensor]:
        """The cost of each token and its derivative with respect to log q(y), both (n,)."""
        advantage_n, old_n, importance_n, reference_n = rows_n4.unbind(-1)
        ratio_n, ratio_slope_n = torch.ones_like(log_q_n), torch.ones_like(log_q_n)
        if not self.on_policy:
            ratio_n, ratio_slope_n = _bounded_exp(log_q_n - old_n)
        strength_n = -advantage_n * importance_n
        if self.clip == "truncate":
            slope_n = strength_n * ratio_n.clamp_max(self.high)
            cost_n = slope_n * log_q_n
        else:
            cost_n, slope_n = self._clipped(-advantage_n, importance_n, ratio_n)
            slope_n = slope_n * ratio_slope_n
        if self.reference_weight:
            difference_n = reference_n - log_q_n
            ratio_n, ratio_slope_n = _bounded_exp(difference_n)
            bounded_n = difference_n.clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO)
            cost_n = cost_n + self.reference_weight * (ratio_n - bounded_n - 1)
            moves_n = (bounded_n == difference_n).to(log_q_n.dtype)
            slope_n = slope_n + self.reference_weight * (moves_n - ratio_slope_n)
        return cost_n, slope_n

    def _clipped(self, sign_n: Tensor, importance_n: Tensor, ratio_n: Tensor) -> tuple[Tensor, Tensor]:
        """max(plain, clipped) and its derivative by the ratio; `sign_n` is -A."""
        inner_n, outer_n = ratio_n, sign_n * importance_n
        inner_slope_n = torch.ones_like(ratio_n)
        if self.clip == "product":
            inner_n, outer_n, inner_slope_n = importance_n * ratio_n, sign_n, importance_n
        plain_n = outer_n * inner_n
        if self.clip == "none":
            return plain_n, outer_n * inner_slope_n
        bounded_n = inner_n.clamp(self.low, self.high)
        clipped_n = outer_n * bounded_n
        # Where the clipped side wins beyond a bound the cost is constant. Not where it wins by a rounding inside.
        constant_n = (bounded_n != inner_n) & (clipped_n > plain_n)
        return torch.maximum(plain_n, clipped_n), torch.where(constant_n, 0.0, outer_n * inner_slope_n)


def _bounded_exp(log_ratio_n: Tensor) -> tuple[Tensor, Tensor]:
    """The exponential of a log-ratio cut at +-20, and its derivative, which is 0 beyond."""
    bounded_n = log_ratio_n.clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO)
    ratio_n = bounded_n.exp()
    return ratio_n, torch.where(bounded_n == log_ratio_n, ratio_n, 0.0)
