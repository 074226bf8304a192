"""What compares the insides of two models in a training job, and what changes what is trained while it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from transformers import PreTrainedModel

from lmdistill.data import Collator
from lmdistill.errors import RecipeError
from lmdistill.io import write_bytes
from lmdistill.stages.context import Context
from lmdistill.stages.filter_files import learnt_filters
from lmdistill.teachers import LocalTeacher, Teacher
from lmdistill.teachers.base import model_inputs
from lmdistill.training.hints import HintSet

if TYPE_CHECKING:
    from lmdistill.stages.jobs import Job

CALIBRATION_ROWS = 8
"""Rows of text in which similar layers are looked for (`map: cka`)."""


def hints_of(
    context: Context, job: Job, model: PreTrainedModel, teacher: Teacher | None, vocabulary_size: int
) -> HintSet | None:
    """The hints of a job's objective; None where it has none. `model` is the student in training.

    Raises RecipeError, ModelError where layers, widths or the teacher do not fit.
    """
    spec = job.objective
    if not spec.hints:
        return None
    if not isinstance(teacher, LocalTeacher):
        raise RecipeError(
            f"stage {job.name}: objective.hints look inside one teacher that runs beside the student: use "
            "teaching.kind: model and signals.kind: live"
        )
    device = next(model.parameters()).device
    filtered = next((hint for hint in spec.hints if hint.filters is not None), None)

    def calibration() -> Sequence[Mapping[str, Any]]:
        if job.trajectories.on_policy:
            raise RecipeError(f"stage {job.name}: map: cka needs text of a data set; name the layers of the teacher")
        rows = [job.dataset[number] for number in range(min(CALIBRATION_ROWS, len(job.dataset)))]
        inputs = model_inputs(Collator()(rows))
        return [{**{name: value.to(device) for name, value in inputs.items()}, "use_cache": False}]

    return HintSet(
        spec.hints,
        student=model,
        teacher=teacher.model,
        inputs={"input_ids": torch.ones(1, 4, dtype=torch.long, device=device)},
        calibration=calibration,
        block_inputs=spec.block_inputs == "teacher",
        vocabulary_size=vocabulary_size,
        seed=context.recipe.seed,
        tell=context.note,
        filters=None if filtered is None else learnt_filters(context, job.name, filtered, model, teacher.model),
    )


def save_projectors(hints: HintSet, folder: Path, name: str) -> Path | None:
    """Write the projectors of a finished job into the run's folder; None where there are none."""
    if not len(hints.projectors):
        return None
    state = hints.projectors.state_dict()
    path = folder / f"projectors-{name}.safetensors"
    write_bytes(path, save({key: value.detach().cpu().contiguous() for key, value in state.items()}))
    return path
