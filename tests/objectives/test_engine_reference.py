"""Every divergence over every signal equals the float64 reference in loss and in all gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
import torch
from problems import KINDS, NAMES, SMOOTH, assert_as_expected, make, run

from lmdistill.objectives import DIVERGENCES, distillation_loss, find_divergence
from lmdistill.signals import DenseSignal, HeadExpectationSignal, SampledSignal, TokenSignal, TopKSignal

MASK = torch.tensor([True, True, False, True, False, True])
WEIGHT = torch.tensor([0.5, 2.0, 9.0, 1.0, 9.0, 0.25], dtype=torch.float64)
LABELS = torch.tensor([3, 0, 12, 5, 7, 12])

kinds = pytest.mark.parametrize(("kind", "parameters"), KINDS, ids=NAMES)


def test_the_kinds_tested_are_all_there_are() -> None:
    assert {name for name, _ in KINDS} == set(DIVERGENCES)


@kinds
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "bias-scale-cap"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_hidden_signal(kind: str, parameters: dict[str, float], plain: bool, temperature: float) -> None:
    problem = make(plain=plain)
    rows = reference.dense_rows(kind, problem.student_logits, problem.teacher_logits, temperature, **parameters)
    expected = reference.evaluate(problem.student, rows, mask=MASK.numpy(), weight=WEIGHT.numpy())
    outcome = run(problem, "hidden", kind, parameters=parameters, mask_N=MASK, weight_N=WEIGHT, temperature=temperature)
    assert_as_expected(outcome, expected)


@kinds
def test_dense_signal(kind: str, parameters: dict[str, float]) -> None:
    problem = make(1)
    rows = reference.dense_rows(kind, problem.student_logits, problem.teacher_logits, **parameters)
    outcome = run(problem, DenseSignal(torch.from_numpy(problem.teacher_logits)), kind, parameters=parameters)
    assert_as_expected(outcome, reference.evaluate(problem.student, rows))


@kinds
@pytest.mark.parametrize("tail", ["bucket", "renormalise", "drop"])
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "bias-scale-cap"])
def test_top_k_signal(kind: str, parameters: dict[str, float], tail: Any, plain: bool) -> None:
    problem = make(2, plain=plain)
    signal = problem.top_k(4, tail)
    signal.logprobs_Nk[1, 2:] = -torch.inf  # empty slots: one names a filled id, one an id of the tail
    signal.ids_Nk[1, 2] = signal.ids_Nk[1, 0]
    rows = reference.top_k_rows(
        kind, problem.student_logits, signal.ids_Nk.numpy(), signal.logprobs_Nk.numpy(), tail, **parameters
    )
    expected = reference.evaluate(problem.student, rows, mask=MASK.numpy(), weight=WEIGHT.numpy(), num_items=11)
    outcome = run(problem, signal, kind, parameters=parameters, mask_N=MASK, weight_N=WEIGHT, num_items=11)
    assert_as_expected(outcome, expected)


@pytest.mark.parametrize(("kind", "parameters"), [KINDS[0], KINDS[1], KINDS[2], KINDS[15]])
@pytest.mark.parametrize(
    ("tail", "stored"), [("bucket", 2.0), ("drop", 2.0), ("renormalise", 2.0), ("renormalise", 3.0)]
)
def test_top_k_signal_at_a_temperature(kind: str, parameters: dict[str, float], tail: Any, stored: float) -> None:
    problem = make(3, plain=False)
    signal = problem.top_k(5, tail, stored)
    rows = reference.top_k_rows(
        kind, problem.student_logits, signal.ids_Nk.numpy(), signal.logprobs_Nk.numpy(), tail, 2.0, stored, **parameters
    )
    outcome = run(problem, signal, kind, parameters=parameters, temperature=2.0)
    assert_as_expected(outcome, reference.evaluate(problem.student, rows))


@pytest.mark.parametrize("with_logprobs", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_sampled_signal(with_logprobs: bool, temperature: float) -> None:
    problem = make(4, plain=False)
    g = torch.Generator().manual_seed(0)
    t_NV = (torch.from_numpy(problem.teacher_logits) / temperature).softmax(-1)
    ids = torch.stack([torch.randperm(13, generator=g)[:5] for _ in range(6)])
    counts = torch.randint(0, 4, (6, 5), generator=g)
    counts[:, 0] += 1
    logprobs = t_NV.log().gather(1, ids)
    logprobs[counts == 0] = -torch.inf
    signal = SampledSignal(ids, counts, logprobs if with_logprobs else None, temperature)
    rows = reference.sampled_rows(
        ids.numpy(), counts.numpy().astype(float), logprobs.numpy() if with_logprobs else None, temperature
    )
    outcome = run(problem, signal, mask_N=MASK, weight_N=WEIGHT, temperature=temperature)
    assert_as_expected(outcome, reference.evaluate(problem.student, rows, mask=MASK.numpy(), weight=WEIGHT.numpy()))


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl"])
def test_token_signal(kind: str) -> None:
    problem = make(5, plain=False)
    ids, at = LABELS.numpy(), np.arange(6)
    log_t = np.log(reference.softmax(problem.teacher_logits))[at, ids]
    ratio = log_t - np.log(reference.softmax(problem.student_logits))[at, ids]

    def log_s(z: np.ndarray) -> np.ndarray:
        return np.log(reference.softmax(z))[at, ids]

    if kind == "forward_kl":
        expected = reference.evaluate(problem.student, lambda z: log_t - log_s(z), mask=MASK.numpy())
    else:  # the score-function gradient: the reward r is held fixed
        expected = reference.evaluate(
            problem.student, lambda z: log_s(z) - log_t, surrogate=lambda z: -ratio * log_s(z), mask=MASK.numpy()
        )
    outcome = run(problem, TokenSignal(LABELS, torch.from_numpy(log_t)), kind, mask_N=MASK)
    assert_as_expected(outcome, expected)


@pytest.mark.parametrize("with_entropy", [True, False])
def test_head_expectation_signal(with_entropy: bool) -> None:
    problem = make(6, plain=False)
    problem = type(problem)(**{**problem.__dict__, "softcap": None})
    t_NV = torch.from_numpy(reference.softmax(problem.teacher_logits))
    entropy_N = -(t_NV * t_NV.log()).sum(-1)
    assert problem.bias_V is not None
    signal = HeadExpectationSignal(
        t_NV @ problem.head_VH, entropy_N if with_entropy else None, bias_N=t_NV @ problem.bias_V
    )
    outcome = run(problem, signal, train_head=False, mask_N=MASK, weight_N=WEIGHT)
    rows = reference.dense_rows("forward_kl", problem.student_logits, problem.teacher_logits)
    extra = 0.0 if with_entropy else entropy_N.numpy()
    expected = reference.evaluate(problem.student, lambda z: rows(z) + extra, mask=MASK.numpy(), weight=WEIGHT.numpy())
    np.testing.assert_allclose(outcome.loss, expected.loss, rtol=1e-9)
    np.testing.assert_allclose(outcome.d_hidden.numpy(), expected.hidden, rtol=1e-6, atol=1e-8)
    assert outcome.d_head.abs().max() == 0


# The last two are defined at temperature 1 only.
SIGNALS = [(name, t) for name in ("hidden", "top_k", "sampled", "none") for t in (1.0, 2.0)]
SIGNALS += [("token", 1.0), ("head_expectation", 1.0)]


@pytest.mark.parametrize(("name", "temperature"), SIGNALS)
@pytest.mark.parametrize("squared", [True, False])
def test_cross_entropy_mixed_in(name: str, temperature: float, squared: bool) -> None:
    """0.3 of the divergence (x T² where asked) and 0.7 of the labels' cross-entropy at temperature 1."""
    problem = make(7, plain=name == "head_expectation")
    soft_t_NV = torch.from_numpy(reference.softmax(problem.teacher_logits / temperature))
    student_z, teacher_z = problem.student_logits, problem.teacher_logits
    top = soft_t_NV.log().topk(4, -1)
    signal: Any = {
        "hidden": problem.signal,
        "top_k": TopKSignal(top.indices, top.values, "bucket", temperature),
        "sampled": SampledSignal(top.indices, torch.full((6, 4), 2), None, temperature),
        "token": TokenSignal(LABELS, soft_t_NV.log().gather(1, LABELS[:, None])[:, 0]),
        "head_expectation": HeadExpectationSignal(soft_t_NV @ problem.head_VH, -(soft_t_NV * soft_t_NV.log()).sum(-1)),
        "none": None,
    }[name]
    at = np.arange(6)
    rows = {
        "hidden": reference.dense_rows("forward_kl", student_z, teacher_z, temperature),
        "top_k": reference.top_k_rows(
            "forward_kl", student_z, top.indices.numpy(), top.values.numpy(), "bucket", temperature, temperature
        ),
        "sampled": reference.sampled_rows(top.indices.numpy(), np.full((6, 4), 2.0), None, temperature),
        "token": lambda z: soft_t_NV.log().numpy()[at, LABELS] - np.log(reference.softmax(z))[at, LABELS],
        "head_expectation": reference.dense_rows("forward_kl", student_z, teacher_z),
        "none": lambda z: np.zeros(len(z)),
    }[name]
    labels = reference.cross_entropy_rows(LABELS.numpy())
    factor = 0.3 * (temperature**2 if squared else 1)
    expected = reference.evaluate(
        problem.student, lambda z: factor * rows(z) + 0.7 * labels(z), mask=MASK.numpy(), weight=WEIGHT.numpy()
    )
    outcome = run(
        problem,
        signal,
        divergence_weight=0.3,
        labels_N=LABELS,
        label_weight=0.7,
        temperature=temperature,
        temperature_squared=squared,
        mask_N=MASK,
        weight_N=WEIGHT,
        train_head=name != "head_expectation",
    )
    if name == "head_expectation":
        expected.head[:] = 0
    assert_as_expected(outcome, expected)
    kept = MASK.numpy() * WEIGHT.numpy() / MASK.sum().item()
    np.testing.assert_allclose(outcome.parts.divergence, (rows(student_z) * kept).sum(), rtol=1e-9)
    np.testing.assert_allclose(outcome.parts.cross_entropy, (labels(student_z) * kept).sum(), rtol=1e-9)


