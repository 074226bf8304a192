"""Hints of a recipe as terms of a task's loss: which layers, what of them, at which positions, through which projector.

Shape legend: B rows, L length, A heads, H width of the student, K of the teacher, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from lmdistill.errors import ModelError, RecipeError
from lmdistill.objectives.hints import HINTS, Hint, integrated_gradients
from lmdistill.recipe import HintSpec
from lmdistill.recipe.task import TaskKind
from lmdistill.tasks.encode import IGNORED
from lmdistill.tasks.models import inputs_of, outputs
from lmdistill.tasks.objective import Said
from lmdistill.training.anatomy import blocks_of
from lmdistill.training.layer_maps import checked_layers, cka_pairs, cka_similarity, mapped_layers
from lmdistill.training.projectors import make_projector, project
from lmdistill.training.taps import Place, Taps, Tell

Layer = int | str


@dataclass(frozen=True)
class _Term:
    """One hint with its pairs of layers (student's, teacher's)."""

    spec: HintSpec
    hint: Hint
    pairs: list[tuple[Layer, Layer]]

    def places(self, side: int) -> list[Place]:
        """What is caught of the student (0) or the teacher (1)."""
        takes = "hidden" if self.hint.takes in ("hidden", "flow") else self.hint.takes
        return [] if takes == "attributions" else [Place(cast(Any, takes), pair[side]) for pair in self.pairs]


class HintTerms:
    """All hints of a job. Layers that no hint names are not kept."""

    name = "hints"

    def __init__(
        self,
        specs: Sequence[HintSpec],
        kind: TaskKind,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        *,
        calibration: dict[str, Any] | None = None,
        tell: Tell | None = None,
    ) -> None:
        """`calibration` is a batch for `map: cka`; `tell` is told where an attention becomes slower.

        Raises RecipeError for layers that are not there, for widths that need a projector, and for hints that a task
        does not have; ModelError for a place without what is asked of it.
        """
        self.kind = kind
        self.terms = [self._term(spec, student, teacher, calibration) for spec in specs]
        self._taps = [
            Taps(model, [place for term in self.terms for place in term.places(side)], tell)
            for side, model in enumerate((student, teacher))
        ]
        self.projectors = nn.ModuleDict()
        self._project(student, teacher)
        self.modules: nn.Module | None = self.projectors if len(self.projectors) else None
        self._stack = ExitStack()

    def before(self, batch: dict[str, Any], student: nn.Module, teacher: PreTrainedModel | None) -> None:
        """Catch what the next forward passes make."""
        self._stack.close()
        for taps in self._taps:
            self._stack.enter_context(taps.capture())

    def after(self) -> None:
        """Catch no more."""
        self._stack.close()

    def close(self) -> None:
        """Take the hooks away."""
        self._stack.close()
        for taps in self._taps:
            taps.close()

    def __call__(self, said: Said) -> Tensor:
        """The weighed sum of all hints of a batch."""
        caught: list[dict[Place, Tensor]] = [{place: taps.take(place) for place in taps.places} for taps in self._taps]
        total = said.student_NC.new_zeros((), dtype=torch.float32)
        for number, term in enumerate(self.terms):
            weight = _weight(term.spec, said.progress)
            if weight:
                total = total + weight * self._distance(number, term, caught, said)
        return total

    def _distance(self, number: int, term: _Term, caught: list[dict[Place, Tensor]], said: Said) -> Tensor:
        if term.hint.takes == "attributions":
            return _attribution(term.spec, self.kind, said)
        mask_BL = self._mask(term.spec, said.batch)
        states = []
        for place, (own, other) in enumerate(zip(term.places(0), term.places(1), strict=True)):
            student, teacher = caught[0][own], caught[1][other]
            if term.spec.positions == "first":
                student, teacher = student[:, :1], teacher[:, :1]
            states.append(self._projected(number, place, term.spec, student, teacher))
        options: dict[str, Any] = dict(term.spec.parameters)
        if term.hint.takes in ("query", "key", "value"):
            options["segments_BL"] = said.batch["attention_mask"] - 1  # 0 the text, -1 padding
        if term.hint.takes == "flow":
            flows = pairwise(states)
            found = [
                term.hint.function((first[0], second[0]), (first[1], second[1]), mask_BL, **options)
                for first, second in flows
            ]
        else:
            found = [term.hint.function(student, teacher, mask_BL, **options) for student, teacher in states]
        total = torch.stack(found).sum()
        return total if term.spec.over_layers == "sum" else total / len(found)

    def _projected(
        self, number: int, place: int, spec: HintSpec, student: Tensor, teacher: Tensor
    ) -> tuple[Tensor, Tensor]:
        if spec.projector is None:
            return student, teacher
        name = f"{number}-{0 if spec.projector.shared else place}"
        if spec.projector.side == "student":
            return project(self.projectors[name], student), teacher
        return student, project(self.projectors[name], teacher)

    def _mask(self, spec: HintSpec, batch: dict[str, Any]) -> Tensor:
        """Positions that count, (B, L); (B, 1) where it is the first one."""
        mask_BL: Tensor = batch["attention_mask"].bool()
        if spec.positions == "first":
            return mask_BL[:, :1]
        if spec.positions == "trained" and self.kind in ("token_classification", "masked_lm"):
            return cast(Tensor, batch["labels"] != IGNORED)
        return mask_BL

    def _project(self, student: PreTrainedModel, teacher: PreTrainedModel) -> None:
        """Make the projectors, or refuse widths that need one."""
        widths = [int(model.config.hidden_size) for model in (student, teacher)]
        for number, term in enumerate(self.terms):
            spec = term.spec
            if spec.projector is None:
                if term.hint.same_width and widths[0] != widths[1]:
                    raise RecipeError(
                        f"hint {spec.kind}: the student's states have {widths[0]} numbers and the teacher's "
                        f"{widths[1]}; give it a projector: {{kind: linear}}"
                    )
                continue
            given, wanted = widths if spec.projector.side == "student" else widths[::-1]
            for place in range(1 if spec.projector.shared else len(term.pairs)):
                made = make_projector(spec.projector, given, wanted)
                self.projectors[f"{number}-{place}"] = made.to(student.device)

    def _term(
        self, spec: HintSpec, student: PreTrainedModel, teacher: PreTrainedModel, calibration: dict[str, Any] | None
    ) -> _Term:
        hint = HINTS[spec.kind]
        if hint.takes == "logits":
            raise RecipeError(f"hint {spec.kind} is for causal language models: a task's layers have no head of words")
        if spec.weight_schedule == "gradient_magnitude":
            raise RecipeError("weight_schedule: gradient_magnitude is for causal language models; use linear")
        if hint.takes == "attributions":
            if self.kind != "sequence_classification":
                raise RecipeError(f"hint {spec.kind} explains classes of a text, which {self.kind} does not predict")
            return _Term(spec, hint, [])
        pairs = pairs_of(spec, hint, student, teacher, calibration)
        if hint.takes == "flow" and len(pairs) < 2:
            raise RecipeError(f"hint {spec.kind} compares two layers with two: it needs 2 pairs, not {len(pairs)}")
        return _Term(spec, hint, pairs)


def pairs_of(
    spec: HintSpec,
    hint: Hint,
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    calibration: dict[str, Any] | None = None,
) -> list[tuple[Layer, Layer]]:
    """The pairs of layers (student's, teacher's) that a hint compares. Raises RecipeError with both numbers."""
    if isinstance(spec.teacher, str) or isinstance(spec.student, str):
        return [(spec.student or spec.teacher, spec.teacher or spec.student)]  # type: ignore[list-item]
    if spec.kind == "embedding_mse" and spec.student is None:
        return [(0, 0)]
    depths = [len(blocks_of(model)) for model in (student, teacher)]
    lowest = 0 if hint.takes in ("hidden", "flow") else 1
    own = checked_layers(spec.student, depths[0], "student", lowest=lowest) if spec.student is not None else None
    if spec.teacher is not None:
        assert own is not None  # the recipe checks it
        other = checked_layers(spec.teacher, depths[1], "teacher", lowest=lowest)
        return list(zip(own, other, strict=True))
    if spec.map == "cka":
        layers = own or [*range(1, depths[0] + 1)]
        return [*cka_pairs(_similarity(student, teacher, layers, depths[1], calibration), layers)]
    return [*mapped_layers(spec.map, depths[0], depths[1], own)]


@torch.no_grad()
def _similarity(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    layers: Sequence[int],
    depth: int,
    calibration: dict[str, Any] | None,
) -> Tensor:
    if calibration is None:
        raise RecipeError("map: cka needs a batch to look at; name the teacher's layers instead")
    mask_BL = calibration["attention_mask"].bool()
    states = []
    for model, wanted in ((student, layers), (teacher, range(1, depth + 1))):
        places = [Place("hidden", layer) for layer in wanted]
        taps = Taps(model, places)
        try:
            with taps.capture():
                model(**inputs_of(model, calibration))
            states.append([taps.take(place)[mask_BL] for place in places])
        finally:
            taps.close()
    return cka_similarity(states[0], states[1])


def _weight(spec: HintSpec, progress: float) -> float:
    if spec.weight_schedule == "linear":
        assert spec.weight_end is not None  # the recipe checks it
        return spec.weight + (spec.weight_end - spec.weight) * min(1.0, progress)
    return spec.weight


def _attribution(spec: HintSpec, kind: TaskKind, said: Said) -> Tensor:
    """AD-KD's distance of attribution maps; both models are run once more, from their word embeddings on."""
    options: dict[str, Any] = dict(spec.parameters)
    steps = int(options.pop("steps", 1))
    if "top" in options:
        options["top"] = int(options["top"])
    if said.teacher is None:
        raise ModelError(f"hint {spec.kind} compares with a teacher, and there is none")
    maps = []
    for model in (said.bare, said.teacher):
        table: Any = model.get_input_embeddings()  # type: ignore[operator]
        own = model is said.bare

        def scores(embeds_BLH: Tensor, model: nn.Module = model) -> Tensor:
            # The second derivative goes through plain attention alone: the fused kernels have none.
            with sdpa_kernel(SDPBackend.MATH):
                return outputs(model, said.batch, kind, embeds=embeds_BLH).float()

        maps.append(integrated_gradients(scores, table(said.batch["input_ids"]), steps=steps, create_graph=own))
    mask_BL = said.batch["attention_mask"].bool()
    found: Tensor = HINTS[spec.kind].function(maps[0], maps[1], mask_BL, **options)
    return found
