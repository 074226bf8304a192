"""The loss engine: any divergence over any signal without a tokens x vocabulary tensor.

For each chunk of trained tokens the engine projects hidden states to logits, compares them with the teacher's signal,
and at once multiplies the gradient back through the head. When the forward pass ends, the gradients of the hidden
states and of the head exist already; the backward pass only scales them. One projection a chunk and model, nothing is
computed twice, and only unmasked tokens are projected at all. Depends on torch alone.

Shape legend: N tokens, n tokens of one chunk, V vocabulary, H student hidden, K teacher hidden.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lmdistill.objectives.checks import (
    check_fit,
    check_ids,
    check_setting,
    check_shapes,
    check_terms,
    common_vocabulary,
)
from lmdistill.objectives.divergences import Divergence, find_divergence
from lmdistill.objectives.products import add_product, graph_is_kept, product_dtype, project, scaled
from lmdistill.objectives.rows import ChunkRows, LogitsView, dense_rows, label_rows, working_dtype
from lmdistill.objectives.sparse import Costs, Mixture, head_expectation_rows, sampled_rows, token_rows, top_k_rows
from lmdistill.objectives.surrogate import PolicyTerm
from lmdistill.signals.types import (
    DenseSignal,
    HeadExpectationSignal,
    HiddenSignal,
    SampledSignal,
    Signal,
    TokenSignal,
    TopKSignal,
)

# Logits of one chunk, both models together. Larger chunks use the processor's matrix units better, smaller ones touch
# less fresh memory; about here a step is fastest on vocabularies of 49 and 152 thousand (benchmarks/loss.py).
CHUNK_BYTES = 160 * 2**20


@dataclass(frozen=True)
class LossParts:
    """A loss and what it is made of."""

    loss: Tensor
    """Scalar with gradient: (weighted divergence + weighted cross-entropy + policy term) / num_items."""
    divergence: Tensor
    """Scalar without gradient: the divergence's sum over tokens / num_items, without its weight."""
    cross_entropy: Tensor
    """Scalar without gradient: the cross-entropy's sum over tokens / num_items, without its weight."""
    token_loss_N: Tensor
    """What each token added before normalisation, without gradient; 0 where masked. Finds the culprit of a NaN."""
    policy: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    """Scalar without gradient: the policy term's sum over tokens / num_items, without its weight."""


def divergence(
    student_hidden_NH: Tensor,
    student_head_VH: Tensor,
    signal: Signal,
    kind: str | Divergence = "forward_kl",
    mask_N: Tensor | None = None,
    weight_N: Tensor | None = None,
    num_items: float | Tensor | None = None,
    temperature: float = 1.0,
    student_bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
    chunk_tokens: int | None = None,
    setting_N: Tensor | None = None,
) -> Tensor:
    """Divergence between the student's next-token distributions and a teacher's signal, a scalar with gradient.

    Args:
        student_hidden_NH: the student's last hidden states, (N, H).
        student_head_VH: its output head, (V, H); gets a gradient only if it requires one.
        signal: what the teacher said of the same N tokens.
        kind: a name from `DIVERGENCES`, or a definition with its parameters (`find_divergence`).
        mask_N: True where a token is trained, (N,); all are where absent. Others are not even projected.
        weight_N: factor of each token's loss, (N,).
        num_items: what the sum is divided by, for accumulation over micro-batches and ranks; the number of unmasked
            tokens where absent.
        temperature: softens both distributions; no temperature² factor is applied.
        student_bias, logit_scale, softcap: how the student's head turns products into logits.
        vocab_size: the number of real ids; rows of either head above it are padding and take no probability.
        chunk_tokens: tokens projected at a time; chosen by memory where absent.
        setting_N: the divergence's `token_parameter` for each token, (N,), in the place of the definition's one value:
            `alpha` of the skew divergences.

    Returns:
        sum over unmasked tokens of weight * divergence / num_items.

    Raises:
        ValueError: shapes or vocabularies that do not fit, or a divergence that the signal cannot give.
    """
    return distillation_loss(
        student_hidden_NH,
        student_head_VH,
        signal,
        kind,
        mask_N=mask_N,
        weight_N=weight_N,
        num_items=num_items,
        temperature=temperature,
        student_bias=student_bias,
        logit_scale=logit_scale,
        softcap=softcap,
        vocab_size=vocab_size,
        chunk_tokens=chunk_tokens,
        setting_N=setting_N,
    ).loss


