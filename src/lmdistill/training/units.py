"""What pruning takes away while a student learns: neurons and heads of each block, channels of the whole model.

A unit is a set of slices of parameters: a neuron its row of the matrix in and its column of the matrix out, a head its
rows of queries, keys and values and its columns of the projection behind them (with grouped-query attention a key head
with all its query heads), a channel of the hidden width its slice of everything that reads or writes the residual
stream.

Shape legend: U units, H hidden channels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lmdistill.errors import ModelError, RecipeError
from lmdistill.recipe import PruneWhileSpec, WidthSpec
from lmdistill.students.families import FAMILIES, Axis
from lmdistill.students.prune import rebuilt
from lmdistill.students.width import narrowed_config
from lmdistill.training.anatomy import bare, blocks_of
from lmdistill.training.neurons import neuron_axes, neuron_count

Kind = Literal["neurons", "heads", "hidden"]

_BERT: tuple[tuple[str, tuple[Axis, ...]], ...] = (
    (r"(word|position|token_type)_embeddings\.weight", ("whole", "hidden")),
    (r"LayerNorm\.(weight|bias)", ("hidden",)),
    (r"attention\.self\.(query|key|value)\.weight", ("query", "hidden")),
    (r"attention\.self\.(query|key|value)\.bias", ("query",)),
    (r"attention\.output\.dense\.weight", ("hidden", "query")),
    (r"intermediate\.dense\.weight", ("neurons", "hidden")),
    (r"intermediate\.dense\.bias", ("neurons",)),
    (r"output\.dense\.weight", ("hidden", "neurons")),
    (r"(pooler|predictions\.transform)\.dense\.weight", ("hidden", "hidden")),
    (r"(output|pooler|transform)\.dense\.bias", ("hidden",)),
    (r"(predictions\.decoder|classifier|seq_relationship)\.weight", ("whole", "hidden")),
    (r"(predictions|decoder|classifier|seq_relationship)\.bias", ("whole",)),
)


@dataclass(frozen=True)
class Slice:
    """Where units lie in a parameter: `copies` times U units of `per` entries each, along one dimension."""

    path: str
    axis: int
    per: int = 1
    copies: int = 1

    def by_unit(self, terms: Tensor) -> Tensor:
        """Sums of the parameter's entries over each unit, (U,)."""
        sums = terms.transpose(0, self.axis).flatten(1).sum(1) if terms.ndim > 1 else terms
        found: Tensor = sums.view(self.copies, -1, self.per).sum((0, 2))
        return found

    def spread(self, alive_U: Tensor) -> Tensor:
        """For each entry along the dimension whether its unit is there."""
        return alive_U.repeat_interleave(self.per).repeat(self.copies)


@dataclass(frozen=True)
class Units:
    """Units of one kind that are ranked among each other."""

    kind: Kind
    size: int
    """U"""
    slices: tuple[Slice, ...]


def units_of(model: nn.Module, spec: PruneWhileSpec) -> list[tuple[Units, int]]:
    """All units that a recipe prunes, with how many are to be left of each.

    Raises RecipeError where more are to be left than there are, or sizes do not fit together; ModelError for a model
    whose units are not known.
    """
    inner = bare(model)
    found: list[tuple[Units, int]] = []
    if spec.intermediate is not None:
        sizes = [neuron_count(block) for block in blocks_of(inner)]
        if spec.intermediate > min(sizes):
            raise RecipeError(f"pruning.intermediate = {spec.intermediate}, but blocks have {min(sizes)} neurons")
        paths = {module: path for path, module in inner.named_modules()}
        for block, size in zip(blocks_of(inner), sizes, strict=True):
            slices = [Slice(f"{paths[block]}.{name}", axis) for name, axis in neuron_axes(block).items()]
            found.append((Units("neurons", size, tuple(slices)), spec.intermediate))
    if spec.heads is not None or spec.hidden is not None:
        axes = {name: _axes_of(inner, name) for name, _ in inner.named_parameters()}
        _narrowed(inner, spec)  # refuses what does not fit
        sizes_of = _Sizes.of(inner)
        if spec.heads is not None:
            left = spec.heads * sizes_of.groups // sizes_of.heads
            found += [(units, left) for units in _heads(inner, axes, sizes_of)]
        if spec.hidden is not None:
            slices = [
                Slice(name, place)
                for name, meanings in axes.items()
                for place, meaning in enumerate(meanings)
                if meaning == "hidden"
            ]
            found.append((Units("hidden", sizes_of.hidden, tuple(slices)), spec.hidden))
    return found


@torch.no_grad()
def narrow_units(model: nn.Module, spec: PruneWhileSpec, units: Sequence[Units], alive: Sequence[Tensor]) -> None:
    """Leave out of a model, in place, what is gone; its configuration says so afterwards."""
    inner: Any = bare(model)
    state = dict(inner.state_dict())
    tied = {name for name in state if name not in dict(inner.named_parameters())}
    for each, alive_U in zip(units, alive, strict=True):
        for part in each.slices:
            kept = part.spread(alive_U).nonzero()[:, 0].to(state[part.path].device)
            state[part.path] = state[part.path].index_select(part.axis, kept)
    known = dict(inner.named_parameters())
    for name in tied:  # tables that two modules share have one name among the parameters
        owner = next((other for other, value in known.items() if value is _at(inner, name)), None)
        if owner is not None:
            state[name] = state[owner]
    made = rebuilt(inner, _narrowed(inner, spec), state)
    mode = inner.training
    inner.__dict__.clear()
    inner.__dict__.update(made.__dict__)
    inner.train(mode)


