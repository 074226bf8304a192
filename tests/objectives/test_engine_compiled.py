"""The compiled kernels give what the eager ones give, on rows of a real vocabulary's length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import KINDS, NAMES

from lmdistill.objectives import LossParts, PolicyTerm, distillation_loss, find_divergence, token_logprobs
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


def policy_of(tensors: tuple[torch.Tensor, ...], clip: Any, reference_weight: float) -> PolicyTerm:
    hidden, head, *_ = tensors
    now_N = (hidden @ head.T).log_softmax(-1).gather(1, LABELS["labels_N"][:, None])[:, 0]  # type: ignore[index]
    spread_N = torch.linspace(-1, 1, TOKENS)
    return PolicyTerm(
        spread_N.flip(0),
        now_N + spread_N,
        1 + 0.3 * spread_N,
        clip=clip,
        reference_logprobs_N=now_N - 0.2,
        reference_weight=reference_weight,
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["hidden", "top_k", "none"])
@pytest.mark.parametrize(("clip", "reference_weight"), [("ratio", 0.1), ("product", 0.0), ("truncate", 0.0)])
def test_policy_terms(
    tensors: tuple[torch.Tensor, ...], name: str, clip: str, reference_weight: float, dtype: torch.dtype
) -> None:
    signal = None if name == "none" else signal_of(tensors, name)
    policy = policy_of(tensors, clip, reference_weight)
    runs = both(tensors, signal, "reverse_kl", dtype, policy=policy, **LABELS)
    assert_twins(runs, rtol=1e-3 if dtype == torch.float32 else 0.02)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["skew_forward_kl", "skew_reverse_kl_detached", "taid"])
def test_settings_by_token(tensors: tuple[torch.Tensor, ...], kind: str) -> None:
    assert_twins(both(tensors, signal_of(tensors, "hidden"), kind, setting_N=torch.linspace(0.05, 0.9, TOKENS)))


@pytest.mark.slow
def test_numbers_that_change_compile_nothing_anew(tensors: tuple[torch.Tensor, ...]) -> None:
    """Settings by token, advantages and weights differ at every step."""
    hidden, head, teacher, teacher_head = tensors
    counters = torch._dynamo.utils.counters["stats"]
    made = []
    definition = find_divergence("skew_forward_kl", alpha=0.2)
    for step in range(3):
        policy = PolicyTerm(torch.full((TOKENS,), float(step)), torch.full((TOKENS,), -3.0 - step), weight=0.5 + step)
        distillation_loss(
            hidden,
            head,
            HiddenSignal(teacher, teacher_head),
            definition,
            labels_N=torch.arange(TOKENS),
            setting_N=torch.full((TOKENS,), 0.1 + 0.2 * step),
            policy=policy,
            divergence_weight=1.0 + step,
        )
        made.append(counters["unique_graphs"])
    assert made[0] == made[-1]


@pytest.mark.slow
def test_token_logprobs(tensors: tuple[torch.Tensor, ...]) -> None:
    found = []
    for compiled in (False, True):
        hidden, head = (x.clone().requires_grad_() for x in tensors[:2])
        ids = torch.arange(TOKENS) * 400
        logprobs = token_logprobs(hidden, head, ids, softcap=15.0, temperature=0.8, compiled=compiled)
        found.append((logprobs, *torch.autograd.grad(logprobs.square().sum(), (hidden, head))))
    for slow, fast in zip(*found, strict=True):
        assert (fast - slow).norm() <= 1e-4 * slow.norm()
