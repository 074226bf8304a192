"""Depth pruning: which layers of the teacher stay.

Shape legend: B batch, L length, H hidden, N scored positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from lmdistill.errors import RecipeError
from lmdistill.models import output_head
from lmdistill.objectives.rows import LogitsView
from lmdistill.progress import Progress
from lmdistill.recipe import DepthSpec
from lmdistill.students.families import config_for_layers, decoder_layers, family_of

Batch = Mapping[str, Tensor]
_ROWS = 128


@dataclass(frozen=True)
class Ranking:
    """Which layers stay, and by what."""

    kept: list[int]
    scores: dict[int, float]
    """Importance of each layer where it was measured: the higher, the more it is missed."""
    order: list[int]
    """Layers in the order in which they were removed."""


def choose_layers(model: PreTrainedModel, spec: DepthSpec, batches: Sequence[Batch], progress: Progress) -> Ranking:
    """The layers that a depth specification keeps. Raises RecipeError where it asks for more than there are."""
    depth = len(decoder_layers(model))
    protected = {*range(spec.protect_first), *range(depth - spec.protect_last, depth)}
    if spec.keep > depth:
        raise RecipeError(f"student.depth.keep = {spec.keep}, but the teacher has {depth} layers")
    if spec.importance in ("uniform", "first", "last"):
        return Ranking(_by_position(depth, spec), {}, [])
    if len(protected) > spec.keep:
        raise RecipeError(
            f"student.depth.keep = {spec.keep}, but protect_first = {spec.protect_first} and protect_last = "
            f"{spec.protect_last} keep {len(protected)} already; lower them"
        )
    removable = [index for index in range(depth) if index not in protected]
    if spec.importance == "greedy_perplexity":
        return _greedy(model, spec.keep, removable, batches, progress)
    if spec.importance == "block_influence":
        scores = block_influence(model, batches, progress)
    else:
        chain = LayerChain(model, batches)
        with progress.task("layer importance", total=len(removable), unit="layers") as task:
            scores = chain.rise_without([*range(depth)], removable, task.advance)
    order = sorted(removable, key=lambda index: (scores[index], index))[: depth - spec.keep]
    return Ranking(sorted(set(range(depth)) - set(order)), scores, order)


def with_layers(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """A model of the same class made of these layers; its weights are copies."""
    kept = list(kept)
    depth = len(decoder_layers(model))
    wrong = [index for index in kept if not 0 <= index < depth]
    if wrong or len(set(kept)) < len(kept) or not kept:
        raise RecipeError(f"student.layers = {kept}: must be different numbers from 0 to {depth - 1}")
    kept = sorted(kept)
    marker = f".{family_of(model.config).layers}."
    state = {}
    for name, tensor in model.state_dict().items():
        before, found, rest = name.partition(marker)
        if found:
            index, _, inner = rest.partition(".")
            if int(index) not in kept:
                continue
            name = f"{before}{marker}{kept.index(int(index))}.{inner}"
        state[name] = tensor
    return rebuilt(model, config_for_layers(model.config, kept), state)


def rebuilt(model: PreTrainedModel, config: Any, state: Mapping[str, Tensor]) -> PreTrainedModel:
    """A model of the same class with another configuration and these weights, checked to fit one by one."""
    config._attn_implementation = model.config._attn_implementation
    fresh: Any = type(model)(config)
    made = cast(PreTrainedModel, fresh.to(device=model.device))
    # Not `.to(dtype)` of the whole: it would round buffers that are computed, such as the rotary frequencies.
    for parameter in made.parameters():
        parameter.data = parameter.data.to(model.dtype)
    made.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, strict=True)
    made.tie_weights()
    if getattr(model, "generation_config", None) is not None:  # encoders write nothing
        made.generation_config = model.generation_config
    made.eval()
    return made


@torch.no_grad()
def block_influence(model: PreTrainedModel, batches: Sequence[Batch], progress: Progress) -> dict[int, float]:
    """1 - mean cosine between the input and the output of each layer (ShortGPT 2403.03853, eq. 1)."""
    layers = decoder_layers(model)
    totals, count = torch.zeros(len(layers), dtype=torch.float64), 0

    def watch(index: int) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            before_BLH = args[0] if args else kwargs["hidden_states"]
            cosine_BL = F.cosine_similarity(before_BLH.float(), _hidden_of(output).float(), dim=-1)
            totals[index] += float((1 - cosine_BL).sum())

        return hook

    handles = [layer.register_forward_hook(watch(i), with_kwargs=True) for i, layer in enumerate(layers)]
    try:
        with progress.task("layer importance", total=len(batches), unit="batches") as task:
            for batch in batches:
                model.base_model(**_to(batch, model.device), use_cache=False)
                count += batch["input_ids"].numel()
                task.advance()
    finally:
        for handle in handles:
            handle.remove()
    return {index: float(total) / max(1, count) for index, total in enumerate(totals)}


class LayerChain:
    """A decoder taken apart, so that leaving a layer out costs only the layers behind it.

    One ordinary pass records with what arguments the model calls each layer (masks, positions); afterwards layers are
    called in any selection by themselves.
    """

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, batches: Sequence[Batch]) -> None:
        self.layers = decoder_layers(model)
        self.norm = getattr(model.base_model, family_of(model.config).final_norm)
        self.head = output_head(model)
        self.calls: list[dict[int, tuple[tuple[Any, ...], dict[str, Any]]]] = []
        self.inputs: list[Tensor] = []
        self.labels: list[Tensor] = []
        for batch in batches:
            self._record(model, _to(batch, model.device))

    @torch.no_grad()
    def rise_without(self, kept: Sequence[int], candidates: Sequence[int], told: Any = None) -> dict[int, float]:
        """By how many nats a token the loss rises when one candidate is left out of the kept layers."""
        rises = dict.fromkeys(candidates, 0.0)
        whole, count = 0.0, 0
        for number, hidden_BLH in enumerate(self.inputs):
            before: dict[int, Tensor] = {}
            for index in kept:
                before[index] = hidden_BLH
                hidden_BLH = self._call(number, index, hidden_BLH)
            whole += self._loss(number, hidden_BLH)
            count += int((self.labels[number] != -100).sum())
            for candidate in candidates:
                hidden = before[candidate]
                for index in kept[list(kept).index(candidate) + 1 :]:
                    hidden = self._call(number, index, hidden)
                rises[candidate] += self._loss(number, hidden)
                if told is not None:
                    told(1 / len(self.inputs))
        return {index: (total - whole) / max(1, count) for index, total in rises.items()}

    def _record(self, model: PreTrainedModel, batch: dict[str, Tensor]) -> None:
        calls: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}

        def watch(index: int) -> Any:
            def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
                hidden = args[0] if args else kwargs["hidden_states"]
                if index == 0:
                    self.inputs.append(hidden)
                calls[index] = args[1:], {k: v for k, v in kwargs.items() if k != "hidden_states"}

            return hook

        handles = [layer.register_forward_pre_hook(watch(i), with_kwargs=True) for i, layer in enumerate(self.layers)]
        try:
            model.base_model(**batch, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        self.calls.append(calls)
        labels_BL = F.pad(batch["input_ids"][:, 1:], (0, 1), value=-100)
        if "position_ids" in batch:  # the first token of a packed document is not predicted from another one
            labels_BL = labels_BL.masked_fill(F.pad(batch["position_ids"][:, 1:], (0, 1), value=0) == 0, -100)
        self.labels.append(labels_BL)

    def _call(self, number: int, index: int, hidden_BLH: Tensor) -> Tensor:
        args, kwargs = self.calls[number][index]
        return _hidden_of(self.layers[index](hidden_BLH, *args, **kwargs))

    def _loss(self, number: int, hidden_BLH: Tensor) -> float:
        labels_N = self.labels[number].flatten()
        hidden_NH = self.norm(hidden_BLH).flatten(0, 1)[labels_N != -100]
        labels_N = labels_N[labels_N != -100]
        view = LogitsView(self.head.logit_scale, self.head.softcap)
        total = 0.0
        for rows_nH, labels_n in zip(hidden_NH.split(_ROWS), labels_N.split(_ROWS), strict=True):
            logits_nV = F.linear(rows_nH, self.head.weight_VH, self.head.bias_V)
            total += float(F.cross_entropy(view.logits(logits_nV), labels_n, reduction="sum"))
        return total


def _greedy(
    model: PreTrainedModel, keep: int, removable: Sequence[int], batches: Sequence[Batch], progress: Progress
) -> Ranking:
    """Remove the layer that is missed least, measure again, and so on."""
    chain = LayerChain(model, batches)
    kept, left, order = [*range(len(chain.layers))], list(removable), []
    scores: dict[int, float] = {}
    total = sum(len(left) - step for step in range(len(kept) - keep))
    with progress.task("layer importance", total=total, unit="trials") as task:
        while len(kept) > keep:
            scores = {**scores, **chain.rise_without(kept, left, task.advance)}
            worst = min(left, key=lambda index: (scores[index], index))
            kept.remove(worst)
            left.remove(worst)
            order.append(worst)
    return Ranking(kept, scores, order)


def _by_position(depth: int, spec: DepthSpec) -> list[int]:
    if spec.importance == "first":
        return [*range(spec.keep)]
    if spec.importance == "last":
        return [*range(depth - spec.keep, depth)]
    if spec.keep == 1:
        return [0]
    return sorted({round(index * (depth - 1) / (spec.keep - 1)) for index in range(spec.keep)})


def _hidden_of(output: Any) -> Tensor:
    tensor = output[0] if isinstance(output, tuple) else output
    assert isinstance(tensor, Tensor)
    return tensor


def _to(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in batch.items()}
