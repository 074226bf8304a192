"""Hints of a recipe as terms of a task's loss: those of layers by `lmdistill.training.hints`, and attributions.

Shape legend: B rows, L length, H embedding width, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from lmdistill.errors import ModelError, RecipeError
from lmdistill.objectives.hints import HINTS, integrated_gradients
from lmdistill.objectives.hints.pieces import wide
from lmdistill.recipe import HintSpec
from lmdistill.recipe.task import TaskKind
from lmdistill.tasks.models import inputs_of, outputs
from lmdistill.tasks.objective import Said
from lmdistill.training.hint_weights import scheduled_weight
from lmdistill.training.hints import HintSet
from lmdistill.training.positions import encoder_positions
from lmdistill.training.taps import Tell


class HintTerms:
    """All hints of a job."""

    name = "hints"

    def __init__(
        self,
        specs: Sequence[HintSpec],
        kind: TaskKind,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        *,
        batch: dict[str, Any],
        block_inputs: bool = False,
        seed: int = 0,
        tell: Tell | None = None,
    ) -> None:
        """`batch` is one of the task's: widths are learnt from its first row, and `map: cka` looks at all of it.

        Raises RecipeError for layers that are not there, for widths that need a projector, and for hints that a task
        does not have; ModelError for a place without what is asked of it.
        """
        for spec in specs:
            if HINTS[spec.kind].takes == "logits":
                raise RecipeError(f"hint {spec.kind} is for causal language models: a task's layers have no such head")
            if HINTS[spec.kind].takes == "attributions" and kind != "sequence_classification":
                raise RecipeError(f"hint {spec.kind} explains classes of a text, which {kind} does not predict")
        self.kind = kind
        self.attributions = [spec for spec in specs if HINTS[spec.kind].takes == "attributions"]
        layered = [spec for spec in specs if HINTS[spec.kind].takes != "attributions"]
        self.set: HintSet | None = None
        if layered:
            first = {name: value[:1] for name, value in inputs_of(student, batch).items()}
            self.set = HintSet(
                layered,
                student=student,
                teacher=teacher,
                inputs=first,
                calibration=lambda: [inputs_of(student, batch)],
                block_inputs=block_inputs,
                seed=seed,
                tell=tell,
            )
        self.modules: nn.Module | None = self.set

    def before(self, batch: dict[str, Any], student: nn.Module, teacher: PreTrainedModel | None) -> None:
        """Catch what the next forward passes make."""
        if self.set is not None:
            self.set.open()

    def between(self) -> None:
        """The teacher has read the batch."""
        if self.set is not None:
            self.set.feed()

    def after(self) -> None:
        """Catch no more."""
        if self.set is not None:
            self.set.shut()

    def close(self) -> None:
        """Take the hooks away."""
        if self.set is not None:
            self.set.close()

    def __call__(self, said: Said) -> Tensor:
        """The weighed sum of all hints of a batch."""
        total = said.student_NC.new_zeros((), dtype=torch.float32)
        if self.set is not None:
            self.set.progress = lambda: said.progress
            self.set.step = lambda: said.step
            labels = said.batch["labels"] if self.kind in ("token_classification", "masked_lm") else None
            values = self.set.values(encoder_positions(said.batch["attention_mask"], labels))
            total = total + self.set.weighed(values, said.rest)
        for spec in self.attributions:
            total = total + scheduled_weight(spec, said.progress) * attribution(spec, self.kind, said)
        return total


def attribution(spec: HintSpec, kind: TaskKind, said: Said) -> Tensor:
    """AD-KD's distance of attribution maps (2305.10010); both models are run again, from their word embeddings on.

    The published code explains the logits of all classes with one step of integrated gradients and takes the first
    position ([CLS]) along; so does this.
    """
    options: dict[str, Any] = dict(spec.parameters)
    steps = int(options.pop("steps", 1))
    if "top" in options:
        options["top"] = int(options["top"])
    if said.teacher is None:
        raise ModelError(f"hint {spec.kind} compares with a teacher, and there is none")
    maps = []
    for model in (said.bare, said.teacher):
        table: Any = model.get_input_embeddings()  # type: ignore[operator]

        def scores(embeds_BLH: Tensor, model: nn.Module = model) -> Tensor:
            # The student's second derivative goes through plain attention alone: fused kernels have none.
            with sdpa_kernel(SDPBackend.MATH):
                return wide(outputs(model, said.batch, kind, embeds=embeds_BLH))

        own = model is said.bare
        maps.append(integrated_gradients(scores, table(said.batch["input_ids"]), steps=steps, create_graph=own))
    found: Tensor = HINTS[spec.kind].function(maps[0], maps[1], said.batch["attention_mask"].bool(), **options)
    return found
