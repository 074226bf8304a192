"""The compiled kernels give what the eager ones give, on rows of a real vocabulary's length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import KINDS, NAMES

from lmdistill.objectives import LossParts, distillation_loss, find_divergence
from lmdistill.objectives.rows import COMPILE_FROM, compiler_works
from lmdistill.signals import HiddenSignal, SampledSignal, TopKSignal

VOCABULARY = 49152
# Three blocks of 32 rows and a rest that runs padded.
TOKENS = 110

pytestmark = pytest.mark.skipif(not compiler_works("cpu"), reason="no C++ compiler on this machine")


@pytest.fixture(scope="module")
def tensors() -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    hidden, teacher = torch.randn(2, TOKENS, 8, generator=g)
    head, teacher_head = torch.randn(2, VOCABULARY, 8, generator=g) * 1.5
    return hidden, head, teacher, teacher_head


def both(
    tensors: tuple[torch.Tensor, ...], signal: Any, kind: str, dtype: torch.dtype = torch.float32, **options: Any
) -> list[tuple[LossParts, torch.Tensor, torch.Tensor]]:
    """The eager run and the compiled one: parts, d(hidden), d(head)."""
    runs = []
    for compiled in (False, True):
        hidden, head = (x.to(dtype, copy=True).requires_grad_() for x in tensors[:2])
        parameters = options.pop("parameters", {})
        parts = distillation_loss(
            hidden, head, signal, find_divergence(kind, **parameters), compiled=compiled, **options
        )
        parts.loss.backward()
        assert hidden.grad is not None
        assert head.grad is not None
        runs.append((parts, hidden.grad, head.grad))
        options["parameters"] = parameters
    return runs


def assert_twins(runs: list[tuple[LossParts, torch.Tensor, torch.Tensor]], rtol: float = 1e-3) -> None:
    (eager, *slow), (compiled, *fast) = runs
    torch.testing.assert_close(compiled.loss, eager.loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(compiled.token_loss_N, eager.token_loss_N, rtol=1e-4, atol=1e-5)
    for made, true in zip(fast, slow, strict=True):
        assert torch.isfinite(made).all()
        assert (made.double() - true.double()).norm() <= rtol * true.double().norm()


def signal_of(tensors: tuple[torch.Tensor, ...], name: str) -> Any:
    _, _, teacher, teacher_head = tensors
    if name == "hidden":
        return HiddenSignal(teacher, teacher_head, softcap=20.0)
    log_t_NV = (teacher @ teacher_head.T).log_softmax(-1)
    top = log_t_NV.topk(16, -1)
    if name == "sampled":
        return SampledSignal(top.indices, torch.randint(1, 5, top.indices.shape), top.values)
    return TopKSignal(top.indices, top.values, "bucket")


LABELS = {"labels_N": torch.arange(TOKENS) * 400, "label_weight": 0.5}


def test_the_rows_are_long_enough_to_be_compiled() -> None:
    assert TOKENS * VOCABULARY >= COMPILE_FROM


@pytest.mark.parametrize("kind", ["forward_kl", "adaptive_kl"])
def test_dense_with_labels_cap_and_temperature(tensors: tuple[torch.Tensor, ...], kind: str) -> None:
    options = {"softcap": 15.0, "temperature": 2.0, "divergence_weight": 0.7, **LABELS}
    assert_twins(both(tensors, signal_of(tensors, "hidden"), kind, **options))


def test_top_k_with_labels(tensors: tuple[torch.Tensor, ...]) -> None:
    assert_twins(both(tensors, signal_of(tensors, "top_k"), "jsd", softcap=15.0, **LABELS))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "parameters"), KINDS, ids=NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_divergence(
    tensors: tuple[torch.Tensor, ...], kind: str, parameters: dict[str, float], dtype: torch.dtype
) -> None:
    runs = both(tensors, signal_of(tensors, "hidden"), kind, dtype, parameters=parameters)
    assert_twins(runs, rtol=1e-3 if dtype == torch.float32 else 0.02)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["top_k", "sampled", "none"])
def test_sparse_signals_and_labels_alone(tensors: tuple[torch.Tensor, ...], name: str, dtype: torch.dtype) -> None:
    signal = None if name == "none" else signal_of(tensors, name)
    assert_twins(both(tensors, signal, "forward_kl", dtype, **LABELS), rtol=1e-3 if dtype == torch.float32 else 0.02)


@pytest.mark.slow
def test_batches_of_any_size_compile_once(tensors: tuple[torch.Tensor, ...]) -> None:
    """Token counts differ from batch to batch; blocks have one shape, so that the compiler starts once."""
    hidden, head, teacher, teacher_head = tensors
    counters = torch._dynamo.utils.counters["stats"]
    made = []
    for tokens in (110, 96, 101, 87):
        signal = HiddenSignal(teacher[:tokens], teacher_head)
        distillation_loss(hidden[:tokens], head, signal, "total_variation")
        made.append(counters["unique_graphs"])
    assert made[0] == made[-1]
