"""Preferences between whole answers equal their published formulas on full logits, gradients of both models' parts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from problems import make
from torch import Tensor

from lmdistill.objectives import preference_loss, sequence_logprobs, token_logprobs, top_tokens

# Three pairs: chosen answers first, then the rejected ones; one packed row with a masked position after each.
LENGTHS = [4, 1, 3, 2, 5, 3]
SEGMENTS = torch.cat([torch.full((length + 1,), s) for s, length in enumerate(LENGTHS)])
MASK = torch.cat([torch.tensor([True] * length + [False]) for length in LENGTHS])
N = len(MASK)


def both_models(seed: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Leaves of the student, logits of the reference, ids."""
    problem = make(seed, n=N, v=9)
    ids = torch.randint(0, 9, (N,), generator=torch.Generator().manual_seed(seed)).masked_fill(~MASK, -100)
    leaves = [problem.hidden_NH.clone().requires_grad_(), problem.head_VH.clone().requires_grad_()]
    return leaves, torch.from_numpy(problem.teacher_logits), ids


def answers(z_NV: Tensor, ids_N: Tensor, mean: bool = False) -> Tensor:
    """log-probability of each answer, from full logits, one by one."""
    own_N = z_NV.log_softmax(-1).gather(1, ids_N.clamp_min(0)[:, None])[:, 0]
    rows = [own_N[MASK & SEGMENTS.eq(s)] for s in range(6)]
    return torch.stack([row.mean() if mean else row.sum() for row in rows])


def ours(leaves: list[Tensor], ids_N: Tensor, mean: bool = False) -> Tensor:
    logprobs_N = token_logprobs(*leaves, ids_N, mask_N=MASK, chunk_tokens=4)
    return sequence_logprobs(logprobs_N[None], MASK[None], SEGMENTS[None], mean=mean)


def dpo(won: Tensor, lost: Tensor, reference_won: Tensor, reference_lost: Tensor, beta: float) -> Tensor:
    """2305.18290, eq. 7."""
    inner = beta * (won - reference_won) - beta * (lost - reference_lost)
    return torch.log1p(torch.exp(-inner)).mean()


def ipo(won: Tensor, lost: Tensor, reference_won: Tensor, reference_lost: Tensor, tau: float) -> Tensor:
    """2310.12036, eq. 17."""
    h = torch.log(torch.exp(won) * torch.exp(reference_lost) / (torch.exp(lost) * torch.exp(reference_won)))
    return (h - 1 / (2 * tau)).square().mean()


CASES: dict[str, tuple[bool, dict[str, Any], Any]] = {
    # Mean over tokens or not, options, formula of (won, lost, reference won, reference lost).
    "dpo": (False, {}, lambda *four: dpo(*four, 0.1)),
    "dpo-0.5": (False, {"beta": 0.5}, lambda *four: dpo(*four, 0.5)),
    "conservative": (
        False,
        {"label_smoothing": 0.2},
        lambda w, x, rw, rx: 0.8 * dpo(w, x, rw, rx, 0.1) + 0.2 * dpo(x, w, rx, rw, 0.1),
    ),
    "ipo": (False, {"form": "ipo", "beta": 0.3}, lambda *four: ipo(*four, 0.3)),
    "mean lengths": (True, {}, lambda *four: dpo(*four, 0.1)),
}


@pytest.mark.parametrize("name", list(CASES))
def test_with_a_reference(name: str) -> None:
    """DPO, its conservative form and IPO; with the teacher for a reference, DPKD of 2406.19774."""
    mean, options, formula = CASES[name]
    leaves, reference_NV, ids = both_models(110)
    expected_S = answers(leaves[0] @ leaves[1].T, ids, mean)
    reference_S = answers(reference_NV, ids, mean)
    expected = formula(expected_S[:3], expected_S[3:], reference_S[:3], reference_S[3:])
    own_S = ours(leaves, ids, mean)
    torch.testing.assert_close(own_S, expected_S)
    parts = preference_loss(own_S[:3], own_S[3:], reference_S[:3], reference_S[3:], **options)
    torch.testing.assert_close(parts.loss, expected)
    true = torch.autograd.grad(expected, leaves)
    for made, wanted in zip(torch.autograd.grad(parts.loss, leaves), true, strict=True):
        torch.testing.assert_close(made, wanted, rtol=1e-8, atol=1e-12)


