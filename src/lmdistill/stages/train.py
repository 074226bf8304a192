"""Training one stage: the student, or a baseline of it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, set_seed

from lmdistill.accounting import forward_flops
from lmdistill.data import Collator, fingerprint
from lmdistill.errors import DataError, Interrupted, RecipeError, StorageError
from lmdistill.evaluation.fidelity import quick_scores
from lmdistill.models import errors_of_the_disk, load_model, save_model
from lmdistill.objectives.divergences import TAID
from lmdistill.recipe import ModelSpec, ObjectiveSpec
from lmdistill.run_folder import fingerprint as fingerprint_of
from lmdistill.signals.store import SignalStore
from lmdistill.stages.context import Context, Facts
from lmdistill.stages.student import Student
from lmdistill.students import merged, with_adapters
from lmdistill.teachers import LocalTeacher, Teacher
from lmdistill.training.arguments import training_arguments
from lmdistill.training.callbacks import StopOnSignal, TellProgress
from lmdistill.training.checkpoints import SealCheckpoints, newest_checkpoint
from lmdistill.training.objective import Objective
from lmdistill.training.schedules import TaidSchedule
from lmdistill.training.stored import KEY, SignalCollator, StoredTeacher, kinds_of
from lmdistill.training.trainer import DistillTrainer

HELDOUT_TOKENS = 4096
"""Tokens of each held-out text behind a point of the held-out curves."""


@dataclass(frozen=True)
class Job:
    """One training: which weights, on which text, towards what."""

    name: str
    objective: ObjectiveSpec
    training: Mapping[str, Any]
    dataset: Dataset
    heldout: Mapping[str, Dataset]
    signals: Path | None = None
    """The store that the teacher's signals come from; the teacher is asked live where absent."""


@dataclass(frozen=True)
class Trained:
    """A trained model on disk."""

    folder: Path
    fingerprint: str
    steps: list[int]
    """Optimiser steps of each stage."""
    skipped: bool
    """Whether it was there already."""


def carry_out(context: Context, student: Student, jobs: list[Job], target: Path) -> Trained:
    """Train the student through the jobs, one after the other, and save it in `target`.

    A finished job's weights are kept in float32 until the last one is done, so that a run that is stopped in a later
    job goes on from there.
    """
    keys = [student.fingerprint]
    for job in jobs:
        keys.append(job_fingerprint(context, job, keys[-1]))
    saved = f"save-{target.name}"
    if context.folder.is_done(saved, keys[-1]) and (target / "config.json").is_file():
        steps = [int((context.folder.record(job.name) or {}).get("steps", 0)) for job in jobs]
        return Trained(target, keys[-1], steps, skipped=True)
    model, done = _latest(context, student, jobs, keys)
    for job, key in list(zip(jobs, keys[1:], strict=True))[done:]:
        with context.stage(job.name, key, describe(job.objective)) as facts:
            train(context, student, job, key, model, facts)
            if job is not jobs[-1]:
                save_model(model, student.tokenizer, _between(context, job))
    lora = context.recipe.student.lora
    final = merged(model) if lora is None or lora.merge else model
    shipped: Any = final
    save_model(shipped.to(context.save_dtype), student.tokenizer, target)
    steps = [int((context.folder.record(job.name) or {}).get("steps", 0)) for job in jobs]
    context.folder.finish(saved, keys[-1])
    _tidy(context, jobs)
    return Trained(target, keys[-1], steps, skipped=False)


def _latest(context: Context, student: Student, jobs: list[Job], keys: list[str]) -> tuple[PreTrainedModel, int]:
    """The model as the last finished job left it, and the number of finished jobs."""
    lora = context.recipe.student.lora
    for done in range(len(jobs) - 1, 0, -1):
        folder = _between(context, jobs[done - 1])
        if lora is None and context.folder.is_done(jobs[done - 1].name, keys[done]) and folder.is_dir():
            context.note(f"stage {jobs[done - 1].name} is done: going on with {jobs[done].name}")
            return load_model(ModelSpec(model=str(folder)), dtype=torch.float32, device=context.device), done
    model = student.load(context, torch.float32)
    return (model if lora is None else with_adapters(model, lora, seed=context.recipe.seed)), 0


