"""Advantages equal loops written from the publications and their released code; packing and padding change nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import make

from lmdistill.objectives import (
    PolicyTerm,
    distillation_loss,
    group_advantages,
    importance_weights,
    minillm_advantages,
    reward_advantages,
    sampled_token_advantages,
    segment_ids,
    sequence_mean_weights,
    teacher_mixed_weights,
    to_tokens,
)
from lmdistill.objectives.advantages import discounted_returns, remaining_tokens, whiten
from lmdistill.objectives.segments import segment_lengths, segment_sums
from lmdistill.signals import DenseSignal

Rows = list[tuple[np.ndarray, np.ndarray]]
"""log p and log q of each sequence's sampled tokens."""


def sequences(seed: int = 0, lengths: tuple[int, ...] = (4, 1, 6, 3)) -> Rows:
    random = np.random.default_rng(seed)
    return [(-random.exponential(2, n), -random.exponential(1, n)) for n in lengths]


def padded(rows: Rows, left: int = 2, right: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """log p, log q and mask, one sequence a row, among a prompt and padding that hold anything."""
    length = left + max(len(p) for p, _ in rows) + right
    out = torch.randn(2, len(rows), length, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 50
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for row, (p, q) in enumerate(rows):
        places = slice(left, left + len(p))
        out[0, row, places], out[1, row, places], mask[row, places] = torch.from_numpy(p), torch.from_numpy(q), True
    return out[0], out[1], mask


def packed(rows: Rows, prompt: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """log p, log q, mask and positions, two sequences a row, each after its prompt and before its last position."""
    half = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    width = max(sum(len(p) + prompt + 1 for p, _ in part) for part in half) + 2
    out = torch.full((2, 2, width), 77.0, dtype=torch.float64)
    mask, positions = torch.zeros(2, width, dtype=torch.bool), torch.zeros(2, width, dtype=torch.long)
    for number, part in enumerate(half):
        at = 0
        for p, q in part:
            end = at + prompt + len(p) + 1
            places = slice(at + prompt, end - 1)
            out[0, number, places], out[1, number, places] = torch.from_numpy(p), torch.from_numpy(q)
            mask[number, places], positions[number, at:end] = True, torch.arange(end - at)
            at = end
        positions[number, at:] = torch.arange(width - at)
    return out[0], out[1], mask, positions


def test_discounted_returns_and_what_is_left() -> None:
    rows = sequences()
    log_p, _, mask = padded(rows)
    for gamma in (0.0, 0.95, 1.0):
        for current in (True, False):
            made = discounted_returns(log_p, mask, gamma=gamma, include_current=current)
            expected = [
                [
                    sum(gamma ** (k - first) * p[k] for k in range(first, len(p)))
                    for first in range(start, len(p) + start)
                ]
                for p, _ in rows
                for start in [0 if current else 1]
            ]
            for row, values in enumerate(expected):
                np.testing.assert_allclose(made[row][mask[row]].numpy(), values, rtol=1e-12)
            assert made[~mask].abs().max() == 0
    left = remaining_tokens(mask)
    assert [left[row][mask[row]].tolist() for row in range(4)] == [[4, 3, 2, 1], [1], [6, 5, 4, 3, 2, 1], [3, 2, 1]]


def test_masked_positions_in_the_middle_neither_add_nor_discount() -> None:
    rewards = torch.tensor([[1.0, 99.0, 2.0, 4.0]])
    mask = torch.tensor([[True, False, True, True]])
    made = discounted_returns(rewards, mask, gamma=0.5)
    assert made.tolist() == [[1 + 0.5 * 2 + 0.25 * 4, 0.0, 2 + 0.5 * 4, 4.0]]


def minillm_as_released(rows: Rows, width: int, scaling: float, clip: float, gamma: float) -> list[np.ndarray]:
    """microsoft/LMOps minillm: sampler.py, then losses.py, then utils.whiten over the window, padding included."""
    window = np.zeros((len(rows), width))
    for row, (p, q) in enumerate(rows):
        reward = np.clip((p + -q) / scaling, -clip, clip)
        last = 0.0
        for t in reversed(range(len(p))):
            last = reward[t] + gamma * last
            window[row, t] = last / (len(p) - t)
    whitened = (window - window.mean()) / math.sqrt(window.var() + 1e-8)
    return [whitened[row, : len(p)] for row, (p, _) in enumerate(rows)]


def test_minillm_as_released() -> None:
    rows = sequences(1)
    rows[0][0][2] = -400.0  # the clipping at 100 takes part
    log_p, log_q, mask = padded(rows, left=0, right=5)
    made = minillm_advantages(log_p, log_q, mask, whiten_over="all")
    for row, expected in enumerate(minillm_as_released(rows, log_p.shape[1], 0.5, 100.0, 0.95)):
        np.testing.assert_allclose(made[row][mask[row]].numpy(), expected, rtol=1e-9)
    assert made[~mask].abs().max() == 0


def test_minillm_whitened_over_tokens_alone() -> None:
    """The default: the same, as if the window held nothing but tokens."""
    rows = sequences(2)
    log_p, log_q, mask = padded(rows)
    returns = [
        [sum(0.95 ** (k - t) * (p[k] - q[k]) / 0.5 for k in range(t, len(p))) / (len(p) - t) for t in range(len(p))]
        for p, q in rows
    ]
    flat = np.concatenate(returns)
    made = minillm_advantages(log_p, log_q, mask)
    np.testing.assert_allclose(made[mask].numpy(), (flat - flat.mean()) / math.sqrt(flat.var() + 1e-8), rtol=1e-9)
    assert not made.requires_grad


def test_minillm_as_published() -> None:
    """R^Norm_(t+1) = sum_(t' > t) log p/q / (T - t - 1), 2306.08543, section 2.2."""
    rows = sequences(3)
    log_p, log_q, mask = padded(rows)
    made = minillm_advantages(
        log_p,
        log_q,
        mask,
        reward_scaling=1.0,
        reward_clip=None,
        gamma=1.0,
        include_current=False,
        whiten_over="nothing",
    )
    for row, (p, q) in enumerate(rows):
        expected = [(p - q)[t + 1 :].mean() if t + 1 < len(p) else 0.0 for t in range(len(p))]
        np.testing.assert_allclose(made[row][mask[row]].numpy(), expected, rtol=1e-12)


CALLS: list[tuple[str, Any]] = [
    ("minillm", lambda p, q, m, s: minillm_advantages(p, q, m, segments_BL=s)),
    ("minillm later", lambda p, q, m, s: minillm_advantages(p, q, m, segments_BL=s, include_current=False, gamma=1.0)),
    ("sampled", lambda p, q, m, s: sampled_token_advantages(p, q, m, gamma=0.9, clip=2.0, segments_BL=s)),
    ("left", lambda p, q, m, s: remaining_tokens(m, s)),
    ("mean weights", lambda p, q, m, s: sequence_mean_weights(m, s)),
]


@pytest.mark.parametrize(("name", "call"), CALLS, ids=[name for name, _ in CALLS])
def test_packed_rows_give_what_padded_ones_give(name: str, call: Any) -> None:
    rows = sequences(4)
    log_p, log_q, mask = padded(rows)
    apart = call(log_p, log_q, mask, None)
    log_p2, log_q2, mask2, positions = packed(rows)
    together = call(log_p2, log_q2, mask2, segment_ids(positions))
    torch.testing.assert_close(together[mask2], apart[mask], rtol=1e-12, atol=1e-12)


def test_segments() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]])
    segments = segment_ids(positions)
    assert segments.tolist() == [[0, 0, 0, 1, 1], [2, 3, 3, 3, 3]]
    mask = torch.tensor([[True, True, False, True, False], [False, True, True, True, False]])
    values = torch.arange(10.0, requires_grad=True)
    sums = segment_sums(values.view(2, 5), mask, segments)
    assert sums.tolist() == [1, 3, 0, 21]
    assert segment_lengths(mask, segments).tolist() == [2, 1, 0, 3]
    (gradient,) = torch.autograd.grad(sums @ torch.tensor([1.0, 10.0, 100.0, 1000.0]), values)
    assert gradient.tolist() == [1, 1, 0, 10, 0, 0, 1000, 1000, 1000, 0]
    spread = to_tokens(torch.tensor([1.0, 2.0, 3.0, 4.0]), mask, segments)
    assert spread.tolist() == [[1, 1, 0, 2, 0], [0, 4, 4, 4, 0]]
    # A row whose first position is not 0 (cut on the left) begins a sequence all the same.
    assert segment_ids(torch.tensor([[3, 4, 0], [5, 6, 7]])).tolist() == [[0, 0, 1], [2, 2, 2]]


