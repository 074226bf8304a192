"""The engine of the objectives over an alignment: whole groups in chunks, gradients made in the forward pass.

The sibling of the engine in `lmdistill.objectives.chunked`: per chunk it projects the student's hidden states, lets an
objective compare and leave the gradient in the logits, and at once multiplies it back through the head. A chunk holds
whole groups, because the loss of a group is not a sum over its tokens. Depends on torch alone.

Shape legend: N student tokens, n those of one chunk, G groups, g those of one chunk, V vocabulary, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lmdistill.objectives.alignment import Alignment, tokens_of
from lmdistill.objectives.products import add_product, graph_is_kept, product_dtype, project, scaled
from lmdistill.objectives.rows import working_dtype


@dataclass(frozen=True)
class GroupLoss:
    """A loss over groups of tokens."""

    loss: Tensor
    """Scalar with gradient: sum over unmasked groups of weight * loss / num_items."""
    group_loss_G: Tensor
    """What each group added before division, without gradient; 0 where masked."""


@dataclass(frozen=True)
class GroupChunk:
    """Some whole groups: what an objective needs to know of them besides the student's logits."""

    groups_g: Tensor
    """Their numbers in the alignment."""
    tokens_n: Tensor
    """The student's tokens in them; row r of the logits predicts token r."""
    owner_n: Tensor
    """Number of each token's group within the chunk."""
    weight_g: Tensor
    """Factor of each group's loss and gradient."""


Compare = Callable[[GroupChunk, Tensor], Tensor]
"""Losses (g,) of a chunk, unweighted; the weighted gradient is left in the raw logits (n, V)."""


def grouped_loss(
    student_hidden_NH: Tensor,
    student_head_VH: Tensor,
    alignment: Alignment,
    compare: Compare,
    *,
    mask_G: Tensor | None,
    weight_G: Tensor | None,
    num_items: float | Tensor | None,
    student_bias: Tensor | None,
    vocab_size: int | None,
    chunk_logits: int,
    compute_dtype: torch.dtype | None,
) -> GroupLoss:
    """Sum over unmasked groups of weight * what `compare` says / num_items (the number of unmasked groups by default).

    `chunk_logits` is the number of the student's logits held at a time; one group is never cut. Raises ValueError for
    shapes that do not fit, and for a trained group whose first token nothing predicts.
    """
    check_student(student_hidden_NH, student_head_VH, student_bias, vocab_size)
    check_groups(alignment, mask_G=mask_G, weight_G=weight_G)
    index_g = torch.arange(len(alignment), device=student_hidden_NH.device)
    if mask_G is not None:
        index_g = mask_G.to(torch.bool).nonzero()[:, 0]
    check_ends(alignment.student_first_G[index_g], alignment.student_end_G[index_g], len(student_hidden_NH), "student")
    plan = _Plan(
        alignment=alignment,
        compare=compare,
        index_g=index_g,
        weight_G=weight_G,
        inverse_items=1.0
        / torch.as_tensor(
            num_items if num_items is not None else max(1, len(index_g)),
            dtype=torch.float64,
            device=student_hidden_NH.device,
        ),
        vocabulary=vocab_size or len(student_head_VH),
        chunk_logits=chunk_logits,
        compute_dtype=compute_dtype or product_dtype(student_hidden_NH),
        grad_enabled=torch.is_grad_enabled(),
    )
    loss, group_loss_G = _GroupedLoss.apply(  # type: ignore[no-untyped-call]
        student_hidden_NH, student_head_VH, student_bias, plan
    )
    return GroupLoss(loss, group_loss_G)


@dataclass(frozen=True)
class _Plan:
    """All of a call but the tensors that get gradients."""

    alignment: Alignment
    compare: Compare
    index_g: Tensor
    weight_G: Tensor | None
    inverse_items: Tensor
    vocabulary: int
    chunk_logits: int
    compute_dtype: torch.dtype
    grad_enabled: bool

    def chunks(self, work: torch.dtype) -> list[GroupChunk]:
        """Whole groups of about equally many tokens."""
        sizes_g = self.alignment.student_sizes[self.index_g]
        most = max(1, self.chunk_logits // self.vocabulary)
        cut_g = (sizes_g.cumsum(0) - sizes_g) // most
        chunks = []
        counts = torch.unique_consecutive(cut_g, return_counts=True)[1].tolist()
        for groups_g in self.index_g.split(counts):
            part = self.alignment.select(groups_g)
            tokens_n, owner_n = tokens_of(part.student_first_G, part.student_end_G)
            weight_g = torch.ones(len(groups_g), dtype=work, device=groups_g.device)
            if self.weight_G is not None:
                weight_g = self.weight_G[groups_g].to(work)
            chunks.append(GroupChunk(groups_g, tokens_n, owner_n, weight_g))
        return chunks


class _GroupedLoss(torch.autograd.Function):
    """Gradients are made in the forward pass, scaled in the backward one."""

    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, head_VH: Tensor, bias_V: Tensor | None, plan: _Plan) -> Any:
        needs = ctx.needs_input_grad[:3] if plan.grad_enabled else (False, False, False)
        d_hidden_NH = torch.zeros_like(hidden_NH) if needs[0] else None
        d_head_VH = torch.empty_like(head_VH) if needs[1] else None
        d_bias_V = torch.zeros_like(bias_V) if needs[2] and bias_V is not None else None
        work = working_dtype(hidden_NH)
        group_loss_G = torch.zeros(len(plan.alignment), dtype=work, device=hidden_NH.device)
        with torch.autocast(hidden_NH.device.type, enabled=False):
            _run(hidden_NH, head_VH, bias_V, plan, group_loss_G, (d_hidden_NH, d_head_VH, d_bias_V))
        ctx.save_for_backward(d_hidden_NH, d_head_VH, d_bias_V)
        ctx.inverse_items = plan.inverse_items
        ctx.mark_non_differentiable(group_loss_G)
        return (group_loss_G.double().sum() * plan.inverse_items).to(work), group_loss_G

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, d_loss: Tensor, *unused: Tensor) -> Any:
        in_place = not graph_is_kept()
        d_hidden_NH, d_head_VH, d_bias_V = ctx.saved_tensors
        return (
            scaled(d_hidden_NH, d_loss * ctx.inverse_items, in_place),
            scaled(d_head_VH, d_loss, in_place),
            scaled(d_bias_V, d_loss, in_place),
            None,
        )


