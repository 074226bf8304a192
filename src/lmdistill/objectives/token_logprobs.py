"""Log-probabilities of given tokens, differentiable, without a tokens x vocabulary tensor.

The base of every loss of whole sequences: how a token's gradient is weighed is known only when all of them are. The
forward pass keeps, for each token, the mean row of the head under the student, sum_v q(v) W[v]: with it the gradient of
the hidden states needs no second projection,

    d log q(y) / dh = W[y] - sum_v q(v) W[v] .

Only a head that is trained itself is projected again in the backward pass, since its gradient needs every q(v).
Depends on torch alone.

Shape legend: N tokens, n tokens of one chunk, V vocabulary, H hidden, k ids a token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lmdistill.objectives.checks import check_shapes, common_vocabulary
from lmdistill.objectives.products import add_product, product_dtype, project
from lmdistill.objectives.rows import LogitsView, add_at, log_normaliser, softmax_rows, working_dtype

_CHUNK_BYTES = 160 * 2**20


def token_logprobs(
    hidden_NH: Tensor,
    head_VH: Tensor,
    ids: Tensor,
    *,
    mask_N: Tensor | None = None,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
    compute_dtype: torch.dtype | None = None,
    compiled: bool = True,
) -> Tensor:
    """log q(id) for one id a token, (N,), or several, (N, k); 0 where masked. Float32, float64 for float64 input.

    Args:
        hidden_NH, head_VH, bias, logit_scale, softcap, vocab_size, chunk_tokens, compute_dtype, compiled: as in
            `distillation_loss`.
        ids: token ids, (N,) or (N, k); anything where masked.
        mask_N: True where a token is wanted, (N,); others are not even projected.
        temperature: q is the softmax of the logits over this.

    Raises:
        ValueError: shapes that do not fit, or ids outside the vocabulary at unmasked tokens.
    """
    plan = _plan(
        hidden_NH,
        head_VH,
        mask_N,
        bias,
        logit_scale,
        softcap,
        vocab_size,
        temperature,
        chunk_tokens,
        compute_dtype,
        compiled,
    )
    if ids.ndim not in (1, 2) or len(ids) != len(hidden_NH):
        raise ValueError(
            f"ids has shape {tuple(ids.shape)}; {len(hidden_NH)} tokens need ({len(hidden_NH)},) or (N, k)"
        )
    ids_Nk = ids if ids.ndim == 2 else ids[:, None]
    wanted = ids_Nk[plan.index_M]
    if wanted.numel():
        low, high = (int(end) for end in wanted.aminmax())
        if low < 0 or high >= plan.vocabulary:
            raise ValueError(
                f"ids holds {low if low < 0 else high} at an unmasked token but the vocabulary has {plan.vocabulary} "
                "entries; mask that token out or repair its id"
            )
    found_Nk: Tensor = _TokenLogprobs.apply(hidden_NH, head_VH, bias, ids_Nk, plan)  # type: ignore[no-untyped-call]
    return found_Nk if ids.ndim == 2 else found_Nk[:, 0]


@torch.no_grad()
def top_tokens(
    hidden_NH: Tensor,
    head_VH: Tensor,
    k: int,
    *,
    mask_N: Tensor | None = None,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
    compute_dtype: torch.dtype | None = None,
    compiled: bool = True,
) -> tuple[Tensor, Tensor]:
    """Ids and log-probabilities of each token's k likeliest next tokens, (N, k) each, likeliest first; no gradient.

    Arguments are those of `token_logprobs`. Where masked: ids and log-probabilities 0.
    """
    plan = _plan(
        hidden_NH,
        head_VH,
        mask_N,
        bias,
        logit_scale,
        softcap,
        vocab_size,
        temperature,
        chunk_tokens,
        compute_dtype,
        compiled,
    )
    if not 1 <= k <= plan.vocabulary:
        raise ValueError(f"k = {k} must lie between 1 and the vocabulary's {plan.vocabulary} entries")
    ids_Nk = torch.zeros(len(hidden_NH), k, dtype=torch.long, device=hidden_NH.device)
    logprobs_Nk = torch.zeros(len(hidden_NH), k, dtype=working_dtype(hidden_NH), device=hidden_NH.device)
    for chunk_n, raw_nV, _ in plan.chunks(hidden_NH, head_VH, bias):
        # Scale, cap and temperature keep the order, so that the raw outputs can be searched.
        top_nk = raw_nV.topk(k, dim=1)
        ids_Nk[chunk_n] = top_nk.indices
        logprobs_Nk[chunk_n] = plan.scaled_logits(top_nk.values) - plan.normaliser(raw_nV)[:, None]
    return ids_Nk, logprobs_Nk


@dataclass(frozen=True)
class _Plan:
    """All of a call but its tensors with gradients."""

    index_M: Tensor
    vocabulary: int
    view: LogitsView
    inverse_t: Tensor
    chunk: int
    compute: torch.dtype
    compiled: bool
    grad_enabled: bool

    def chunks(
        self, hidden_NH: Tensor, head_VH: Tensor, bias_V: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Places, raw outputs, in one buffer for all chunks, and hidden states of each chunk."""
        head_vH = head_VH[: self.vocabulary].to(self.compute)
        bias_v = None if bias_V is None else bias_V[: self.vocabulary].to(self.compute)
        buffer_nV = head_vH.new_empty(min(self.chunk, len(self.index_M)), self.vocabulary)
        for first in range(0, len(self.index_M), self.chunk):
            chunk_n = self.index_M[first : first + self.chunk]
            hidden_nH = hidden_NH[chunk_n].to(self.compute)
            raw_nV = buffer_nV[: len(chunk_n)]
            project(hidden_nH, head_vH, bias_v, raw_nV)
            yield chunk_n, raw_nV, hidden_nH

    def normaliser(self, raw_nV: Tensor) -> Tensor:
        """logsumexp of the logits over the temperature, (n,)."""
        return log_normaliser(raw_nV, self.inverse_t, view=self.view, compiled=self.compiled)

    def scaled_logits(self, raw: Tensor) -> Tensor:
        """Logits over the temperature."""
        return self.view.logits(raw) * self.inverse_t

    def softmax(self, raw_nV: Tensor, normaliser_n: Tensor, factor_n: Tensor) -> None:
        """Overwrite raw outputs with factor q(v), chained to the raw outputs."""
        factor_n = factor_n * self.inverse_t
        softmax_rows(raw_nV, normaliser_n, factor_n, None, None, self.inverse_t, view=self.view, compiled=self.compiled)

    def own_slope(self, raw_nk: Tensor) -> Tensor:
        """d(logit over temperature) / d(raw output) of given entries."""
        z_nk = self.view.logits(raw_nk)
        return self.view.chain(torch.ones_like(z_nk) * self.inverse_t, z_nk)


