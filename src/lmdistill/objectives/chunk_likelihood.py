"""Likelihoods of equal bytes, compared across tokenizers: approximate likelihood matching. Depends on torch alone.

The probability that a model gives to a group of its own tokens is the product of their probabilities. Approximate
likelihood matching (ALM, 2503.20083) asks that the student's product be the teacher's for every group of an alignment,
by a divergence between the two coins "this group came, or another". Both log-likelihoods are divided by a temperature
before (100 as released: a chunk's probability is mostly near 0, where a coin says little).

Of the teacher it needs one number for each of its own tokens, so that a live teacher, a store and a server serve alike.
The group's probability is not corrected for what else could go on within a token (ALM's outcome debiasing).

Shape legend: N student tokens, M teacher tokens, n those of one chunk, G groups, g those of one chunk, V vocabulary,
H student hidden, K teacher hidden.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import pad

from lmdistill.objectives.alignment import Alignment, covers, tokens_of
from lmdistill.objectives.grouped import GroupChunk, GroupLoss, check_ends, check_ids, grouped_loss
from lmdistill.objectives.products import product_dtype
from lmdistill.objectives.rows import LogitsView, log_normaliser, softmax_rows, working_dtype
from lmdistill.objectives.token_logprobs import token_logprobs

ChunkKind = Literal[
    "binary_ce",
    "binary_forward_kl",
    "binary_reverse_kl",
    "binary_forward_kl_limit",
    "binary_total_variation",
    "log_ratio",
    "sampled_forward_kl",
    "sampled_reverse_kl",
]
CHUNK_KINDS: tuple[str, ...] = get_args(ChunkKind)

# Half of the dense engine's: there are no two buffers of logits here.
_CHUNK_BYTES = 80 * 2**20
# What the released code takes off both log-likelihoods, so that no coin is certain.
_CERTAIN = 1e-6


def chunk_likelihood_loss(
    student_hidden_NH: Tensor,
    student_head_VH: Tensor,
    student_ids_N: Tensor,
    teacher_logprobs_M: Tensor,
    alignment: Alignment,
    kind: ChunkKind = "binary_ce",
    *,
    temperature: float = 100.0,
    mask_G: Tensor | None = None,
    weight_G: Tensor | None = None,
    num_items: float | Tensor | None = None,
    student_bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
    chunk_tokens: int | None = None,
    compute_dtype: torch.dtype | None = None,
    compiled: bool = True,
) -> GroupLoss:
    """Compare the log-likelihoods s and t of each group under student and teacher; no tokens x vocabulary tensor.

    With p = exp(s / temperature) and q = exp(t / temperature), `kind` is one of

    - `binary_ce`: -q log p - (1 - q) log(1 - p), as released; `binary_forward_kl` is it without the teacher's entropy;
    - `binary_reverse_kl`: the KL(student‖teacher) of the two coins; `binary_total_variation`: |p - q|;
    - `binary_forward_kl_limit`: temperature * KL(teacher‖student) as the temperature grows, t - s + t log(s / t);
    - `log_ratio`: |s - t| (no temperature);
    - `sampled_forward_kl`: t - s, unbiased for KL(teacher‖student) of the groups where the teacher wrote the text;
    - `sampled_reverse_kl`: s - t with the score-function gradient (s - t) ds, where the student did: on-policy
      distillation by sampled tokens across tokenizers.

    Args:
        student_hidden_NH: the student's last hidden states, (N, H); row i - 1 predicts token i.
        student_head_VH: its output head, (V, H).
        student_ids_N: its tokens, (N,).
        teacher_logprobs_M: log-probability of each of the teacher's own tokens given those before, (M,); only those in
            trained groups are read.
        alignment: which tokens cover the same bytes.
        mask_G, weight_G: which groups are trained, and the factor of each one's loss, (G,).
        num_items: what the sum is divided by; the number of unmasked groups where absent.
        temperature, kind: see above.
        student_bias, logit_scale, softcap, vocab_size, chunk_tokens, compute_dtype, compiled: as in `divergence`.

    Raises:
        ValueError: shapes, ids or an alignment that do not fit, or a teacher's log-probability above 0 or NaN.
    """
    if kind not in CHUNK_KINDS:
        raise ValueError(f"kind = {kind!r} is not known; use one of {', '.join(CHUNK_KINDS)}")
    if not temperature > 0:
        raise ValueError(f"temperature = {temperature} must be above 0")
    trained = alignment if mask_G is None else alignment.select(mask_G.to(torch.bool))
    check_ends(trained.teacher_first_G, trained.teacher_end_G, len(teacher_logprobs_M), "teacher")
    if len(student_ids_N) != len(student_hidden_NH):
        raise ValueError(f"{len(student_hidden_NH)} student tokens but {len(student_ids_N)} ids; they go in pairs")
    vocabulary = vocab_size or len(student_head_VH)
    tokens_n, _ = tokens_of(trained.student_first_G, trained.student_end_G)
    check_ids(student_ids_N, tokens_n, vocabulary, "student_ids_N")
    work = working_dtype(student_hidden_NH)
    teacher_G = teacher_logprobs_M.new_zeros(len(alignment), dtype=work)
    teacher_G[slice(None) if mask_G is None else mask_G.to(torch.bool)] = _teacher_likelihood(
        teacher_logprobs_M.to(work), trained
    )
    view = LogitsView(logit_scale, softcap)
    difference = _DIFFERENCES[kind]

    def compare(chunk: GroupChunk, raw_nV: Tensor) -> Tensor:
        ids_n1 = student_ids_N[chunk.tokens_n].long()[:, None]
        z_n1 = view.logits(raw_nV.gather(1, ids_n1))
        one = z_n1.new_ones(())
        all_n = log_normaliser(raw_nV, one, view=view, compiled=compiled)
        student_g = z_n1.new_zeros(len(chunk.groups_g)).index_add(0, chunk.owner_n, z_n1[:, 0] - all_n)
        loss_g, slope_g = difference(student_g, teacher_G[chunk.groups_g], temperature)
        pull_n = (slope_g * chunk.weight_g)[chunk.owner_n]
        softmax_rows(raw_nV, all_n, -pull_n, None, None, one, view=view, compiled=compiled)
        # Written whole, not added to what is rounded to the buffer's 16 bits: where the student is nearly certain, the
        # token's own 1 - p is smaller than the step between two such numbers below 1.
        own_n1 = -torch.expm1(z_n1 - all_n[:, None]) * pull_n[:, None]
        raw_nV[torch.arange(len(ids_n1), device=raw_nV.device), ids_n1[:, 0]] = view.chain(own_n1, z_n1)[:, 0].to(
            raw_nV.dtype
        )
        return loss_g

    size = torch.empty((), dtype=compute_dtype or product_dtype(student_hidden_NH)).element_size()
    return grouped_loss(
        student_hidden_NH,
        student_head_VH,
        alignment,
        compare,
        mask_G=mask_G,
        weight_G=weight_G,
        num_items=num_items,
        student_bias=student_bias,
        vocab_size=vocab_size,
        chunk_logits=chunk_tokens * vocabulary if chunk_tokens else _CHUNK_BYTES // size,
        compute_dtype=compute_dtype,
    )


@torch.no_grad()
def own_logprobs(
    hidden_MK: Tensor,
    head_VK: Tensor,
    ids_M: Tensor,
    alignment: Alignment,
    *,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
    chunk_tokens: int | None = None,
    compiled: bool = True,
) -> Tensor:
    """A live teacher's log-probability of each of its own tokens in the alignment, 0 elsewhere, (M,); chunk by chunk.

    Row i - 1 of the hidden states predicts token i, so no group may hold the first token.
    """
    inside_M = covers(alignment.teacher_first_G, alignment.teacher_end_G, len(ids_M))
    if bool(inside_M[:1].any()):
        raise ValueError("a group holds the teacher's first token, which nothing predicts; leave it out")
    found_M = token_logprobs(
        hidden_MK,
        head_VK,
        pad(ids_M[1:], (0, 1)),
        mask_N=pad(inside_M[1:], (0, 1)),
        bias=bias,
        logit_scale=logit_scale,
        softcap=softcap,
        vocab_size=vocab_size,
        chunk_tokens=chunk_tokens,
        # The head of a teacher may be by far the largest tensor here: no copy of it in another number format.
        compute_dtype=head_VK.dtype,
        compiled=compiled,
    )
    return pad(found_M[:-1], (1, 0))


def _teacher_likelihood(logprobs_M: Tensor, alignment: Alignment) -> Tensor:
    """Sum over each group's tokens, (G,). Raises ValueError for what is no log-probability."""
    tokens_m, owner_m = tokens_of(alignment.teacher_first_G, alignment.teacher_end_G)
    read_m = logprobs_M[tokens_m]
    wrong = ~(read_m <= 1e-3)
    if bool(wrong.any()):
        raise ValueError(
            f"{int(wrong.sum())} of the teacher's {len(read_m)} log-probabilities are above 0 or NaN (first: "
            f"{float(read_m[wrong][0])}); give natural logarithms of probabilities"
        )
    return read_m.new_zeros(len(alignment)).index_add(0, owner_m, read_m.clamp_max(0.0))