def test_sampled_token_advantage() -> None:
    """-(log q - log p), discount 0: tinker-cookbook's incorporate_kl_penalty with a coefficient."""
    rows = sequences(5)
    log_p, log_q, mask = padded(rows)
    made = sampled_token_advantages(log_p, log_q, mask, scale=0.7)
    np.testing.assert_allclose(made[mask], np.concatenate([-0.7 * (q - p) for p, q in rows]), rtol=1e-12)
    cut = sampled_token_advantages(log_p, log_q, mask, clip=0.5)
    np.testing.assert_allclose(cut[mask], np.clip(np.concatenate([p - q for p, q in rows]), -0.5, 0.5), rtol=1e-12)


def test_importance_weights() -> None:
    rows = sequences(6)
    log_p, log_q, mask = padded(rows)
    plain = importance_weights(log_p, log_q, mask)
    np.testing.assert_allclose(plain[mask], np.exp(np.concatenate([p - q for p, q in rows])), rtol=1e-12)
    sdpo = importance_weights(log_p, log_q, mask, cap=2.0)
    np.testing.assert_allclose(sdpo[mask], np.minimum(plain[mask].numpy(), 2.0), rtol=1e-12)
    assert plain[~mask].abs().max() == 0
    far = importance_weights(torch.tensor([[0.0, -900.0]]), torch.tensor([[-900.0, 0.0]]), torch.ones(1, 2))
    np.testing.assert_allclose(far, [[math.exp(20), math.exp(-20)]], rtol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.9])
