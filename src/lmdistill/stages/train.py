"""Training one stage: the student, or a baseline of it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, set_seed

from lmdistill.data import fingerprint
from lmdistill.errors import DataError
from lmdistill.evaluation.fidelity import quick_scores
from lmdistill.models import load_model, save_model
from lmdistill.objectives.divergences import TAID
from lmdistill.recipe import ModelSpec, ObjectiveSpec, Recipe
from lmdistill.run_folder import fingerprint as fingerprint_of
from lmdistill.stages.budget import Spent, share_used, spent_before, training_flops
from lmdistill.stages.context import Context, Facts
from lmdistill.stages.drive import drive
from lmdistill.stages.filters import filter_stages, learn_filters
from lmdistill.stages.hints import save_projectors
from lmdistill.stages.jobs import Equipment, Job, equip
from lmdistill.stages.student import Student
from lmdistill.students import merged, with_adapters
from lmdistill.training.arguments import training_arguments
from lmdistill.training.budget import Clock
from lmdistill.training.checkpoints import SealCheckpoints, newest_checkpoint
from lmdistill.training.pruning import PruneWhile
from lmdistill.training.schedules import TaidSchedule
from lmdistill.training.trainer import DistillTrainer
from lmdistill.training.unfreezing import Unfreezing

HELDOUT_TOKENS = 4096
"""Tokens of each held-out text behind a point of the held-out curves."""


@dataclass(frozen=True)
class Trained:
    """A trained model on disk."""

    folder: Path
    fingerprint: str
    steps: list[int]
    """Optimiser steps of each stage."""
    skipped: bool
    """Whether it was there already."""


def fingerprints(context: Context, student: Student, jobs: list[Job]) -> list[str]:
    """Names of the student's weights before the first job and after each."""
    keys = [student.fingerprint]
    for job in jobs:
        keys.append(job_fingerprint(context, job, keys[-1]))
    return keys


def carry_out_part(context: Context, student: Student, jobs: list[Job]) -> Path:
    """Train through the first jobs of several, and stop there: the weights as the last of them left them. `carry_out`
    with these and further jobs goes on from them."""
    keys = fingerprints(context, student, jobs)
    folder = _between(context, jobs[-1])
    if not (context.folder.is_done(jobs[-1].name, keys[-1]) and (folder / "config.json").is_file()):
        _train_through(context, student, jobs, keys, keep_last=True)
    return folder


def carry_out(context: Context, student: Student, jobs: list[Job], target: Path) -> Trained:
    """Train the student through the jobs, one after the other, and save it in `target`.

    A finished job's weights are kept in float32 until the last one is done, so that a run that is stopped in a later
    job goes on from there.
    """
    keys = fingerprints(context, student, jobs)
    saved = f"save-{target.name}"
    if context.folder.is_done(saved, keys[-1]) and (target / "config.json").is_file():
        steps = [int((context.folder.record(job.name) or {}).get("steps", 0)) for job in jobs]
        return Trained(target, keys[-1], steps, skipped=True)
    model = _train_through(context, student, jobs, keys, keep_last=False)
    lora = context.recipe.student.lora
    final = merged(model) if lora is None or lora.merge else model
    shipped: Any = final
    save_model(shipped.to(context.save_dtype), student.tokenizer, target)
    steps = [int((context.folder.record(job.name) or {}).get("steps", 0)) for job in jobs]
    context.folder.finish(saved, keys[-1])
    _tidy(context, jobs)
    return Trained(target, keys[-1], steps, skipped=False)


def _train_through(
    context: Context, student: Student, jobs: list[Job], keys: list[str], *, keep_last: bool
) -> PreTrainedModel:
    """The student after the jobs; its weights are kept between them, and after the last one where told so."""
    model, done = _latest(context, student, jobs, keys)
    for number, (job, key) in list(enumerate(zip(jobs, keys[1:], strict=True)))[done:]:
        learn_filters(context, student, job, model, keys[number])
        with context.stage(job.name, key, describe(job.objective)) as facts:
            before = spent_before(context, job, jobs[: jobs.index(job)])
            train(context, student, job, key, model, facts, before=before)
            if keep_last or job is not jobs[-1]:
                save_model(model, student.tokenizer, _between(context, job))
    return model


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
        ended = [folder for name in (*filter_stages(job), job.name) for folder in parent.glob(f"{name}-*")]
        for folder in [*ended, _between(context, job)]:
            if folder.is_dir():
                shutil.rmtree(folder)


def describe(objective: ObjectiveSpec) -> str:
    """An objective in a few words: `0.5 forward_kl + 0.5 cross-entropy`."""
    own, across = objective.student_divergence, objective.cross_tokenizer
    terms = [
        (objective.divergence.kind, objective.divergence.weight),
        (f"{own.kind} on the student's text" if own else "", own.weight if own else 0.0),
        ("cross-entropy", objective.cross_entropy.weight),
        ("hidden cosine", objective.hidden_cosine.weight),
        (f"{objective.policy.kind} policy", objective.policy.weight),
        (objective.preference.kind, objective.preference.weight),
        ("consistency", objective.consistency.weight),
        (across.kind if across else "", across.weight if across else 0.0),
        *((hint.kind, hint.weight) for hint in objective.hints),
    ]
    return " + ".join(f"{weight:g} {name}" for name, weight in terms if weight)


