"""The policy term equals its published formulas in float64, alone and beside every other term."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference
import torch
from problems import Outcome, Problem, assert_as_expected, assert_same, make, run

from lmdistill.objectives import LossParts, PolicyTerm, distillation_loss, policy_loss
from lmdistill.signals import DenseSignal, HeadExpectationSignal, SampledSignal, Signal, TokenSignal

IDS = torch.tensor([3, 0, 12, 5, 7, 12])
MASK = torch.tensor([True, True, False, True, False, True])
WEIGHT = torch.tensor([0.5, 2.0, 9.0, 1.0, 9.0, 0.25], dtype=torch.float64)
ADVANTAGE = np.array([1.5, -0.7, 9.0, -2.0, 9.0, 0.4])
IMPORTANCE = np.array([0.6, 1.2, 9.0, 0.9, 9.0, 1.1])
# Ratios to the old student below, inside and above the clipping range, with advantages of either sign.
LOG_RATIO = np.array([0.4, 0.5, 0.0, -0.5, 0.0, -0.05])
REFERENCE_GAP = np.array([0.3, -0.8, 0.0, 1.4, 0.0, -0.1])

RowLoss = reference.RowLoss


def log_q(z: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    return np.log(reference.softmax(z / temperature))[np.arange(len(z)), IDS]


def published(
    clip: str, at: np.ndarray, *, old: bool, reference_weight: float = 0.0, low: float = 0.8, high: float = 1.2
) -> tuple[RowLoss, RowLoss]:
    """What each token costs, and what is differentiated in its place; `at` is the point's own log q."""
    old_log_q = at - LOG_RATIO if old else at
    kl_reference = at + REFERENCE_GAP

    def penalty(own: np.ndarray) -> np.ndarray:  # Schulman's k3 for KL(q‖reference), as in GRPO 2402.03300
        d = kl_reference - own
        return reference_weight * (np.exp(d) - d - 1)

    def cost(own: np.ndarray, held: np.ndarray | None) -> np.ndarray:
        ratio = np.exp(own - old_log_q)
        if clip == "none":
            return -ADVANTAGE * IMPORTANCE * ratio
        if clip == "ratio":  # PPO 1707.06347, eq. 7, as a loss
            return -np.minimum(
                ADVANTAGE * IMPORTANCE * ratio, ADVANTAGE * IMPORTANCE * np.minimum(np.maximum(ratio, low), high)
            )
        if clip == "product":  # MiniLLM's losses.py: the weight enters before the clipping
            return np.maximum(-ADVANTAGE * (ratio * IMPORTANCE), -ADVANTAGE * np.clip(ratio * IMPORTANCE, low, high))
        held = ratio if held is None else held  # CISPO: -sg(min(ratio, high)) A log q
        return -np.minimum(held, high) * ADVANTAGE * IMPORTANCE * own

    held_at = np.exp(at - old_log_q)
    return (
        lambda z: cost(log_q(z), None) + penalty(log_q(z)),
        lambda z: cost(log_q(z), held_at) + penalty(log_q(z)),
    )


def term(at: np.ndarray, *, old: bool, **options: Any) -> PolicyTerm:
    return PolicyTerm(
        torch.from_numpy(ADVANTAGE),
        torch.from_numpy(at - LOG_RATIO) if old else None,
        torch.from_numpy(IMPORTANCE),
        reference_logprobs_N=torch.from_numpy(at + REFERENCE_GAP),
        **options,
    )


@pytest.mark.parametrize("clip", ["ratio", "product", "truncate", "none"])
@pytest.mark.parametrize("old", [True, False], ids=["older", "on-policy"])
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "bias-scale-cap"])
@pytest.mark.parametrize("reference_weight", [0.0, 0.3])
def test_equals_the_published_formula(clip: Any, old: bool, plain: bool, reference_weight: float) -> None:
    problem = make(80, plain=plain)
    at = log_q(problem.student_logits)
    value, differentiated = published(clip, at, old=old, reference_weight=reference_weight)
    expected = reference.evaluate(
        problem.student, value, surrogate=differentiated, mask=MASK.numpy(), weight=WEIGHT.numpy(), num_items=11
    )
    policy = term(at, old=old, clip=clip, reference_weight=reference_weight)
    options = {"labels_N": IDS, "mask_N": MASK, "weight_N": WEIGHT, "num_items": 11}
    assert_as_expected(run(problem, None, policy=policy, **options), expected)
    assert expected.hidden.any()


