"""Chunk likelihoods against their definition in float64, at the ends of the scale, and from stored numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from two_tokenizers import MASK, WEIGHT, Pair, assert_equal, by_definition, make_pair, outcome

from lmdistill.objectives.chunk_likelihood import CHUNK_KINDS, chunk_likelihood_loss, own_logprobs

EPSILON = 1e-6


def coin(kind: str, s: Tensor, t: Tensor, temperature: float) -> Tensor:
    """The loss of one group by definition; autograd does the rest."""
    if kind == "log_ratio":
        return (s - t).abs()
    if kind == "sampled_forward_kl":
        return t - s
    if kind == "sampled_reverse_kl":  # the value is s - t, the gradient (s - t) ds
        advantage = (s - t).detach()
        return advantage + advantage * (s - s.detach())
    if kind == "binary_forward_kl_limit":
        a, b = -(s - EPSILON), -(t - EPSILON)
        return a - b - b * torch.log(a / b)
    p, q = (s / temperature - EPSILON).exp(), (t / temperature - EPSILON).exp()
    if kind == "binary_ce":
        return -(q * p.log() + (1 - q) * (1 - p).log())
    if kind == "binary_forward_kl":
        return q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()
    if kind == "binary_reverse_kl":
        return p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert kind == "binary_total_variation"
    return (p - q).abs()


def expected(pair: Pair, kind: str, temperature: float, **options: object) -> list[Tensor]:
    def group_loss(student: Tensor, teacher: Tensor, ends: tuple[int, int, int, int]) -> Tensor:
        i0, i1, j0, j1 = ends
        s = sum(student[i - 1].log_softmax(-1)[pair.ids_N[i]] for i in range(i0, i1))
        t = sum(teacher[j - 1].log_softmax(-1)[pair.teacher_ids_M[j]] for j in range(j0, j1))
        return coin(kind, s, t, temperature)  # type: ignore[arg-type]

    return by_definition(pair, group_loss, **options)  # type: ignore[arg-type]


def teacher_logprobs(pair: Pair, **options: object) -> Tensor:
    signal = pair.teacher
    return own_logprobs(
        signal.hidden_NK,
        signal.head_VK,
        pair.teacher_ids_M,
        pair.alignment.select(MASK),
        bias=signal.bias,
        logit_scale=signal.logit_scale,
        softcap=signal.softcap,
        vocab_size=pair.teacher_vocab_size,
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("kind", CHUNK_KINDS)
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "bias-scale-cap-padding"])
@pytest.mark.parametrize("temperature", [1.0, 100.0])
@pytest.mark.parametrize("chunk_tokens", [None, 3])
def test_equals_the_definition(kind: str, plain: bool, temperature: float, chunk_tokens: int | None) -> None:
    pair = make_pair(plain=plain)
    logprobs_M = teacher_logprobs(pair, chunk_tokens=chunk_tokens)
    found = outcome(
        pair,
        lambda hidden, head, bias: chunk_likelihood_loss(
            hidden,
            head,
            pair.ids_N,
            logprobs_M,
            pair.alignment,
            kind,  # type: ignore[arg-type]
            temperature=temperature,
            mask_G=MASK,
            weight_G=WEIGHT,
            num_items=11,
            student_bias=bias,
            chunk_tokens=chunk_tokens,
            **pair.view,
        ),
    )
    assert_equal(found, expected(pair, kind, temperature, mask=MASK, weight=WEIGHT, num_items=11))


def test_only_the_teachers_numbers_in_trained_groups_are_read() -> None:
    pair = make_pair()
    logprobs_M = teacher_logprobs(pair)
    read = torch.zeros(len(logprobs_M), dtype=torch.bool)
    for group in MASK.nonzero()[:, 0]:
        read[pair.alignment.teacher_first_G[group] : pair.alignment.teacher_end_G[group]] = True
    spoilt_M = torch.where(read, logprobs_M, torch.nan)
    losses = [
        float(
            chunk_likelihood_loss(pair.hidden_NH, pair.head_VH, pair.ids_N, numbers_M, pair.alignment, mask_G=MASK).loss
        )
        for numbers_M in (logprobs_M, spoilt_M)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("kind", CHUNK_KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_near(kind: str, dtype: torch.dtype) -> None:
    """Products in bfloat16; likelihoods, coins and sums in float32."""
    pair = make_pair()
    logprobs_M = teacher_logprobs(pair)
    found = outcome(
        pair,
        lambda hidden, head, bias: chunk_likelihood_loss(
            hidden,
            head,
            pair.ids_N,
            logprobs_M,
            pair.alignment,
            kind,
            mask_G=MASK,
            num_items=5,  # type: ignore[arg-type]
        ),
        dtype,
    )
    whole = expected(pair, kind, 100.0, mask=MASK, weight=torch.ones(7), num_items=5)
    near = 1e-4 if dtype == torch.float32 else 0.1
    assert float(found[0]) == pytest.approx(float(whole[0]), rel=near, abs=near / 100)
    for one, other in zip(found[2:], whole[2:], strict=True):
        assert float((one.double() - other).norm() / other.norm()) < near


@pytest.mark.parametrize("softcap", [None, 30.0])
def test_a_nearly_certain_tokens_gradient_survives_16_bits(softcap: float | None) -> None:
    """1 - p of the token itself, 0.0009 here, lies below the step of bfloat16 just under 1."""
    alignment = make_pair().alignment.select(torch.tensor([1]))  # one token of either side, places 1 and 1

    def gradient(dtype: torch.dtype) -> Tensor:
        head = torch.tensor([[7.0], [0.0]], dtype=dtype, requires_grad=True)
        chunk_likelihood_loss(
            torch.ones(2, 1, dtype=dtype),
            head,
            torch.tensor([0, 0]),
            torch.tensor([0.0, -5.0]),
            alignment,
            "log_ratio",
            softcap=softcap,
        ).loss.backward()
        assert head.grad is not None
        return head.grad.double()[:, 0]

    exact, found = gradient(torch.float64), gradient(torch.bfloat16)
    assert 8e-4 < float(exact[0]) < 2e-3
    torch.testing.assert_close(found, exact, rtol=2**-7, atol=0.0)


@pytest.mark.parametrize("kind", CHUNK_KINDS)
@pytest.mark.parametrize(("s", "t"), [(-1e-9, -40.0), (-40.0, -1e-9), (-1e-9, -1e-9), (-90.0, -95.0), (-2e3, -1.0)])
@pytest.mark.parametrize("temperature", [1.0, 100.0])
def test_certain_and_impossible_groups_stay_finite(kind: str, s: float, t: float, temperature: float) -> None:
    """One group of one token whose log-probability is s under the student, t under the teacher; in float32."""
    # The head of two ids: the hidden state is the logit of the first over the second.
    logit = s - math.log(-math.expm1(s)) if s < -1e-8 else 25.0
    hidden = torch.tensor([[logit], [0.0]], requires_grad=True)
    pair = make_pair()
    alignment = pair.alignment.select(torch.tensor([1]))  # one token of either side, places 1 and 1
    assert alignment.student_end_G.tolist() == alignment.teacher_end_G.tolist() == [2]
    loss = chunk_likelihood_loss(
        hidden,
        torch.tensor([[1.0], [0.0]]),
        torch.tensor([0, 0]),
        torch.tensor([0.0, t]),
        alignment,
        kind,  # type: ignore[arg-type]
        temperature=temperature,
    ).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert hidden.grad is not None
    assert torch.isfinite(hidden.grad).all()
    if not kind.startswith("sampled"):
        assert float(loss.detach()) >= -1e-6


def test_micro_batches_add_up_and_nothing_trained_is_0() -> None:
    pair = make_pair()
    logprobs_M = teacher_logprobs(pair)

    def loss(mask: Tensor, num_items: float | None) -> Tensor:
        hidden = pair.hidden_NH.clone().requires_grad_()
        return chunk_likelihood_loss(
            hidden, pair.head_VH, pair.ids_N, logprobs_M, pair.alignment, mask_G=mask, num_items=num_items
        ).loss

    whole = loss(MASK, None)
    parts = [loss(MASK & (torch.arange(7) % 2 == part), float(MASK.sum())) for part in (0, 1)]
    torch.testing.assert_close(parts[0] + parts[1], whole)
    none = loss(torch.zeros(7, dtype=torch.bool), None)
    none.backward()
    assert float(none.detach()) == 0


def test_refuses() -> None:
    pair = make_pair()
    logprobs_M = teacher_logprobs(pair)

    def call(ids: Tensor = pair.ids_N, numbers: Tensor = logprobs_M, mask: Tensor = MASK, **options: object) -> None:
        chunk_likelihood_loss(
            pair.hidden_NH,
            pair.head_VH,
            ids,
            numbers,
            pair.alignment,
            mask_G=mask,
            **options,  # type: ignore[arg-type]
        )

    with pytest.raises(ValueError, match="kind = 'kl' is not known"):
        call(kind="kl")
    with pytest.raises(ValueError, match=r"temperature = 0 must be above 0"):
        call(temperature=0)
    with pytest.raises(ValueError, match="teacher's first token, which nothing predicts"):
        call(mask=torch.ones(7, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"7 of the teacher's 7 log-probabilities are above 0 or NaN \(first: 0.5\)"):
        call(numbers=torch.full_like(logprobs_M, 0.5))
    with pytest.raises(ValueError, match="ends at token 10 of the teacher's 6"):
        call(numbers=logprobs_M[:6])
    with pytest.raises(ValueError, match="the id 11 at a trained token but the vocabulary has 11"):
        call(ids=torch.full_like(pair.ids_N, 11))
    with pytest.raises(ValueError, match="11 student tokens but 4 ids"):
        call(ids=pair.ids_N[:4])
    with pytest.raises(ValueError, match=r"7 groups but weight_G has shape \(3,\)"):
        call(weight_G=torch.ones(3))
    with pytest.raises(ValueError, match="vocab_size = 20 but the student's head has 11 rows"):
        call(vocab_size=20)
