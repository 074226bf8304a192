"""Width pruning by activation importance (Minitron, 2407.14679, section 2.2).

Neurons are judged by the L2 norm of their activations over the calibration tokens, heads by that of their outputs,
hidden channels by that of the outputs of the norms that layers read, summed over layers. Neurons and heads are chosen
layer by layer; hidden channels once for the whole network, since the residual stream ties them together.

Shape legend: B batch, L length, H hidden, I neurons, G groups of query heads (one key-value head each), D head size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from lmdistill.errors import RecipeError
from lmdistill.progress import Progress
from lmdistill.recipe import WidthSpec
from lmdistill.students.families import Axis, Family, decoder_layers, family_of
from lmdistill.students.prune import rebuilt


@dataclass
class Importance:
    """Squared activations, summed over tokens."""

    neurons: list[Tensor]
    """(I,) for each layer."""
    groups: list[Tensor]
    """(G,) for each layer."""
    hidden: Tensor
    """(H,)"""


@dataclass(frozen=True)
class _Sizes:
    hidden: int
    neurons: int
    heads: int
    groups: int
    head_size: int


def narrow(
    model: PreTrainedModel, spec: WidthSpec, batches: Sequence[Mapping[str, Tensor]], progress: Progress
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A narrower model of the same class, and what was kept. Raises RecipeError where the sizes do not fit."""
    family = family_of(model.config)
    sizes = _sizes(model.config, family)
    config = narrowed_config(model.config, spec)
    importance = measure(model, batches, progress)
    keep_hidden = _top(importance.hidden, spec.hidden)
    keep_neurons = [_top(scores, spec.intermediate) for scores in importance.neurons]
    groups = _kept_groups(spec, sizes)
    keep_groups = [_top(scores, groups) for scores in importance.groups]
    state = {}
    for name, tensor in model.state_dict().items():
        layer = _layer_of(name, family)
        for dimension, axis in enumerate(family.axes_of(name)):
            index = _index(axis, sizes, keep_hidden, keep_neurons[layer], keep_groups[layer])
            if index is not None:
                tensor = tensor.index_select(dimension, index.to(tensor.device))
        if spec.hidden is not None and family.rms and name.endswith("norm.weight"):
            tensor = _rescaled_norm(name, tensor, sizes, spec.hidden, family)
        state[name] = tensor
    kept = {"intermediate": spec.intermediate, "heads": spec.heads, "hidden": spec.hidden}
    return rebuilt(model, config, state), {name: value for name, value in kept.items() if value is not None}


