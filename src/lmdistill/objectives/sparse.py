"""Signals that name a few tokens: the same divergences on a few classes, never densified to the vocabulary.

Each function takes a chunk of the student's raw logits, returns what the tokens cost, (n,) without weights, and leaves
the gradient of sum_n weight_n * (w_d D_n + w_ce CE_n + w_p P_n) in the raw logits, P the policy term. One pass finds
the log-normalisers, one writes the gradient; everything else happens on n x k. Depends on torch alone.

Shape legend: n tokens of one chunk, V vocabulary, k kept ids, C classes (k, or k and the tail), H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lmdistill.objectives.divergences import FLOOR, Divergence
from lmdistill.objectives.rows import (
    ChunkRows,
    LogitsView,
    add_at,
    log_normaliser,
    own_pull,
    softmax_rows,
    working_dtype,
)
from lmdistill.objectives.surrogate import PolicyRule
from lmdistill.signals.types import HeadExpectationSignal, SampledSignal, TokenSignal, TopKSignal


@dataclass(frozen=True)
class Mixture:
    """What a chunk's loss is made of."""

    divergence_weight: float
    label_weight: float
    temperature: float
    view: LogitsView
    compiled: bool
    policy_weight: float = 0.0
    rule: PolicyRule | None = None
    own_temperature: float = 1.0
    """That of the cross-entropy and the policy term; another than 1 only where nothing else is compared."""

    @property
    def reads_labels(self) -> bool:
        """Whether the text's own tokens cost anything."""
        return bool(self.label_weight or self.rule)


@dataclass(frozen=True)
class Costs:
    """What each token of a chunk costs by each term, (n,), without weights."""

    divergence_n: Tensor
    cross_entropy_n: Tensor
    policy_n: Tensor


def top_k_rows(raw_nV: Tensor, rows: ChunkRows, signal: TopKSignal, definition: Divergence, mix: Mixture) -> Costs:
    """A divergence on the kept ids and, by `signal.tail`, the rest."""
    ids_nk = signal.ids_Nk.long()
    dtype = working_dtype(raw_nV)
    top_raw_nk = raw_nV.gather(1, ids_nk)
    top_z_nk = mix.view.logits(top_raw_nk)
    label_z_n = _label_logits(raw_nV, rows, mix)
    filled_nk = signal.logprobs_Nk > -torch.inf
    # Added, not written: an empty slot may name the id of a filled one, or of a token in the tail.
    add_at(raw_nV, ids_nk, torch.where(filled_nk, -torch.inf, 0.0))

    inverse_t = raw_nV.new_tensor(1 / mix.temperature, dtype=dtype)
    masked_z_nk = top_z_nk.masked_fill(~filled_nk, -torch.inf)
    tail_n = log_normaliser(raw_nV, inverse_t, view=mix.view, compiled=mix.compiled)
    all_n = torch.logaddexp(torch.logsumexp(masked_z_nk * inverse_t, 1), tail_n)
    log_s_nC, log_t_nC, tail_counts = _classes(signal, masked_z_nk * inverse_t, tail_n, all_n, mix)
    context = definition.context(log_s_nC, log_t_nC, None, rows.setting_n1)
    f_nC, v_nC = definition.summands(log_s_nC, log_t_nC, *context)
    if not tail_counts:  # the tail, the last class, takes part in the softmax alone
        f_nC, v_nC = (torch.cat([x_nC[:, :-1], torch.zeros_like(x_nC[:, -1:])], 1) for x_nC in (f_nC, v_nC))
    gradient_nC = (v_nC - log_s_nC.exp() * v_nC.sum(1, keepdim=True)) * (mix.divergence_weight * inverse_t)
    top_gradient_nk, tail_factor_n = gradient_nC[:, :-1], gradient_nC[:, -1]

    plain_n = all_n
    if label_z_n is not None and mix.temperature != 1:
        plain_tail_n = log_normaliser(raw_nV, torch.ones_like(inverse_t), view=mix.view, compiled=mix.compiled)
        plain_n = torch.logaddexp(torch.logsumexp(masked_z_nk, 1), plain_tail_n)
    own = _own(label_z_n, plain_n, rows, mix)
    if own.pull_n is not None:
        top_gradient_nk = top_gradient_nk + own.pull_n[:, None] * (masked_z_nk - plain_n[:, None]).exp()
    softmax_rows(
        raw_nV,
        tail_n.masked_fill(tail_n == -torch.inf, 0.0),  # no tail: nothing to shift, and -inf - -inf is NaN
        tail_factor_n * rows.weight_n,
        None if own.pull_n is None else plain_n,
        None if own.pull_n is None else rows.weight_n * own.pull_n,
        inverse_t,
        view=mix.view,
        compiled=mix.compiled,
    )
    top_gradient_nk = mix.view.chain(top_gradient_nk * rows.weight_n[:, None], top_z_nk) * filled_nk
    add_at(raw_nV, ids_nk, top_gradient_nk)
    _subtract_labels(raw_nV, label_z_n, own.pull_n, rows, mix)
    return Costs(f_nC.sum(1), own.cross_entropy_n, own.policy_n)


