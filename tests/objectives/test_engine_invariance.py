"""What must not change the loss: chunks, micro-batches, padding, masks, the order and the padding of the vocabulary."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import KINDS, NAMES, Outcome, Problem, assert_same, make, run

from lmdistill.objectives import distillation_loss, divergence
from lmdistill.signals import DenseSignal, HiddenSignal, SampledSignal, TokenSignal, TopKSignal

kinds = pytest.mark.parametrize(("kind", "parameters"), KINDS, ids=NAMES)
some_kinds = pytest.mark.parametrize("kind", ["forward_kl", "jsd", "adaptive_kl"])
SIGNALS = ["hidden", "dense", "bucket", "renormalise", "drop", "sampled", "token"]


def signal_of(problem: Problem, name: str) -> Any:
    """A signal of each kind about the same teacher."""
    t_NV = torch.from_numpy(problem.teacher_logits).softmax(-1)
    top = t_NV.topk(3, -1)
    if name == "hidden":
        return problem.signal
    if name == "dense":
        return DenseSignal(torch.from_numpy(problem.teacher_logits))
    if name == "sampled":
        return SampledSignal(top.indices, torch.tensor([[3, 1, 2]]).expand(len(t_NV), 3), top.values.log())
    if name == "token":
        return TokenSignal(top.indices[:, 1], top.values[:, 1].log())
    return TopKSignal(top.indices, top.values.log(), name)  # type: ignore[arg-type]


def rows(problem: Problem, index: Any) -> Problem:
    return replace(problem, hidden_NH=problem.hidden_NH[index], teacher_NK=problem.teacher_NK[index])


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("chunk_tokens", [1, 2, 4, 5, 6, 100])
def test_chunk_size(name: str, chunk_tokens: int) -> None:
    problem = make(10, plain=False)
    mask_N = torch.tensor([1, 1, 0, 1, 1, 1])
    options = {"mask_N": mask_N, "labels_N": torch.arange(6), "label_weight": 0.4}
    whole = run(problem, signal_of(problem, name), **options)
    assert_same(run(problem, signal_of(problem, name), chunk_tokens=chunk_tokens, **options), whole)


@kinds
def test_chunk_size_of_every_divergence(kind: str, parameters: dict[str, float]) -> None:
    problem = make(11, plain=False)
    whole = run(problem, "hidden", kind, parameters=parameters)
    assert_same(run(problem, "hidden", kind, parameters=parameters, chunk_tokens=4), whole)


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("parts", [2, 3, 8])
def test_micro_batches_add_up_to_the_batch(name: str, parts: int) -> None:
    """Accumulation over micro-batches of unequal mask counts, each divided by the tokens of all."""
    problem = make(12, n=8)
    mask_N = torch.tensor([1, 0, 1, 1, 1, 0, 0, 1], dtype=torch.bool)
    weight_N = torch.linspace(0.5, 2, 8, dtype=torch.float64)
    whole = run(problem, signal_of(problem, name), mask_N=mask_N, weight_N=weight_N)
    total, head, hidden = 0.0, torch.zeros_like(problem.head_VH), []
    for index in torch.arange(8).tensor_split(parts):
        part = rows(problem, index)
        outcome = run(
            part, signal_of(part, name), mask_N=mask_N[index], weight_N=weight_N[index], num_items=mask_N.sum()
        )
        total += outcome.loss
        head += outcome.d_head
        hidden.append(outcome.d_hidden)
    assert total == pytest.approx(whole.loss, rel=1e-12)
    np.testing.assert_allclose(head, whole.d_head, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(torch.cat(hidden), whole.d_hidden, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", SIGNALS)
def test_masked_tokens_leave_no_trace(name: str) -> None:
    """Masked rows hold NaN; the loss and the gradients are those without them, theirs exactly 0."""
    problem = make(13)
    mask_N = torch.tensor([0, 1, 1, 0, 1, 0], dtype=torch.bool)
    alone = rows(problem, mask_N)
    expected = run(alone, signal_of(alone, name))
    signal = signal_of(problem, name)
    spoilt = replace(problem, hidden_NH=torch.where(mask_N[:, None], problem.hidden_NH, torch.nan))
    for field, value in signal.__dict__.items():
        if "_N" in field and torch.is_tensor(value) and value.is_floating_point():
            value[~mask_N] = torch.nan
        elif "ids_N" in field:
            value[~mask_N] = -100
    outcome = run(
        spoilt, signal, mask_N=mask_N, labels_N=torch.full((6,), -100), weight_N=torch.where(mask_N, 1.0, torch.nan)
    )
    assert outcome.loss == pytest.approx(expected.loss, rel=1e-12)
    np.testing.assert_allclose(outcome.d_hidden[mask_N], expected.d_hidden, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(outcome.d_head, expected.d_head, rtol=1e-9, atol=1e-12)
    assert (outcome.d_hidden[~mask_N] == 0).all()
    assert (outcome.parts.token_loss_N[~mask_N] == 0).all()


@pytest.mark.parametrize("name", SIGNALS)
def test_all_tokens_masked(name: str) -> None:
    problem = make(14)
    outcome = run(problem, signal_of(problem, name), mask_N=torch.zeros(6, dtype=torch.bool))
    assert outcome.loss == 0
    assert outcome.d_hidden.abs().max() == 0
    assert outcome.d_head.abs().max() == 0


def test_token_losses_add_up_to_the_loss() -> None:
    problem = make(15)
    outcome = run(problem, mask_N=torch.tensor([1, 1, 0, 1, 0, 1]), labels_N=torch.arange(6), label_weight=0.5)
    assert float(outcome.parts.token_loss_N.sum() / 4) == pytest.approx(outcome.loss, rel=1e-12)
    assert outcome.loss == pytest.approx(float(outcome.parts.divergence + 0.5 * outcome.parts.cross_entropy), rel=1e-12)


@kinds
def test_order_of_the_vocabulary(kind: str, parameters: dict[str, float]) -> None:
    problem = make(16)
    order = torch.randperm(13, generator=torch.Generator().manual_seed(1))
    shuffled = replace(problem, head_VH=problem.head_VH[order], teacher_VK=problem.teacher_VK[order])
    expected, outcome = (run(p, "hidden", kind, parameters=parameters) for p in (problem, shuffled))
    assert_same(outcome, replace(expected, d_head=expected.d_head[order]), rtol=1e-9)


def test_order_of_equally_likely_tokens() -> None:
    """Adaptive KL sorts the teacher's tokens; a tie must not depend on who comes first."""
    problem = replace(make(17), teacher_VK=make(17).teacher_VK[[0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3]])
    order = torch.randperm(13, generator=torch.Generator().manual_seed(2))
    shuffled = replace(problem, head_VH=problem.head_VH[order], teacher_VK=problem.teacher_VK[order])
    for mu in (0.05, 0.3, 0.5, 0.8):
        expected, outcome = (run(p, "hidden", "adaptive_kl", parameters={"mu": mu}) for p in (problem, shuffled))
        assert_same(outcome, replace(expected, d_head=expected.d_head[order]), rtol=1e-9)