def test_teacher_mixed_weights(share: float) -> None:
    rows = sequences(7)
    log_p, log_q, mask = padded(rows)
    rollout = torch.where(mask, log_q - 0.3, log_q)
    made = teacher_mixed_weights(log_q, log_p, rollout, mask, teacher_share=share)
    q, p, old = (np.exp(x[mask].numpy()) for x in (log_q, log_p, rollout))
    np.testing.assert_allclose(made[mask], q / (share * p + (1 - share) * old), rtol=1e-9)
    same = teacher_mixed_weights(log_q, log_p, log_q, mask, teacher_share=share)
    assert same.max() <= 1 / (1 - share) * (1 + 1e-9)


def test_teacher_mixed_weights_refuse_the_teacher_alone() -> None:
    with pytest.raises(ValueError, match=r"teacher_share = 1\.0 must lie from 0 to below 1"):
        teacher_mixed_weights(*torch.zeros(3, 1, 1), torch.ones(1, 1), teacher_share=1.0)


def test_group_advantages() -> None:
    """GRPO 2402.03300, 4.1.2, on groups that lie apart; lone and equal samples say nothing."""
    rewards = np.array([1.0, 4.0, 2.0, 8.0, -3.0, 5.0, 5.0])
    groups = np.array([0, 1, 0, 1, 2, 3, 3])
    made = group_advantages(torch.from_numpy(rewards), torch.from_numpy(groups))
    for group in (0, 1):
        own = rewards[groups == group]
        expected = (own - own.mean()) / (own.std(ddof=1) + 1e-6)
        np.testing.assert_allclose(made[torch.from_numpy(groups == group)], expected, rtol=1e-5)
    assert made[4:].tolist() == [0, 0, 0]
    centred = group_advantages(torch.from_numpy(rewards), torch.from_numpy(groups), divide_by_std=False)
    assert centred.tolist() == [-0.5, -2, 0.5, 2, 0, 0, 0]


