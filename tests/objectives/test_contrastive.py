"""Parameters by token, DistiLLM-2's contrastive loss and f-distill's four, each against its published arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
import torch
from problems import assert_as_expected, assert_same, make, run
from torch import Tensor

from lmdistill.objectives import (
    adaptive_alpha,
    contrastive_weights,
    curriculum_beta,
    distillation_loss,
    divergence,
    find_divergence,
    likelihood_gap,
    sequence_mean_weights,
    to_tokens,
    token_logprobs,
)
from lmdistill.signals import HiddenSignal

MASK = torch.tensor([True, True, False, True, False, True])
WEIGHT = torch.tensor([0.5, 2.0, 9.0, 1.0, 9.0, 0.25], dtype=torch.float64)
ALPHA = torch.tensor([0.01, 0.1, float("nan"), 0.5, 7.0, 0.99], dtype=torch.float64)  # anything where masked

SKEWED = ["skew_forward_kl", "skew_reverse_kl", "skew_reverse_kl_detached"]


def rows_by_token(kind: str, z: np.ndarray, t: np.ndarray, settings: Tensor, name: str) -> reference.RowLoss:
    """Each token's loss with its own parameter."""
    rows = [
        reference.dense_rows(kind, z[[n]], t[[n]], **{name: float(settings[n]) if MASK[n] else 0.5})
        for n in range(len(z))
    ]
    return lambda moved: np.concatenate([row(moved[[n]]) for n, row in enumerate(rows)])


@pytest.mark.parametrize("kind", SKEWED)
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "bias-scale-cap"])
def test_alpha_by_token(kind: str, plain: bool) -> None:
    problem = make(100, plain=plain)
    rows = rows_by_token(kind, problem.student_logits, problem.teacher_logits, ALPHA, "alpha")
    expected = reference.evaluate(problem.student, rows, mask=MASK.numpy(), weight=WEIGHT.numpy())
    made = run(problem, "hidden", kind, setting_N=ALPHA, mask_N=MASK, weight_N=WEIGHT)
    assert_as_expected(made, expected)
    cut = run(problem, "hidden", kind, setting_N=ALPHA, mask_N=MASK, weight_N=WEIGHT, chunk_tokens=1)
    assert_same(cut, made)


@pytest.mark.parametrize("kind", SKEWED)
@pytest.mark.parametrize("tail", ["bucket", "renormalise", "drop"])
def test_alpha_by_token_on_kept_ids(kind: str, tail: Any) -> None:
    problem = make(101)
    signal = problem.top_k(4, tail)
    whole = run(problem, signal, kind, setting_N=ALPHA, mask_N=MASK, num_items=1)
    apart = [
        run(problem, signal, kind, mask_N=torch.arange(6) == n, num_items=1, parameters={"alpha": float(ALPHA[n])})
        for n in MASK.nonzero()[:, 0].tolist()
    ]
    np.testing.assert_allclose(whole.loss, sum(one.loss for one in apart), rtol=1e-12)
    torch.testing.assert_close(whole.d_hidden, torch.stack([one.d_hidden for one in apart]).sum(0))
    torch.testing.assert_close(whole.d_head, torch.stack([one.d_head for one in apart]).sum(0))


def test_taid_by_token_and_the_same_for_all() -> None:
    problem = make(102)
    rows = rows_by_token("taid", problem.student_logits, problem.teacher_logits, ALPHA, "start")
    expected = reference.evaluate(problem.student, rows, mask=MASK.numpy())
    assert_as_expected(run(problem, "hidden", "taid", setting_N=ALPHA, mask_N=MASK), expected)
    for kind in (*SKEWED, "taid"):
        name = "start" if kind == "taid" else "alpha"
        one = run(problem, "hidden", kind, parameters={name: 0.3})
        assert_same(run(problem, "hidden", kind, setting_N=torch.full((6,), 0.3)), one, rtol=1e-5)  # TAID's is float32