def distillation_loss(
    student_hidden_NH: Tensor,
    student_head_VH: Tensor,
    signal: Signal | None,
    kind: str | Divergence = "forward_kl",
    *,
    divergence_weight: float = 1.0,
    labels_N: Tensor | None = None,
    label_weight: float = 0.0,
    mask_N: Tensor | None = None,
    weight_N: Tensor | None = None,
    num_items: float | Tensor | None = None,
    temperature: float = 1.0,
    temperature_squared: bool = False,
    student_bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
    chunk_tokens: int | None = None,
    compute_dtype: torch.dtype | None = None,
    compiled: bool = True,
    setting_N: Tensor | None = None,
    policy: PolicyTerm | None = None,
) -> LossParts:
    """A divergence mixed with cross-entropy and a policy gradient, from one projection of the student.

    The engine behind `divergence` and `policy_loss`.

    Args beyond those of `divergence`:
        signal: None trains on the labels, or the policy term, alone.
        divergence_weight, label_weight: factors of both terms; the cross-entropy is always at temperature 1.
        labels_N: the text's own next token, (N,), needed where `label_weight` is above 0 or a policy term is given.
        temperature_squared: multiply the divergence by temperature² (Hinton et al. 1503.02531, section 2).
        compute_dtype: precision of the products; autocast's where it is on, else that of the hidden states.
        compiled: compile the row-wise part where a compiler is and the work is worth it.
        policy: advantages of the text's own tokens, which a student wrote; `weight_N` is a factor of this term too.
    """
    definition = find_divergence(kind)
    view = LogitsView(logit_scale, softcap)
    vocabulary = common_vocabulary(student_head_VH, signal, vocab_size)
    rows = {
        "labels_N": labels_N,
        "mask_N": mask_N,
        "weight_N": weight_N,
        "setting_N": setting_N,
        "policy": None if policy is None else policy.advantages_N,
    }
    check_shapes(student_hidden_NH, student_head_VH, student_bias, signal, rows)
    check_terms(signal, labels_N, label_weight, temperature, policy)
    check_fit(signal, definition, temperature, view, student_head_VH, student_bias)
    index_M = torch.arange(len(student_hidden_NH), device=student_hidden_NH.device) if mask_N is None else _true(mask_N)
    check_ids(signal, labels_N if label_weight or policy is not None else None, index_M, vocabulary)
    check_setting(setting_N, definition, index_M)
    count = num_items if num_items is not None else max(1, len(index_M))
    factor = temperature**2 if temperature_squared else 1.0
    plan = _Plan(
        signal=signal,
        definition=definition,
        index_M=index_M,
        labels_N=labels_N if labels_N is not None else torch.zeros_like(student_hidden_NH[:, 0], dtype=torch.long),
        weight_N=weight_N,
        setting_N=setting_N,
        policy_N4=None if policy is None else policy.rows(working_dtype(student_hidden_NH)),
        inverse_items=1.0 / torch.as_tensor(count, dtype=torch.float64, device=student_hidden_NH.device),
        mix=Mixture(
            divergence_weight=divergence_weight * factor if signal is not None else 0.0,
            label_weight=label_weight,
            temperature=temperature,
            view=view,
            compiled=compiled,
            policy_weight=0.0 if policy is None else policy.weight,
            rule=None if policy is None else policy.rule,
            own_temperature=1.0 if policy is None else policy.temperature,
        ),
        vocabulary=vocabulary,
        chunk_tokens=chunk_tokens,
        compute_dtype=compute_dtype or product_dtype(student_hidden_NH),
        grad_enabled=torch.is_grad_enabled(),
    )
    loss, parts_3, token_loss_N = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
        student_hidden_NH, student_head_VH, student_bias, plan
    )
    return LossParts(
        loss=loss, divergence=parts_3[0], cross_entropy=parts_3[1], token_loss_N=token_loss_N, policy=parts_3[2]
    )