def sampled_rows(raw_nV: Tensor, rows: ChunkRows, signal: SampledSignal, mix: Mixture) -> Costs:
    """Forward KL (or cross-entropy, see `SampledSignal`) from counts: gradient p_s - counts / sum(counts)."""
    ids_nk = signal.ids_Nk.long()
    inverse_t = raw_nV.new_tensor(1 / mix.temperature, dtype=working_dtype(raw_nV))
    z_nk = mix.view.logits(raw_nV.gather(1, ids_nk))
    counts_nk = signal.counts_Nk.to(z_nk)
    # A token without any sample says nothing: its share, loss and gradient are 0.
    share_nk = counts_nk / counts_nk.sum(1, keepdim=True).clamp_min(torch.finfo(z_nk.dtype).tiny)
    all_n = log_normaliser(raw_nV, inverse_t, view=mix.view, compiled=mix.compiled)
    log_s_nk = z_nk * inverse_t - all_n[:, None]
    if signal.logprobs_Nk is None:
        divergence_n = -(share_nk * log_s_nk).sum(1)
    else:
        log_t_nk = signal.logprobs_Nk.to(z_nk).clamp_min(FLOOR)
        divergence_n = (share_nk * (log_t_nk - log_s_nk)).sum(1)
    pulls_nk = share_nk * (mix.divergence_weight * inverse_t)
    own = _pull(raw_nV, rows, ids_nk, z_nk, pulls_nk, all_n, inverse_t, mix)
    return Costs(divergence_n, own.cross_entropy_n, own.policy_n)


def token_rows(raw_nV: Tensor, rows: ChunkRows, signal: TokenSignal, kind: str, mix: Mixture) -> Costs:
    """Forward or reverse KL estimated from the teacher's log-probability of the text's own token.

    With r = log p_t(y) - log p_s(y): forward KL is r with gradient p_s - onehot(y) (the teacher wrote y); reverse KL is
    -r with the score-function gradient r (p_s - onehot(y)), r held fixed (the student wrote y).
    """
    ids_n1 = signal.ids_N.long()[:, None]
    inverse_t = raw_nV.new_tensor(1 / mix.temperature, dtype=working_dtype(raw_nV))
    z_n1 = mix.view.logits(raw_nV.gather(1, ids_n1))
    all_n = log_normaliser(raw_nV, inverse_t, view=mix.view, compiled=mix.compiled)
    ratio_n = signal.logprobs_N.to(z_n1).clamp_min(FLOOR) - (z_n1[:, 0] * inverse_t - all_n)
    strength_n = torch.ones_like(ratio_n) if kind == "forward_kl" else ratio_n
    pulls_n1 = (strength_n * mix.divergence_weight * inverse_t)[:, None]
    own = _pull(raw_nV, rows, ids_n1, z_n1, pulls_n1, all_n, inverse_t, mix)
    return Costs(ratio_n if kind == "forward_kl" else -ratio_n, own.cross_entropy_n, own.policy_n)


def head_expectation_rows(
    raw_nV: Tensor, rows: ChunkRows, signal: HeadExpectationSignal, hidden_nH: Tensor, mix: Mixture
) -> tuple[Costs, Tensor]:
    """Exact forward KL against a frozen head; also gives what must be added to the gradient of the hidden state.

    D = logsumexp(z) - h . u - entropy with u the expected row, so dD/dh = sum_v p_s(v) W[v] - u: the first part comes
    from the gradient left in `raw_nV` through the head, the second, (n, H), is returned.
    """
    dtype = working_dtype(raw_nV)
    one = raw_nV.new_ones((), dtype=dtype)
    all_n = log_normaliser(raw_nV, one, view=mix.view, compiled=mix.compiled)
    expected_nH = signal.expected_row_NH.to(dtype)
    mean_logit_n = (hidden_nH.to(dtype) * expected_nH).sum(1)
    if signal.bias_N is not None:
        mean_logit_n = mean_logit_n + signal.bias_N.to(dtype)
    divergence_n = all_n - mean_logit_n * mix.view.scale
    if signal.entropy_N is not None:
        divergence_n = divergence_n - signal.entropy_N.to(dtype)
    label_z_n = _label_logits(raw_nV, rows, mix)
    own = _own(label_z_n, all_n, rows, mix)
    factor_n = rows.weight_n * (mix.divergence_weight + (0.0 if own.pull_n is None else own.pull_n))
    softmax_rows(raw_nV, all_n, factor_n, None, None, one, view=mix.view, compiled=mix.compiled)
    _subtract_labels(raw_nV, label_z_n, own.pull_n, rows, mix)
    pull_nH = -expected_nH * (rows.weight_n * mix.divergence_weight * mix.view.scale)[:, None]
    return Costs(divergence_n, own.cross_entropy_n, own.policy_n), pull_nH


