"""Sampled signals are unbiased: over all outcomes, each weighted by its probability, they give the dense result."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import reference
import torch
from problems import Outcome, Problem, make, run

from lmdistill.signals import DenseSignal, SampledSignal, Signal, TokenSignal

VOCABULARY = 4


def one_token(temperature: float = 1.0) -> tuple[Problem, np.ndarray, np.ndarray]:
    problem = make(30, n=1, v=VOCABULARY, plain=False)
    return (
        problem,
        reference.softmax(problem.student_logits / temperature)[0],
        reference.softmax(problem.teacher_logits / temperature)[0],
    )


def expectation(
    problem: Problem, outcomes: list[tuple[float, Signal]], kind: str = "forward_kl", temperature: float = 1.0
) -> tuple[float, np.ndarray, np.ndarray]:
    """Mean loss and gradients over all outcomes."""
    assert sum(p for p, _ in outcomes) == pytest.approx(1)
    made = [(p, run(problem, signal, kind, temperature=temperature)) for p, signal in outcomes]
    return (
        sum(p * o.loss for p, o in made),
        sum(p * o.d_hidden.numpy() for p, o in made),  # type: ignore[return-value]
        sum(p * o.d_head.numpy() for p, o in made),
    )


def assert_equals(estimate: tuple[float, np.ndarray, np.ndarray], exact: Outcome, loss: float) -> None:
    assert estimate[0] == pytest.approx(loss, rel=1e-10)
    np.testing.assert_allclose(estimate[1], exact.d_hidden.numpy(), rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(estimate[2], exact.d_head.numpy(), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("draws", [1, 2, 4])
@pytest.mark.parametrize("with_logprobs", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_sampled_signal_is_unbiased(draws: int, with_logprobs: bool, temperature: float) -> None:
    """All 4^draws ways in which the teacher can draw; without log-probabilities the value is the cross-entropy."""
    problem, _, t = one_token(temperature)
    outcomes: list[tuple[float, Signal]] = []
    for drawn in itertools.product(range(VOCABULARY), repeat=draws):
        ids, counts = np.unique(drawn, return_counts=True)
        outcomes.append(
            (
                float(np.prod(t[list(drawn)])),
                SampledSignal(
                    torch.from_numpy(ids)[None],
                    torch.from_numpy(counts)[None],
                    torch.from_numpy(np.log(t[ids]))[None] if with_logprobs else None,
                    temperature,
                ),
            )
        )
    exact = run(problem, DenseSignal(torch.from_numpy(problem.teacher_logits)), temperature=temperature)
    entropy = 0.0 if with_logprobs else float(-(t * np.log(t)).sum())
    assert_equals(expectation(problem, outcomes, temperature=temperature), exact, exact.loss + entropy)


def test_counts_may_be_weights() -> None:
    """Every id, weighted with the teacher's probability: the dense loss itself."""
    problem, _, t = one_token()
    ids = torch.arange(VOCABULARY)[None]
    exact = run(problem, DenseSignal(torch.from_numpy(problem.teacher_logits)))
    weighted = run(problem, SampledSignal(ids, torch.from_numpy(t)[None], torch.from_numpy(np.log(t))[None]))
    assert_equals((weighted.loss, weighted.d_hidden.numpy(), weighted.d_head.numpy()), exact, exact.loss)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl"])
def test_token_signal_is_unbiased(kind: str) -> None:
    """Forward where the teacher wrote the token, reverse where the student did."""
    problem, s, t = one_token()
    writer = t if kind == "forward_kl" else s
    outcomes: list[tuple[float, Signal]] = [
        (writer[y], TokenSignal(torch.tensor([y]), torch.tensor([np.log(t[y])]))) for y in range(VOCABULARY)
    ]
    exact = run(problem, DenseSignal(torch.from_numpy(problem.teacher_logits)), kind)
    assert_equals(expectation(problem, outcomes, kind), exact, exact.loss)


def test_a_token_without_samples_says_nothing() -> None:
    problem = make(31, n=2)
    signal = SampledSignal(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[1, 1], [0, 0]]))
    outcome = run(problem, signal)
    assert outcome.d_hidden[0].abs().max() > 0
    assert outcome.d_hidden[1].abs().max() == 0
    assert outcome.parts.token_loss_N[1] == 0