@pytest.mark.parametrize("temperature", [0.8, 1.7])
def test_temperature_of_the_policy(temperature: float) -> None:
    """q is the distribution that sampled: logits over the temperature, as verl trains it."""
    problem = make(81, plain=False)
    at = log_q(problem.student_logits, temperature)

    def cost(z: np.ndarray) -> np.ndarray:
        ratio = np.exp(log_q(z, temperature) - (at - LOG_RATIO))
        return -np.minimum(ADVANTAGE * ratio, ADVANTAGE * np.clip(ratio, 0.8, 1.28))

    expected = reference.evaluate(problem.student, cost, mask=MASK.numpy())
    policy = PolicyTerm(
        torch.from_numpy(ADVANTAGE), torch.from_numpy(at - LOG_RATIO), high=1.28, temperature=temperature
    )
    assert_as_expected(run(problem, None, policy=policy, labels_N=IDS, mask_N=MASK), expected)


def test_policy_loss_is_the_same_engine() -> None:
    problem = make(82)
    at = log_q(problem.student_logits)
    policy = term(at, old=True, clip="product", reference_weight=0.1)
    whole = run(problem, None, policy=policy, labels_N=IDS, mask_N=MASK, weight_N=WEIGHT, num_items=7)
    hidden, head = (x.clone().requires_grad_() for x in (problem.hidden_NH, problem.head_VH))
    parts = policy_loss(
        hidden,
        head,
        IDS,
        policy.advantages_N,
        old_logprobs_N=policy.old_logprobs_N,
        importance_N=policy.importance_N,
        clip="product",
        reference_logprobs_N=policy.reference_logprobs_N,
        reference_weight=0.1,
        mask_N=MASK,
        weight_N=WEIGHT,
        num_items=7,
    )
    parts.loss.backward()
    assert hidden.grad is not None
    assert head.grad is not None
    assert_same(Outcome(parts, hidden.grad, head.grad, None), whole)
    torch.testing.assert_close(parts.policy, parts.loss.detach())
    torch.testing.assert_close(parts.token_loss_N.sum() / 7, parts.loss.detach())


def signal_of(problem: Problem, name: str) -> Signal:
    t_NV = torch.from_numpy(reference.softmax(problem.teacher_logits))
    top = t_NV.log().topk(4, -1)
    signals: dict[str, Callable[[], Signal]] = {
        "hidden": lambda: problem.signal,
        "dense": lambda: DenseSignal(t_NV.log()),
        "top_k": lambda: problem.top_k(4, "bucket"),
        "sampled": lambda: SampledSignal(top.indices, torch.full((6, 4), 2), top.values),
        "token": lambda: TokenSignal(IDS, t_NV.log().gather(1, IDS[:, None])[:, 0]),
        "head_expectation": lambda: HeadExpectationSignal(t_NV @ problem.head_VH),
    }
    return signals[name]()


SIGNALS = ["hidden", "dense", "top_k", "sampled", "token", "head_expectation"]
# Stored probabilities are at temperature 1; the others can be softened.
SOFTENED = [(name, 1.0) for name in SIGNALS] + [("hidden", 2.0), ("dense", 2.0)]


