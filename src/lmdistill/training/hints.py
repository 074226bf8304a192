"""All hints of an objective: taps in both models, projectors, weights, and from a batch to the terms of the loss.

    hints = HintSet(specs, student=student, teacher=teacher, inputs={"input_ids": ids})
    with hints.listening():
        teacher(**batch); hints.feed(); student(**batch)
    values = hints.values(positions)              # by name, each a mean over its positions
    loss = rest + hints.weighed(values, rest)     # with the weights of the moment
    ...
    hints.close()

It is a module whose parameters are the projectors, nothing of either model: it is saved beside the student.

Shape legend: B batch, L length, H width of the student, K of the teacher.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lmdistill.errors import RecipeError
from lmdistill.models import OutputHead, output_head
from lmdistill.objectives.hints import fsp
from lmdistill.recipe import HintSpec
from lmdistill.signals.types import HiddenSignal
from lmdistill.teachers.reading import hidden_signal
from lmdistill.training.anatomy import bare, blocks_of, final_norm
from lmdistill.training.hint_pairs import (
    Calibration,
    Pair,
    PairedHint,
    pair_hints,
    projector_key,
    projectors_for,
    width_at,
)
from lmdistill.training.hint_weights import gradient_factors, scheduled_weight, size_factor
from lmdistill.training.positions import Positions
from lmdistill.training.projectors import project
from lmdistill.training.taps import FINAL, BlockInputs, Place, Taps, Tell

if TYPE_CHECKING:
    from lmdistill.training.filters import FilterPair


class HintSet(nn.Module):
    """The hints of one training."""

    def __init__(
        self,
        specs: Sequence[HintSpec],
        *,
        student: nn.Module,
        teacher: nn.Module,
        inputs: Mapping[str, Any],
        calibration: Calibration | None = None,
        block_inputs: bool = False,
        vocabulary_size: int | None = None,
        seed: int = 0,
        tell: Tell | None = None,
        filters: FilterPair | None = None,
    ) -> None:
        """Hooks both models, which may be wrapped, and makes the projectors.

        `inputs` is something small that both models can be called with, to learn the widths of what is tapped;
        `calibration` gives batches for `map: cka`; `block_inputs` lets the student's blocks read the teacher's states;
        `vocabulary_size` are the real ids, for `layer_logits`; `tell` is told what becomes slower; `filters` are those
        of a hint with filters, which learnt the task.
        Raises RecipeError, ModelError where layers, modules or widths do not fit.
        """
        super().__init__()
        self.paired = pair_hints(specs, student, teacher, calibration)
        pairs = [pair for paired in self.paired for pair in paired.pairs]
        own = width_at(student, [pair.student for pair in pairs], inputs)
        other = width_at(teacher, [pair.teacher for pair in pairs], inputs)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            device = next(bare(student).parameters()).device
            made = projectors_for(self.paired, lambda pair: (own[pair.student], other[pair.teacher]), device)
        frozen: dict[str, nn.Module] = {}
        for paired in self.paired:
            if paired.spec.filters is not None:
                made |= _filters_of(paired, 0, filters)
                frozen |= _filters_of(paired, 1, filters)
        self.projectors = nn.ModuleDict(made)
        self.teacher_filters = nn.ModuleDict(frozen).requires_grad_(False)
        self.factors = nn.Buffer(torch.ones(len(self.paired), dtype=torch.float64))
        self.measured_at = nn.Buffer(torch.tensor(-1))
        self.progress: Callable[[], float] = lambda: 0.0
        """The share of training that is done."""
        self.step: Callable[[], int] = lambda: 0
        """The optimiser steps that are done."""
        self.current: int | None = None
        """The one block that is trained at present; hints with `only_current` are taken there alone."""
        self._models = (bare(student), bare(teacher))
        self._vocabulary_size = vocabulary_size
        self._uses = Counter(place for pair in pairs for place in ((0, pair.student), (1, pair.teacher)))
        self._left: Counter[tuple[int, Place]] = Counter()
        self._inputs = self._block_inputs(student) if block_inputs else None
        extra = list(self._fed().values())
        self._taps = (
            Taps(student, [pair.student for pair in pairs], tell),
            Taps(teacher, [*(pair.teacher for pair in pairs), *extra], tell),
        )

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch what both models make inside the block."""
        self.open()
        try:
            yield
        finally:
            self.shut()

    def open(self) -> None:
        """Begin to catch; what an earlier batch left is let go."""
        self._left = Counter(self._uses)
        for taps in self._taps:
            taps.open()

    def shut(self) -> None:
        """Catch no more; blocks read what is below them again."""
        for taps in self._taps:
            taps.shut()
        if self._inputs is not None:
            self._inputs.give({})

    def feed(self) -> None:
        """Between the teacher's pass and the student's: blocks read the teacher's states, where the recipe says so."""
        if self._inputs is not None:
            self._inputs.give({layer: self._taps[1].peek(place) for layer, place in self._fed().items()})

    def values(self, positions: Positions) -> dict[str, Tensor]:
        """Each hint of the batch that was caught, a mean over its positions, by name; scalars with gradient.

        What was caught is let go. Hints that have no pair at present (`only_current`) are left out.
        """
        found = {}
        for paired in self.paired:
            values = self._values(paired, positions)
            if values:
                total = torch.stack(values).sum()
                found[paired.name] = total if paired.spec.over_layers == "sum" else total / len(values)
        for taps in self._taps:
            taps.clear()
        return found

    def weighed(self, values: Mapping[str, Tensor], rest: Tensor) -> Tensor:
        """The weighted sum of hints; `rest` is the rest of the objective, which gradients are measured against."""
        self._measure(values, rest)
        total = rest.new_zeros((), dtype=torch.float32)
        for number, paired in enumerate(self.paired):
            if paired.name in values:
                weight = scheduled_weight(paired.spec, self.progress())
                if paired.spec.weight_schedule == "gradient_magnitude":
                    weight *= float(self.factors[number])
                elif paired.spec.weight_schedule == "loss_magnitude":
                    weight *= size_factor(rest, values[paired.name])
                total = total + weight * values[paired.name]
        return total

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What an optimiser trains, a group for each learning rate of its own."""
        rates: dict[float | None, list[nn.Parameter]] = {}
        for paired in self.paired:
            if paired.spec.filters is not None:
                rates.setdefault(None, []).extend(
                    p for n in range(len(paired.pairs)) for p in self.projectors[projector_key(paired, n)].parameters()
                )
            if paired.spec.projector is not None:
                keys = {projector_key(paired, number) for number in range(len(paired.pairs))}
                for key in sorted(keys):
                    found = rates.setdefault(paired.spec.projector.learning_rate, [])
                    found += self.projectors[key].parameters()
        return [{"params": params, **({} if rate is None else {"lr": rate})} for rate, params in rates.items()]

    def close(self) -> None:
        """Take all hooks away; attention is what it was."""
        for taps in self._taps:
            taps.close()
        if self._inputs is not None:
            self._inputs.close()

    # -- one hint ------------------------------------------------------------------------------------------------------

    def _values(self, paired: PairedHint, positions: Positions) -> list[Tensor]:
        numbers = [number for number, pair in enumerate(paired.pairs) if self._is_current(paired, pair)]
        if paired.hint.takes == "flow":
            return self._flows(paired, positions)
        return [self._value(paired, number, positions) for number in numbers]

    def _is_current(self, paired: PairedHint, pair: Pair) -> bool:
        return not paired.spec.only_current or self.current is None or pair.student.layer == self.current

    def _value(self, paired: PairedHint, number: int, positions: Positions) -> Tensor:
        pair, takes = paired.pairs[number], paired.hint.takes
        mask_BL = positions.chosen(paired.spec.positions)
        parameters: dict[str, Any] = dict(paired.spec.parameters)
        if takes in ("query", "key", "value"):
            positions.same_text()
            parameters["segments_BL"] = positions.segments_BL
        elif takes == "scores":
            positions.same_text()
        if takes == "logits":
            return self._layer_logits(paired, pair, positions, mask_BL)
        student, teacher = self._take(0, pair.student), self._take(1, pair.teacher)
        if takes == "hidden":
            student, teacher = self._projected(paired, number, student, positions.of_teacher(teacher))
        return paired.hint.function(student, teacher, mask_BL, **parameters)

    def _flows(self, paired: PairedHint, positions: Positions) -> list[Tensor]:
        positions.same_text()
        mask_BL = positions.chosen(paired.spec.positions)
        states = [
            self._projected(
                paired,
                number,
                self._take(0, pair.student),
                positions.of_teacher(self._take(1, pair.teacher)),
            )
            for number, pair in enumerate(paired.pairs)
        ]
        return [fsp((low[0], high[0]), (low[1], high[1]), mask_BL) for low, high in pairwise(states)]

    def _layer_logits(self, paired: PairedHint, pair: Pair, positions: Positions, mask_BL: Tensor) -> Tensor:
        student, teacher = self._models
        own: OutputHead = output_head(student, self._vocabulary_size)
        own_BLH = self._behind_norm(0, student, pair.student)
        with torch.no_grad():
            other_BLK = positions.of_teacher(self._behind_norm(1, teacher, pair.teacher))
            signal: HiddenSignal = hidden_signal(other_BLK.flatten(0, 1), output_head(teacher, self._vocabulary_size))
        return paired.hint.function(
            own_BLH.flatten(0, 1),
            own.weight_VH,
            signal,
            mask_BL.flatten(),
            student_bias=own.bias_V,
            logit_scale=own.logit_scale,
            softcap=own.softcap,
            vocab_size=own.vocabulary_size,
            compute_dtype=own_BLH.dtype,
            compiled=False,
            **paired.spec.parameters,
        )

    def _behind_norm(self, whose: int, model: nn.Module, place: Place) -> Tensor:
        state = self._take(whose, place)
        norm = final_norm(model)
        return state if place.layer == FINAL or norm is blocks_of(model)[-1] else norm(state)

    def _projected(self, paired: PairedHint, number: int, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        if paired.spec.projector is not None or paired.spec.filters is not None:
            student = project(self.projectors[projector_key(paired, number)], student)
        if paired.spec.filters is not None:
            with torch.no_grad():
                teacher = project(self.teacher_filters[projector_key(paired, number)], teacher)
        return student, teacher

    # -- the rest ------------------------------------------------------------------------------------------------------

    def _fed(self) -> dict[int, Place]:
        """What blocks read where they read the teacher's states: block m + 1 that of the teacher's layer paired with m.

        The first block reads the student's own embeddings, which are what it will read afterwards.
        """
        if self._inputs is None:
            return {}
        pairs = [(pair.student.layer, pair.teacher) for pair in self.paired[0].pairs]
        depth = len(blocks_of(self._models[0]))
        return {
            layer + 1: place
            for layer, place in pairs
            if isinstance(layer, int) and 0 < layer < depth and isinstance(place.layer, int)
        }

    def _block_inputs(self, student: nn.Module) -> BlockInputs:
        paired = self.paired[0]
        bridge = "with a projector" if paired.spec.projector is not None else ""
        bridge = "with filters" if paired.spec.filters is not None else bridge
        if paired.hint.takes != "hidden" or bridge:
            raise RecipeError(
                f"objective.block_inputs: teacher needs a first hint on hidden states of one width, not {paired.name} "
                f"{bridge}".rstrip()
            )
        return BlockInputs(student, range(1, len(blocks_of(student)) + 1))

    def _measure(self, values: Mapping[str, Tensor], rest: Tensor) -> None:
        """Find the factors of hints that are weighed by their gradients, where it is time."""
        wanted = [
            (number, paired)
            for number, paired in enumerate(self.paired)
            if paired.spec.weight_schedule == "gradient_magnitude" and paired.name in values
        ]
        step, before = self.step(), int(self.measured_at)
        if not wanted or (before >= 0 and (step == before or step % min(p.spec.measure_every for _, p in wanted))):
            return
        found = gradient_factors(rest, {p.name: values[p.name] for _, p in wanted}, self._shared())
        for number, paired in wanted:
            self.factors[number] = found[paired.name]
        self.measured_at.fill_(step)

    def _shared(self) -> list[nn.Parameter]:
        """Parameters that every hint reaches: the lowest block that is compared, or the embeddings."""
        layers = [pair.student.layer for paired in self.paired for pair in paired.pairs]
        lowest = min((layer for layer in layers if isinstance(layer, int)), default=1)
        student: Any = self._models[0]
        holder = student.get_input_embeddings() if lowest == 0 else blocks_of(student)[lowest - 1]
        return list(holder.parameters())

    def _take(self, whose: int, place: Place) -> Tensor:
        """What was caught; let go with its last use."""
        self._left[(whose, place)] -= 1
        taps = self._taps[whose]
        return taps.take(place) if self._left[(whose, place)] <= 0 else taps.peek(place)


def _filters_of(paired: PairedHint, whose: int, filters: FilterPair | None) -> dict[str, nn.Module]:
    """The filters of one model by the names of pairs. Raises RecipeError where they have not learnt the task."""
    if filters is None:
        raise RecipeError(f"objective.hints: the filters of {paired.name} have not learnt the task: none were given")
    own = (filters.student, filters.teacher)[whose]
    layers = [(pair.student, pair.teacher)[whose].layer for pair in paired.pairs]
    return {projector_key(paired, number): own.at(int(layer)) for number, layer in enumerate(layers)}
