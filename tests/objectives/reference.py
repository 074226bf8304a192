"""The truth that the loss engine is held against: values from the papers' formulas, in NumPy and float64.

Written from the papers, not from `lmdistill.objectives`: probabilities rather than log-probabilities, and gradients by
central differences of the value. Where a paper holds a quantity fixed in the gradient (the weights of adaptive KL, the
intermediate teacher of TAID, the reward of a score-function gradient), it is computed once, at the point itself.

Shape legend: N tokens, V vocabulary, H student hidden, C classes, k kept ids.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

STEP = 1e-5

Summands = Callable[[np.ndarray], np.ndarray]
"""From the student's probabilities (N, C) to what each class adds to the divergence, (N, C)."""


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """p log(p / q), 0 where p is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p > 0, p * np.log(p / q), 0.0)


def alpha_beta_summands(s: np.ndarray, t: np.ndarray, a: float, b: float) -> np.ndarray:
    """ABKD 2505.04560, eq. 5; where alpha, beta or alpha + beta is 0, Cichocki's limits (Entropy 2011, 13, eq. 20)."""
    log_ratio = np.log(t) - np.log(s)
    if a == 0 and b == 0:
        return 0.5 * log_ratio**2
    if b == 0:
        return (t**a * np.log(t**a / s**a) - t**a + s**a) / a**2
    if a == 0:
        return (s**b * np.log(s**b / t**b) - s**b + t**b) / b**2
    if a + b == 0:
        return (np.log(s**a / t**a) + (s**a / t**a) ** -1 - 1) / a**2
    return -(t**a * s**b - a / (a + b) * t ** (a + b) - b / (a + b) * s ** (a + b)) / (a * b)


def adaptive_weight(s: np.ndarray, t: np.ndarray, mu: float) -> np.ndarray:
    """The forward KL's share (N, 1): how much of the gap |t - s| lies in the teacher's head. AKL 2404.02657, 4.2."""
    shares = []
    for s_row, t_row in zip(s, t, strict=True):
        order = np.argsort(-t_row, kind="stable")
        size = max(1, int((np.cumsum(t_row[order]) <= mu).sum()))
        threshold = t_row[order[size - 1]]
        head = t_row >= threshold * (1 - 1e-9)  # equally likely classes stay together
        gap = np.abs(t_row - s_row)
        shares.append(gap[head].sum() / gap.sum() if gap.sum() > 0 else 1.0)
    return np.array(shares)[:, None]


def summands(kind: str, s0: np.ndarray, t: np.ndarray, **parameters: float) -> Summands:
    """What each class adds, as a function of s; `s0` is the point at which fixed quantities are taken."""
    if kind == "forward_kl":
        return lambda s: _kl(t, s)
    if kind == "reverse_kl":
        return lambda s: _kl(s, t)
    if kind == "jsd":  # GKD 2306.13649, eq. 1
        w = parameters.get("teacher_weight", 0.5)
        return lambda s: w * _kl(t, w * t + (1 - w) * s) + (1 - w) * _kl(s, w * t + (1 - w) * s)
    if kind == "skew_forward_kl":  # DistiLLM 2402.03898, eq. 4
        a = parameters.get("alpha", 0.1)
        return lambda s: _kl(t, a * t + (1 - a) * s)
    if kind == "skew_reverse_kl":  # DistiLLM 2402.03898, eq. 5
        a = parameters.get("alpha", 0.1)
        return lambda s: _kl(s, a * s + (1 - a) * t)
    if kind == "skew_reverse_kl_detached":  # DistiLLM-2 2503.07067 as released: the mixture is taken at the point
        a = parameters.get("alpha", 0.1)
        return lambda s: _kl(s, a * s0 + (1 - a) * t)
    if kind == "total_variation":
        return lambda s: np.abs(s - t) / 2
    if kind == "alpha_beta":
        a, b = parameters.get("alpha", 0.2), parameters.get("beta", 0.7)
        return lambda s: alpha_beta_summands(s, t, a, b)
    if kind == "adaptive_kl":
        w = adaptive_weight(s0, t, parameters.get("mu", 0.5))
        return lambda s: w * _kl(t, s) + (1 - w) * _kl(s, t)
    if kind == "taid":  # TAID 2501.16937, eq. 3: interpolated logits; only differences of log-probabilities matter
        i = parameters.get("start", 0.4)
        with np.errstate(divide="ignore"):
            mixed = np.where((s0 > 0) & (t > 0), (1 - i) * np.log(s0) + i * np.log(t), -np.inf)
        between = softmax(mixed)
        return lambda s: _kl(between, s)
    raise KeyError(kind)


@dataclass
class Student:
    """A student's last hidden states and its head."""

    hidden: np.ndarray
    head: np.ndarray
    bias: np.ndarray | None = None
    logit_scale: float = 1.0
    softcap: float | None = None

    def raw(self) -> np.ndarray:
        """Products of hidden states and head, (N, V)."""
        raw = self.hidden @ self.head.T
        return raw if self.bias is None else raw + self.bias

    def logits(self, raw: np.ndarray) -> np.ndarray:
        z = raw * self.logit_scale
        return z if self.softcap is None else self.softcap * np.tanh(z / self.softcap)