@pytest.mark.parametrize(("kind", "parameters"), SMOOTH)
@pytest.mark.parametrize("signal", ["hidden", "top_k"])
def test_gradcheck(kind: str, parameters: dict[str, float], signal: str) -> None:
    problem = make(8, n=3, v=7, h=3, plain=False)
    assert problem.bias_V is not None
    teacher = problem.signal if signal == "hidden" else problem.top_k(3, "bucket")
    definition = find_divergence(kind, **parameters)

    def loss(hidden: torch.Tensor, head: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return distillation_loss(
            hidden, head, teacher, definition, student_bias=bias, logit_scale=0.8, softcap=4.0,
            labels_N=torch.tensor([1, 0, 6]), label_weight=0.5,
        ).loss  # fmt: skip

    inputs = [x.clone().requires_grad_() for x in (problem.hidden_NH, problem.head_VH, problem.bias_V)]
    assert torch.autograd.gradcheck(loss, inputs)


def test_gradients_with_respect_to_logits_are_the_published_ones() -> None:
    """FKL: p_s - p_t. RKL: p_s (log p_s - log p_t - RKL). JSD: (1-w) p_s (log p_s - log m - KL(p_s‖m))."""
    problem = make(9)
    s, t = reference.softmax(problem.student_logits), reference.softmax(problem.teacher_logits)
    rkl = (s * np.log(s / t)).sum(-1, keepdims=True)
    m = 0.3 * t + 0.7 * s
    to_mix = (s * np.log(s / m)).sum(-1, keepdims=True)
    published = {
        "forward_kl": s - t,
        "reverse_kl": s * (np.log(s / t) - rkl),
        "jsd": 0.7 * s * (np.log(s / m) - to_mix),
    }
    for kind, gradient in published.items():
        outcome = run(problem, "hidden", kind, parameters={"teacher_weight": 0.3} if kind == "jsd" else {})
        np.testing.assert_allclose(outcome.d_hidden.numpy(), gradient @ problem.head_VH.numpy() / 6, atol=1e-12)