def test_reward_advantages() -> None:
    rewards, groups = torch.tensor([1.0, 4.0, 2.0, 8.0, 6.0]), torch.tensor([0, 1, 0, 1, 1])
    assert reward_advantages(rewards).tolist() == rewards.tolist()
    torch.testing.assert_close(reward_advantages(rewards, baseline="mean"), rewards - 4.2)
    others = [r - (21 - r) / 4 for r in rewards.tolist()]
    torch.testing.assert_close(reward_advantages(rewards, baseline="leave_one_out"), torch.tensor(others))
    grouped = reward_advantages(rewards, baseline="leave_one_out", groups_S=groups)
    torch.testing.assert_close(grouped, torch.tensor([-1.0, 4 - 7.0, 1.0, 8 - 5.0, 6 - 6.0]))
    assert reward_advantages(rewards[:1], baseline="leave_one_out").tolist() == [0]


def test_pairs_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2 rewards but 3 group numbers"):
        group_advantages(torch.zeros(2), torch.zeros(3, dtype=torch.long))


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    gamma=st.floats(0, 1),
    left=st.integers(0, 3),
    right=st.integers(0, 3),
)
def test_padding_changes_nothing(lengths: list[int], gamma: float, left: int, right: int) -> None:
    rows = sequences(8, tuple(lengths))
    bare_p, bare_q, bare = padded(rows, 0, 0)
    log_p, log_q, mask = padded(rows, left, right)
    wide = minillm_advantages(log_p, log_q, mask, gamma=gamma)
    torch.testing.assert_close(wide[mask], minillm_advantages(bare_p, bare_q, bare, gamma=gamma)[bare])