@dataclass
class Expected:
    """A loss and its gradients."""

    loss: float
    token_loss: np.ndarray
    hidden: np.ndarray
    head: np.ndarray
    bias: np.ndarray
    extra: dict[str, Any] = field(default_factory=dict)


RowLoss = Callable[[np.ndarray], np.ndarray]
"""From the student's logits (N, V) to the loss of each token, (N,)."""


def evaluate(
    student: Student,
    row_loss: RowLoss,
    *,
    surrogate: RowLoss | None = None,
    mask: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    num_items: float | None = None,
) -> Expected:
    """Loss and gradients; `surrogate` is differentiated in the place of `row_loss` where they are not the same."""
    raw = student.raw()
    keep = np.ones(len(raw), bool) if mask is None else mask.astype(bool)
    weight = np.where(keep, 1.0 if weight is None else weight, 0.0)
    items = max(1, keep.sum()) if num_items is None else num_items
    token_loss = weight * row_loss(student.logits(raw))
    gradient = np.zeros_like(raw)
    differentiated = surrogate or row_loss
    for column in range(raw.shape[1]):
        shift = np.zeros(raw.shape[1])
        shift[column] = STEP
        above, below = differentiated(student.logits(raw + shift)), differentiated(student.logits(raw - shift))
        gradient[:, column] = (above - below) / (2 * STEP)
    gradient *= weight[:, None] / items
    return Expected(
        loss=token_loss.sum() / items,
        token_loss=token_loss,
        hidden=gradient @ student.head,
        head=gradient.T @ student.hidden,
        bias=gradient.sum(0),
    )


def dense_rows(
    kind: str, student_logits: np.ndarray, teacher_logits: np.ndarray, temperature: float = 1.0, **parameters: float
) -> RowLoss:
    """A divergence over the whole vocabulary; `student_logits` is the point itself."""
    t = softmax(teacher_logits / temperature)
    terms = summands(kind, softmax(student_logits / temperature), t, **parameters)
    return lambda z: terms(softmax(z / temperature)).sum(-1)


def cross_entropy_rows(labels: np.ndarray) -> RowLoss:
    return lambda z: -np.log(softmax(z))[np.arange(len(z)), labels]


def top_k_rows(
    kind: str,
    student_logits: np.ndarray,
    ids: np.ndarray,
    logprobs: np.ndarray,
    tail: str,
    temperature: float = 1.0,
    stored_temperature: float = 1.0,
    **parameters: float,
) -> RowLoss:
    """A divergence on kept ids; a slot whose log-probability is -inf is no class at all. Row by row."""
    losses = [
        _top_k_row(
            kind,
            student_logits[[n]],
            ids[n][np.isfinite(logprobs[n])],
            logprobs[n][np.isfinite(logprobs[n])],
            tail,
            temperature,
            stored_temperature,
            **parameters,
        )
        for n in range(len(ids))
    ]
    return lambda z: np.concatenate([loss(z[[n]]) for n, loss in enumerate(losses)])


def _top_k_row(
    kind: str,
    student_logits: np.ndarray,
    ids: np.ndarray,
    logprobs: np.ndarray,
    tail: str,
    temperature: float,
    stored_temperature: float,
    **parameters: float,
) -> RowLoss:
    rest = np.setdiff1d(np.arange(student_logits.shape[1]), ids)

    def classes(z: np.ndarray) -> np.ndarray:
        p = softmax(z / temperature)
        kept = p[:, ids]
        if tail == "renormalise":
            return kept / kept.sum(-1, keepdims=True)
        return np.concatenate([kept, p[:, rest].sum(-1, keepdims=True)], 1) if len(rest) else kept

    if tail == "renormalise":
        t = softmax(logprobs[None] * stored_temperature / temperature)
    else:
        kept = np.exp(logprobs)[None]
        t = np.concatenate([kept, 1 - kept.sum(-1, keepdims=True)], 1) if len(rest) else kept
    terms = summands(kind, classes(student_logits), t, **parameters)
    counted = slice(0, len(ids)) if tail == "drop" else slice(None)
    return lambda z: terms(classes(z))[:, counted].sum(-1)


def sampled_rows(
    ids: np.ndarray, counts: np.ndarray, logprobs: np.ndarray | None = None, temperature: float = 1.0
) -> RowLoss:
    """Mean over the drawn tokens of [log t(y)] - log s(y)."""
    share = counts / counts.sum(-1, keepdims=True)

    def loss(z: np.ndarray) -> np.ndarray:
        log_s = np.log(np.take_along_axis(softmax(z / temperature), ids, 1))
        log_t = 0.0 if logprobs is None else np.where(counts > 0, logprobs, 0.0)
        return (share * (log_t - log_s)).sum(-1)

    return loss