@dataclass(frozen=True)
class _Plan:
    """All of a call but the tensors that get gradients."""

    signal: Signal | None
    definition: Divergence
    index_M: Tensor
    labels_N: Tensor
    weight_N: Tensor | None
    setting_N: Tensor | None
    policy_N4: Tensor | None
    inverse_items: Tensor
    mix: Mixture
    vocabulary: int
    chunk_tokens: int | None
    compute_dtype: torch.dtype
    grad_enabled: bool


class _ChunkedLoss(torch.autograd.Function):
    """Gradients are made in the forward pass, scaled in the backward one."""

    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, head_VH: Tensor, bias_V: Tensor | None, plan: _Plan) -> Any:
        # needs_input_grad is True for a parameter even under no_grad, where nobody will ask for its gradient.
        needs_gradient = ctx.needs_input_grad[:3] if plan.grad_enabled else (False, False, False)
        with torch.autocast(hidden_NH.device.type, enabled=False):
            engine = _Engine(hidden_NH, head_VH, bias_V, plan, needs_gradient)
            engine.run()
        ctx.save_for_backward(engine.d_hidden_NH, engine.d_head_VH, engine.d_bias_V)
        ctx.inverse_items = plan.inverse_items
        ctx.mark_non_differentiable(engine.parts_3, engine.token_loss_N)
        return engine.loss(), engine.parts_3, engine.token_loss_N

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, d_loss: Tensor, *unused: Tensor) -> Any:
        # In place where this is the last time: the head's gradient is as large as the head. A graph that is kept will
        # want these buffers again, and what it handed out before must not change in its owner's hands.
        in_place = not graph_is_kept()
        d_hidden_NH, d_head_VH, d_bias_V = ctx.saved_tensors
        return (
            scaled(d_hidden_NH, d_loss * ctx.inverse_items, in_place),
            scaled(d_head_VH, d_loss, in_place),
            scaled(d_bias_V, d_loss, in_place),
            None,
        )