def _between(context: Context, job: Job) -> Path:
    return context.folder.file("checkpoints") / f"after-{job.name}"


def _tidy(context: Context, jobs: list[Job]) -> None:
    """Remove the checkpoints of jobs whose result is saved."""
    parent = context.folder.file("checkpoints")
    for job in jobs:
        for folder in [*parent.glob(f"{job.name}-*"), _between(context, job)]:
            if folder.is_dir():
                shutil.rmtree(folder)


def describe(objective: ObjectiveSpec) -> str:
    """An objective in a few words: `0.5 forward_kl + 0.5 cross-entropy`."""
    terms = {
        objective.divergence.kind: objective.divergence.weight,
        "cross-entropy": objective.cross_entropy.weight,
        "hidden cosine": objective.hidden_cosine.weight,
    }
    return " + ".join(f"{weight:g} {name}" for name, weight in terms.items() if weight)


def job_fingerprint(context: Context, job: Job, start: str) -> str:
    """Everything that the result of a job depends on; `start` names the weights that it starts from."""
    recipe = context.recipe
    return fingerprint_of(
        job.name,
        job.objective.model_dump(mode="json"),
        dict(job.training),
        fingerprint(job.dataset),
        start,
        recipe.seed,
        recipe.teacher.model_dump(mode="json") if job.objective.needs_teacher else None,
        recipe.student.freeze_head,
        recipe.student.lora.model_dump(mode="json") if recipe.student.lora else None,
    )


def train(context: Context, student: Student, job: Job, key: str, model: PreTrainedModel, facts: Facts) -> None:
    """Train `model` in place; resumes from the newest checkpoint that verifies.

    Raises Interrupted after saving where a signal asked to stop, NonFiniteLoss before a bad step is taken.
    """
    folder = context.folder.file("checkpoints") / f"{job.name}-{key[:12]}"
    arguments = training_arguments(
        job.training, folder=folder, seed=context.recipe.seed, device=context.device, fast_dtype=context.fast_dtype
    )
    if len(job.dataset) == 0:
        raise DataError(f"stage {job.name}: no sequence is left to train on; see the counts in data.json")
    set_seed(context.recipe.seed)
    if context.recipe.student.freeze_head:
        model.get_output_embeddings().requires_grad_(False)
    collator = _collator(job)
    objective = _objective(context, student, job, collator, mixed=arguments.bf16)
    trainer = DistillTrainer(
        model=model,
        args=arguments,
        train_dataset=job.dataset,
        data_collator=collator,
        processing_class=student.tokenizer,
        objective=objective,
        heldout_scores=lambda model: _heldout(context, student, job, model),
    )
    trainer.remove_callback(PrinterCallback)
    resume, problems = newest_checkpoint(folder)
    for problem in problems:
        context.warn(f"stage {job.name}: skipped a checkpoint that does not verify: {problem}")
    if resume is not None:
        context.note(f"stage {job.name} resumes from {resume.name}")
    steps = _total_steps(trainer)
    before = _seconds_before(resume)
    started = time.monotonic()
    with context.progress.task(f"train {job.name}", total=steps, unit="steps") as task:
        for callback in _callbacks(context, job, trainer, task):
            trainer.add_callback(callback)
        clock = SealCheckpoints(
            keep=arguments.save_total_limit or 2, seconds=lambda: before + time.monotonic() - started
        )
        arguments.save_total_limit = None  # rotation is ours: nothing goes before a newer one is sealed
        trainer.add_callback(clock)
        try:
            with context.stop.patient(), errors_of_the_disk():
                trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        except (KeyError, RuntimeError) as error:
            _explain_out_of_memory(error)
            raise
        except OSError as error:
            raise StorageError(
                f"{folder}: a checkpoint could not be written ({error}); free space and run again"
            ) from error
    state = trainer.state
    if context.stop.raised and state.global_step < state.max_steps:
        raise Interrupted(
            f"stopped by {context.stop.name} after step {state.global_step} of {state.max_steps} of stage {job.name}; "
            "a checkpoint is saved: run the same command again to go on"
        )
    tokens = int(state.num_input_tokens_seen)
    facts.update(
        tokens=tokens,
        steps=state.global_step,
        flops=_flops(context, job, model, tokens),
        earlier_seconds=before,
        training_seconds=round(before + time.monotonic() - started, 3),
    )


