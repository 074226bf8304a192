"""Training on a task: the teacher, the student through its stages, and the student without the teacher."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed

from lmdistill.accounting.flops import BACKWARD
from lmdistill.data import fingerprint
from lmdistill.errors import DataError
from lmdistill.models import save_model
from lmdistill.recipe import ModelSpec, ObjectiveSpec, PruneWhileSpec, UnfreezeSpec
from lmdistill.recipe.task import TaskKind, TaskSpec
from lmdistill.run_folder import fingerprint as fingerprint_of
from lmdistill.stages.context import Context, Facts
from lmdistill.stages.drive import drive
from lmdistill.stages.train import Trained
from lmdistill.tasks.encode import TaskCollator
from lmdistill.tasks.hints import HintTerms
from lmdistill.tasks.models import load_task_model
from lmdistill.tasks.objective import Extra, TaskObjective
from lmdistill.tasks.trainer import TaskTrainer
from lmdistill.training.arguments import training_arguments
from lmdistill.training.budget import Clock
from lmdistill.training.checkpoints import SealCheckpoints, newest_checkpoint
from lmdistill.training.companions import Companion, Companions, KeptModule
from lmdistill.training.pruning import PruneWhile
from lmdistill.training.unfreezing import Unfreezing

Extras = Callable[[PreTrainedModel, PreTrainedModel | None], Sequence[Extra]]
"""Makes the further terms of a job from the student and its teacher."""


@dataclass(frozen=True)
class TaskJob:
    """One training on a task."""

    name: str
    kind: TaskKind
    objective: ObjectiveSpec
    training: Mapping[str, Any]
    dataset: Dataset
    collator: TaskCollator
    teacher: Callable[[], PreTrainedModel] | None = None
    """Gives the teacher; None where nothing is compared with one."""
    teacher_key: str = ""
    """Names the teacher's weights."""
    extras: Extras | None = None
    extras_key: Any = None
    """Everything that the further terms depend on."""
    seconds: float | None = None
    """Wall-clock budget of all trainings of the student together."""
    unfreeze: UnfreezeSpec | None = None
    """Which layers are trained when."""
    pruning: PruneWhileSpec | None = None
    """Neurons that go during this training."""
    frozen: bool = False
    """Whether the model stays as it is and only what lies beside it is trained."""
    trainer: type[TaskTrainer] = TaskTrainer
    trainer_options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Start:
    """Weights on disk that a training starts from."""

    folder: Path
    fingerprint: str
    tokenizer: PreTrainedTokenizerBase
    classes: Sequence[str]


def train_task(context: Context, start: Start, jobs: Sequence[TaskJob], target: Path) -> Trained:
    """Train through the jobs, one after the other, and save the result in `target`.

    A finished job's weights are kept in float32 until the last one is done, so that a run that is stopped in a later
    job goes on from there.
    """
    keys = [start.fingerprint]
    for job in jobs:
        keys.append(_key(context, job, keys[-1]))
    saved = f"save-{target.name}"
    if context.folder.is_done(saved, keys[-1]) and (target / "config.json").is_file():
        return Trained(target, keys[-1], _steps(context, jobs), skipped=True)
    model, last, folder, used = None, len(jobs) - 1, start.folder, 0.0
    for place, (job, key) in enumerate(zip(jobs, keys[1:], strict=True)):
        behind = context.folder.file("checkpoints") / f"after-{job.name}"
        if place == last or not (context.folder.is_done(job.name, key) and (behind / "config.json").is_file()):
            model = load_for(context, folder, job.kind, start.classes)
            with context.stage(job.name, key, describe_task(job)) as facts:
                _train(context, start, job, key, model, facts, before=used)
                save_model(model, start.tokenizer, behind)
        folder = behind
        used += float((context.folder.record(job.name) or {}).get("training_seconds", 0.0))
    assert model is not None
    shipped: Any = model
    save_model(shipped.to(context.save_dtype), start.tokenizer, target)
    context.folder.finish(saved, keys[-1])
    _tidy(context, jobs)
    return Trained(target, keys[-1], _steps(context, jobs), skipped=False)


def load_for(context: Context, folder: Path, kind: TaskKind, classes: Sequence[str]) -> PreTrainedModel:
    """Weights to train, in float32, with the head of a kind of task: a new one where they had another."""
    model, _ = load_task_model(
        ModelSpec(model=str(folder)),
        kind,
        classes,
        dtype=torch.float32,
        device=context.device,
        seed=context.recipe.seed,
    )
    return model


def describe_task(job: TaskJob) -> str:
    """An objective in a few words."""
    terms = [("distance of logits", job.objective.divergence.weight), ("labels", job.objective.cross_entropy.weight)]
    terms += [(hint.kind, hint.weight) for hint in job.objective.hints]
    return " + ".join(f"{weight:g} {name}" for name, weight in terms if weight)