def test_simpo_has_no_reference() -> None:
    """-log sigma(beta / |y_w| log q(y_w) - beta / |y_l| log q(y_l) - margin), 2405.14734, eq. 6."""
    leaves, _, ids = both_models(111)
    mean_S = answers(leaves[0] @ leaves[1].T, ids, mean=True)
    expected = -torch.sigmoid(2 * mean_S[:3] - 2 * mean_S[3:] - 1.0).log().mean()
    own_S = ours(leaves, ids, mean=True)
    parts = preference_loss(own_S[:3], own_S[3:], beta=2.0, target_margin=1.0)
    torch.testing.assert_close(parts.loss, expected)
    true = torch.autograd.grad(expected, leaves)
    for made, wanted in zip(torch.autograd.grad(parts.loss, leaves), true, strict=True):
        torch.testing.assert_close(made, wanted, rtol=1e-8, atol=1e-12)


def test_dpkd_as_released() -> None:
    """microsoft/LMOps dpkd/main.py: not answers but, at each position of one text, the two models' likeliest tokens."""
    leaves, teacher_NV, _ = both_models(112)
    z_NV = leaves[0] @ leaves[1].T
    log_s, log_t = z_NV.log_softmax(-1), teacher_NV.log_softmax(-1)
    y_t, y_s = log_t.argmax(-1, keepdim=True), log_s.argmax(-1, keepdim=True)
    student = (log_s.gather(1, y_t) - log_s.gather(1, y_s))[:, 0]
    teacher = (log_t.gather(1, y_t) - log_t.gather(1, y_s))[:, 0]
    mask = MASK.double()
    per_token = -torch.nn.functional.logsigmoid(0.1 * (student - teacher))
    expected = (per_token * mask).sum() / mask.sum()

    best_N1, _ = top_tokens(*leaves, 1, mask_N=MASK)
    ids_N2 = torch.cat([y_t, best_N1], 1)
    own_N2 = token_logprobs(*leaves, ids_N2, mask_N=MASK)
    teacher_N2 = log_t.gather(1, ids_N2)
    parts = preference_loss(
        own_N2[:, 0], own_N2[:, 1], teacher_N2[:, 0], teacher_N2[:, 1], weight_P=mask, num_items=mask.sum()
    )
    torch.testing.assert_close(parts.loss, expected)
    true = torch.autograd.grad(expected, leaves)
    for made, wanted in zip(torch.autograd.grad(parts.loss, leaves), true, strict=True):
        torch.testing.assert_close(made, wanted, rtol=1e-8, atol=1e-12)


def test_what_is_watched() -> None:
    chosen, rejected = torch.tensor([1.0, 0.0, 5.0]), torch.tensor([0.0, 3.0, 5.0])
    parts = preference_loss(chosen, rejected, beta=0.5, weight_P=torch.tensor([1.0, 1.0, 2.0]), num_items=10)
    assert parts.accuracy.item() == pytest.approx(0.25)
    assert parts.margin.item() == pytest.approx(0.5 * (1 - 3) / 4)
    np.testing.assert_allclose(
        parts.pair_loss_P, [math.log1p(math.exp(-0.5)), math.log1p(math.exp(1.5)), 2 * math.log(2)], rtol=1e-6
    )
    torch.testing.assert_close(parts.loss, parts.pair_loss_P.sum() / 10)


def test_far_apart_answers_are_finite() -> None:
    chosen = torch.tensor([-4000.0, 0.0], requires_grad=True)
    loss = preference_loss(chosen, torch.tensor([0.0, -4000.0]), beta=1.0).loss
    loss.backward()
    assert loss.item() == pytest.approx(2000)
    assert chosen.grad is not None
    assert chosen.grad.tolist() == [-0.5, 0]


def test_no_pairs() -> None:
    chosen = torch.zeros(0, requires_grad=True)
    parts = preference_loss(chosen, torch.zeros(0))
    parts.loss.backward()
    assert parts.loss.item() == 0
    assert parts.accuracy.item() == 0


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"rejected_P": torch.zeros(2)}, r"3 chosen answers but rejected_P has shape \(2,\)"),
    ({"reference_chosen_P": torch.zeros(3)}, "a reference speaks of both answers"),
    ({"beta": 0.0}, r"beta = 0\.0 must be above 0"),
    ({"label_smoothing": 0.5}, r"label_smoothing = 0\.5 must lie from 0 to below 0\.5"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preference_loss(**{"chosen_P": torch.zeros(3), "rejected_P": torch.zeros(3), **options})