class _TokenLogprobs(torch.autograd.Function):
    """See the module's docstring."""

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, head_VH: Tensor, bias_V: Tensor | None, ids_Nk: Tensor, plan: _Plan
    ) -> Tensor:
        wants_hidden = ctx.needs_input_grad[0] and plan.grad_enabled
        work = working_dtype(hidden_NH)
        found_Nk = torch.zeros(ids_Nk.shape, dtype=work, device=hidden_NH.device)
        slope_Nk = torch.zeros_like(found_Nk)
        normaliser_N = found_Nk.new_zeros(len(found_Nk))
        mean_row_NH = torch.zeros_like(hidden_NH) if wants_hidden else None
        with torch.autocast(hidden_NH.device.type, enabled=False):
            head_vH = head_VH[: plan.vocabulary].to(plan.compute)
            for chunk_n, raw_nV, _ in plan.chunks(hidden_NH, head_VH, bias_V):
                own_nk = raw_nV.gather(1, ids_Nk[chunk_n])
                normaliser_n = plan.normaliser(raw_nV)
                found_Nk[chunk_n] = plan.scaled_logits(own_nk) - normaliser_n[:, None]
                slope_Nk[chunk_n] = plan.own_slope(own_nk)
                normaliser_N[chunk_n] = normaliser_n
                if mean_row_NH is not None:
                    plan.softmax(raw_nV, normaliser_n, torch.ones_like(normaliser_n))
                    mean_row_NH[chunk_n] = (raw_nV @ head_vH).to(mean_row_NH.dtype)
        ctx.save_for_backward(hidden_NH, head_VH, bias_V, ids_Nk, slope_Nk, normaliser_N, mean_row_NH)
        ctx.plan = plan
        return found_Nk

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, d_found_Nk: Tensor) -> Any:
        hidden_NH, head_VH, bias_V, ids_Nk, slope_Nk, normaliser_N, mean_row_NH = ctx.saved_tensors
        d_own_Nk = d_found_Nk * slope_Nk
        d_hidden_NH = d_head_VH = d_bias_V = None
        with torch.autocast(hidden_NH.device.type, enabled=False):
            if mean_row_NH is not None:
                d_hidden_NH = _hidden_gradient(ctx.plan, head_VH, ids_Nk, d_own_Nk, d_found_Nk, mean_row_NH)
            if ctx.needs_input_grad[1] or (bias_V is not None and ctx.needs_input_grad[2]):
                d_head_VH, d_bias_V = _head_gradient(
                    ctx.plan, hidden_NH, head_VH, bias_V, ids_Nk, d_own_Nk, d_found_Nk, normaliser_N
                )
        return d_hidden_NH, d_head_VH, d_bias_V, None, None