@torch.no_grad()
def measure(model: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]], progress: Progress) -> Importance:
    """Activation importance on calibration text."""
    family = family_of(model.config)
    sizes = _sizes(model.config, family)
    layers = decoder_layers(model)
    found = Importance(
        neurons=[torch.zeros(sizes.neurons) for _ in layers],
        groups=[torch.zeros(sizes.groups) for _ in layers],
        hidden=torch.zeros(sizes.hidden),
    )
    handles = []
    for index, layer in enumerate(layers):
        handles += _watch(layer, index, family, sizes, found)
    try:
        with progress.task("width importance", total=len(batches), unit="batches") as task:
            for batch in batches:
                model.base_model(**{k: v.to(model.device) for k, v in batch.items()}, use_cache=False)
                task.advance()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _watch(layer: nn.Module, index: int, family: Family, sizes: _Sizes, found: Importance) -> list[Any]:
    def neurons(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        found.neurons[index] += _energy(args[0])

    def heads(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        found.groups[index] += _energy(args[0]).view(sizes.groups, -1).sum(1)

    def hidden(module: nn.Module, args: Any, output: Tensor) -> None:
        found.hidden.add_(_energy(output))

    return [
        layer.get_submodule(family.mlp_out).register_forward_pre_hook(neurons),
        layer.get_submodule(family.attention_out).register_forward_pre_hook(heads),
        *(layer.get_submodule(name).register_forward_hook(hidden) for name in family.norms_read),
    ]


def _energy(values: Tensor) -> Tensor:
    return values.float().flatten(0, -2).square().sum(0).cpu()


def _top(scores: Tensor, count: int | None) -> Tensor | None:
    """Indices of the most important entries in their old order; None keeps all."""
    if count is None:
        return None
    return scores.sort(descending=True, stable=True).indices[:count].sort().values


def _index(
    axis: Axis, sizes: _Sizes, hidden: Tensor | None, neurons: Tensor | None, groups: Tensor | None
) -> Tensor | None:
    """Which entries of a dimension stay; None for all."""
    if axis == "hidden":
        return hidden
    if axis == "neurons":
        return neurons
    if groups is None or axis in ("whole", "vocabulary"):
        return None
    per_group = sizes.head_size if axis == "key_value" else sizes.heads // sizes.groups * sizes.head_size
    rows = (groups[:, None] * per_group + torch.arange(per_group)).flatten()
    if axis == "fused_qkv":
        width = sizes.heads * sizes.head_size
        return torch.cat([rows, rows + width, rows + 2 * width])
    return rows


def _rescaled_norm(name: str, weight_h: Tensor, sizes: _Sizes, hidden: int, family: Family) -> Tensor:
    """An RMS norm divides by the root of the mean over its channels. Where those that go were nearly silent, the mean
    grows by H / h, so the weight makes up for it.

    Gemma multiplies its embeddings by the root of the width, so its whole residual stream shrinks by sqrt(h / H); the
    norms that write into the stream must shrink alike, and the two factors cancel there.
    """
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        return weight_h
    if family.one_plus and writes_residual(name):
        return weight_h
    factor = math.sqrt(sizes.hidden / hidden)
    return (weight_h + 1) * factor - 1 if family.one_plus else weight_h * factor


def writes_residual(name: str) -> bool:
    """Whether a norm of a Gemma layer writes into the residual stream."""
    return name.endswith(("post_attention_layernorm.weight", "post_feedforward_layernorm.weight"))


def _layer_of(name: str, family: Family) -> int:
    _, found, rest = name.partition(f".{family.layers}.")
    return int(rest.partition(".")[0]) if found else 0


def _sizes(config: PreTrainedConfig, family: Family) -> _Sizes:
    hidden_name, neurons_name, heads_name, groups_name = family.sizes
    hidden, heads = int(getattr(config, hidden_name)), int(getattr(config, heads_name))
    return _Sizes(
        hidden=hidden,
        neurons=int(getattr(config, neurons_name) or 4 * hidden),
        heads=heads,
        groups=int(getattr(config, groups_name)),
        head_size=int(getattr(config, "head_dim", None) or hidden // heads),
    )


def _kept_groups(spec: WidthSpec, sizes: _Sizes) -> int | None:
    return None if spec.heads is None else spec.heads * sizes.groups // sizes.heads


def narrowed_config(config: PreTrainedConfig, spec: WidthSpec) -> PreTrainedConfig:
    """The configuration of the narrower model. Raises RecipeError where the sizes do not fit."""
    family = family_of(config)
    sizes = _sizes(config, family)
    _check(spec, sizes, family)
    groups = _kept_groups(spec, sizes)
    values = config.to_dict()
    hidden_name, neurons_name, heads_name, groups_name = family.sizes
    values[neurons_name] = spec.intermediate or sizes.neurons
    if spec.hidden is not None:
        values[hidden_name] = spec.hidden
    if groups is not None:
        values[groups_name] = groups
        values[heads_name] = spec.heads
    if family.name != "gpt2":
        values["head_dim"] = sizes.head_size  # otherwise loaders would derive it from the smaller width
    return type(config).from_dict(values)


def _check(spec: WidthSpec, sizes: _Sizes, family: Family) -> None:
    limits: list[tuple[str, int | None, int]] = [
        ("intermediate", spec.intermediate, sizes.neurons),
        ("heads", spec.heads, sizes.heads),
        ("hidden", spec.hidden, sizes.hidden),
    ]
    for name, wanted, present in limits:
        if wanted is not None and wanted > present:
            raise RecipeError(f"student.width.{name} = {wanted}, but the teacher has {present}")
    per_group = sizes.heads // sizes.groups
    if spec.heads is not None and spec.heads % per_group:
        raise RecipeError(
            f"student.width.heads = {spec.heads}: whole groups of {per_group} query heads go with one key-value head; "
            f"use a multiple of {per_group}"
        )
    heads, hidden = spec.heads or sizes.heads, spec.hidden or sizes.hidden
    if hidden % heads:
        raise RecipeError(
            f"student.width: hidden = {hidden} is not a multiple of {heads} heads, which transformers demands; use "
            f"{hidden // heads * heads} or {(hidden // heads + 1) * heads}"
        )
    if family.name == "gpt2" and (spec.heads or sizes.heads) * sizes.head_size != (spec.hidden or sizes.hidden):
        raise RecipeError(
            f"GPT-2 needs hidden = heads x {sizes.head_size}, but {spec.hidden or sizes.hidden} is not "
            f"{spec.heads or sizes.heads} x {sizes.head_size}; prune both together"
        )
