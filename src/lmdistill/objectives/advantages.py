"""Advantages and importance weights of sampled tokens; the vocabulary is not touched. Depends on torch alone.

Rows are padded or packed: a mask says which positions count, and `segments_BL` (`segments.segment_ids`) which sequence
each belongs to where a row holds several. Position t speaks of token t + 1. Everything returned is held fixed in the
gradient, and 0 where masked. p is the teacher, q the student.

Shape legend: B batch, L length, S sequences.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lmdistill.objectives.segments import row_ids


def token_rewards(
    teacher_logprobs_BL: Tensor,
    student_logprobs_BL: Tensor,
    mask_BL: Tensor,
    *,
    scaling: float = 1.0,
    clip: float | None = None,
) -> Tensor:
    """(log p - log q) / scaling of each sampled token, cut at +-clip, (B, L).

    MiniLLM 2306.08543, section 2.2 (released: scaling 0.5, clip 100). q is the student that sampled.
    """
    rewards_BL = (teacher_logprobs_BL.detach() - student_logprobs_BL.detach()) / scaling
    if clip is not None:
        rewards_BL = rewards_BL.clamp(-clip, clip)
    return torch.where(mask_BL.bool(), rewards_BL, 0.0)


def discounted_returns(
    rewards_BL: Tensor,
    mask_BL: Tensor,
    *,
    gamma: float = 1.0,
    segments_BL: Tensor | None = None,
    include_current: bool = True,
) -> Tensor:
    """What follows each token: r_t + gamma r_(t+1) + gamma² r_(t+2) ..., within its sequence, (B, L).

    Masked positions neither add nor discount. Without `include_current` the sum starts at the next token.
    """
    mask_BL = mask_BL.bool()
    segments_BL = row_ids(mask_BL) if segments_BL is None else segments_BL
    returns_BL = torch.zeros_like(rewards_BL)
    later_B = torch.zeros_like(rewards_BL[:, 0])
    for t in reversed(range(rewards_BL.shape[1])):
        if t + 1 < rewards_BL.shape[1]:
            later_B = torch.where(segments_BL[:, t] == segments_BL[:, t + 1], later_B, 0.0)
        whole_B = rewards_BL[:, t] + gamma * later_B
        returns_BL[:, t] = whole_B if include_current else later_B
        later_B = torch.where(mask_BL[:, t], whole_B, later_B)
    return torch.where(mask_BL, returns_BL, 0.0)


def remaining_tokens(mask_BL: Tensor, segments_BL: Tensor | None = None) -> Tensor:
    """How many unmasked tokens of its sequence are left at each position, its own included, (B, L), float32."""
    ones_BL = torch.ones(mask_BL.shape, device=mask_BL.device)
    return discounted_returns(torch.where(mask_BL.bool(), ones_BL, 0.0), mask_BL, segments_BL=segments_BL)


def whiten(values_BL: Tensor, over_BL: Tensor, *, epsilon: float = 1e-8) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon), mean and variance taken over the positions of `over_BL`."""
    chosen = values_BL[over_BL.bool()]
    if len(chosen) == 0:
        return values_BL
    return (values_BL - chosen.mean()) * (chosen.var(correction=0) + epsilon).rsqrt()


def minillm_advantages(
    teacher_logprobs_BL: Tensor,
    student_logprobs_BL: Tensor,
    mask_BL: Tensor,
    *,
    segments_BL: Tensor | None = None,
    reward_scaling: float = 0.5,
    reward_clip: float | None = 100.0,
    gamma: float = 0.95,
    include_current: bool = True,
    whiten_over: Literal["valid", "all", "nothing"] = "valid",
) -> Tensor:
    """MiniLLM's long-term advantage: length-normalised returns of log p - log q, whitened over the batch, (B, L).

        A_t = (sum_(t' >= t) gamma^(t' - t) r_t') / (tokens left at t),   r = (log p - log q) / reward_scaling

    MiniLLM 2306.08543, section 2.2, as released (microsoft/LMOps, minillm/losses.py). The publication has gamma = 1,
    no scaling, no whitening, and starts the sum at t + 1, because the single-step term speaks of t: `reward_scaling=1,
    reward_clip=None, gamma=1, include_current=False, whiten_over="nothing"`. The release whitens over the padding too
    (`whiten_over="all"`, for rows that hold nothing but the response's window); `valid` leaves it out, so that the
    width of a batch changes nothing.
    """
    rewards_BL = token_rewards(
        teacher_logprobs_BL, student_logprobs_BL, mask_BL, scaling=reward_scaling, clip=reward_clip
    )
    returns_BL = discounted_returns(
        rewards_BL, mask_BL, gamma=gamma, segments_BL=segments_BL, include_current=include_current
    )
    left_BL = remaining_tokens(mask_BL, segments_BL) - (0 if include_current else 1)
    advantages_BL = returns_BL / left_BL.clamp_min(1)
    if whiten_over != "nothing":
        over_BL = mask_BL.bool() if whiten_over == "valid" else torch.ones_like(mask_BL, dtype=torch.bool)
        advantages_BL = whiten(advantages_BL, over_BL)
    return torch.where(mask_BL.bool(), advantages_BL, 0.0)