def _hidden_gradient(
    plan: _Plan, head_VH: Tensor, ids_Nk: Tensor, d_own_Nk: Tensor, d_found_Nk: Tensor, mean_row_NH: Tensor
) -> Tensor:
    """sum_k g_k (W[id_k] - sum_v q(v) W[v]), g the gradient from outside; no projection."""
    d_hidden_NH = torch.zeros_like(mean_row_NH)
    for chunk_n in plan.index_M.split(max(1, (1 << 22) // (ids_Nk.shape[1] * head_VH.shape[1]))):
        rows_nkH = head_VH[ids_Nk[chunk_n]].to(d_own_Nk.dtype)
        own_nH = (rows_nkH * d_own_Nk[chunk_n, :, None]).sum(1)
        mean_nH = mean_row_NH[chunk_n].to(d_own_Nk.dtype) * d_found_Nk[chunk_n].sum(1, keepdim=True)
        d_hidden_NH[chunk_n] = (own_nH - mean_nH).to(d_hidden_NH.dtype)
    return d_hidden_NH


def _head_gradient(
    plan: _Plan,
    hidden_NH: Tensor,
    head_VH: Tensor,
    bias_V: Tensor | None,
    ids_Nk: Tensor,
    d_own_Nk: Tensor,
    d_found_Nk: Tensor,
    normaliser_N: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """Project once more, chunk by chunk, and multiply the gradient of the raw outputs back."""
    # Not zeros: the first chunk writes, the others add.
    d_head_VH = torch.empty_like(head_VH)
    d_head_VH[plan.vocabulary if len(plan.index_M) else 0 :] = 0
    d_bias_V = None if bias_V is None else torch.zeros_like(bias_V)
    for number, (chunk_n, raw_nV, hidden_nH) in enumerate(plan.chunks(hidden_NH, head_VH, bias_V)):
        plan.softmax(raw_nV, normaliser_N[chunk_n], -d_found_Nk[chunk_n].sum(1))
        add_at(raw_nV, ids_Nk[chunk_n], d_own_Nk[chunk_n])
        add_product(d_head_VH[: plan.vocabulary], raw_nV, hidden_nH, 1.0, keep=number > 0)
        if d_bias_V is not None:
            d_bias_V[: plan.vocabulary] += raw_nV.sum(0)
    return d_head_VH, d_bias_V


def _plan(
    hidden_NH: Tensor,
    head_VH: Tensor,
    mask_N: Tensor | None,
    bias: Tensor | None,
    logit_scale: float,
    softcap: float | None,
    vocab_size: int | None,
    temperature: float,
    chunk_tokens: int | None,
    compute_dtype: torch.dtype | None,
    compiled: bool,
) -> _Plan:
    view = LogitsView(logit_scale, softcap)
    vocabulary = common_vocabulary(head_VH, None, vocab_size)
    check_shapes(hidden_NH, head_VH, bias, None, {"mask_N": mask_N})
    if not temperature > 0:
        raise ValueError(f"temperature = {temperature} must be above 0")
    everything_N = torch.ones(len(hidden_NH), dtype=torch.bool, device=hidden_NH.device)
    index_M = (everything_N if mask_N is None else mask_N.bool()).nonzero()[:, 0]
    compute = compute_dtype or product_dtype(hidden_NH)
    most = max(1, chunk_tokens or _CHUNK_BYTES // (vocabulary * compute.itemsize))
    chunks = max(1, -(-len(index_M) // most))
    return _Plan(
        index_M=index_M,
        vocabulary=vocabulary,
        view=view,
        inverse_t=torch.tensor(1 / temperature, dtype=working_dtype(hidden_NH), device=hidden_NH.device),
        chunk=max(1, -(-len(index_M) // chunks)),
        compute=compute,
        compiled=compiled,
        grad_enabled=torch.is_grad_enabled(),
    )
