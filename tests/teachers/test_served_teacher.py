"""A teacher behind a server, asked batch by batch, and what its answers lack."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from teacher_helpers import V, assert_same, batch, by_definition, model, naive, segments, student, trained
from torch import Tensor

from lmdistill.errors import EXIT_INTERRUPTED, ModelError, ServerLost, TrainingError
from lmdistill.objectives import divergence
from lmdistill.signals import TokenSignal, TopKSignal
from lmdistill.teachers import KeptMass, LocalTeacher, ServedTeacher, privileged_batch, served_bias
from logprob_server import LogprobServer, serving


@pytest.fixture
def server() -> Iterator[LogprobServer]:
    with serving(model(1)) as made:
        yield made


@pytest.fixture
def asks() -> Iterator[Any]:
    """Makes teachers, and closes them."""
    made: list[ServedTeacher] = []

    def make(server: LogprobServer, **options: Any) -> ServedTeacher:
        made.append(ServedTeacher(server.url, "m", V, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def coarse(kind: str, log_s_NV: Tensor, log_t_NV: Tensor, k: int, own_N: Tensor, wanted_N: Tensor) -> Tensor:
    """Mean divergence on the teacher's k likeliest tokens, the text's own, and the rest as one class."""
    total = torch.zeros((), dtype=torch.float64)
    for place in wanted_N.nonzero()[:, 0].tolist():
        kept = torch.zeros(log_t_NV.shape[1], dtype=torch.bool)
        kept[log_t_NV[place].topk(k).indices] = True
        kept[own_N[place]] = True
        s, t = (
            torch.cat([log_NV[place][kept], log_NV[place][~kept].logsumexp(0)[None]]) for log_NV in (log_s_NV, log_t_NV)
        )
        total = total + by_definition(kind, s, t)
    return total / wanted_N.sum()


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_it_gives_the_true_divergence_of_what_it_can_see(kind: str, server: LogprobServer, asks: Any) -> None:
    given = batch()
    (part,) = asks(server, k=5).speak(given).parts
    assert isinstance(part.signal, TopKSignal)
    assert torch.equal(part.mask_N, trained(given))
    log_t_NV, own_N = naive(server.model, given), given["input_ids"].roll(-1, 1).flatten()
    mine, theirs = student(len(log_t_NV)), student(len(log_t_NV))
    loss = divergence(mine[0], mine[1], part.signal, kind, mask_N=part.mask_N)
    log_s_NV = (theirs[0] @ theirs[1].T).log_softmax(-1)
    truth = coarse(kind, log_s_NV, log_t_NV, 5, own_N, trained(given))
    loss.backward()
    truth.backward()
    torch.testing.assert_close(loss, truth, rtol=1e-5, atol=1e-6)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_with_all_of_the_vocabulary_it_is_exact(server: LogprobServer, asks: Any) -> None:
    given = batch()
    part = asks(server, k=500).speak(given).parts[0]
    assert_same(part, naive(server.model, given), trained(given), rtol=1e-4, atol=1e-5)


def test_each_packed_row_with_something_to_learn_is_one_request(server: LogprobServer, asks: Any) -> None:
    given = batch(3)
    given["labels"][1] = -100
    asks(server, k=5).speak(given)
    texts = [
        given["input_ids"][number, first:end].tolist()
        for number, first, end in segments(given)
        if bool((given["labels"][number, first:end] != -100).any())
    ]
    assert sorted(server.prompts) == sorted(texts)


def test_requests_wait_for_the_server_side_by_side(server: LogprobServer, asks: Any) -> None:
    given = batch(2)
    count = sum(len(names) for names in given["row_ids"])
    server.together = threading.Barrier(count, timeout=20)
    asks(server, k=5, requests=count).speak(given)
    assert len(server.prompts) == count


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl"])
def test_the_texts_own_token_alone(kind: str, server: LogprobServer, asks: Any) -> None:
    given = batch()
    (part,) = asks(server, kind="token").speak(given).parts
    assert isinstance(part.signal, TokenSignal)
    own_N, mask_N = given["input_ids"].roll(-1, 1).flatten(), trained(given)
    log_N = naive(server.model, given).gather(1, own_N[:, None])[:, 0]
    mine, theirs = student(len(own_N)), student(len(own_N))
    loss = divergence(mine[0], mine[1], part.signal, kind, mask_N=part.mask_N)
    log_s_N = (theirs[0] @ theirs[1].T).log_softmax(-1).gather(1, own_N[:, None])[:, 0]
    ratio_N = (log_N - log_s_N)[mask_N]
    # Reverse KL: the student wrote the text, so that the ratio counts as often as it writes so.
    value, surrogate = (ratio_N, ratio_N) if kind == "forward_kl" else (-ratio_N, -ratio_N.detach() * log_s_N[mask_N])
    loss.backward()
    surrogate.mean().backward()
    torch.testing.assert_close(loss.detach(), value.mean().detach(), rtol=1e-5, atol=1e-6)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["top_k", "token"])
def test_a_text_of_its_own_is_what_the_server_reads(kind: Any, server: LogprobServer, asks: Any) -> None:
    rows = [([1, 2, 3], [4, 5, 6, 7]), ([8], [9, 10]), ([11, 12], [13, 14, 15])]
    contexts = [[20, 21, 1, 2, 3], [30, 31, 32, 33, 8], [40, 11, 12]]
    given = privileged_batch(rows, contexts)
    served = asks(server, kind=kind, k=500).speak(given).parts[0]
    assert sorted(server.prompts) == sorted(
        context + answer for context, (_, answer) in zip(contexts, rows, strict=True)
    )
    local = LocalTeacher(server.model, V).speak(given).parts[0].signal
    log_NV = (local.hidden_NK @ local.head_VK.T).log_softmax(-1)
    if kind == "top_k":
        assert_same(served, log_NV, trained(given), rtol=1e-4, atol=1e-5)
    else:
        own_N, mask_N = given["input_ids"].roll(-1, 1).flatten(), trained(given)
        assert torch.equal(served.signal.ids_N[mask_N], own_N[mask_N])
        expected = log_NV.gather(1, own_N[:, None])[mask_N, 0]
        torch.testing.assert_close(served.signal.logprobs_N[mask_N], expected.float(), rtol=1e-5, atol=1e-6)


def test_what_an_attention_mask_hides_is_not_sent(server: LogprobServer, asks: Any) -> None:
    given = privileged_batch([([1, 2, 3], [4, 5, 6, 7]), ([8], [9])], [[], []])
    plain = {name: given[name] for name in ("input_ids", "labels", "row_ids")}
    plain["position_ids"] = torch.arange(7).expand(2, -1)
    plain["attention_mask"] = torch.tensor([[1] * 7, [1, 1, 0, 0, 0, 0, 0]])
    part = asks(server, k=500).speak(plain).parts[0]
    assert sorted(server.prompts) == [[1, 2, 3, 4, 5, 6, 7], [8, 9]]
    assert_same(part, naive(server.model, given), trained(given), rtol=1e-4, atol=1e-5)


def test_rows_of_a_head_that_are_no_tokens_join_the_tail(asks: Any) -> None:
    given = batch()
    padded = model(1, vocabulary=V + 9)
    with serving(padded) as server:
        part = asks(server, k=30).speak(given).parts[0]
    assert isinstance(part.signal, TopKSignal)
    assert int(part.signal.ids_Nk.max()) < V
    whole = naive(padded, given)[trained(given)]
    best = [set(row[row < V].tolist()) for row in whole.topk(30).indices]
    kept = part.signal.logprobs_Nk[trained(given)] > -torch.inf
    found = [set(row[mask].tolist()) for row, mask in zip(part.signal.ids_Nk[trained(given)], kept, strict=True)]
    own = given["input_ids"].roll(-1, 1).flatten()[trained(given)].tolist()
    assert found == [ids | {token} for ids, token in zip(best, own, strict=True)]


def test_a_busy_server_is_asked_again(server: LogprobServer, asks: Any) -> None:
    given = batch(1)
    server.fail_first = 2
    part = asks(server, k=500).speak(given).parts[0]
    assert_same(part, naive(server.model, given), trained(given), rtol=1e-4, atol=1e-5)


def test_a_server_that_dies_pauses_the_run(asks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmdistill.signals.server.RETRIES", 1)
    given = batch(1)
    with serving(model(1)) as server:
        teacher = asks(server, k=5)
        teacher.speak(given)
    with pytest.raises(
        ServerLost, match=r"is the server running.*checkpoint is intact: run the same command"
    ) as caught:
        teacher.speak(given)
    assert caught.value.exit_code == EXIT_INTERRUPTED


@pytest.mark.parametrize(
    ("status", "kind"), [(500, ServerLost), (429, ServerLost), (400, ModelError), (404, ModelError)]
)
def test_what_may_pass_is_told_from_what_will_not(
    status: int, kind: type[Exception], server: LogprobServer, asks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmdistill.signals.server.RETRIES", 0)
    server.refuse = status
    with pytest.raises(kind, match=str(status)):
        asks(server, k=5).speak(batch(1))


def test_answers_and_batches_that_cannot_be_trained_on_are_refused(server: LogprobServer, asks: Any) -> None:
    given = batch(1)
    server.poison = True
    with pytest.raises(TrainingError, match="NaN at position"):
        asks(server, k=5).speak(given)
    server.poison = False
    given["labels"][0, segments(given)[1][1]] = 3
    with pytest.raises(TrainingError, match="beginning of a packed row"):
        asks(server, k=5).speak(given)


def test_the_mass_that_is_kept_is_measured(server: LogprobServer, asks: Any) -> None:
    texts = [[1, 2, 3, 4, 5], [6, 7], [8, 9, 10, 11], [12]]
    measured = asks(server, k=4).measure(texts)
    with torch.no_grad():
        logs = [server.model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1) for ids in texts if len(ids) > 1]
    mass = torch.cat(logs).exp().topk(4).values.sum(1)
    assert measured.positions == len(mass) == 8
    assert measured.mean == pytest.approx(float(mass.mean()), rel=1e-6)
    assert measured.low == pytest.approx(float(mass.quantile(0.05)), rel=1e-6)
    with pytest.raises(ValueError, match="at least two tokens"):
        asks(server, k=4).measure([[1], []])


def test_the_stated_bounds_hold(server: LogprobServer, asks: Any) -> None:
    """Forward KL is a lower bound, and its gradient by the logits is off by 2 x the tail's mass at most."""
    given = batch(4)
    part = asks(server, k=4).speak(given).parts[0]
    mask_N, log_t_NV = trained(given), naive(server.model, given)
    torch.manual_seed(0)
    logits_NV = torch.randn(len(log_t_NV), V, dtype=torch.float64).requires_grad_()
    exact_NV = logits_NV.detach().clone().requires_grad_()
    eye = torch.eye(V, dtype=torch.float64)
    loss = divergence(logits_NV, eye, part.signal, "forward_kl", mask_N=mask_N, num_items=1.0)
    true = by_definition("forward_kl", exact_NV.log_softmax(-1), log_t_NV)[mask_N].sum()
    loss.backward()
    true.backward()
    assert float(loss.detach()) < float(true.detach())
    assert logits_NV.grad is not None
    assert exact_NV.grad is not None
    off_M = (logits_NV.grad - exact_NV.grad)[mask_N].abs().sum(1)
    tail_M = 1 - log_t_NV[mask_N].exp().topk(4).values.sum(1)
    assert bool((off_M <= 2 * tail_M + 1e-6).all())
    assert float(off_M.mean()) > 0.1 * float(tail_M.mean())  # the bound is not idle


def test_the_bias_is_told_in_words_and_figures() -> None:
    told = served_bias(20, measured=KeptMass(20, 412, 0.932, 0.61))
    for piece in (
        "its 20 likeliest tokens",
        "93.2% of its probability",
        "61.0% at 95 %",
        "412 positions",
        "0.136 a token",
    ):
        assert piece in told
    assert "was not measured" in served_bias(20)
    assert "lower bound" in served_bias(20)
    assert "not seen at all" in served_bias(20, tail="renormalise")
    assert "not a divergence" in served_bias(20, tail="drop")
    assert "reverse KL none where the student did" in served_bias(1, kind="token")