class _Engine:
    """One pass over the chunks of one call."""

    def __init__(
        self,
        hidden_NH: Tensor,
        head_VH: Tensor,
        bias_V: Tensor | None,
        plan: _Plan,
        needs_gradient: tuple[bool, bool, bool],
    ) -> None:
        self.plan = plan
        self.hidden_NH = hidden_NH
        self.compute = plan.compute_dtype
        self.work = working_dtype(hidden_NH)
        self.head_vH = head_VH[: plan.vocabulary].to(self.compute)
        self.bias_v = None if bias_V is None else bias_V[: plan.vocabulary].to(self.compute)
        self.teacher = _Teacher(plan.signal, self.compute, plan.vocabulary)
        self.d_hidden_NH = torch.zeros_like(hidden_NH) if needs_gradient[0] else None
        # Not zeros: the first chunk writes, the others add. A head is large enough for the difference to be felt.
        self.d_head_VH = torch.empty_like(head_VH) if needs_gradient[1] else None
        self.d_bias_V = torch.zeros_like(bias_V) if needs_gradient[2] and bias_V is not None else None
        # Applied after the products, not to the logits' gradient: 1 / a million tokens is 0 in float16.
        self.inverse_items = float(plan.inverse_items)
        self.parts_3 = torch.zeros(3, dtype=torch.float64, device=hidden_NH.device)
        self.token_loss_N = torch.zeros(len(hidden_NH), dtype=self.work, device=hidden_NH.device)

    def run(self) -> None:
        """Fill the gradients, `parts_3` and `token_loss_N`."""
        index_M, step = self.plan.index_M, self._chunk_tokens()
        if self.d_head_VH is not None:
            self.d_head_VH[self.plan.vocabulary if len(index_M) else 0 :] = 0
        if len(index_M) == 0:
            return
        # One buffer a model for all chunks: fresh ones of this size cost a page fault for every 4 KiB.
        logits_nV = self.head_vH.new_empty(step, self.plan.vocabulary)
        teacher_nV = torch.empty_like(logits_nV) if self.teacher.projects else None
        for first in range(0, len(index_M), step):
            chunk_n = index_M[first : first + step]
            self._chunk(
                chunk_n,
                logits_nV[: len(chunk_n)],
                None if teacher_nV is None else teacher_nV[: len(chunk_n)],
                is_first=first == 0,
            )

    def loss(self) -> Tensor:
        """The scalar, in the working precision."""
        mix = self.plan.mix
        weights_3 = self.parts_3.new_tensor([mix.divergence_weight, mix.label_weight, mix.policy_weight])
        return (self.parts_3 * weights_3).sum().to(self.work)

    def _chunk(self, chunk_n: Tensor, logits_nV: Tensor, teacher_nV: Tensor | None, is_first: bool) -> None:
        mix = self.plan.mix
        hidden_nH = self.hidden_NH[chunk_n].to(self.compute)
        rows = self._rows(chunk_n)
        project(hidden_nH, self.head_vH, self.bias_v, logits_nV)
        costs, pull_nH = self._compare(chunk_n, rows, hidden_nH, logits_nV, teacher_nV)
        weights = (mix.divergence_weight, mix.label_weight, mix.policy_weight)
        for part, (cost_n, weight) in enumerate(
            zip((costs.divergence_n, costs.cross_entropy_n, costs.policy_n), weights, strict=True)
        ):
            weighted_n = cost_n * rows.weight_n
            self.parts_3[part] += weighted_n.sum() * self.inverse_items
            self.token_loss_N[chunk_n] += weighted_n * weight
        self._multiply_back(chunk_n, hidden_nH, logits_nV, pull_nH, is_first)

    def _rows(self, chunk_n: Tensor) -> ChunkRows:
        """What the caller gave for each token, in the working precision."""
        plan = self.plan
        weight_n = torch.ones(len(chunk_n), dtype=self.work, device=chunk_n.device)
        return ChunkRows(
            weight_n=weight_n if plan.weight_N is None else plan.weight_N[chunk_n].to(self.work),
            labels_n=plan.labels_N[chunk_n],
            setting_n1=None if plan.setting_N is None else plan.setting_N[chunk_n, None].to(self.work),
            policy_n4=None if plan.policy_N4 is None else plan.policy_N4[chunk_n],
        )

    def _compare(
        self, chunk_n: Tensor, rows: ChunkRows, hidden_nH: Tensor, logits_nV: Tensor, teacher_nV: Tensor | None
    ) -> tuple[Costs, Tensor | None]:
        """Costs of the chunk's tokens; the gradient is left in `logits_nV`, the rest of d(hidden) is returned."""
        plan, mix = self.plan, self.plan.mix
        signal = _rows_of(plan.signal, chunk_n)
        if signal is None:
            return self._compare_labels(rows, logits_nV), None
        if isinstance(signal, TopKSignal):
            return top_k_rows(logits_nV, rows, signal, plan.definition, mix), None
        if isinstance(signal, SampledSignal):
            return sampled_rows(logits_nV, rows, signal, mix), None
        if isinstance(signal, TokenSignal):
            return token_rows(logits_nV, rows, signal, plan.definition.name, mix), None
        if isinstance(signal, HeadExpectationSignal):
            return head_expectation_rows(logits_nV, rows, signal, hidden_nH, mix)
        return self._compare_dense(signal, rows, logits_nV, self.teacher.logits(signal, teacher_nV)), None

    def _compare_labels(self, rows: ChunkRows, logits_nV: Tensor) -> Costs:
        mix = self.plan.mix
        cross_entropy_n, policy_n = label_rows(
            logits_nV,
            rows,
            self._scalars(mix.label_weight, mix.policy_weight, 1 / mix.own_temperature),
            rule=mix.rule,
            student_view=mix.view,
            softened=mix.own_temperature != 1,
            compiled=mix.compiled,
        )
        return Costs(torch.zeros_like(cross_entropy_n), cross_entropy_n, policy_n)

    def _compare_dense(
        self, signal: HiddenSignal | DenseSignal, rows: ChunkRows, logits_nV: Tensor, teacher_nV: Tensor
    ) -> Costs:
        plan, mix = self.plan, self.plan.mix
        costs = dense_rows(
            logits_nV,
            teacher_nV,
            rows,
            self._scalars(
                mix.divergence_weight,
                mix.label_weight,
                mix.policy_weight,
                1 / mix.temperature,
                plan.definition.setting,
            ),
            definition=plan.definition,
            rule=mix.rule,
            student_view=mix.view,
            teacher_view=LogitsView(signal.logit_scale, signal.softcap)
            if isinstance(signal, HiddenSignal)
            else LogitsView(),
            softened=mix.temperature != 1,
            with_labels=mix.reads_labels,
            compiled=mix.compiled,
        )
        none_n = torch.zeros_like(costs[0])
        return Costs(*costs) if mix.reads_labels else Costs(costs[0], none_n, none_n)

    def _scalars(self, *values: float) -> Tensor:
        """Numbers that a compiled kernel takes as a tensor: other values recompile nothing."""
        return torch.tensor(values, dtype=self.work, device=self.hidden_NH.device)

    def _multiply_back(
        self, chunk_n: Tensor, hidden_nH: Tensor, gradient_nV: Tensor, pull_nH: Tensor | None, is_first: bool
    ) -> None:
        if self.d_hidden_NH is not None:
            d_hidden_nH = gradient_nV @ self.head_vH
            if pull_nH is not None:
                d_hidden_nH = d_hidden_nH + pull_nH
            self.d_hidden_NH[chunk_n] = d_hidden_nH.to(self.d_hidden_NH.dtype)
        if self.d_head_VH is not None:
            total_vH = self.d_head_VH[: self.plan.vocabulary]
            add_product(total_vH, gradient_nV, hidden_nH, self.inverse_items, keep=not is_first)
        if self.d_bias_V is not None:
            self.d_bias_V[: self.plan.vocabulary].add_(gradient_nV.sum(0), alpha=self.inverse_items)

    def _chunk_tokens(self) -> int:
        """Tokens a chunk: all chunks but the last are equal, and the last is not much smaller."""
        total = max(1, len(self.plan.index_M))
        models = 2 if self.teacher.projects else 1
        most = self.plan.chunk_tokens or CHUNK_BYTES // (models * self.plan.vocabulary * self.head_vH.element_size())
        chunks = -(-total // max(1, most))
        return -(-total // chunks)


class _Teacher:
    """The teacher's side of the projection."""

    def __init__(self, signal: Signal | None, compute: torch.dtype, vocabulary: int) -> None:
        self.projects = isinstance(signal, HiddenSignal)
        if isinstance(signal, HiddenSignal):
            self.head_vK = signal.head_VK[:vocabulary].to(compute)
            self.bias_v = None if signal.bias is None else signal.bias[:vocabulary].to(compute)
        self.vocabulary = vocabulary

    def logits(self, signal: HiddenSignal | DenseSignal, buffer_nV: Tensor | None) -> Tensor:
        """Raw logits of the chunk; a projection goes into the buffer."""
        if isinstance(signal, DenseSignal) or buffer_nV is None:
            assert isinstance(signal, DenseSignal)
            return signal.logits_NV[:, : self.vocabulary]
        project(signal.hidden_NK.to(self.head_vK.dtype), self.head_vK, self.bias_v, buffer_nV)
        return buffer_nV


def _rows_of(signal: Signal | None, chunk_n: Tensor) -> Signal | None:
    """The rows of a chunk; what is not per token (heads, settings) stays."""
    if signal is None:
        return None
    per_token = {
        f.name: getattr(signal, f.name)[chunk_n]
        for f in fields(signal)
        if "_N" in f.name and getattr(signal, f.name) is not None
    }
    return replace(signal, **per_token)


def _true(mask_N: Tensor) -> Tensor:
    return mask_N.to(torch.bool).nonzero()[:, 0]