def _run(
    hidden_NH: Tensor,
    head_VH: Tensor,
    bias_V: Tensor | None,
    plan: _Plan,
    group_loss_G: Tensor,
    gradients: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> None:
    """Fill the losses and the gradients, chunk by chunk."""
    d_hidden_NH, d_head_VH, d_bias_V = gradients
    head_vH = head_VH[: plan.vocabulary].to(plan.compute_dtype)
    bias_v = None if bias_V is None else bias_V[: plan.vocabulary].to(plan.compute_dtype)
    chunks = plan.chunks(group_loss_G.dtype) if len(plan.index_g) else []
    if d_head_VH is not None:
        d_head_VH[plan.vocabulary if chunks else 0 :] = 0
    largest = max((len(chunk.tokens_n) for chunk in chunks), default=0)
    buffer_nV = head_vH.new_empty(largest, plan.vocabulary)
    # Applied after the products, not to the logits' gradient: 1 / a million tokens is 0 in float16.
    inverse_items = float(plan.inverse_items)
    for number, chunk in enumerate(chunks):
        places_n = chunk.tokens_n - 1
        hidden_nH = hidden_NH[places_n].to(plan.compute_dtype)
        raw_nV = buffer_nV[: len(places_n)]
        project(hidden_nH, head_vH, bias_v, raw_nV)
        group_loss_G[chunk.groups_g] = plan.compare(chunk, raw_nV) * chunk.weight_g
        if d_hidden_NH is not None:
            d_hidden_NH.index_add_(0, places_n, (raw_nV @ head_vH).to(d_hidden_NH.dtype))
        if d_head_VH is not None:
            add_product(d_head_VH[: plan.vocabulary], raw_nV, hidden_nH, inverse_items, keep=number > 0)
        if d_bias_V is not None:
            d_bias_V[: plan.vocabulary].add_(raw_nV.sum(0), alpha=inverse_items)


def check_student(hidden_NH: Tensor, head_VH: Tensor, bias_V: Tensor | None, vocab_size: int | None) -> None:
    """Shapes of the student's side. Raises ValueError."""
    if hidden_NH.ndim != 2 or head_VH.ndim != 2 or hidden_NH.shape[1] != head_VH.shape[1]:
        raise ValueError(
            f"student_hidden_NH {tuple(hidden_NH.shape)} and student_head_VH {tuple(head_VH.shape)} must be (N, H) "
            "and (V, H) with one H; flatten batch and length first"
        )
    if bias_V is not None and bias_V.shape != head_VH.shape[:1]:
        raise ValueError(f"student_bias has shape {tuple(bias_V.shape)} but its head {tuple(head_VH.shape)}")
    if vocab_size is not None and not 1 <= vocab_size <= len(head_VH):
        raise ValueError(f"vocab_size = {vocab_size} but the student's head has {len(head_VH)} rows")


def check_groups(alignment: Alignment, **rows: Tensor | None) -> None:
    """One number for each group. Raises ValueError."""
    for name, tensor in rows.items():
        if tensor is not None and tensor.shape != (len(alignment),):
            raise ValueError(f"{len(alignment)} groups but {name} has shape {tuple(tensor.shape)}")


def check_ends(first_g: Tensor, end_g: Tensor, count: int, who: str) -> None:
    """Trained groups hold tokens that exist and that something predicts. Raises ValueError."""
    if len(first_g) == 0:
        return
    if int((end_g - first_g).min()) < 1 or int(end_g.max()) > count:
        raise ValueError(
            f"a trained group ends at token {int(end_g.max())} of the {who}'s {count}, or holds none; was it aligned "
            "with another batch?"
        )
    if int(first_g.min()) < 1:
        raise ValueError(f"a trained group holds the {who}'s first token, which nothing predicts; mask it out")


def check_ids(ids_N: Tensor, tokens_n: Tensor, vocabulary: int, name: str) -> None:
    """Ids of trained tokens are in the vocabulary. Raises ValueError."""
    if len(tokens_n) == 0:
        return
    low, high = (int(end) for end in ids_N[tokens_n].aminmax())
    if low < 0 or high >= vocabulary:
        raise ValueError(
            f"{name} holds the id {low if low < 0 else high} at a trained token but the vocabulary has {vocabulary} "
            "entries; is it the other model's?"
        )