def mask_norms(model: nn.Module, hidden: Units, alive_H: Tensor) -> Callable[[], None]:
    """Let all norms over the hidden width see the channels that are there alone, as those of the smaller model will.

    `alive_H` is looked at in each forward pass. Returns what takes the hooks away.
    """
    weights = {part.path for part in hidden.slices}

    def behind(module: Any, args: Any, output: Tensor) -> Tensor | None:
        state = args[0]
        if state.shape[-1] != len(alive_H) or bool(alive_H.all()):  # the call below comes here too
            return None
        kept = state[..., alive_H]
        if isinstance(module, nn.LayerNorm):
            normed = F.layer_norm(kept, kept.shape[-1:], module.weight[alive_H], module.bias[alive_H], module.eps)
        else:
            normed = functional_call(module, {"weight": module.weight[alive_H]}, (kept,))
        return torch.zeros_like(output).masked_scatter(alive_H.expand_as(output), normed.to(output.dtype))

    handles = [
        module.register_forward_hook(behind)
        for path, module in model.named_modules()
        if f"{path}.weight" in weights and module.weight.ndim == 1
    ]

    def undo() -> None:
        for handle in handles:
            handle.remove()

    return undo


@dataclass(frozen=True)
class _Sizes:
    """Sizes of a model: channels, query heads, key heads, entries of a head."""

    hidden: int
    heads: int
    groups: int
    head_size: int

    @staticmethod
    def of(model: nn.Module) -> _Sizes:
        config: Any = model.config
        hidden, heads = int(config.hidden_size), int(config.num_attention_heads)
        groups = int(getattr(config, "num_key_value_heads", None) or heads)
        return _Sizes(hidden, heads, groups, int(getattr(config, "head_dim", None) or hidden // heads))


def _heads(model: nn.Module, axes: dict[str, tuple[Axis, ...]], sizes: _Sizes) -> list[Units]:
    per = {"query": sizes.heads // sizes.groups * sizes.head_size, "key_value": sizes.head_size}
    per["fused_qkv"] = sizes.head_size
    paths = {module: path for path, module in model.named_modules()}
    found = []
    for block in blocks_of(model):
        slices = [
            Slice(name, place, per[meaning], 3 if meaning == "fused_qkv" else 1)
            for name, meanings in axes.items()
            if name.startswith(f"{paths[block]}.")
            for place, meaning in enumerate(meanings)
            if meaning in per
        ]
        found.append(Units("heads", sizes.groups, tuple(slices)))
    return found


def _axes_of(model: nn.Module, parameter: str) -> tuple[Axis, ...]:
    kind = str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
    if kind in FAMILIES:
        found = next((axes for pattern, axes in FAMILIES[kind].axes if _ends(pattern, parameter)), None)
    else:
        found = next((axes for pattern, axes in _BERT if kind == "bert" and _ends(pattern, parameter)), None)
    if found is None:
        raise ModelError(
            f"pruning.heads and pruning.hidden do not know {parameter!r} of a {kind!r} model; they know BERT and "
            f"{', '.join(FAMILIES)}. pruning.intermediate knows more"
        )
    return found


def _ends(pattern: str, parameter: str) -> bool:
    return re.search(rf"(^|\.)({pattern})$", parameter) is not None


def _narrowed(model: nn.Module, spec: PruneWhileSpec) -> Any:
    """The configuration of what is left. Raises RecipeError where sizes do not fit."""
    inner: Any = model
    config, sizes = inner.config, _Sizes.of(inner)
    if config.model_type in FAMILIES:
        family = FAMILIES[config.model_type]
        if spec.hidden is not None and family.one_plus:
            raise RecipeError(
                "pruning.hidden: a Gemma multiplies its embeddings by the root of its width, so that it says something "
                "else when channels go; prune heads and neurons, or use student.width"
            )
        width = {name: getattr(spec, name) for name in ("intermediate", "heads", "hidden")}
        try:
            return narrowed_config(config, WidthSpec(**width))
        except RecipeError as error:
            raise RecipeError(str(error).replace("student.width", "pruning").replace("the teacher", "it")) from error
    heads, hidden = spec.heads or sizes.heads, spec.hidden or sizes.hidden
    for name, wanted, present in (("heads", heads, sizes.heads), ("hidden", hidden, sizes.hidden)):
        if wanted > present:
            raise RecipeError(f"pruning.{name} = {wanted}, but the student has {present}")
    if heads * sizes.head_size != hidden:
        raise RecipeError(
            f"pruning: {heads} heads of {sizes.head_size} are {heads * sizes.head_size} numbers, but hidden = "
            f"{hidden}: a {config.model_type}'s heads fill its width, so both go together: set heads: "
            f"{hidden // sizes.head_size} and hidden: {hidden // sizes.head_size * sizes.head_size}"
        )
    values = {**config.to_dict(), "hidden_size": hidden, "num_attention_heads": heads}
    values["intermediate_size"] = spec.intermediate or config.intermediate_size
    return type(config).from_dict(values)


def _at(model: nn.Module, path: str) -> Any:
    owner, _, last = path.rpartition(".")
    return getattr(model.get_submodule(owner), last)