def sampled_token_advantages(
    teacher_logprobs_BL: Tensor,
    student_logprobs_BL: Tensor,
    mask_BL: Tensor,
    *,
    scale: float = 1.0,
    clip: float | None = None,
    gamma: float = 0.0,
    segments_BL: Tensor | None = None,
) -> Tensor:
    """-scale (log q - log p) of each sampled token, cut at +-clip, and gamma times what follows, (B, L).

    On-policy distillation of Thinking Machines (Lu 2025; tinker-cookbook: scale 1, gamma 0, no clip). q is the student
    that sampled. A clip bounds single tokens that the teacher finds next to impossible.
    """
    rewards_BL = scale * token_rewards(teacher_logprobs_BL, student_logprobs_BL, mask_BL)
    if clip is not None:
        rewards_BL = rewards_BL.clamp(-clip, clip)
    if gamma == 0:
        return rewards_BL
    return discounted_returns(rewards_BL, mask_BL, gamma=gamma, segments_BL=segments_BL)


def importance_weights(
    logprobs_BL: Tensor, behaviour_logprobs_BL: Tensor, mask_BL: Tensor, *, cap: float | None = None
) -> Tensor:
    """q(y) / behaviour(y) of each sampled token, at most `cap`, (B, L).

    For text drawn from another distribution than q: an older student, another temperature, an inference engine that
    rounds differently. Cut at 2 it is SDPO's weight (2601.20802) and truncated importance sampling. The log-ratio is
    bounded at +-20.
    """
    log_ratio_BL = (logprobs_BL.detach() - behaviour_logprobs_BL.detach()).clamp(-20.0, 20.0)
    return torch.where(mask_BL.bool(), log_ratio_BL.exp().clamp_max(torch.inf if cap is None else cap), 0.0)


def teacher_mixed_weights(
    student_logprobs_BL: Tensor,
    teacher_logprobs_BL: Tensor,
    rollout_logprobs_BL: Tensor,
    mask_BL: Tensor,
    *,
    teacher_share: float = 0.2,
) -> Tensor:
    """q(y) / (a p(y) + (1 - a) q_rollout(y)) of each token drawn from that mixture, a = `teacher_share`, (B, L).

    MiniLLM 2306.08543, section 2.2: each token by itself, not the product over the prefix. Never above 1 / (1 - a)
    where q is the student of the rollout. Raises ValueError for a share that is not from 0 to below 1.
    """
    if not 0 <= teacher_share < 1:
        raise ValueError(f"teacher_share = {teacher_share} must lie from 0 to below 1")
    share = teacher_logprobs_BL.new_tensor(teacher_share)
    mixture_BL = torch.logaddexp(share.log() + teacher_logprobs_BL, (1 - share).log() + rollout_logprobs_BL)
    return importance_weights(student_logprobs_BL, mixture_BL, mask_BL)


def group_advantages(
    rewards_S: Tensor, groups_S: Tensor, *, divide_by_std: bool = True, epsilon: float = 1e-6
) -> Tensor:
    """(r - mean) / (std + epsilon) among the samples of one prompt, (S,). GRPO 2402.03300, section 4.1.2.

    `groups_S` numbers the prompts from 0. The standard deviation is the unbiased one, as in verl and TRL. Without
    `divide_by_std` it is the advantage of Dr. GRPO (2503.20783). A lone sample has nothing to be compared with: 0.
    """
    rewards_S = rewards_S.detach().float()
    counts_G, means_G = _group_means(rewards_S, groups_S)
    centred_S = rewards_S - means_G[groups_S]
    if not divide_by_std:
        return centred_S
    squares_G = torch.zeros_like(means_G).index_add(0, groups_S, centred_S.square())
    std_G = (squares_G / (counts_G - 1).clamp_min(1)).sqrt()
    return centred_S / (std_G[groups_S] + epsilon)


def reward_advantages(
    rewards_S: Tensor,
    *,
    baseline: Literal["none", "mean", "leave_one_out"] = "none",
    groups_S: Tensor | None = None,
) -> Tensor:
    """Rewards of whole sequences, less what others got, as REINFORCE takes them, (S,).

    GKD's reward term (2306.13649, section 3.1) has no baseline. `mean` is that of the batch, or of the group,
    `leave_one_out` of the others alone (RLOO 2402.14740), so that the gradient stays unbiased. With a baseline, a lone
    sample gets 0.
    """
    rewards_S = rewards_S.detach().float()
    if baseline == "none":
        return rewards_S
    groups_S = torch.zeros(len(rewards_S), dtype=torch.long, device=rewards_S.device) if groups_S is None else groups_S
    counts_G, means_G = _group_means(rewards_S, groups_S)
    centred_S = rewards_S - means_G[groups_S]
    if baseline == "mean":
        return centred_S
    counts_S = counts_G[groups_S]
    return centred_S * counts_S / (counts_S - 1).clamp_min(1)


def _group_means(values_S: Tensor, groups_S: Tensor) -> tuple[Tensor, Tensor]:
    """Size and mean of each group, (G,)."""
    if groups_S.shape != values_S.shape:
        raise ValueError(f"{len(values_S)} rewards but {len(groups_S)} group numbers; they go in pairs")
    count = int(groups_S.max()) + 1 if len(groups_S) else 0
    counts_G = values_S.new_zeros(count).index_add(0, groups_S, torch.ones_like(values_S))
    sums_G = values_S.new_zeros(count).index_add(0, groups_S, values_S)
    return counts_G, sums_G / counts_G.clamp_min(1)