REFUSED: list[tuple[str, Tensor, str]] = [
    ("forward_kl", torch.full((6,), 0.5), "forward_kl has no parameter that may differ from token to token"),
    ("skew_forward_kl", torch.tensor([0.1, 0.0, 0.1, 0.1, 0.1, 0.1]), r"its alpha by token, lies between 0\.0 and 0"),
    ("skew_forward_kl", torch.tensor([0.1, 1.0, 0.1, 0.1, 0.1, 0.1]), r"between 0\.1.* and 1\.0 at trained tokens"),
    ("taid", torch.full((6,), float("nan")), "its interpolation by token, lies between nan"),
    ("skew_reverse_kl", torch.full((4,), 0.5), "6 student tokens but 4 rows in setting_N"),
]


@pytest.mark.parametrize(("kind", "settings", "message"), REFUSED)
def test_refuses(kind: str, settings: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(make(103), "hidden", kind, setting_N=settings)


# Six sequences of one token row: teacher's answers at even, the student's at odd numbers; pairs are neighbours.
LENGTHS = [5, 2, 3, 4, 1, 6]


def pairs(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Hidden states and head of both models, ids, mask and segments of one packed row."""
    n = sum(LENGTHS) + len(LENGTHS)  # one masked position between any two
    problem = make(seed, n=n, v=11)
    segments = torch.cat([torch.full((length + 1,), s) for s, length in enumerate(LENGTHS)])
    mask = torch.cat([torch.tensor([True] * length + [False]) for length in LENGTHS])
    ids = torch.randint(0, 11, (n,), generator=torch.Generator().manual_seed(seed))
    return problem.hidden_NH, problem.head_VH, problem.teacher_NK, problem.teacher_VK, ids, mask, segments


def distillm2_as_released(
    z_NV: Tensor, t_NV: Tensor, ids_N: Tensor, beta: float, gaps: tuple[float, float] | None
) -> Tensor:
    """jongwooko/distillm-2, get_batch_logps and kd_loss for `distillm_v2`, sequence by sequence, alpha held fixed."""
    log_q, log_p = z_NV.log_softmax(-1), t_NV.log_softmax(-1)
    losses: list[Tensor] = []
    first = 0
    for s, length in enumerate(LENGTHS):
        rows = slice(first, first + length)
        first += length + 1
        q, p, own = log_q[rows], log_p[rows], ids_N[rows, None]
        mean_q, mean_p = (x.detach().gather(1, own).mean().exp() for x in (q, p))
        alpha = torch.tensor(0.1, dtype=q.dtype)
        if gaps is not None:
            gap, anchor = (mean_p - mean_q, 0.9 * gaps[0]) if s % 2 == 0 else (mean_q - mean_p, 0.9 * gaps[1])
            alpha = torch.clip(1 - anchor / (gap + 1e-5), 0.01, 0.1)
        if s % 2 == 0:
            mixture = torch.logsumexp(torch.stack([alpha.log() + p, (1 - alpha).log() + q]), 0)
            losses.append((2 - beta) * (p.exp() * (p - mixture)).sum(-1).mean())
        else:
            mixture = torch.logsumexp(torch.stack([(1 - alpha).log() + p, alpha.log() + q.detach()]), 0)
            losses.append(beta * (q.exp() * (q - mixture)).sum(-1).mean())
    return torch.stack(losses).sum() / (len(LENGTHS) // 2)


@pytest.mark.parametrize("beta", [1.0, 1.3])
@pytest.mark.parametrize("adaptive", [False, True], ids=["as run", "adaptive"])
def test_distillm2(beta: float, adaptive: bool) -> None:
    """Published: beta rises and alpha adapts. As run by the release: beta = 1, alpha = 0.1."""
    hidden, head, teacher, teacher_head, ids, mask, segments = pairs(104)
    mask_BL, segments_BL = mask[None], segments[None]
    logprobs = [
        token_logprobs(states, rows, ids, mask_N=mask)[None]
        for states, rows in ((teacher, teacher_head), (hidden, head))
    ]
    gap_S = likelihood_gap(*logprobs, mask_BL, segments_BL)
    # Typical gaps at which the first sequence of either side lies between the bounds of alpha.
    gaps = (float(gap_S[0]) / 0.95, -float(gap_S[1]) / 0.97) if adaptive else None
    leaves = [hidden.clone().requires_grad_(), head.clone().requires_grad_()]
    expected = distillm2_as_released(leaves[0] @ leaves[1].T, teacher @ teacher_head.T, ids, beta, gaps)
    true = torch.autograd.grad(expected, leaves)

    teacher_wrote_S = torch.arange(6) % 2 == 0
    sides = contrastive_weights(mask_BL, teacher_wrote_S, beta=beta, segments_BL=segments_BL)
    alpha_N = None
    if gaps is not None:
        alpha_S = torch.where(teacher_wrote_S, adaptive_alpha(gap_S, gaps[0]), adaptive_alpha(-gap_S, gaps[1]))
        assert 0.03 < alpha_S[0] < 0.08
        assert 0.03 < alpha_S[1] < 0.08
        alpha_N = to_tokens(alpha_S, mask_BL, segments_BL).flatten()
    loss = torch.zeros((), dtype=torch.float64)
    for weight_BL, kind in zip(sides, ("skew_forward_kl", "skew_reverse_kl_detached"), strict=True):
        loss = loss + divergence(
            *leaves,
            HiddenSignal(teacher, teacher_head),
            find_divergence(kind, alpha=0.1),
            mask_N=(weight_BL > 0).flatten(),
            weight_N=weight_BL.flatten(),
            num_items=3,
            setting_N=alpha_N,
        )
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-9)
    for made, wanted in zip(torch.autograd.grad(loss, leaves), true, strict=True):
        torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-8)


def test_curriculum() -> None:
    """1 + 0.5 min(1, 2 step / steps), as in the release's switch."""
    assert [curriculum_beta(x) for x in (-1.0, 0.0, 0.25, 0.5, 0.8, 1.0)] == [1, 1, 1.25, 1.5, 1.5, 1.5]
    assert curriculum_beta(0.5, end=1.2, reached_at=1.0) == pytest.approx(1.1)


def test_adaptive_alpha_keeps_the_loss_of_the_typical_sequence() -> None:
    gaps = torch.tensor([0.05, 0.03, 0.045, 0.2, -0.1, 1e-9])
    made = adaptive_alpha(gaps, 0.05)
    # (1 - alpha) gap = (1 - base) typical gap, as far as the bounds allow.
    expected = [0.1, 0.01, 0.01, 0.1, 0.1, 0.01]
    np.testing.assert_allclose(made, expected, atol=2e-4)
    near = adaptive_alpha(torch.tensor([0.047]), 0.05)
    np.testing.assert_allclose((1 - near) * 0.047, 0.9 * 0.05, rtol=1e-3)


def test_contrastive_weights() -> None:
    mask = torch.tensor([[False, True, True, False], [True, True, True, True]])
    teacher, student = contrastive_weights(mask, torch.tensor([True, False]), beta=1.5)
    assert teacher.tolist() == [[0, 0.25, 0.25, 0], [0, 0, 0, 0]]
    assert student.tolist() == [[0, 0, 0, 0], [0.375] * 4]
    with pytest.raises(ValueError, match=r"beta = 2\.5 must lie from 0 to 2"):
        contrastive_weights(mask, torch.tensor([True, False]), beta=2.5)


def test_mean_over_sequences_of_the_mean_over_tokens() -> None:
    """Sums with these weights, divided by the sequences of the whole batch, do not depend on how it is cut."""
    hidden, head, teacher, teacher_head, _, mask, segments = pairs(105)
    weight = sequence_mean_weights(mask[None], segments[None]).flatten()
    whole = distillation_loss(
        hidden, head, HiddenSignal(teacher, teacher_head), mask_N=mask, weight_N=weight, num_items=6
    )
    plain = distillation_loss(hidden, head, HiddenSignal(teacher, teacher_head), mask_N=mask)
    by_hand = torch.stack([plain.token_loss_N[mask & (segments == s)].mean() for s in range(6)]).mean()
    torch.testing.assert_close(whole.loss, by_hand, rtol=1e-6, atol=1e-9)


def fdistill_kl(mask: Tensor, below: Tensor, above: Tensor) -> Tensor:
    """MANGA-UOFA/fdistill kd.py calc_ce_loss: KL(softmax(above)‖softmax(below)), mean over selected tokens."""
    below, above = below[mask], above[mask]
    return torch.nn.functional.kl_div(below.log_softmax(-1), above.softmax(-1), reduction="batchmean")


def fdistill_js(mask: Tensor, s: Tensor, t: Tensor, s_weight: float, t_weight: float) -> Tensor:
    """calc_js_loss: KL(softmax(s)‖mixture); the release adds 1e-10 to the mixture, left out here."""
    s, t = s[mask], t[mask]
    mixture = t_weight * t.softmax(-1) + s_weight * s.softmax(-1)
    return torch.nn.functional.kl_div(mixture.log(), s.softmax(-1), reduction="batchmean")


def fdistill_tvd(mask: Tensor, s: Tensor, t: Tensor) -> Tensor:
    return (0.5 * (s[mask].softmax(-1) - t[mask].softmax(-1)).abs()).sum(-1).mean()


FDISTILL: dict[str, tuple[Any, list[tuple[str, dict[str, float], float, str]]]] = {
    # Its loss from (student, teacher) logits on the teacher's and the student's text; ours: kind, weight, whose text.
    "kl": (lambda m, zt, pt, zs, ps: fdistill_kl(m, zt, pt), [("forward_kl", {}, 1.0, "teacher")]),
    "rkl": (lambda m, zt, pt, zs, ps: fdistill_kl(m, ps, zs), [("reverse_kl", {}, 1.0, "student")]),
    "js": (
        lambda m, zt, pt, zs, ps: 0.5 * fdistill_js(m, zs, ps, 0.5, 0.5) + 0.5 * fdistill_js(m, pt, zt, 0.5, 0.5),
        [
            ("skew_reverse_kl", {"alpha": 0.5}, 0.5, "student"),
            ("skew_forward_kl", {"alpha": 0.5}, 0.5, "teacher"),
        ],
    ),
    "tvd_symm": (
        lambda m, zt, pt, zs, ps: 0.5 * fdistill_tvd(m, zs, ps) + 0.5 * fdistill_tvd(m, zt, pt),
        [("total_variation", {}, 0.5, "student"), ("total_variation", {}, 0.5, "teacher")],
    ),
}


@pytest.mark.parametrize("name", list(FDISTILL))
def test_fdistill(name: str) -> None:
    """The four of 2307.15190: which divergence on whose text, at what weight."""
    theirs, ours = FDISTILL[name]
    head = make(106).head_VH.clone().requires_grad_()
    texts = {"teacher": make(106), "student": make(107)}
    leaves = {whose: problem.hidden_NH.clone().requires_grad_() for whose, problem in texts.items()}
    teachers = {whose: HiddenSignal(problem.teacher_NK, problem.teacher_VK) for whose, problem in texts.items()}
    z = {whose: leaf @ head.T for whose, leaf in leaves.items()}
    p = {whose: torch.from_numpy(problem.teacher_logits) for whose, problem in texts.items()}
    wanted = [*leaves.values(), head]
    expected = theirs(MASK, z["teacher"], p["teacher"], z["student"], p["student"])
    loss = torch.zeros((), dtype=torch.float64)
    for kind, parameters, weight, whose in ours:
        definition = find_divergence(kind, **parameters)
        loss = loss + weight * divergence(leaves[whose], head, teachers[whose], definition, mask_N=MASK)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    true = torch.autograd.grad(expected, wanted, allow_unused=True)
    for made, right in zip(torch.autograd.grad(loss, wanted, allow_unused=True), true, strict=True):
        assert (made is None) == (right is None)
        if made is not None:
            torch.testing.assert_close(made, right, rtol=1e-8, atol=1e-12)


def test_halves_of_the_jensen_shannon_divergence_are_skew_divergences() -> None:
    """KL(p‖m) and KL(q‖m), m = (p + q) / 2: on one text their mean is the JSD."""
    problem = make(108)
    forward = run(problem, "hidden", "skew_forward_kl", parameters={"alpha": 0.5})
    backward = run(problem, "hidden", "skew_reverse_kl", parameters={"alpha": 0.5})
    whole = run(problem, "hidden", "jsd")
    assert 0.5 * (forward.loss + backward.loss) == pytest.approx(whole.loss, rel=1e-9)
    torch.testing.assert_close(0.5 * (forward.d_hidden + backward.d_hidden), whole.d_hidden)
    torch.testing.assert_close(0.5 * (forward.d_head + backward.d_head), whole.d_head)