def job_fingerprint(context: Context, job: Job, start: str) -> str:
    """Everything that the result of a job depends on; `start` names the weights that it starts from."""
    recipe = context.recipe
    return fingerprint_of(
        job.name,
        job.objective.model_dump(mode="json"),
        dict(job.training),
        job.trajectories.model_dump(mode="json"),
        recipe.teaching.model_dump(mode="json"),
        job.seconds,
        fingerprint(job.dataset),
        start,
        recipe.seed,
        recipe.teacher.model_dump(mode="json") if job.objective.needs_teacher else None,
        recipe.student.freeze_head,
        recipe.student.lora.model_dump(mode="json") if recipe.student.lora else None,
        *(each.model_dump(mode="json") for each in (job.unfreeze, job.pruning) if each is not None),
        *_other_budget(recipe, job),
    )


def _other_budget(recipe: Recipe, job: Job) -> list[Any]:
    """A budget of tokens or operations, where there is one."""
    budget = recipe.budget
    given = job.limited and (budget.tokens is not None or budget.flops is not None or budget.whole)
    return [budget.tokens, budget.flops, budget.whole] if given else []


def train(
    context: Context,
    student: Student,
    job: Job,
    key: str,
    model: PreTrainedModel,
    facts: Facts,
    *,
    before: Spent | None = None,
) -> None:
    """Train `model` in place; resumes from the newest checkpoint that verifies. Where neurons go, it is smaller after.

    `before` is what earlier stages used of the budget.
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
    equipment = equip(context, student, job, model, mixed=arguments.bf16)
    resume, problems = newest_checkpoint(folder)
    used, before = _seconds_before(resume), before or Spent()
    written = equipment.windows.trajectories if equipment.windows is not None else None
    share = share_used(context, job, model, before, lambda: written.written_tokens if written is not None else 0)
    clock = Clock(job.seconds, used, earlier=before.seconds, share=share)
    trainer = DistillTrainer(
        model=model,
        args=arguments,
        train_dataset=job.dataset,
        data_collator=equipment.collator,
        processing_class=student.tokenizer,
        objective=equipment.objective,
        heldout_scores=lambda model: _heldout(context, student, job, model),
        windows=equipment.windows,
        clock=clock,
    )
    journal = equipment.journal
    changes = _changes(job, model, trainer, equipment)
    try:
        tokens = drive(
            context,
            job.name,
            trainer,
            clock=clock,
            companions=equipment.companions,
            resume=resume,
            problems=problems,
            callbacks=[*_callbacks(trainer), *changes],
            # What an attempt that left no checkpoint wrote down.
            afresh=lambda: journal.cut(0) if journal is not None else None,
        )
        if equipment.hints is not None:
            save_projectors(equipment.hints, context.folder.path, job.name)
    finally:
        if equipment.hints is not None:
            equipment.hints.close()
    new = written.written_tokens if written is not None else 0
    facts.update(
        tokens=tokens,
        written_tokens=new,
        steps=trainer.state.global_step,
        **training_flops(context, job, model, tokens, new),
        earlier_seconds=used,
        training_seconds=round(clock.used, 3),
    )
    for change in changes:
        if isinstance(change, PruneWhile):
            change.shrink(model)


def _changes(
    job: Job, model: PreTrainedModel, trainer: DistillTrainer, equipment: Equipment
) -> list[Unfreezing | PruneWhile]:
    """What changes which weights are trained, or are there, while training runs."""
    found: list[Unfreezing | PruneWhile] = []
    if job.unfreeze is not None:
        found.append(Unfreezing(job.unfreeze, model, trainer.progress, equipment.hints))
    if job.pruning is not None:
        pruning = PruneWhile(job.pruning, model, trainer.progress)
        equipment.companions.companions = [*equipment.companions.companions, pruning]
        found.append(pruning)
    return found


def _callbacks(trainer: DistillTrainer) -> list[TrainerCallback]:
    if isinstance(trainer.objective.divergence, TAID):
        return [TaidSchedule(trainer.objective.divergence, trainer.ledger)]
    return []


def _heldout(context: Context, student: Student, job: Job, model: nn.Module) -> dict[str, float]:
    scores = {}
    is_here = not (context.is_foreign or context.is_elsewhere)
    teacher = context.teacher if job.objective.needs_teacher and is_here else None
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


def _seconds_before(checkpoint: Path | None) -> float:
    """Training time that went into a checkpoint."""
    return SealCheckpoints.seconds_of(checkpoint) if checkpoint else 0.0