def test_whitened_values_have_mean_0_and_variance_1() -> None:
    log_p, _, mask = padded(sequences(9))
    made = whiten(log_p, mask)[mask]
    assert made.mean().abs() < 1e-9
    assert made.var(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert torch.equal(whiten(log_p, torch.zeros_like(mask)), log_p)


def minillm_loss_as_released(
    z_new: torch.Tensor, z_old: torch.Tensor, z_teacher: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """The RL loss of one update of microsoft/LMOps minillm in float64, over (B, L, V) logits of the window.

    sampler.py: rewards, importance weights with teacher_mixed_alpha 0.2; losses.py: _pg_loss + _reg_loss.
    """
    take = ids[..., None]
    new, old, teacher = (z.log_softmax(-1).gather(-1, take)[..., 0] for z in (z_new, z_old, z_teacher))
    old, teacher = old.detach(), teacher.detach()
    w = torch.exp(old - torch.log(0.8 * old.exp() + 0.2 * teacher.exp()))
    rewards = ((teacher - old) / 0.5).clamp(-100, 100)
    rows = [(teacher[b][mask[b]].numpy(), old[b][mask[b]].numpy()) for b in range(len(ids))]
    window = torch.zeros_like(rewards)
    for b, values in enumerate(minillm_as_released(rows, ids.shape[1], 0.5, 100.0, 0.95)):
        window[b, : len(values)] = torch.from_numpy(values)
    ratio = torch.exp(new - old) * w
    long = torch.maximum(-window * ratio, -window * ratio.clamp(0.8, 1.2))[mask].sum() / mask.sum()
    q, log_ratio = z_new.softmax(-1), z_new.log_softmax(-1) - z_teacher.log_softmax(-1)
    single = (q * log_ratio).sum(-1)[mask].sum() / mask.sum()
    return long + single


def test_whole_minillm_update_as_released() -> None:
    """Long-term and single-step term from one projection, against the released code's arithmetic on full logits."""
    b, length, v = 3, 5, 13
    new, older = make(90, n=b * length, v=v), make(91, n=b * length, v=v)
    ids = torch.randint(0, v, (b, length), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(length) < torch.tensor([5, 2, 4])[:, None]
    hidden, head = new.hidden_NH.clone().requires_grad_(), new.head_VH.clone().requires_grad_()
    # The student that wrote the text, one small update ago.
    z_old = (new.hidden_NH + 0.05 * older.hidden_NH) @ new.head_VH.T
    z_teacher = new.teacher_NK @ new.teacher_VK.T
    shape = (b, length, v)
    expected = minillm_loss_as_released(
        (hidden @ head.T).view(shape), z_old.view(shape), z_teacher.view(shape), ids, mask
    )
    true = torch.autograd.grad(expected, (hidden, head))

    old_BL = z_old.log_softmax(-1).gather(1, ids.view(-1, 1)).view(b, length)
    teacher_BL = z_teacher.log_softmax(-1).gather(1, ids.view(-1, 1)).view(b, length)
    advantages_BL = minillm_advantages(teacher_BL, old_BL, mask, whiten_over="all")
    weights_BL = teacher_mixed_weights(old_BL, teacher_BL, old_BL, mask)
    policy = PolicyTerm(advantages_BL.flatten(), old_BL.flatten(), weights_BL.flatten(), clip="product")
    parts = distillation_loss(
        hidden, head, DenseSignal(z_teacher), "reverse_kl", labels_N=ids.flatten(), policy=policy, mask_N=mask.flatten()
    )
    torch.testing.assert_close(parts.loss, expected, rtol=1e-9, atol=1e-12)
    for made, wanted in zip(torch.autograd.grad(parts.loss, (hidden, head)), true, strict=True):
        torch.testing.assert_close(made, wanted, rtol=1e-8, atol=1e-12)


def test_single_step_and_long_term_make_the_gradient_of_the_sequences_reverse_kl() -> None:
    """MiniLLM's decomposition (2306.08543, section 2.2), exact over all texts of three tokens from three ids.

    sum_y q(y) [single-step terms + long-term terms with R_(t+1)] is the gradient of KL(q‖p) over whole sequences.
    """
    v, steps = 3, 3
    places: dict[tuple[int, ...], int] = {(): 0}
    for n in (1, 2):
        for text in np.ndindex(*([v] * n)):
            places[tuple(text)] = len(places)
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(len(places), v, generator=generator, dtype=torch.float64).requires_grad_()
    log_p = torch.randn(len(places), v, generator=generator, dtype=torch.float64).log_softmax(-1)
    texts = list(np.ndindex(*([v] * steps)))
    log_q = z.log_softmax(-1)
    at = torch.tensor([[places[text[:t]] for t in range(steps)] for text in texts])
    ids = torch.tensor(texts)
    whole_q, whole_p = (x[at, ids].sum(-1) for x in (log_q, log_p))
    (true,) = torch.autograd.grad((whole_q.exp() * (whole_q - whole_p)).sum(), z)

    mask = torch.ones(len(texts), steps, dtype=torch.bool)
    q_BL, p_BL = log_q.detach()[at, ids], log_p[at, ids]
    later_BL = discounted_returns(p_BL - q_BL, mask, include_current=False)
    identity = torch.eye(v, dtype=torch.float64)
    weight_BL = whole_q.detach().exp()[:, None].expand(-1, steps)
    loss = distillation_loss(
        z[at.flatten()],
        identity,
        DenseSignal(log_p[at.flatten()]),
        "reverse_kl",
        labels_N=ids.flatten(),
        policy=PolicyTerm(later_BL.flatten(), clip="none"),
        weight_N=weight_BL.flatten(),
        num_items=1,
    ).loss
    (made,) = torch.autograd.grad(loss, z)
    torch.testing.assert_close(made, true, rtol=1e-9, atol=1e-12)
