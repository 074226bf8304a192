"""Extreme logits, temperatures, precisions and sizes give finite numbers, and the right ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from problems import KINDS, NAMES, make, run
from torch import Tensor

from lmdistill.objectives import distillation_loss, find_divergence
from lmdistill.signals import DenseSignal, SampledSignal, TokenSignal, TopKSignal

kinds = pytest.mark.parametrize(("kind", "parameters"), KINDS, ids=NAMES)
# t^a s^-a has no bound: at a probability of 0 its true value is infinite.
finite_kinds = pytest.mark.parametrize(
    ("kind", "parameters"), [k for k in KINDS if k[1].get("beta") != -0.6], ids=[n for n in NAMES if "-0.6" not in n]
)


def loss_of_logits(z_NV: Tensor, signal: Any, kind: str, **options: Any) -> tuple[Tensor, Tensor]:
    """The loss of given student logits (an identity for a head) and its gradient."""
    parameters = options.pop("parameters", {})
    z_NV = z_NV.clone().requires_grad_()
    head = torch.eye(z_NV.shape[1], dtype=z_NV.dtype)
    parts = distillation_loss(z_NV, head, signal, find_divergence(kind, **parameters), **options)
    parts.loss.backward()
    assert z_NV.grad is not None
    return parts.loss.detach(), z_NV.grad


def signals_of(teacher_NV: Tensor, temperature: float = 1.0) -> list[Any]:
    log_t_NV = (teacher_NV.float() / temperature).log_softmax(-1)
    top = log_t_NV.topk(2, -1)
    tails: list[Any] = ["bucket", "renormalise", "drop"]
    return [DenseSignal(teacher_NV), *(TopKSignal(top.indices, top.values, tail, temperature) for tail in tails)]


EXTREMES = {
    "far apart": ([[1e4, -1e4, 0.0, 5.0]], [[-1e4, 1e4, 5.0, 0.0]]),
    "teacher sure": ([[0.0, 1.0, 2.0, 3.0]], [[0.0, 0.0, 1e4, 0.0]]),
    "student sure": ([[0.0, 0.0, 1e4, 0.0]], [[0.0, 1.0, 2.0, 3.0]]),
    "both sure": ([[0.0, 1e4, 0.0, 0.0]], [[0.0, 1e4, 0.0, 0.0]]),
    "flat": ([[1e4, 1e4, 1e4, 1e4]], [[-1e4, -1e4, -1e4, -1e4]]),
    "teacher excludes": ([[0.0, 1.0, 2.0, 3.0]], [[0.0, -torch.inf, 1.0, -torch.inf]]),
}


@finite_kinds
@pytest.mark.parametrize("case", EXTREMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_extreme_logits(kind: str, parameters: dict[str, float], case: str, dtype: torch.dtype) -> None:
    student, teacher = (torch.tensor(x, dtype=dtype) for x in EXTREMES[case])
    for signal in signals_of(teacher):
        loss, gradient = loss_of_logits(student, signal, kind, parameters=parameters)
        assert torch.isfinite(loss), type(signal)
        assert torch.isfinite(gradient).all(), type(signal)


@finite_kinds
@pytest.mark.parametrize("temperature", [1e-3, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_temperatures(kind: str, parameters: dict[str, float], temperature: float, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 6, generator=g).mul(8).to(dtype) for _ in range(2))
    for signal in signals_of(teacher, temperature):
        loss, gradient = loss_of_logits(student, signal, kind, parameters=parameters, temperature=temperature)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


def test_tail_far_below_the_kept_ids() -> None:
    """At a low temperature the tail lies far below any floor; its gradient is still shared out by softmax."""
    student = torch.tensor([[0.0, -30.0, -30.0, -31.0]], dtype=torch.float64)
    signal = TopKSignal(torch.tensor([[0]]), torch.tensor([[0.5]], dtype=torch.float64).log(), "bucket", 1e-3)
    _, gradient = loss_of_logits(student, signal, "forward_kl", temperature=1e-3)
    # d/dz of -0.5 log s(tail), s(tail) conditional softmax 1/2, 1/2, 0; chained with 1 / T
    np.testing.assert_allclose(gradient, [[500.0, -250.0, -250.0, 0.0]], rtol=1e-9, atol=1e-9)


def test_forward_kl_where_the_student_has_nothing() -> None:
    """The gradient p_s - p_t stays exact however small the student's probability is."""
    _, gradient = loss_of_logits(
        torch.tensor([[3e4, -3e4, 0.0]]), DenseSignal(torch.tensor([[0.0, 1e5, 0.0]])), "forward_kl"
    )
    np.testing.assert_allclose(gradient, [[1.0, -1.0, 0.0]])


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl"])
def test_token_that_the_teacher_excludes(kind: str) -> None:
    signal = TokenSignal(torch.tensor([1]), torch.tensor([-torch.inf]))
    loss, gradient = loss_of_logits(torch.tensor([[0.0, 1.0, 2.0]]), signal, kind)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
    assert (gradient[0, 1] > 0) == (kind == "reverse_kl")  # the student learns to leave it