def _train(
    context: Context, start: Start, job: TaskJob, key: str, model: PreTrainedModel, facts: Facts, *, before: float
) -> None:
    """Train `model` in place; resumes from the newest checkpoint that verifies."""
    folder = context.folder.file("checkpoints") / f"{job.name}-{key[:12]}"
    arguments = training_arguments(
        job.training, folder=folder, seed=context.recipe.seed, device=context.device, fast_dtype=context.fast_dtype
    )
    if len(job.dataset) == 0:
        raise DataError(f"stage {job.name}: no row is left to train on; see the counts in data.json")
    set_seed(context.recipe.seed)
    if job.frozen:
        model.requires_grad_(False)
    teacher = job.teacher() if job.teacher is not None else None
    extras = tuple(job.extras(model, teacher)) if job.extras is not None else ()
    objective = TaskObjective(job.objective, job.kind, _task(context).logits, teacher=teacher, extras=extras)
    resume, problems = newest_checkpoint(folder)
    used = SealCheckpoints.seconds_of(resume) if resume else 0.0
    clock = Clock(job.seconds, used, earlier=before)
    trainer = job.trainer(
        model=model,
        args=arguments,
        train_dataset=job.dataset,
        data_collator=job.collator,
        processing_class=start.tokenizer,
        objective=objective,
        clock=clock,
        **job.trainer_options,
    )
    held: list[Companion] = [
        KeptModule(extra.modules, f"beside-{number}")
        for number, extra in enumerate(extras)
        if extra.modules is not None
    ]
    prune = PruneWhile(job.pruning, model, objective.progress) if job.pruning is not None else None
    callbacks: list[TrainerCallback] = [prune] if prune is not None else []
    if job.unfreeze is not None:
        inside = next((extra.set for extra in extras if isinstance(extra, HintTerms)), None)
        callbacks.append(Unfreezing(job.unfreeze, model, objective.progress, inside))
    held += [prune] if prune is not None else []
    try:
        tokens = drive(
            context,
            job.name,
            trainer,
            clock=clock,
            companions=Companions([*held, *trainer.companions()]),
            resume=resume,
            problems=problems,
            callbacks=callbacks,
        )
    finally:
        for extra in extras:
            extra.close()
    teachers = forward_flops(teacher, tokens, context.recipe.data.max_length) if teacher is not None else 0.0
    own = (1 + BACKWARD) * forward_flops(model, tokens, context.recipe.data.max_length)
    facts.update(
        tokens=tokens,
        steps=trainer.state.global_step,
        flops=own + teachers,
        teacher_flops=teachers,
        earlier_seconds=used,
        training_seconds=round(clock.used, 3),
    )
    if prune is not None:
        prune.shrink(model)


def forward_flops(model: nn.Module, tokens: float, length: float) -> float:
    """Operations of a forward pass over `tokens` tokens in rows of at most `length`, an estimate from above.

    Two for each weight of a matrix product and token, tables of embeddings left out, and 4 x width x length for each
    layer's attention, in which every token sees every other.
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    inner = sum(p.numel() for p in model.parameters() if p.ndim == 2 and id(p) not in tables)
    config: Any = model.config
    layers, width = getattr(config, "num_hidden_layers", 0) or 0, getattr(config, "hidden_size", 0) or 0
    return float(tokens * (2 * inner + 4 * layers * width * length))


def _key(context: Context, job: TaskJob, start: str) -> str:
    """Everything that the result of a job depends on; `start` names the weights that it starts from."""
    task = _task(context)
    return fingerprint_of(
        job.name,
        job.kind,
        job.objective.model_dump(mode="json"),
        task.logits.model_dump(mode="json"),
        task.masking,
        dict(job.training),
        job.seconds,
        fingerprint(job.dataset),
        job.teacher_key,
        job.extras_key,
        job.frozen,
        [each.model_dump(mode="json") if each is not None else None for each in (job.unfreeze, job.pruning)],
        start,
        context.recipe.seed,
    )


def _task(context: Context) -> TaskSpec:
    assert context.recipe.task is not None
    return context.recipe.task


def _steps(context: Context, jobs: Sequence[TaskJob]) -> list[int]:
    return [int((context.folder.record(job.name) or {}).get("steps", 0)) for job in jobs]


def _tidy(context: Context, jobs: Sequence[TaskJob]) -> None:
    """Remove the checkpoints of jobs whose result is saved."""
    parent = context.folder.file("checkpoints")
    for job in jobs:
        for folder in [*parent.glob(f"{job.name}-*"), parent / f"after-{job.name}"]:
            if folder.is_dir():
                shutil.rmtree(folder)
