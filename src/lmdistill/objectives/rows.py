"""The row-wise half of the loss engine: from a chunk of logits to losses and gradients, compiled where it can be.

A chunk holds the raw logits of some tokens (what the head gives, before scale, soft-capping and temperature). The
functions here overwrite the student's raw logits with the gradient with respect to them, so that a chunk never needs a
second buffer of its size. Depends on torch alone.

Shape legend: n tokens of one chunk, V vocabulary, k kept ids a token.
"""

from __future__ import annotations

import functools
import logging
import shutil
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmdistill.objectives.divergences import FLOOR, Divergence, head_border
from lmdistill.objectives.surrogate import PolicyRule

logger = logging.getLogger(__name__)

# Below this many logits a chunk is done before a compiler has started.
COMPILE_FROM = 1 << 22
# On a processor, blocks of this many logits stay in its cache from the first pass over them to the last: a whole chunk
# at once takes 1.4 times as long (benchmarks/loss.py). Eager temporaries are float32 and several, so half as many.
_COMPILED_BLOCK = 3 << 19
_EAGER_BLOCK = 1 << 20


@dataclass(frozen=True)
class LogitsView:
    """How raw head outputs become logits: multiplied by `scale`, then soft-capped (cap * tanh(logits / cap))."""

    scale: float = 1.0
    softcap: float | None = None

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"logit_scale = {self.scale} must be above 0")
        if self.softcap is not None and self.softcap <= 0:
            raise ValueError(f"softcap = {self.softcap} must be above 0; pass None for no soft-capping")

    def logits(self, raw: Tensor) -> Tensor:
        """Logits of raw outputs, in at least float32."""
        z = raw.to(working_dtype(raw))
        if self.scale != 1.0:
            z = z * self.scale
        if self.softcap is not None:
            capped = torch.tanh(z / self.softcap) * self.softcap
            z = torch.where(raw == -torch.inf, z, capped)  # -inf marks an excluded entry and must stay so
        return z

    def chain(self, gradient: Tensor, z: Tensor) -> Tensor:
        """Gradient with respect to raw outputs from that with respect to logits `z`."""
        if self.softcap is not None:
            gradient = gradient * (1 - (z / self.softcap).square())
        if self.scale != 1.0:
            gradient = gradient * self.scale
        return gradient


def working_dtype(like: Tensor) -> torch.dtype:
    """The precision in which rows are compared: float32, or float64 where the input is."""
    return torch.float64 if like.dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class ChunkRows:
    """What goes with each token of a chunk beside the models' outputs."""

    weight_n: Tensor
    labels_n: Tensor
    """The text's own next token."""
    setting_n1: Tensor | None = None
    """The divergence's setting, where it differs from token to token."""
    policy_n4: Tensor | None = None
    """`PolicyTerm.rows`, where there is a policy term."""


def dense_rows(
    student_nV: Tensor,
    teacher_nV: Tensor,
    rows: ChunkRows,
    scalars_5: Tensor,
    *,
    definition: Divergence,
    rule: PolicyRule | None,
    student_view: LogitsView,
    teacher_view: LogitsView,
    softened: bool,
    with_labels: bool,
    compiled: bool,
) -> tuple[Tensor, ...]:
    """Divergence and, with labels, cross-entropy and policy term of each token, (n,) each, unweighted.

    `scalars_5` holds the weights of the divergence, of the cross-entropy and of the policy term, 1 / temperature and
    the definition's setting. The gradient of sum_n weight_n * (w_d D_n + w_ce CE_n + w_p P_n), by the student's raw
    logits, is left in `student_nV`. Without labels the divergence is all there is.
    """
    head_n1 = None
    if definition.head_mass is not None:
        head_n1 = _head_of_rows(teacher_nV, teacher_view, scalars_5[3], definition.head_mass, compiled)
    kernel = _dense_kernel(definition, rule, student_view, teacher_view, softened, with_labels)
    per_token = (teacher_nV, rows.weight_n, rows.labels_n, head_n1, rows.setting_n1, rows.policy_n4)
    return _run(kernel, compiled, student_nV, per_token, scalars_5)


