"""Distances of class logits against their definitions in float64, in value and gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lmdistill.objectives import find_divergence
from lmdistill.objectives.class_logits import class_divergence, logits_mse, soft_cross_entropy, softmax_mse


def logits(seed: int, rows: int, classes: int, size: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    s, t = (size * torch.randn(rows, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    return s.requires_grad_(), t


def probabilities(z: Tensor, temperature: float) -> Tensor:
    e = (z / temperature - (z / temperature).max(-1, keepdim=True).values).exp()
    return e / e.sum(-1, keepdim=True)


def forward_kl(s: Tensor, t: Tensor, temperature: float) -> Tensor:
    p, q = probabilities(t, temperature), probabilities(s, temperature)
    return temperature**2 * (p * (p.log() - q.log())).sum(-1)


def reverse_kl(s: Tensor, t: Tensor, temperature: float) -> Tensor:
    p, q = probabilities(t, temperature), probabilities(s, temperature)
    return temperature**2 * (q * (q.log() - p.log())).sum(-1)


def tinybert(s: Tensor, t: Tensor, temperature: float) -> Tensor:
    return (-probabilities(t, temperature) * probabilities(s, temperature).log()).sum(-1) / s.shape[1]


def metadistil(s: Tensor, t: Tensor, temperature: float) -> Tensor:
    return temperature**2 * (probabilities(s, temperature) - probabilities(t, temperature)).pow(2).sum(-1) / s.shape[1]


def bilstm(s: Tensor, t: Tensor, temperature: float) -> Tensor:
    return (s - t).pow(2).sum(-1)


OURS: list[tuple[Callable[..., Tensor], Callable[[Tensor, Tensor, float], Tensor]]] = [
    (
        lambda s, t, u: class_divergence(s, t, find_divergence("forward_kl"), temperature=u, temperature_squared=True),
        forward_kl,
    ),
    (
        lambda s, t, u: class_divergence(s, t, find_divergence("reverse_kl"), temperature=u, temperature_squared=True),
        reverse_kl,
    ),
    (lambda s, t, u: soft_cross_entropy(s, t, temperature=u), tinybert),
    (lambda s, t, u: softmax_mse(s, t, temperature=u), metadistil),
    (lambda s, t, u: logits_mse(s, t), bilstm),
]


@pytest.mark.parametrize(("ours", "theirs"), OURS, ids=["kl", "reverse", "soft_ce", "softmax_mse", "logits_mse"])
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 5),
    classes=st.integers(2, 7),
    temperature=st.floats(0.5, 8.0),
    size=st.floats(0.1, 4.0),
)
def test_a_distance_is_its_definition(
    ours: Callable[..., Tensor],
    theirs: Callable[[Tensor, Tensor, float], Tensor],
    seed: int,
    rows: int,
    classes: int,
    temperature: float,
    size: float,
) -> None:
    s, t = logits(seed, rows, classes, size)
    weights = torch.linspace(0.5, 1.5, rows, dtype=torch.float64)
    found, wanted = ours(s, t, temperature), theirs(s, t, temperature)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    (own,) = torch.autograd.grad((weights * found).sum(), s)
    (right,) = torch.autograd.grad((weights * wanted).sum(), s)
    torch.testing.assert_close(own, right, rtol=1e-8, atol=1e-11)


def test_the_published_reductions_are_fractions_of_the_textbook() -> None:
    s, t = logits(1, 4, 5, 1.0)
    torch.testing.assert_close(5 * soft_cross_entropy(s, t), soft_cross_entropy(s, t, over_classes=False))
    torch.testing.assert_close(5 * softmax_mse(s, t), softmax_mse(s, t, over_classes=False))
    torch.testing.assert_close(5 * logits_mse(s, t, over_classes=True), logits_mse(s, t))


def test_soft_cross_entropy_differs_from_kl_by_the_teachers_entropy_alone() -> None:
    s, t = logits(2, 4, 5, 1.0)
    p = probabilities(t, 2.0)
    entropy = -(p * p.log()).sum(-1)
    kl = class_divergence(s, t, find_divergence("forward_kl"), temperature=2.0)
    torch.testing.assert_close(soft_cross_entropy(s, t, temperature=2.0, over_classes=False), kl + entropy)


def test_the_teacher_gets_no_gradient() -> None:
    s, t = logits(3, 2, 3, 1.0)
    t.requires_grad_()
    total = soft_cross_entropy(s, t).sum() + softmax_mse(s, t).sum() + logits_mse(s, t).sum()
    total.backward()  # type: ignore[no-untyped-call]
    assert t.grad is None


def test_other_numbers_of_classes_are_refused_with_both() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) and the teacher of \(2, 4\)"):
        logits_mse(torch.zeros(2, 3), torch.zeros(2, 4))
