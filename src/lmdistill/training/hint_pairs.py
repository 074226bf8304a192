"""From a hint in a recipe to pairs of places in both models, their widths checked and projected."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from lmdistill.errors import RecipeError
from lmdistill.objectives.hints import HINTS, Hint
from lmdistill.recipe import HintSpec
from lmdistill.training.anatomy import bare, blocks_of
from lmdistill.training.layer_maps import checked_layers, cka_pairs, cka_similarity, mapped_layers
from lmdistill.training.projectors import make_projector
from lmdistill.training.taps import FINAL, Place, Taps

Calibration = Callable[[], Sequence[Mapping[str, Any]]]
"""Batches that both models read, to look for similar layers in."""


@dataclass(frozen=True)
class Pair:
    """Two places that are compared."""

    student: Place
    teacher: Place


@dataclass(frozen=True)
class PairedHint:
    """A hint of a recipe, its function, and where it is taken."""

    name: str
    spec: HintSpec
    hint: Hint
    pairs: tuple[Pair, ...]


def pair_hints(
    specs: Sequence[HintSpec],
    student: nn.Module,
    teacher: nn.Module,
    calibration: Calibration | None = None,
) -> list[PairedHint]:
    """The places that each hint compares. Raises RecipeError for layers that are not there."""
    found = []
    for number, spec in enumerate(specs):
        same = [other.kind for other in specs].count(spec.kind) > 1
        name = f"{spec.kind}-{number}" if same else spec.kind
        hint = HINTS[spec.kind]
        if hint.takes == "attributions":
            raise RecipeError(
                "objective.hints: attributions explain the score of a class: they need a recipe with a task"
            )
        pairs = _pairs(spec, hint, student, teacher, calibration)
        if hint.takes == "flow" and len(pairs) < 2:
            raise RecipeError("objective.hints: fsp compares the way from one layer to the next: name at least two")
        found.append(PairedHint(name, spec, hint, tuple(pairs)))
    return found


def layer_pairs(
    spec: HintSpec, student: nn.Module, teacher: nn.Module, calibration: Calibration | None = None
) -> list[tuple[int | str, int | str]]:
    """The pairs (student's, teacher's) of layers of a hint. Raises RecipeError."""
    hint = HINTS[spec.kind]
    lowest = 0 if hint.takes in ("hidden", "flow", "logits") else 1
    own, other = spec.student, spec.teacher
    if own is None and other is None:
        if spec.kind == "embedding_mse":
            return [(0, 0)]
        if hint.takes in ("query", "key", "value"):  # MiniLM: the last layer
            own, other = [-1], [-1]
    if isinstance(own, str) and other is not None:
        others = [other] if isinstance(other, str) else _one(other, blocks_of(teacher), "teacher", lowest)
        return [(own, others[0])]
    depths = len(blocks_of(student)), (0 if isinstance(other, str) else len(blocks_of(teacher)))
    layers = None if own is None else checked_layers(cast("list[int]", own), depths[0], "student", lowest=lowest)
    if isinstance(other, str):
        return [(layer, other) for layer in layers or [depths[0]]]
    if other is not None:
        assert layers is not None  # the recipe checks it
        return list(zip(layers, checked_layers(other, depths[1], "teacher", lowest=lowest), strict=True))
    if spec.map == "cka":
        return list(_searched(layers or [*range(1, depths[0] + 1)], student, teacher, calibration))
    return list(mapped_layers(spec.map, *depths, layers))


def hint_problems(specs: Sequence[HintSpec], student: PreTrainedConfig, teacher: PreTrainedConfig) -> Iterator[str]:
    """What of hints cannot be, by the configurations of both models alone: layers out of range, widths apart."""
    own, other = student.get_text_config(), teacher.get_text_config()
    for spec in specs:
        hint = HINTS[spec.kind]
        lowest = 0 if hint.takes in ("hidden", "flow", "logits") else 1
        for layers, config, whose in ((spec.student, own, "student"), (spec.teacher, other, "teacher")):
            if isinstance(layers, list):
                try:
                    checked_layers(layers, config.num_hidden_layers, whose, lowest=lowest)
                except RecipeError as error:
                    yield str(error)
        by_path = any(isinstance(layers, str) and layers != FINAL for layers in (spec.student, spec.teacher))
        bridged = spec.projector is not None or spec.filters is not None
        if hint.same_width and not bridged and not by_path and own.hidden_size != other.hidden_size:
            yield (
                f"{spec.kind} compares vectors of one width, but the student has {own.hidden_size} and the teacher "
                f"{other.hidden_size}: set projector: {{kind: linear}} for it"
            )


def projectors_for(
    hints: Sequence[PairedHint], widths: Callable[[Pair], tuple[int, int]], device: torch.device
) -> dict[str, nn.Module]:
    """Projectors by name of hint and number of pair. Raises RecipeError where widths differ and none is asked for."""
    made: dict[str, nn.Module] = {}
    for paired in hints:
        spec = paired.spec.projector
        if spec is not None and not paired.hint.same_width:
            raise RecipeError(f"objective.hints: {paired.name} compares any two widths: take its projector away")
        if not paired.hint.same_width or paired.spec.filters is not None:
            continue
        for number, pair in enumerate(paired.pairs):
            own, other = widths(pair)
            if spec is None:
                if own != other:
                    raise RecipeError(
                        f"objective.hints: {paired.name} compares vectors of one width, but {pair.student} of the "
                        f"student has {own} and {pair.teacher} of the teacher {other}: set projector: {{kind: linear}} "
                        "for it"
                    )
                continue
            key = projector_key(paired, number)
            if key not in made:
                made[key] = make_projector(spec, own, other).to(device)
    return made


def projector_key(paired: PairedHint, number: int) -> str:
    """Name of the projector of a pair."""
    shared = paired.spec.projector is not None and paired.spec.projector.shared
    return paired.name if shared else f"{paired.name}/{number}"


@torch.no_grad()
def width_at(model: nn.Module, places: Sequence[Place], inputs: Mapping[str, Any]) -> dict[Place, int]:
    """The width of what is caught at places, by reading a few tokens."""
    inner = bare(model)
    taps = Taps(inner, places)
    mode = inner.training
    try:
        inner.eval()
        with taps.capture():
            inner(**inputs)
        return {place: taps.take(place).shape[-1] for place in taps.places}
    finally:
        inner.train(mode)
        taps.close()


def _pairs(
    spec: HintSpec, hint: Hint, student: nn.Module, teacher: nn.Module, calibration: Calibration | None
) -> list[Pair]:
    takes: Any = {"flow": "hidden", "logits": "hidden"}.get(hint.takes, hint.takes)
    return [
        Pair(Place(takes, own), Place(takes, other)) for own, other in layer_pairs(spec, student, teacher, calibration)
    ]


def _one(layers: Sequence[int], blocks: Sequence[nn.Module], whose: str, lowest: int) -> list[int | str]:
    found = checked_layers(layers, len(blocks), whose, lowest=lowest)
    if len(found) != 1:
        raise RecipeError(
            f"objective.hints: one module of the student but {len(found)} layers of the {whose}; name one"
        )
    return list(found)


@torch.no_grad()
def _searched(
    layers: Sequence[int], student: nn.Module, teacher: nn.Module, calibration: Calibration | None
) -> list[tuple[int, int]]:
    if calibration is None:
        raise RecipeError(
            "objective.hints: map: cka looks for similar layers in calibration text, and there is none here"
        )
    states: list[list[list[Tensor]]] = [[[] for _ in layers], [[] for _ in blocks_of(teacher)]]
    taps = [
        Taps(student, [Place("hidden", layer) for layer in layers]),
        Taps(teacher, [Place("hidden", layer) for layer in range(1, len(states[1]) + 1)]),
    ]
    modes = [bare(model).training for model in (student, teacher)]
    try:
        for inputs in calibration():
            for model, caught, found in zip((student, teacher), taps, states, strict=True):
                bare(model).eval()
                with caught.capture():
                    bare(model)(**inputs)
                for place, kept in zip(caught.places, found, strict=True):
                    kept.append(caught.take(place).flatten(0, 1).float().cpu())
    finally:
        for model, mode, caught in zip((student, teacher), modes, taps, strict=True):
            bare(model).train(mode)
            caught.close()
    own, other = ([torch.cat(kept) for kept in found] for found in states)
    return cka_pairs(cka_similarity(own, other), list(layers))


__all__ = [
    "FINAL",
    "Calibration",
    "Pair",
    "PairedHint",
    "hint_problems",
    "layer_pairs",
    "pair_hints",
    "projector_key",
    "projectors_for",
    "width_at",
]
