"""Log-probabilities of given tokens equal those of full logits, in value and in every gradient."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from problems import Problem, make
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lmdistill.objectives import token_logprobs, top_tokens
from lmdistill.objectives.products import project

IDS = torch.tensor([3, 0, -100, 5, 12, 7])
SEVERAL = torch.stack([IDS, IDS.flip(0), torch.full((6,), 4), torch.full((6,), 4)], 1)
MASK = torch.tensor([True, True, False, False, True, True])


def by_definition(problem: Problem, leaves: list[Tensor], ids: Tensor, temperature: float = 1.0) -> Tensor:
    """From all logits; masked tokens 0."""
    hidden, head, *bias = leaves
    z_NV = (hidden @ head.T + (bias[0] if bias else 0)) * problem.logit_scale
    if problem.softcap is not None:
        z_NV = problem.softcap * torch.tanh(z_NV / problem.softcap)
    log_q_NV = (z_NV / temperature).log_softmax(-1)
    ids_Nk = ids.clamp_min(0).view(len(hidden), -1)
    return torch.where(MASK[:, None], log_q_NV.gather(1, ids_Nk), 0.0).view(ids.shape)


def leaves_of(problem: Problem) -> list[Tensor]:
    tensors = [problem.hidden_NH, problem.head_VH] + ([] if problem.bias_V is None else [problem.bias_V])
    return [x.clone().requires_grad_() for x in tensors]


def ours(problem: Problem, leaves: list[Tensor], ids: Tensor, **options: Any) -> Tensor:
    hidden, head, *bias = leaves
    return token_logprobs(
        hidden,
        head,
        ids,
        mask_N=MASK,
        bias=bias[0] if bias else None,
        logit_scale=problem.logit_scale,
        softcap=problem.softcap,
        **options,
    )


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "bias-scale-cap"])
@pytest.mark.parametrize("ids", [IDS, SEVERAL.masked_fill(~MASK[:, None], -7)], ids=["one", "several"])
@pytest.mark.parametrize("temperature", [1.0, 0.8])
@pytest.mark.parametrize("chunk_tokens", [1, 3, None])
def test_equals_full_logits(plain: bool, ids: Tensor, temperature: float, chunk_tokens: int | None) -> None:
    problem = make(60, plain=plain)
    one, other = leaves_of(problem), leaves_of(problem)
    found = ours(problem, one, ids, temperature=temperature, chunk_tokens=chunk_tokens)
    expected = by_definition(problem, other, ids, temperature)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    pull = torch.randn(ids.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for made, true in zip(
        torch.autograd.grad(found, one, pull), torch.autograd.grad(expected, other, pull), strict=True
    ):
        torch.testing.assert_close(made, true, rtol=1e-10, atol=1e-12)


def test_gradcheck() -> None:
    problem = make(61, plain=False)
    assert torch.autograd.gradcheck(
        lambda *leaves: ours(problem, list(leaves), IDS, chunk_tokens=2), leaves_of(problem)
    )


@pytest.mark.parametrize("frozen", [0, 1])
def test_what_is_frozen_gets_no_gradient_and_the_other_the_same(frozen: int) -> None:
    problem = make(62)
    whole = torch.autograd.grad(ours(problem, both := leaves_of(problem), IDS).sum(), both)
    half = leaves_of(problem)
    half[frozen].requires_grad_(False)
    ours(problem, half, IDS).sum().backward()
    assert half[frozen].grad is None
    assert half[1 - frozen].grad is not None
    torch.testing.assert_close(half[1 - frozen].grad, whole[1 - frozen], rtol=0, atol=0)


def test_a_frozen_head_is_projected_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    module = sys.modules[token_logprobs.__module__]  # its name in the package is the function's
    monkeypatch.setattr(module, "project", lambda *args: (calls.append(1), project(*args)))
    problem = make(63)
    hidden, head = leaves_of(problem)
    ours(problem, [hidden, head.detach()], IDS).sum().backward()
    assert len(calls) == 1
    ours(problem, [hidden, head], IDS).sum().backward()
    assert len(calls) == 3  # the head's own gradient needs every probability again
    with torch.no_grad():
        ours(problem, [hidden, head], IDS)
    assert len(calls) == 4


def test_tied_to_the_input_and_kept_graph() -> None:
    problem = make(64, h=4)
    embedding = problem.head_VH.clone().requires_grad_()
    twin = problem.head_VH.clone().requires_grad_()
    places = torch.tensor([1, 2, 3, 4, 5, 6])
    found = ours(problem, [embedding[places], embedding], IDS).sum()
    (first,) = torch.autograd.grad(found, embedding, retain_graph=True)
    (second,) = torch.autograd.grad(found, embedding)
    (true,) = torch.autograd.grad(by_definition(problem, [twin[places], twin], IDS).sum(), twin)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, true, rtol=1e-10, atol=1e-12)


class _Largest(TorchDispatchMode):
    """Sees the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, tuple | list) else [out]:
            if isinstance(made, Tensor):
                self.numel = max(self.numel, made.numel())
        return out