def _classes(
    signal: TopKSignal, softened_nk: Tensor, tail_n: Tensor, all_n: Tensor, mix: Mixture
) -> tuple[Tensor, Tensor, bool]:
    """Log-probabilities of both models on the k classes and the tail, and whether the tail counts in the sum."""
    log_t_nk = signal.logprobs_Nk.to(softened_nk)
    never_n1 = torch.full_like(tail_n, -torch.inf)[:, None]
    if signal.tail == "renormalise":
        log_s_nC = torch.cat([softened_nk.log_softmax(1), never_n1], 1)
        softer_nk = log_t_nk * (signal.temperature / mix.temperature)
        log_t_nC = torch.cat([softer_nk.log_softmax(1), never_n1], 1)
        return log_s_nC.clamp_min(FLOOR), log_t_nC.clamp_min(FLOOR), False
    log_s_nC = torch.cat([softened_nk, tail_n[:, None]], 1) - all_n[:, None]
    # What is missing to 1. Stored log-probabilities are rounded: where the difference drowns in that, a tail of 0 would
    # make every student that keeps one infinitely wrong.
    rest_n1 = (-torch.logsumexp(log_t_nk, 1, keepdim=True).expm1()).clamp_min(torch.finfo(log_t_nk.dtype).eps)
    log_t_nC = torch.cat([log_t_nk, torch.where(tail_n[:, None] > -torch.inf, rest_n1.log(), never_n1)], 1)
    return log_s_nC.clamp_min(FLOOR), log_t_nC.clamp_min(FLOOR), signal.tail == "bucket"


@dataclass(frozen=True)
class _Own:
    """What the text's own tokens cost, and how strongly their ids are pulled; None where they cost nothing."""

    cross_entropy_n: Tensor
    policy_n: Tensor
    pull_n: Tensor | None


def _label_logits(raw_nV: Tensor, rows: ChunkRows, mix: Mixture) -> Tensor | None:
    return mix.view.logits(raw_nV.gather(1, rows.labels_n[:, None]))[:, 0] if mix.reads_labels else None


def _own(label_z_n: Tensor | None, plain_n: Tensor, rows: ChunkRows, mix: Mixture) -> _Own:
    """Costs of the own tokens from their logits and the log-normaliser at temperature 1."""
    if label_z_n is None:
        return _Own(torch.zeros_like(plain_n), torch.zeros_like(plain_n), None)
    cross_entropy_n = plain_n - label_z_n
    pull_n, policy_n = own_pull(cross_entropy_n, mix.label_weight, mix.policy_weight, mix.rule, rows.policy_n4)
    return _Own(cross_entropy_n, policy_n, pull_n)


def _pull(
    raw_nV: Tensor,
    rows: ChunkRows,
    ids_nk: Tensor,
    z_nk: Tensor,
    pulls_nk: Tensor,
    all_n: Tensor,
    inverse_t: Tensor,
    mix: Mixture,
) -> _Own:
    """Write sum_k pulls (p_s - onehot(ids)) and the gradient of the own tokens' terms; returns what those cost."""
    label_z_n = _label_logits(raw_nV, rows, mix)
    plain_n = all_n
    if label_z_n is not None and mix.temperature != 1:
        plain_n = log_normaliser(raw_nV, torch.ones_like(inverse_t), view=mix.view, compiled=mix.compiled)
    own = _own(label_z_n, plain_n, rows, mix)
    softmax_rows(
        raw_nV,
        all_n,
        pulls_nk.sum(1) * rows.weight_n,
        None if own.pull_n is None else plain_n,
        None if own.pull_n is None else rows.weight_n * own.pull_n,
        inverse_t,
        view=mix.view,
        compiled=mix.compiled,
    )
    gradient_nk = mix.view.chain(-pulls_nk * rows.weight_n[:, None], z_nk)
    add_at(raw_nV, ids_nk, gradient_nk)
    _subtract_labels(raw_nV, label_z_n, own.pull_n, rows, mix)
    return own


def _subtract_labels(
    raw_nV: Tensor, label_z_n: Tensor | None, pull_n: Tensor | None, rows: ChunkRows, mix: Mixture
) -> None:
    if label_z_n is not None and pull_n is not None:
        gradient_n = mix.view.chain(-rows.weight_n * pull_n, label_z_n)
        add_at(raw_nV, rows.labels_n[:, None], gradient_n[:, None])