def label_rows(
    student_nV: Tensor,
    rows: ChunkRows,
    scalars_3: Tensor,
    *,
    rule: PolicyRule | None,
    student_view: LogitsView,
    softened: bool,
    compiled: bool,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy with the labels and policy term, (n,) each, unweighted; both of the logits times `scalars_3[2]`.

    `scalars_3` holds the weights of both and 1 / temperature. The gradient of sum_n weight_n (w_ce CE_n + w_p P_n) is
    left in `student_nV`.
    """
    per_token = (rows.weight_n, rows.labels_n, rows.policy_n4)
    cross_entropy_n, policy_n = _run(
        _label_kernel(rule, student_view, softened), compiled, student_nV, per_token, scalars_3
    )
    return cross_entropy_n, policy_n


def log_normaliser(raw_nV: Tensor, inverse_temperature: Tensor, *, view: LogitsView, compiled: bool) -> Tensor:
    """logsumexp of the softened logits, (n,); `raw_nV` stays as it is. -inf for rows of nothing but -inf."""
    return _run(_normaliser_kernel(view), compiled, raw_nV, (), inverse_temperature)[0]


def softmax_rows(
    raw_nV: Tensor,
    shift_n: Tensor,
    factor_n: Tensor,
    plain_shift_n: Tensor | None,
    plain_factor_n: Tensor | None,
    inverse_temperature: Tensor,
    *,
    view: LogitsView,
    compiled: bool,
) -> None:
    """Overwrite raw logits with factor exp(z/T - shift) + plain_factor exp(z - plain_shift), chained to the raw ones.

    The second part is left out where it is None. Entries of -inf become 0.
    """
    rows = (shift_n, factor_n, plain_shift_n, plain_factor_n)
    _run(_softmax_kernel(view), compiled, raw_nV, rows, inverse_temperature)


def add_at(raw_nV: Tensor, ids_nk: Tensor, values_nk: Tensor) -> None:
    """raw[n, ids[n, k]] += values[n, k], in place; equal ids add up."""
    if raw_nV.device.type == "cpu":
        # scatter_add_ goes over the whole tensor where its numbers have 16 bits: as long as a matrix product.
        rows_n1 = torch.arange(len(ids_nk))[:, None]
        raw_nV.index_put_((rows_n1, ids_nk), values_nk.to(raw_nV.dtype), accumulate=True)
    else:
        raw_nV.scatter_add_(1, ids_nk, values_nk.to(raw_nV.dtype))


Kernel = Callable[..., tuple[Tensor, ...]]


@functools.lru_cache(maxsize=64)
def _dense_kernel(
    definition: Divergence,
    rule: PolicyRule | None,
    student_view: LogitsView,
    teacher_view: LogitsView,
    softened: bool,
    with_labels: bool,
) -> tuple[Kernel, Kernel]:
    def kernel(
        student_nV: Tensor,
        teacher_nV: Tensor,
        weight_n: Tensor,
        labels_n: Tensor,
        head_n1: Tensor | None,
        setting_n1: Tensor | None,
        policy_n4: Tensor | None,
        scalars_5: Tensor,
    ) -> tuple[Tensor, ...]:
        z_nV, zt_nV = student_view.logits(student_nV), teacher_view.logits(teacher_nV)
        log_p_nV = z_nV.log_softmax(-1)
        log_s_nV = ((z_nV * scalars_5[3]).log_softmax(-1) if softened else log_p_nV).clamp_min(FLOOR)
        log_t_nV = (zt_nV * scalars_5[3] if softened else zt_nV).log_softmax(-1).clamp_min(FLOOR)
        setting = scalars_5[4] if setting_n1 is None else setting_n1
        context = definition.context(log_s_nV, log_t_nV, head_n1, setting)
        f_nV, v_nV = definition.summands(log_s_nV, log_t_nV, *context)
        if definition.derivative_sum is None:
            gradient_nV = v_nV - log_s_nV.exp() * v_nV.sum(-1, keepdim=True)
        else:
            gradient_nV = v_nV - log_s_nV.exp() * definition.derivative_sum
        gradient_nV = gradient_nV * (scalars_5[0] * scalars_5[3] * weight_n)[:, None]
        if not with_labels:
            student_nV.copy_(student_view.chain(gradient_nV, z_nV))
            return (f_nV.sum(-1),)
        cross_entropy_n, label_gradient_nV = _cross_entropy(log_p_nV, labels_n)
        pull_n, policy_n = own_pull(cross_entropy_n, scalars_5[1], scalars_5[2], rule, policy_n4)
        gradient_nV = gradient_nV + label_gradient_nV * (pull_n * weight_n)[:, None]
        student_nV.copy_(student_view.chain(gradient_nV, z_nV))
        return f_nV.sum(-1), cross_entropy_n, policy_n

    return _twins(kernel, "dense_rows_" + definition.name)


def own_pull(
    cross_entropy_n: Tensor,
    label_weight: Tensor | float,
    policy_weight: Tensor | float,
    rule: PolicyRule | None,
    policy_n4: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """How strongly each token's own id is pulled, and its policy term: d(w_ce CE + w_p P) / d CE and P, (n,) each."""
    if rule is None or policy_n4 is None:
        return torch.ones_like(cross_entropy_n) * label_weight, torch.zeros_like(cross_entropy_n)
    policy_n, slope_n = rule.costs(-cross_entropy_n, policy_n4)
    return label_weight - policy_weight * slope_n, policy_n


def _cross_entropy(log_p_nV: Tensor, labels_n: Tensor) -> tuple[Tensor, Tensor]:
    """-log p of the labels and its gradient p - onehot; written as comparisons, which compilers fuse."""
    is_label_nV = torch.arange(log_p_nV.shape[1], device=log_p_nV.device)[None, :] == labels_n[:, None]
    cross_entropy_n = -torch.where(is_label_nV, log_p_nV, 0.0).sum(-1)
    return cross_entropy_n, log_p_nV.exp() - is_label_nV.to(log_p_nV.dtype)


@functools.lru_cache(maxsize=16)
def _label_kernel(rule: PolicyRule | None, view: LogitsView, softened: bool) -> tuple[Kernel, Kernel]:
    def kernel(
        student_nV: Tensor, weight_n: Tensor, labels_n: Tensor, policy_n4: Tensor | None, scalars_3: Tensor
    ) -> tuple[Tensor, ...]:
        z_nV = view.logits(student_nV)
        log_p_nV = (z_nV * scalars_3[2] if softened else z_nV).log_softmax(-1)
        cross_entropy_n, gradient_nV = _cross_entropy(log_p_nV, labels_n)
        pull_n, policy_n = own_pull(cross_entropy_n, scalars_3[0], scalars_3[1], rule, policy_n4)
        gradient_nV = gradient_nV * (pull_n * scalars_3[2] * weight_n)[:, None]
        student_nV.copy_(view.chain(gradient_nV, z_nV))
        return cross_entropy_n, policy_n

    return _twins(kernel, "label_rows")


@functools.lru_cache(maxsize=16)
def _normaliser_kernel(view: LogitsView) -> tuple[Kernel, Kernel]:
    def kernel(raw_nV: Tensor, inverse_temperature: Tensor) -> tuple[Tensor, ...]:
        return (torch.logsumexp(view.logits(raw_nV) * inverse_temperature, -1),)

    return _twins(kernel, "log_normaliser")


@functools.lru_cache(maxsize=16)
def _softmax_kernel(view: LogitsView) -> tuple[Kernel, Kernel]:
    def kernel(
        raw_nV: Tensor,
        shift_n: Tensor,
        factor_n: Tensor,
        plain_shift_n: Tensor | None,
        plain_factor_n: Tensor | None,
        inverse_temperature: Tensor,
    ) -> tuple[Tensor, ...]:
        z_nV = view.logits(raw_nV)
        gradient_nV = (z_nV * inverse_temperature - shift_n[:, None]).exp() * factor_n[:, None]
        if plain_shift_n is not None and plain_factor_n is not None:
            gradient_nV = gradient_nV + (z_nV - plain_shift_n[:, None]).exp() * plain_factor_n[:, None]
        raw_nV.copy_(torch.where(raw_nV == -torch.inf, 0.0, view.chain(gradient_nV, z_nV)))
        return ()

    return _twins(kernel, "softmax_rows")


def _head_of_rows(
    teacher_nV: Tensor, view: LogitsView, inverse_temperature: Tensor, mass: float, compiled: bool
) -> Tensor:
    """`head_border` of the teacher's rows, (n, 1). Heads are nearly always small: few rows need more than a look."""
    all_n = log_normaliser(teacher_nV, inverse_temperature, view=view, compiled=compiled)
    border_n1 = all_n.new_empty(len(all_n), 1)
    for rows in _blocks(teacher_nV):
        block_bV, block_b1, open_b = (
            teacher_nV[rows],
            border_n1[rows],
            torch.arange(len(all_n[rows]), device=all_n.device),
        )
        for kept in (64, 2048, teacher_nV.shape[1]):
            # Both the scale and the cap keep the order, so that the raw values can be searched.
            open_bV = block_bV if len(open_b) == len(block_bV) else block_bV[open_b]
            top_bk = view.logits(_largest(open_bV, kept)) * inverse_temperature
            log_top_bk = (top_bk - all_n[rows][open_b, None]).clamp_min(FLOOR)
            block_b1[open_b] = head_border(log_top_bk, mass)
            open_b = open_b[(block_b1[open_b] == -torch.inf)[:, 0]]
            if len(open_b) == 0:
                break
    return border_n1


def _largest(raw_nV: Tensor, k: int) -> Tensor:
    """The k largest entries of each row, falling; all of them where there are fewer.

    They lie in the k groups of columns with the largest maxima: finding those first is several times faster than
    partially sorting a whole vocabulary.
    """
    group = 32
    whole = raw_nV.shape[1] // group * group
    if whole < 4 * k * group:
        return raw_nV.topk(min(k, raw_nV.shape[1]), dim=1).values
    groups_nGg = raw_nV[:, :whole].view(len(raw_nV), -1, group)
    best_nk1 = groups_nGg.amax(-1).topk(k, dim=1).indices[:, :, None]
    candidates_nc = groups_nGg.gather(1, best_nk1.expand(-1, -1, group)).flatten(1)
    return torch.cat([candidates_nc, raw_nV[:, whole:]], 1).topk(k, dim=1).values


def _blocks(raw_nV: Tensor, logits: int = _EAGER_BLOCK) -> list[slice]:
    rows = max(1, logits // max(1, raw_nV.shape[1]))
    return [slice(first, first + rows) for first in range(0, raw_nV.shape[0], rows)]


def _run(
    kernels: tuple[Kernel, Kernel], compiled: bool, raw_nV: Tensor, rows: tuple[Tensor | None, ...], scalars: Tensor
) -> tuple[Tensor, ...]:
    """Call the compiled kernel, or the eager one, on all rows, block by block."""
    eager, fast = kernels
    if not (compiled and raw_nV.numel() >= COMPILE_FROM and compiler_works(raw_nV.device.type)):
        return _join([eager(raw_nV[b], *_take(rows, b), scalars) for b in _blocks(raw_nV)])
    if raw_nV.device.type != "cpu":
        for tensor in (raw_nV, *rows):
            if tensor is not None:
                torch._dynamo.maybe_mark_dynamic(tensor, 0)  # token counts differ from batch to batch
        return fast(raw_nV, *rows, scalars)
    # Whole blocks have one fixed shape, so that one compilation serves every batch; what is left over runs padded.
    # All threads share a block.
    size = max(torch.get_num_threads(), _COMPILED_BLOCK // raw_nV.shape[1])
    whole = raw_nV.shape[0] // size * size
    parts = [
        fast(raw_nV[first : first + size], *_take(rows, slice(first, first + size)), scalars)
        for first in range(0, whole, size)
    ]
    if whole < raw_nV.shape[0]:
        rest = slice(whole, raw_nV.shape[0])
        padded = _pad(raw_nV[rest], size)
        made = fast(padded, *(None if t is None else _pad(t, size) for t in _take(rows, rest)), scalars)
        raw_nV[rest] = padded[: raw_nV.shape[0] - whole]
        parts.append(tuple(column[: raw_nV.shape[0] - whole] for column in made))
    return _join(parts)


def _take(rows: tuple[Tensor | None, ...], block: slice) -> list[Tensor | None]:
    return [None if tensor is None else tensor[block] for tensor in rows]


def _pad(rows_n: Tensor, size: int) -> Tensor:
    """A copy with rows of zeros up to `size`."""
    padded = rows_n.new_zeros(size, *rows_n.shape[1:])
    padded[: len(rows_n)] = rows_n
    return padded


def _join(parts: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _twins(kernel: Any, name: str) -> tuple[Kernel, Kernel]:
    """The kernel itself and its compiled form.

    torch counts recompilations by code object; a copy of the code under its own name keeps one definition's shapes
    from using up the allowance of another.
    """
    code = kernel.__code__.replace(co_name=name)
    own = types.FunctionType(code, kernel.__globals__, name, kernel.__defaults__, kernel.__closure__)
    return kernel, torch.compile(own, fullgraph=True)


@functools.lru_cache(maxsize=8)
def compiler_works(device_type: str) -> bool:
    """Whether torch.compile can be used for this kind of device; says why not, once."""
    if device_type == "cpu" and not any(shutil.which(name) for name in ("g++", "clang++", "cl")):
        logger.warning("no C++ compiler found: the loss runs uncompiled, several times slower; install g++")
        return False
    try:
        with warnings.catch_warnings():
            # The compiler's first import warns of torch's own deprecations; as errors they would look like a failure.
            warnings.simplefilter("ignore")
            probe = torch.compile(lambda x: (x * 2).sum(), fullgraph=True)
            probe(torch.ones(16, device=device_type))
    except Exception as error:  # torch.compile fails in many ways, and each has the same remedy
        logger.warning("torch.compile does not work here (%s): the loss runs uncompiled", type(error).__name__)
        return False
    return True
