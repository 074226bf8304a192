"""Published methods that use the policy term, the tail bucket or a reward, composed from the engine's parts."""

from __future__ import annotations

import pytest
import torch
from problems import make
from torch import Tensor

from lmdistill.objectives import (
    PolicyTerm,
    distillation_loss,
    find_divergence,
    group_advantages,
    importance_weights,
    policy_loss,
    reward_advantages,
    sampled_token_advantages,
    sequence_mean_weights,
    to_tokens,
    token_logprobs,
    top_tokens,
)
from lmdistill.signals import HiddenSignal, TopKSignal

B, L, V = 4, 5, 13
MASK = torch.arange(L) < torch.tensor([5, 2, 4, 3])[:, None]
IDS = torch.randint(0, V, (B, L), generator=torch.Generator().manual_seed(5))


def models(seed: int) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """The student's leaves, an older student's log q of the tokens (B, L), the teacher's hidden states and head."""
    problem, noise = make(seed, n=B * L, v=V), make(seed + 1, n=B * L, v=V)
    leaves = [problem.hidden_NH.clone().requires_grad_(), problem.head_VH.clone().requires_grad_()]
    older = (problem.hidden_NH + 0.1 * noise.hidden_NH) @ problem.head_VH.T
    old_BL = older.log_softmax(-1).gather(1, IDS.view(-1, 1)).view(B, L)
    return leaves, old_BL, problem.teacher_NK, problem.teacher_VK


def own(z_NV: Tensor) -> Tensor:
    return z_NV.log_softmax(-1).gather(1, IDS.view(-1, 1)).view(B, L)


def assert_equal(loss: Tensor, expected: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    true = torch.autograd.grad(expected, leaves)
    for made, wanted in zip(torch.autograd.grad(loss, leaves), true, strict=True):
        torch.testing.assert_close(made, wanted, rtol=1e-7, atol=1e-11)


@pytest.mark.parametrize("coefficient", [1.0, 0.5])
def test_on_policy_distillation_of_sampled_tokens(coefficient: float) -> None:
    """Route B, tinker-cookbook: -sum exp(log q - log q_sampled) A, A = -coefficient (log q_sampled - log p)."""
    leaves, sampled_BL, teacher_NK, teacher_VK = models(120)
    p_BL = own(teacher_NK @ teacher_VK.T)
    ratio = torch.exp(own(leaves[0] @ leaves[1].T) - sampled_BL)
    expected = -(ratio * -coefficient * (sampled_BL - p_BL))[MASK].sum() / MASK.sum()

    advantages_BL = sampled_token_advantages(p_BL, sampled_BL, MASK, scale=coefficient)
    loss = policy_loss(
        *leaves, IDS.flatten(), advantages_BL.flatten(), old_logprobs_N=sampled_BL.flatten(), clip="none",
        mask_N=MASK.flatten(),
    ).loss  # fmt: skip
    assert_equal(loss, expected, leaves)


def test_gkd_with_a_reward() -> None:
    """2306.13649, section 3.1: maximise (1 - a) E[r(y)] - a E[D(p‖q)(y)], D averaged over the text's tokens."""
    leaves, _, teacher_NK, teacher_VK = models(122)
    a, rewards = 0.3, torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    z = leaves[0] @ leaves[1].T
    log_q, log_p = z.log_softmax(-1), (teacher_NK @ teacher_VK.T).log_softmax(-1)
    m = (0.5 * log_q.exp() + 0.5 * log_p.exp()).log()
    jsd_N = 0.5 * (log_p.exp() * (log_p - m)).sum(-1) + 0.5 * (log_q.exp() * (log_q - m)).sum(-1)
    text_q = torch.stack([own(z)[b][MASK[b]].sum() for b in range(B)])
    text_d = torch.stack([jsd_N.view(B, L)[b][MASK[b]].mean() for b in range(B)])
    # REINFORCE: the gradient of E[r] is r times that of log q(y).
    true = torch.autograd.grad((a * text_d - (1 - a) * rewards * text_q).mean(), leaves)

    advantages_BL = to_tokens(reward_advantages(rewards), MASK).double()
    weight_BL = sequence_mean_weights(MASK)
    lengths = MASK.sum(1, keepdim=True)
    # The weight averages over tokens, but a reward belongs to the whole text: its term is summed.
    policy = PolicyTerm((advantages_BL * lengths).flatten(), clip="none", weight=1 - a)
    parts = distillation_loss(
        *leaves, HiddenSignal(teacher_NK, teacher_VK), "jsd", divergence_weight=a, labels_N=IDS.flatten(),
        policy=policy, mask_N=MASK.flatten(), weight_N=weight_BL.flatten().double(), num_items=B,
    )  # fmt: skip
    for made, wanted in zip(torch.autograd.grad(parts.loss, leaves), true, strict=True):
        torch.testing.assert_close(made, wanted, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(parts.divergence, text_d.mean().detach(), rtol=1e-6, atol=1e-8)


def test_gad_generator() -> None:
    """2511.10643: GRPO on the discriminator's scores, with 0.001 of verl's low-variance KL to the reference."""
    leaves, old_BL, teacher_NK, teacher_VK = models(124)
    scores = torch.tensor([0.3, -1.2, 2.0, 0.1], dtype=torch.float64)
    groups = torch.tensor([0, 0, 1, 1])
    reference_BL = own(teacher_NK @ teacher_VK.T)
    advantages = torch.stack(
        [
            (scores[s] - scores[groups == groups[s]].mean()) / (scores[groups == groups[s]].std() + 1e-6)
            for s in range(B)
        ]
    )
    q_BL = own(leaves[0] @ leaves[1].T)
    ratio = torch.exp(q_BL - old_BL)
    clipped = torch.maximum(-advantages[:, None] * ratio, -advantages[:, None] * ratio.clamp(0.8, 1.2))
    kl = torch.exp(reference_BL - q_BL) - (reference_BL - q_BL) - 1
    expected = (clipped + 0.001 * kl)[MASK].mean()

    advantages_BL = to_tokens(group_advantages(scores, groups), MASK)
    loss = policy_loss(
        *leaves, IDS.flatten(), advantages_BL.flatten(), old_logprobs_N=old_BL.flatten(),
        reference_logprobs_N=reference_BL.flatten(), reference_weight=0.001, mask_N=MASK.flatten(),
    ).loss  # fmt: skip
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-8)  # advantages are float32
    true = torch.autograd.grad(expected, leaves)
    for made, wanted in zip(torch.autograd.grad(loss, leaves), true, strict=True):
        torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-7)


