"""What signals say of given tokens, against the whole distribution."""

from __future__ import annotations

import pytest
import torch

from lmdistill.objectives.signal_logprobs import signal_logprobs
from lmdistill.signals import DenseSignal, HiddenSignal, SampledSignal, TokenSignal, TopKSignal

N, K, V, REAL = 12, 6, 40, 37


@pytest.fixture
def case() -> tuple[HiddenSignal, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(N, K, generator=generator), torch.randn(V, K, generator=generator)
    ids, mask = torch.randint(0, REAL, (N,), generator=generator), torch.rand(N, generator=generator) > 0.3
    logs_NV = (hidden.double() @ head.double().T)[:, :REAL].log_softmax(-1)
    return HiddenSignal(hidden, head), ids, mask, logs_NV


def test_exact_signals_say_exactly(case: tuple[HiddenSignal, torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    signal, ids, mask, logs_NV = case
    wanted = torch.where(mask, logs_NV.gather(1, ids[:, None])[:, 0], 0.0).float()
    dense = DenseSignal(signal.hidden_NK @ signal.head_VK.T)
    token = TokenSignal(ids, logs_NV.gather(1, ids[:, None])[:, 0])
    for given in (signal, dense, token):
        found = signal_logprobs(given, ids, mask, vocabulary_size=REAL, compiled=False)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_what_the_kept_leave_is_shared_evenly(
    case: tuple[HiddenSignal, torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    _, ids, mask, logs_NV = case
    top = logs_NV.topk(5, dim=1)
    given = TopKSignal(top.indices, top.values)
    found = signal_logprobs(given, ids, mask, vocabulary_size=REAL)
    for row in mask.nonzero()[:, 0].tolist():
        if int(ids[row]) in top.indices[row].tolist():
            wanted = logs_NV[row, ids[row]]
        else:
            wanted = ((1 - top.values[row].exp().sum()) / (REAL - 5)).log()
        assert float(found[row]) == pytest.approx(float(wanted), abs=1e-5)


def test_signals_that_cannot_say_it_are_refused(
    case: tuple[HiddenSignal, torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    _, ids, mask, _ = case
    with pytest.raises(ValueError, match="SampledSignal"):
        signal_logprobs(SampledSignal(ids[:, None], torch.ones(N, 1)), ids, mask, vocabulary_size=REAL)
    with pytest.raises(ValueError, match="other tokens"):
        signal_logprobs(TokenSignal((ids + 1) % REAL, torch.zeros(N)), ids, mask, vocabulary_size=REAL)