def test_no_tensor_of_tokens_x_vocabulary() -> None:
    n, v, h = 300, 500, 8
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, h, generator=generator, requires_grad=True)
    head = torch.randn(v, h, generator=generator, requires_grad=True)
    with _Largest() as seen:
        token_logprobs(hidden, head, torch.arange(n), chunk_tokens=20).sum().backward()
    assert seen.numel == 20 * v


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_near_the_truth(dtype: torch.dtype) -> None:
    problem = make(65, n=6, v=200, h=16)
    exact, rounded = leaves_of(problem), [x.detach().to(dtype).requires_grad_() for x in leaves_of(problem)]
    true = torch.autograd.grad(by_definition(problem, exact, IDS).sum(), exact)
    found = ours(problem, rounded, IDS)
    assert found.dtype == torch.float32
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    for made, wanted in zip(torch.autograd.grad(found.sum(), rounded), true, strict=True):
        assert made.dtype == dtype
        assert (made.double() - wanted).norm() <= tolerance * wanted.norm()


def test_padded_rows_of_the_head_take_no_probability() -> None:
    problem = make(66)
    padded = torch.cat([problem.head_VH, torch.full((3, 5), 9.0, dtype=torch.float64)]).requires_grad_()
    hidden, head = leaves_of(problem)
    found = token_logprobs(hidden, padded, IDS, mask_N=MASK, vocab_size=13)
    torch.testing.assert_close(found, token_logprobs(hidden, head, IDS, mask_N=MASK), rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(found.sum(), padded)
    assert gradient[13:].abs().max() == 0


def test_nothing_wanted() -> None:
    hidden, head = leaves_of(make(67))
    found = token_logprobs(hidden, head, IDS, mask_N=torch.zeros(6, dtype=torch.bool))
    found.sum().backward()
    assert found.abs().max() == 0
    assert hidden.grad is not None
    assert hidden.grad.abs().max() == 0


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "bias-scale-cap"])
def test_top_tokens(plain: bool) -> None:
    problem = make(68, plain=plain)
    hidden, head, *bias = leaves_of(problem)
    ids_Nk, logprobs_Nk = top_tokens(
        hidden, head, 4, mask_N=MASK, bias=bias[0] if bias else None, logit_scale=problem.logit_scale,
        softcap=problem.softcap, temperature=1.5, chunk_tokens=2,
    )  # fmt: skip
    everything = torch.arange(13).expand(6, 13)
    top = by_definition(problem, leaves_of(problem), everything, 1.5).topk(4, -1)
    assert torch.equal(ids_Nk[MASK], top.indices[MASK])
    torch.testing.assert_close(logprobs_Nk, top.values.detach(), rtol=1e-12, atol=1e-12)
    assert not logprobs_Nk.requires_grad


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"ids": torch.tensor([1, 2])}, r"ids has shape \(2,\); 6 tokens need \(6,\) or \(N, k\)"),
    ({"ids": torch.full((6,), 13)}, "ids holds 13 at an unmasked token but the vocabulary has 13"),
    ({"ids": torch.full((6,), -100)}, "ids holds -100 at an unmasked token"),
    ({"temperature": 0.0}, "temperature = 0.0 must be above 0"),
    ({"mask_N": torch.ones(4)}, "6 student tokens but 4 rows in mask_N"),
    ({"vocab_size": 99}, "vocab_size = 99 but the student's head has 13"),
    ({"softcap": -1.0}, "softcap = -1.0 must be above 0"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_refuses(options: dict[str, Any], message: str) -> None:
    problem = make(69)
    fields = {"ids": IDS.clamp_min(0), **options}
    with pytest.raises(ValueError, match=message):
        token_logprobs(problem.hidden_NH, problem.head_VH, fields.pop("ids"), **fields)


def test_more_top_tokens_than_there_are() -> None:
    problem = make(70)
    with pytest.raises(ValueError, match="k = 14 must lie between 1 and the vocabulary's 13"):
        top_tokens(problem.hidden_NH, problem.head_VH, 14)