def sdpo_as_released(z_NV: Tensor, t_NV: Tensor, old_N: Tensor, k: int, alpha: float) -> Tensor:
    """lasgroup/SDPO core_algos.py, compute_self_distillation_loss on the student's own top k with a tail."""

    def with_tail(logp: Tensor) -> Tensor:
        log_s = torch.logsumexp(logp, -1, keepdim=True).clamp(max=-1e-7)
        return torch.cat([logp, torch.log(-torch.expm1(log_s))], -1)

    log_q = z_NV.log_softmax(-1)
    ids = log_q.topk(k, -1).indices
    s, t = with_tail(log_q.gather(1, ids)), with_tail(t_NV.log_softmax(-1).gather(1, ids))
    if alpha == 0:
        kl = (t.exp() * (t - s)).sum(-1)
    elif alpha == 1:
        kl = (s.exp() * (s - t)).sum(-1)
    else:
        mixture = ((1 - alpha) * s.exp() + alpha * t.exp()).log()
        kl = alpha * (t.exp() * (t - mixture)).sum(-1) + (1 - alpha) * (s.exp() * (s - mixture)).sum(-1)
    q_N = own(z_NV).flatten()
    ratio = torch.exp((q_N - old_N).detach().clamp(-20, 20)).clamp(max=2.0)
    return (kl * ratio)[MASK.flatten()].mean()


SDPO_KINDS = [(0.0, "forward_kl", {}), (1.0, "reverse_kl", {}), (0.5, "jsd", {}), (0.3, "jsd", {"teacher_weight": 0.3})]


@pytest.mark.parametrize(("alpha", "kind", "parameters"), SDPO_KINDS)
def test_sdpo(alpha: float, kind: str, parameters: dict[str, float]) -> None:
    """2601.20802: the tail bucket is the release's log(-expm1(logsumexp)), its weight the ratio cut at 2."""
    leaves, old_BL, teacher_NK, teacher_VK = models(126)
    z_NV, t_NV = leaves[0] @ leaves[1].T, teacher_NK @ teacher_VK.T
    old_BL = own(z_NV).detach() - torch.linspace(-1.5, 1.5, B * L).view(B, L)  # ratios on either side of 2
    expected = sdpo_as_released(z_NV, t_NV, old_BL.flatten(), 4, alpha)

    mask_N = MASK.flatten()
    ids_Nk, _ = top_tokens(*leaves, 4, mask_N=mask_N)
    with torch.no_grad():
        teacher_Nk = token_logprobs(teacher_NK, teacher_VK, ids_Nk, mask_N=mask_N)
        now_BL = token_logprobs(*leaves, IDS.flatten(), mask_N=mask_N).view(B, L)
    weight_BL = importance_weights(now_BL, old_BL, MASK, cap=2.0)
    assert 0 < (weight_BL[MASK] == 2).sum() < MASK.sum()
    parts = distillation_loss(
        *leaves, TopKSignal(ids_Nk, teacher_Nk, "bucket"), find_divergence(kind, **parameters), mask_N=mask_N,
        weight_N=weight_BL.flatten(),
    )  # fmt: skip
    assert_equal(parts.loss, expected, leaves)
