"""TED's first stage for causal models: the filters of teacher and student learn the next token, before a training that
compares what they say. Filters lie in the run's folder."""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import save
from transformers import PreTrainedModel, set_seed

from lmdistill.accounting import forward_flops
from lmdistill.data import Collator, fingerprint
from lmdistill.errors import RecipeError
from lmdistill.io import write_bytes
from lmdistill.models import last_hidden, model_fingerprint
from lmdistill.recipe import HintSpec
from lmdistill.run_folder import fingerprint as fingerprint_of
from lmdistill.stages.context import Context
from lmdistill.stages.drive import drive
from lmdistill.stages.filter_files import SIDES, filter_file, fresh_filters, stage_name
from lmdistill.stages.jobs import Job
from lmdistill.stages.student import Student
from lmdistill.teachers import LocalTeacher
from lmdistill.teachers.base import model_inputs
from lmdistill.training.arguments import training_arguments
from lmdistill.training.budget import Clock
from lmdistill.training.checkpoints import SealCheckpoints, newest_checkpoint
from lmdistill.training.companions import Companions, KeptModule
from lmdistill.training.filters import FilterObjective, LayerFilters, Read
from lmdistill.training.trainer import DistillTrainer

_NOT_FOR_FILTERS = ("activation_checkpointing", "gradient_checkpointing", "eval_")
"""Fields of a training that a frozen model has no use for."""


def filter_stages(job: Job) -> list[str]:
    """Names of the stages in which a job's filters learn; none where it has no filters."""
    return [] if filtered_hint(job) is None else [stage_name(job.name, side) for side in reversed(SIDES)]


def filtered_hint(job: Job) -> HintSpec | None:
    """The hint of a job that has filters; None where none has."""
    return next((hint for hint in job.objective.hints if hint.filters is not None), None)


def learn_filters(context: Context, student: Student, job: Job, model: PreTrainedModel, key: str) -> None:
    """Let the filters of both models learn the next token, or find that done; does nothing for a job without filters.

    `model` is the student as the job begins, `key` names its weights. Neither model changes. Raises RecipeError for a
    job on the student's own text, and where the hint's layers do not fit.
    """
    hint = filtered_hint(job)
    if hint is None:
        return
    if job.trajectories.on_policy:
        raise RecipeError(f"stage {job.name}: filters learn on text of a data set: set trajectories.source: dataset")
    teacher = local_teacher(context, student)
    for side, whose in (("teacher", teacher.model), ("student", model)):
        name = stage_name(job.name, side)
        found = fingerprint_of(
            hint.model_dump(mode="json"),
            dict(job.training),
            fingerprint(job.dataset),
            model_fingerprint(context.recipe.teacher),
            key if side == "student" else None,
            context.recipe.seed,
        )
        file = filter_file(context, job.name, side)
        if context.folder.is_done(name, found) and file.is_file():
            continue
        filters = fresh_filters(context, hint, model, teacher.model, side)
        with context.stage(name, found, f"{len(filters.maps)} filters of the {side} learn the next token") as facts:
            facts.update(_learn(context, job, name, found, whose, teacher, filters))
            tensors = {part: value.detach().cpu().contiguous() for part, value in filters.state_dict().items()}
            write_bytes(file, save(tensors))


def local_teacher(context: Context, student: Student) -> LocalTeacher:
    """The recipe's teacher as it reads the student's ids."""
    kept = None if student.kept_ids is None else student.kept_ids.to(context.device)
    return LocalTeacher(context.teacher, len(student.tokenizer), kept)


def _learn(
    context: Context,
    job: Job,
    name: str,
    key: str,
    model: PreTrainedModel,
    teacher: LocalTeacher,
    filters: LayerFilters,
) -> dict[str, Any]:
    """Train filters behind a frozen model; returns what it cost. The model is as it was afterwards."""
    hint = filtered_hint(job)
    assert hint is not None
    assert hint.filters is not None
    folder = context.folder.file("checkpoints") / f"{name}-{key[:12]}"
    values = {name: value for name, value in job.training.items() if not name.startswith(_NOT_FOR_FILTERS)}
    arguments = training_arguments(
        # A checkpoint would hold the frozen model: a stage this short begins anew, but where a signal stopped it.
        {**values, "save_strategy": "no", **hint.filters.training},
        folder=folder,
        seed=context.recipe.seed,
        device=context.device,
        fast_dtype=context.fast_dtype,
    )
    set_seed(context.recipe.seed)
    before, mode = [parameter.requires_grad for parameter in model.parameters()], model.training
    model.requires_grad_(False)
    objective = FilterObjective(
        filters,
        model,
        teacher,
        _reader(model, teacher),
        compute_dtype=torch.bfloat16 if arguments.bf16 else None,
        compiled=context.recipe.machine.compile,
    )
    resume, problems = newest_checkpoint(folder)
    clock = Clock(None, SealCheckpoints.seconds_of(resume) if resume else 0.0)
    trainer = DistillTrainer(
        model=model,
        args=arguments,
        train_dataset=job.dataset,
        data_collator=Collator(),
        objective=objective,  # type: ignore[arg-type]
        clock=clock,
    )
    try:
        tokens = drive(
            context,
            name,
            trainer,
            clock=clock,
            companions=Companions([KeptModule(filters, "filters")]),
            resume=resume,
            problems=problems,
        )
    finally:
        objective.close()
        trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        model.train(mode)
        for parameter, trained in zip(model.parameters(), before, strict=True):
            parameter.requires_grad_(trained)
    length = context.recipe.data.max_length
    flops = forward_flops(model, tokens, length) + _head_flops(teacher, len(filters.maps), tokens)
    return {"tokens": tokens, "steps": trainer.state.global_step, "flops": flops, "training_seconds": clock.used}


def _head_flops(teacher: LocalTeacher, filters: int, tokens: int) -> float:
    """Operations of the head behind each filter, forward and back to its input; maps are small beside it."""
    return float(4 * filters * tokens * teacher.head.weight_VH.numel())


def _reader(model: PreTrainedModel, teacher: LocalTeacher) -> Read:
    if model is teacher.model:
        return lambda _, batch: teacher.hidden(model_inputs(batch))
    return lambda wrapped, batch: last_hidden(wrapped, model_inputs(batch))