@pytest.mark.parametrize("kind", [name for name, parameters in KINDS if not parameters])
@settings(max_examples=12, deadline=None)
@given(student_rows=st.integers(0, 256), teacher_rows=st.integers(0, 256), huge=st.booleans())
def test_padded_vocabularies(kind: str, student_rows: int, teacher_rows: int, huge: bool) -> None:
    """Rows above vocab_size hold anything and change nothing; in float32 within 1e-6."""
    problem = make(18)
    padded = replace(
        problem,
        head_VH=_with_rows(problem.head_VH, student_rows, huge),
        teacher_VK=_with_rows(problem.teacher_VK, teacher_rows, huge),
    )
    expected = run(problem, "hidden", kind, dtype=torch.float32)
    outcome = run(padded, "hidden", kind, dtype=torch.float32, vocab_size=13)
    assert (outcome.d_head[13:] == 0).all()
    assert_same(
        outcome, replace(expected, d_head=torch.cat([expected.d_head, outcome.d_head[13:]])), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("name", SIGNALS[1:])
def test_padded_student_with_signals_that_name_ids(name: str) -> None:
    problem = make(19)
    padded = replace(problem, head_VH=_with_rows(problem.head_VH, 50, True))
    expected = run(problem, signal_of(problem, name))
    outcome = run(padded, signal_of(problem, name), vocab_size=13)
    assert_same(outcome, replace(expected, d_head=torch.cat([expected.d_head, outcome.d_head[13:] * 0])))


def _with_rows(head: torch.Tensor, count: int, huge: bool) -> torch.Tensor:
    return torch.cat([head, torch.full((count, head.shape[1]), 1e3 if huge else 0.0, dtype=head.dtype)])


@kinds
@pytest.mark.parametrize("tail", ["bucket", "renormalise", "drop"])
def test_top_k_of_the_whole_vocabulary_is_dense(kind: str, parameters: dict[str, float], tail: Any) -> None:
    problem = make(20, plain=False)
    dense = run(problem, "hidden", kind, parameters=parameters)
    assert_same(run(problem, problem.top_k(13, tail), kind, parameters=parameters), dense, rtol=1e-8, atol=1e-11)


@some_kinds
def test_bucket_with_a_teacher_that_is_sure(kind: str) -> None:
    """All mass, after rounding, on the kept ids: the student's tail is dear, but not infinitely."""
    problem = make(21)
    signal = TopKSignal(torch.tensor([[2, 5]]).expand(6, 2), torch.tensor([[0.0, -torch.inf]]).expand(6, 2))
    outcome = run(problem, signal, kind, dtype=torch.float32)
    assert 0 < outcome.loss < 40
    assert torch.isfinite(outcome.d_hidden).all()


@pytest.mark.parametrize("signal", [HiddenSignal, DenseSignal])
def test_student_equal_to_teacher_has_no_loss_and_no_gradient(signal: type) -> None:
    problem = make(22, k=5)
    twin = replace(problem, teacher_NK=problem.hidden_NH, teacher_VK=problem.head_VH)
    for kind, parameters in KINDS:
        outcome = run(
            twin, signal_of(twin, "hidden" if signal is HiddenSignal else "dense"), kind, parameters=parameters
        )
        assert abs(outcome.loss) < 1e-12, kind
        if kind != "total_variation":  # at s = t it has a kink; any subgradient serves
            assert outcome.d_hidden.abs().max() < 1e-10, kind
            assert outcome.d_head.abs().max() < 1e-10, kind


def test_divergence_is_the_same_engine() -> None:
    problem = make(23)
    mask_N = torch.tensor([1, 0, 1, 1, 1, 1])
    loss = divergence(problem.hidden_NH, problem.head_VH, problem.signal, "jsd", mask_N, temperature=2.0)
    parts = distillation_loss(problem.hidden_NH, problem.head_VH, problem.signal, "jsd", mask_N=mask_N, temperature=2.0)
    assert float(loss) == float(parts.loss)


def test_weights_of_zero_and_temperature_squared() -> None:
    problem = make(24)
    nothing: Outcome = run(problem, weight_N=torch.zeros(6))
    assert nothing.loss == 0
    assert nothing.d_head.abs().max() == 0
    plain, squared = (run(problem, temperature=3.0, temperature_squared=x) for x in (False, True))
    assert squared.loss == pytest.approx(9 * plain.loss, rel=1e-12)
    np.testing.assert_allclose(squared.d_head, 9 * plain.d_head, rtol=1e-12)