def _collator(job: Job) -> Collator | SignalCollator:
    """Batches of text, with the stored signals where the job has a store."""
    if job.signals is None or not job.objective.needs_teacher:
        return Collator()
    store = SignalStore(job.signals)
    return SignalCollator(store, kinds_of(store, store.source_of(job.dataset[0][KEY])))


def _objective(
    context: Context, student: Student, job: Job, collator: Collator | SignalCollator, mixed: bool
) -> Objective:
    vocabulary = len(student.tokenizer)
    teacher: Teacher | None = None
    if isinstance(collator, SignalCollator):
        teacher = StoredTeacher(next(iter(collator.kinds.values())))
    elif job.objective.needs_teacher:
        kept = None if student.kept_ids is None else student.kept_ids.to(context.device)
        teacher = LocalTeacher(context.teacher, vocabulary, kept)
    try:
        return Objective(
            job.objective,
            teacher=teacher,
            vocabulary_size=vocabulary,
            compute_dtype=torch.bfloat16 if mixed else None,
            compiled=context.recipe.machine.compile,
        )
    except ValueError as error:
        raise RecipeError(f"stage {job.name}: objective: {error}") from error


def _callbacks(context: Context, job: Job, trainer: DistillTrainer, task: Any) -> list[TrainerCallback]:
    def event(kind: str, **fields: Any) -> None:
        context.folder.event(kind, job.name, **fields)

    callbacks: list[TrainerCallback] = []
    if isinstance(trainer.objective.divergence, TAID):
        callbacks.append(TaidSchedule(trainer.objective.divergence, trainer.ledger))
    callbacks += [TellProgress(trainer.ledger, task, event), StopOnSignal(context.stop)]
    return callbacks


def _heldout(context: Context, student: Student, job: Job, model: nn.Module) -> dict[str, float]:
    scores = {}
    teacher = context.teacher if job.objective.needs_teacher else None
    for name, dataset in job.heldout.items():
        found = quick_scores(
            model,
            teacher,
            dataset,
            tokenizer=student.tokenizer,
            kept_ids=student.kept_ids,
            max_tokens=HELDOUT_TOKENS,
            dtype=context.fast_dtype,
        )
        scores.update({f"{name}/{metric}": value for metric, value in found.items()})
    return scores


def _total_steps(trainer: DistillTrainer) -> int:
    """Optimiser steps that the Trainer will take."""
    arguments = trainer.args
    if arguments.max_steps > 0:
        return int(arguments.max_steps)
    batches = len(trainer.get_train_dataloader())
    per_epoch = max(1, -(-batches // arguments.gradient_accumulation_steps))
    return int(per_epoch * arguments.num_train_epochs)


def _seconds_before(checkpoint: Path | None) -> float:
    """Training time that went into a checkpoint."""
    return SealCheckpoints.seconds_of(checkpoint) if checkpoint else 0.0


def _flops(context: Context, job: Job, model: PreTrainedModel, tokens: int) -> float:
    """Student forward and backward (three times its forward) and the teacher's forward."""
    length = context.recipe.data.max_length
    total = 3 * forward_flops(model, tokens, length)
    if job.objective.needs_teacher and job.signals is None:
        total += forward_flops(context.teacher, tokens, length)
    return total


def _explain_out_of_memory(error: Exception) -> None:
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text or "not enough memory" in text:
        raise RecipeError(
            f"out of memory ({text.splitlines()[0]}); lower training.per_device_train_batch_size or data.max_length, "
            "or set training.gradient_checkpointing=true; the last checkpoint is intact"
        ) from error