# Each gives the loss of every group and its derivative by the student's log-likelihood s.
_Difference = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


def _log1mexp(x_g: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0."""
    near = x_g > -math.log(2.0)
    return torch.where(near, (-x_g.expm1()).log(), (-x_g.clamp_max(-math.log(2.0)).exp()).log1p())


def _coins(s_g: Tensor, t_g: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    return s_g / temperature - _CERTAIN, t_g / temperature - _CERTAIN


def _forward_slope(a_g: Tensor, b_g: Tensor, temperature: float) -> Tensor:
    """d/ds of -q log p - (1 - q) log(1 - p), with a = log p, b = log q."""
    return (-b_g.exp() - b_g.expm1() * a_g.exp() / -a_g.expm1()) / temperature


def _binary_ce(s_g: Tensor, t_g: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    a_g, b_g = _coins(s_g, t_g, temperature)
    return -(b_g.exp() * a_g - b_g.expm1() * _log1mexp(a_g)), _forward_slope(a_g, b_g, temperature)


def _binary_forward_kl(s_g: Tensor, t_g: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    a_g, b_g = _coins(s_g, t_g, temperature)
    loss_g = _weighted(b_g.exp(), b_g - a_g) - b_g.expm1() * (_log1mexp(b_g) - _log1mexp(a_g))
    return loss_g, _forward_slope(a_g, b_g, temperature)


def _binary_reverse_kl(s_g: Tensor, t_g: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    a_g, b_g = _coins(s_g, t_g, temperature)
    ratio_g, other_g = a_g - b_g, _log1mexp(a_g) - _log1mexp(b_g)
    p_g = a_g.exp()
    return _weighted(p_g, ratio_g) - a_g.expm1() * other_g, _weighted(p_g, ratio_g - other_g) / temperature


def _binary_forward_kl_limit(s_g: Tensor, t_g: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    a_g, b_g = s_g - _CERTAIN, t_g - _CERTAIN
    return b_g - a_g + b_g * (a_g / b_g).log(), b_g / a_g - 1


def _binary_total_variation(s_g: Tensor, t_g: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    a_g, b_g = _coins(s_g, t_g, temperature)
    p_g, q_g = a_g.exp(), b_g.exp()
    return (p_g - q_g).abs(), (p_g - q_g).sign() * p_g / temperature


def _log_ratio(s_g: Tensor, t_g: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    return (s_g - t_g).abs(), (s_g - t_g).sign()


def _sampled_forward_kl(s_g: Tensor, t_g: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    return t_g - s_g, torch.full_like(s_g, -1.0)


def _sampled_reverse_kl(s_g: Tensor, t_g: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    return s_g - t_g, s_g - t_g


def _weighted(p_g: Tensor, value_g: Tensor) -> Tensor:
    """p * value, where p = 0 makes an infinite value count nothing."""
    return torch.where(p_g > 0, p_g * value_g, 0.0)


_DIFFERENCES: dict[str, _Difference] = {
    "binary_ce": _binary_ce,
    "binary_forward_kl": _binary_forward_kl,
    "binary_reverse_kl": _binary_reverse_kl,
    "binary_forward_kl_limit": _binary_forward_kl_limit,
    "binary_total_variation": _binary_total_variation,
    "log_ratio": _log_ratio,
    "sampled_forward_kl": _sampled_forward_kl,
    "sampled_reverse_kl": _sampled_reverse_kl,
}