@kinds
@pytest.mark.parametrize(("n", "v"), [(1, 1), (1, 2), (3, 1)])
def test_one_token_and_one_class(kind: str, parameters: dict[str, float], n: int, v: int) -> None:
    g = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(n, v, generator=g), torch.randn(n, v, generator=g)
    tails: list[Any] = ["bucket", "renormalise", "drop"]
    top = [TopKSignal(torch.zeros(n, 1, dtype=torch.long), teacher.log_softmax(-1)[:, :1], tail) for tail in tails]
    for signal in [DenseSignal(teacher), *top]:
        loss, gradient = loss_of_logits(student, signal, kind, parameters=parameters)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()
        if v == 1:
            assert loss == 0
            assert gradient.abs().max() == 0


def test_no_tokens_at_all() -> None:
    loss, gradient = loss_of_logits(torch.zeros(0, 5), DenseSignal(torch.zeros(0, 5)), "jsd")
    assert loss == 0
    assert gradient.shape == (0, 5)


@kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_the_truth(kind: str, parameters: dict[str, float], dtype: torch.dtype) -> None:
    """Hidden states and heads in half precision: the loss within the rounding of the logits."""
    problem = make(40, n=16, v=32, plain=False)
    exact = run(problem, "hidden", kind, parameters=parameters)
    rough = run(problem, "hidden", kind, parameters=parameters, dtype=dtype)
    assert rough.d_hidden.dtype == rough.d_head.dtype == dtype
    assert rough.parts.loss.dtype == torch.float32
    assert rough.loss == pytest.approx(exact.loss, rel=0.05, abs=0.01)
    for made, true in ((rough.d_hidden, exact.d_hidden), (rough.d_head, exact.d_head)):
        assert (made.double() - true).norm() < 0.06 * true.norm()


def test_float16_keeps_the_gradient_of_a_large_batch() -> None:
    """Divided by a million tokens a float16 gradient is 0; the division comes with the scaler's factor, in backward."""
    problem = make(41)
    exact = run(problem, num_items=1e6)
    hidden = problem.hidden_NH.half().requires_grad_()
    head = problem.head_VH.float().requires_grad_()
    parts = distillation_loss(hidden, head, problem.signal, num_items=1e6)
    (parts.loss * 2.0**16).backward()
    assert hidden.grad is not None
    assert head.grad is not None
    for made, true in ((hidden.grad, exact.d_hidden), (head.grad, exact.d_head)):
        assert (made.double() / 2**16 - true).norm() < 0.01 * true.norm()


def test_autocast_gives_its_products_and_gradients_in_parameter_dtype() -> None:
    problem = make(42, n=8, v=40)
    hidden, head = problem.hidden_NH.float(), problem.head_VH.float()
    by_hand = distillation_loss(hidden.bfloat16(), head.bfloat16(), problem.signal)
    hidden, head = hidden.requires_grad_(), head.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = distillation_loss(hidden, head, problem.signal)
    assert float(parts.loss.detach()) == float(by_hand.loss)
    parts.loss.backward()
    exact = run(problem)
    for made, true in ((hidden.grad, exact.d_hidden), (head.grad, exact.d_head)):
        assert made is not None
        assert made.dtype == torch.float32
        assert 0 < (made.double() - true).norm() < 0.05 * true.norm()


def test_compute_dtype_overrides() -> None:
    problem = make(43)
    hidden, head = problem.hidden_NH.float(), problem.head_VH.float()
    rounded = distillation_loss(hidden.bfloat16(), head.bfloat16(), problem.signal)
    asked = distillation_loss(hidden, head, problem.signal, compute_dtype=torch.bfloat16)
    assert float(asked.loss) == float(rounded.loss)


def test_samples_and_labels_in_half_precision() -> None:
    problem = make(44, n=12, v=32)
    t_NV = torch.from_numpy(problem.teacher_logits).softmax(-1)
    ids = torch.multinomial(t_NV, 6, generator=torch.Generator().manual_seed(0))
    signal = SampledSignal(ids, torch.ones(12, 6))
    options = {"labels_N": torch.arange(12), "label_weight": 0.5}
    exact, rough = run(problem, signal, **options), run(problem, signal, dtype=torch.bfloat16, **options)
    assert rough.loss == pytest.approx(exact.loss, rel=0.02)
    assert (rough.d_head.double() - exact.d_head).norm() < 0.05 * exact.d_head.norm()
