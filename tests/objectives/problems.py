"""Small random problems, as tensors for the engine and as arrays for the reference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import reference
import torch
from torch import Tensor

from lmdistill.objectives import Divergence, LossParts, distillation_loss, find_divergence
from lmdistill.signals import HiddenSignal, TailMode, TopKSignal

# Every divergence, with parameters at which its formula takes another shape.
KINDS: list[tuple[str, dict[str, float]]] = [
    ("forward_kl", {}),
    ("reverse_kl", {}),
    ("jsd", {}),
    ("jsd", {"teacher_weight": 0.1}),
    ("skew_forward_kl", {}),
    ("skew_forward_kl", {"alpha": 0.7}),
    ("skew_reverse_kl", {}),
    ("skew_reverse_kl", {"alpha": 0.7}),
    ("skew_reverse_kl_detached", {}),
    ("skew_reverse_kl_detached", {"alpha": 0.7}),
    ("total_variation", {}),
    ("alpha_beta", {}),
    ("alpha_beta", {"alpha": 0.0, "beta": 0.8}),
    ("alpha_beta", {"alpha": 0.8, "beta": 0.0}),
    ("alpha_beta", {"alpha": 0.0, "beta": 0.0}),
    ("alpha_beta", {"alpha": 0.6, "beta": -0.6}),
    ("alpha_beta", {"alpha": 1.2, "beta": 0.5}),
    ("adaptive_kl", {}),
    ("adaptive_kl", {"mu": 0.85}),
    ("taid", {}),
    ("taid", {"start": 0.9}),
]
NAMES = [name + "".join(f"-{key}={value}" for key, value in parameters.items()) for name, parameters in KINDS]
# Reached from s = t without a kink and with no quantity held fixed: autograd's own check applies.
SMOOTH = [
    (name, parameters) for name, parameters in KINDS if name not in ("adaptive_kl", "taid", "skew_reverse_kl_detached")
]


@dataclass(frozen=True)
class Problem:
    """Student and teacher over one vocabulary, in float64."""

    hidden_NH: Tensor
    head_VH: Tensor
    bias_V: Tensor | None
    teacher_NK: Tensor
    teacher_VK: Tensor
    logit_scale: float = 1.0
    softcap: float | None = None
    teacher_scale: float = 1.0
    teacher_softcap: float | None = None
    teacher_bias: Tensor | None = None

    @property
    def signal(self) -> HiddenSignal:
        return HiddenSignal(
            self.teacher_NK,
            self.teacher_VK,
            self.teacher_bias,
            logit_scale=self.teacher_scale,
            softcap=self.teacher_softcap,
        )

    @property
    def student(self) -> reference.Student:
        return reference.Student(
            self.hidden_NH.numpy(),
            self.head_VH.numpy(),
            None if self.bias_V is None else self.bias_V.numpy(),
            self.logit_scale,
            self.softcap,
        )

    @property
    def student_logits(self) -> np.ndarray:
        return self.student.logits(self.student.raw())

    @property
    def teacher_logits(self) -> np.ndarray:
        bias = None if self.teacher_bias is None else self.teacher_bias.numpy()
        teacher = reference.Student(
            self.teacher_NK.numpy(), self.teacher_VK.numpy(), bias, self.teacher_scale, self.teacher_softcap
        )
        return teacher.logits(teacher.raw())

    def top_k(self, k: int, tail: TailMode, temperature: float = 1.0) -> TopKSignal:
        """The teacher's k likeliest tokens at this temperature."""
        log_t_NV = (torch.from_numpy(self.teacher_logits) / temperature).log_softmax(-1)
        top = log_t_NV.topk(k, -1)
        return TopKSignal(top.indices, top.values, tail, temperature)


def make(seed: int = 0, *, n: int = 6, v: int = 13, h: int = 5, k: int = 4, plain: bool = True) -> Problem:
    """A random problem; not plain: with a bias, a scale and a cap on either side."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    problem = Problem(normal(n, h), normal(v, h) * 0.7, None, normal(n, k), normal(v, k) * 0.7)
    if plain:
        return problem
    return replace(
        problem,
        bias_V=normal(v),
        logit_scale=0.8,
        softcap=4.0,
        teacher_scale=1.3,
        teacher_softcap=6.0,
        teacher_bias=normal(v),
    )


@dataclass(frozen=True)
class Outcome:
    """What the engine gave."""

    parts: LossParts
    d_hidden: Tensor
    d_head: Tensor
    d_bias: Tensor | None

    @property
    def loss(self) -> float:
        return float(self.parts.loss.detach())


def run(problem: Problem, signal: Any = "hidden", kind: str | Divergence = "forward_kl", **options: Any) -> Outcome:
    """Loss and gradients from the engine; divergence parameters go in `parameters`."""
    parameters = options.pop("parameters", {})
    dtype = options.pop("dtype", torch.float64)
    hidden = problem.hidden_NH.to(dtype, copy=True).requires_grad_()
    head = problem.head_VH.to(dtype, copy=True).requires_grad_(options.pop("train_head", True))
    bias = None if problem.bias_V is None else problem.bias_V.to(dtype, copy=True).requires_grad_(head.requires_grad)
    parts = distillation_loss(
        hidden,
        head,
        problem.signal if isinstance(signal, str) else signal,
        find_divergence(kind, **parameters),
        student_bias=bias,
        logit_scale=problem.logit_scale,
        softcap=problem.softcap,
        **options,
    )
    parts.loss.backward()
    assert hidden.grad is not None
    d_head = head.grad if head.grad is not None else torch.zeros_like(head)
    return Outcome(parts, hidden.grad, d_head, None if bias is None else bias.grad)


def assert_as_expected(
    outcome: Outcome, expected: reference.Expected, *, rtol: float = 1e-6, atol: float = 1e-8
) -> None:
    """Loss, token losses and all gradients."""
    np.testing.assert_allclose(outcome.loss, expected.loss, rtol=rtol, atol=atol)
    np.testing.assert_allclose(outcome.parts.token_loss_N.numpy(), expected.token_loss, rtol=rtol, atol=atol)
    np.testing.assert_allclose(outcome.d_hidden.numpy(), expected.hidden, rtol=rtol, atol=atol)
    np.testing.assert_allclose(outcome.d_head.numpy(), expected.head, rtol=rtol, atol=atol)
    if outcome.d_bias is not None:
        np.testing.assert_allclose(outcome.d_bias.numpy(), expected.bias, rtol=rtol, atol=atol)


def assert_same(one: Outcome, other: Outcome, *, rtol: float = 1e-10, atol: float = 1e-12) -> None:
    """Two runs of the engine agree in loss and gradients."""
    np.testing.assert_allclose(one.loss, other.loss, rtol=rtol, atol=atol)
    np.testing.assert_allclose(one.d_hidden.numpy(), other.d_hidden.numpy(), rtol=rtol, atol=atol)
    np.testing.assert_allclose(one.d_head.numpy(), other.d_head.numpy(), rtol=rtol, atol=atol)