@pytest.mark.parametrize(("name", "temperature"), SOFTENED)
@pytest.mark.parametrize("label_weight", [0.0, 0.4])
def test_beside_other_terms_in_one_projection(name: str, temperature: float, label_weight: float) -> None:
    """One call with everything is the sum of a call for each term."""
    problem = make(83, plain=name == "head_expectation")
    signal = signal_of(problem, name)
    policy = term(log_q(problem.student_logits), old=True, weight=0.7, reference_weight=0.2)
    common = {"mask_N": MASK, "weight_N": WEIGHT, "train_head": name != "head_expectation"}
    own = {"labels_N": IDS, **common}
    mixed = {"divergence_weight": 0.3, "label_weight": label_weight, "temperature": temperature}
    together = run(problem, signal, policy=policy, **mixed, **own)
    apart = [run(problem, signal, **mixed, **own), run(problem, None, policy=policy, **own)]
    np.testing.assert_allclose(together.loss, sum(part.loss for part in apart), rtol=1e-12)
    for made, first, second in (
        (together.d_hidden, *(part.d_hidden for part in apart)),
        (together.d_head, *(part.d_head for part in apart)),
        (together.d_bias, *(part.d_bias for part in apart)),
        (together.parts.token_loss_N, *(part.parts.token_loss_N for part in apart)),
    ):
        if made is not None:
            torch.testing.assert_close(made, first + second, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(together.parts.divergence, apart[0].parts.divergence)
    torch.testing.assert_close(together.parts.policy, apart[1].parts.policy)


@pytest.mark.parametrize("chunk_tokens", [1, 3])
def test_chunks_and_micro_batches(chunk_tokens: int) -> None:
    problem = make(84)
    at = log_q(problem.student_logits)
    options = {"labels_N": IDS, "mask_N": MASK, "weight_N": WEIGHT}
    whole = run(problem, "hidden", "reverse_kl", policy=term(at, old=True), **options)
    cut = run(problem, "hidden", "reverse_kl", policy=term(at, old=True), chunk_tokens=chunk_tokens, **options)
    assert_same(cut, whole)
    halves = []
    for rows in (slice(0, 2), slice(2, 6)):
        policy = term(at, old=True)
        part = PolicyTerm(
            policy.advantages_N[rows],
            policy.old_logprobs_N[rows],
            policy.importance_N[rows],  # type: ignore[index]
        )
        leaf = problem.hidden_NH[rows].clone().requires_grad_()
        loss = distillation_loss(
            leaf, problem.head_VH, type(problem.signal)(problem.teacher_NK[rows], problem.teacher_VK), "reverse_kl",
            policy=part, num_items=int(MASK.sum()), **{name: value[rows] for name, value in options.items()},
        ).loss  # fmt: skip
        loss.backward()
        assert leaf.grad is not None
        halves.append((float(loss.detach()), leaf.grad))
    np.testing.assert_allclose(sum(loss for loss, _ in halves), whole.loss, rtol=1e-12)
    torch.testing.assert_close(torch.cat([gradient for _, gradient in halves]), whole.d_hidden)


def test_on_policy_expectation_is_the_gradient_of_the_reverse_kl() -> None:
    """Summed over every token with its probability, advantage log p - log q gives KL(q‖p)'s gradient exactly."""
    problem = make(85, n=1)
    log_q_V = torch.from_numpy(problem.student_logits).log_softmax(-1)[0]
    log_p_V = torch.from_numpy(problem.teacher_logits).log_softmax(-1)[0]
    exact = run(problem, "hidden", "reverse_kl")
    everywhere = Problem(
        problem.hidden_NH.expand(13, -1), problem.head_VH, None, problem.teacher_NK.expand(13, -1), problem.teacher_VK
    )
    for clip in ("none", "ratio", "truncate"):
        policy = PolicyTerm(log_p_V - log_q_V, clip=clip)  # type: ignore[arg-type]
        sampled = run(everywhere, None, policy=policy, labels_N=torch.arange(13), weight_N=log_q_V.exp(), num_items=1)
        torch.testing.assert_close(sampled.d_hidden.sum(0, keepdim=True), exact.d_hidden, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(sampled.d_head, exact.d_head, rtol=1e-9, atol=1e-12)
        if clip != "truncate":  # whose value is A log q
            assert float(sampled.parts.loss.detach()) == pytest.approx(exact.loss)


def test_thinking_machines_loss_is_the_token_signal_on_policy() -> None:
    """On-policy and without clipping, route B's gradient is that of a `TokenSignal` with reverse_kl."""
    problem = make(86)
    log_p_N = torch.from_numpy(problem.teacher_logits).log_softmax(-1).gather(1, IDS[:, None])[:, 0]
    advantages_N = log_p_N - torch.from_numpy(log_q(problem.student_logits))
    one = run(problem, None, policy=PolicyTerm(advantages_N, clip="none"), labels_N=IDS)
    assert_same(one, run(problem, TokenSignal(IDS, log_p_N), "reverse_kl"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extremes_are_finite(dtype: torch.dtype) -> None:
    """An old student that found the token impossible, or all but; advantages of 0 and of a million."""
    hidden = (torch.eye(4) * 40).to(dtype).requires_grad_()
    head = torch.eye(4).to(dtype).requires_grad_()
    for clip in ("ratio", "product", "truncate", "none"):
        parts = policy_loss(
            hidden,
            head,
            torch.tensor([0, 1, 3, 3]),
            torch.tensor([0.0, 1e6, -1.0, 1.0]),
            old_logprobs_N=torch.tensor([-300.0, -torch.inf, 0.0, -90.0]),
            importance_N=torch.tensor([1.0, 1e-30, 2.0, 1.0]),
            reference_logprobs_N=torch.tensor([-torch.inf, -200.0, 0.0, 0.0]),
            reference_weight=0.001,
            clip=clip,
        )
        parts.loss.backward()
        for tensor in (parts.loss, hidden.grad, head.grad):
            assert tensor is not None
            assert torch.isfinite(tensor).all()


def test_the_unclipped_side_keeps_its_gradient() -> None:
    """A bad token that became likelier is still pushed down, a good one that became less likely still up."""
    hidden = torch.zeros(4, 2, dtype=torch.float64, requires_grad=True)
    head = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    old = torch.tensor([0.5, 0.5, 0.5, 0.5], dtype=torch.float64).log() + torch.tensor([0.7, -0.7, 0.7, -0.7])
    advantages = torch.tensor([1.0, -1.0, -1.0, 1.0])
    policy_loss(hidden, head, torch.zeros(4, dtype=torch.long), advantages, old_logprobs_N=old).loss.backward()
    assert hidden.grad is not None
    pushed = hidden.grad[:, 0].abs() > 0
    assert pushed.tolist() == [True, True, False, False]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"policy": PolicyTerm(torch.zeros(4))}, "6 student tokens but 4 rows in policy"),
    ({"policy": PolicyTerm(torch.zeros(6)), "labels_N": None}, "a policy term needs labels_N"),
    ({"policy": PolicyTerm(torch.zeros(6)), "labels_N": torch.full((6,), 13)}, "labels_N holds the id 13"),
    (
        {"policy": PolicyTerm(torch.zeros(6), temperature=0.8), "label_weight": 1.0},
        "the policy term's temperature is 0.8, but the terms beside it",
    ),
    ({"policy": None}, "neither a signal nor a label_weight nor a policy term"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(make(87), None, **{"labels_N": IDS, **options})


TERMS: list[tuple[dict[str, Any], str]] = [
    ({"clip": "hard"}, "clip='hard' is not known; use 'ratio', 'product', 'truncate', 'none'"),
    ({"low": 1.1}, "low = 1.1 and high = 1.2 must enclose 1"),
    ({"reference_weight": 0.1}, "needs reference_logprobs_N"),
    ({"temperature": 0.0}, "temperature = 0.0 must be above 0"),
    ({"old_logprobs_N": torch.zeros(2)}, r"old_logprobs_N has shape \(2,\) but advantages_N \(6,\)"),
    ({"advantages_N": torch.zeros(2, 3)}, r"advantages_N must have shape \(N,\), not \(2, 3\)"),
]


@pytest.mark.parametrize(("options", "message"), TERMS)
def test_terms_refuse(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PolicyTerm(**{"advantages_N": torch.zeros(6), **options})


def test_parts_without_a_policy_are_zero() -> None:
    parts: LossParts = run(make(88)).parts
    assert float(parts.policy) == 0
