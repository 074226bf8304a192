"""One training job, and what it needs beside the student: batches, an objective, texts, a teacher, companions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel

from lmdistill.data import Collator, Document, RowEncoder, row_of
from lmdistill.errors import RecipeError
from lmdistill.models import load_config
from lmdistill.recipe import ObjectiveSpec, PruneWhileSpec, TrajectoriesSpec, UnfreezeSpec
from lmdistill.signals.store import SignalStore
from lmdistill.stages.context import Context
from lmdistill.stages.hints import hints_of
from lmdistill.stages.prepare import teacher_encoder
from lmdistill.stages.rollouts import journal_of, rewards_of, trajectories_of
from lmdistill.stages.student import Student
from lmdistill.stages.teaching import AlignedTeacher, context_length, live_teacher, start_of
from lmdistill.teachers import SelfTeacher, Teacher
from lmdistill.teachers.columns import unsaid_of
from lmdistill.training.adversary import Adversary
from lmdistill.training.companions import Companion, Companions, KeptJournal, KeptModule, KeptTexts
from lmdistill.training.discriminator import Discriminator
from lmdistill.training.hints import HintSet
from lmdistill.training.objective import Objective
from lmdistill.training.policy import Policy
from lmdistill.training.stored import KEY, SignalCollator, StoredTeacher, kinds_of
from lmdistill.training.templates import TemplateCollator
from lmdistill.training.windows import Windows
from lmdistill.trajectories.journal import Journal
from lmdistill.trajectories.window import Trajectories


@dataclass(frozen=True)
class Job:
    """One training: which weights, on which text, towards what."""

    name: str
    objective: ObjectiveSpec
    training: Mapping[str, Any]
    dataset: Dataset
    heldout: Mapping[str, Dataset]
    trajectories: TrajectoriesSpec = field(default_factory=TrajectoriesSpec)
    """Whose text it is; the data set holds prompts where the student writes."""
    documents: Mapping[str, Document] | None = None
    """The data set's documents by their ids, where the teacher reads them under its own chat template."""
    signals: Path | None = None
    """The store that the teacher's signals come from; the teacher is asked live where absent."""
    seconds: float | None = None
    """Wall-clock budget of all trainings of the student together."""
    unfreeze: UnfreezeSpec | None = None
    """Which of the student's layers are trained when."""
    pruning: PruneWhileSpec | None = None
    """Neurons that go while the student learns."""
    limited: bool = False
    """Whether the recipe's budget of tokens and operations is for it: it is the student's training."""


@dataclass(frozen=True)
class Equipment:
    """What a job trains with."""

    collator: Callable[[Any], Any]
    objective: Objective
    windows: Windows | None
    companions: Companions
    journal: Journal | None
    """Where what the student writes is kept for reading."""
    hints: HintSet | None = None
    """What compares the insides of both models; hooks both until it is closed."""


def equip(context: Context, student: Student, job: Job, model: PreTrainedModel, *, mixed: bool) -> Equipment:
    """Gather what a job trains with. `model` is the student, `mixed` whether it trains in mixed precision.

    Raises RecipeError where the objective does not fit what there is.
    """
    texts: Trajectories | None = None
    journal: Journal | None = None
    if job.trajectories.on_policy:
        journal = journal_of(context, job.trajectories, student.tokenizer, job.name)
        texts = trajectories_of(
            context, job.trajectories, job.objective, job.dataset, student.tokenizer, model, job.name, journal
        )
    collator: Callable[[Any], Any] = as_prompts if texts is not None else _collator(context, student, job)
    teacher = _teacher(context, student, job, model, collator)
    objective = _objective(context, student, job, model, teacher, mixed)
    windows = None
    if texts is not None:
        teaching, unsaid = context.recipe.teaching, None
        if teaching.template == "teacher":
            unsaid = unsaid_of(*_encoders(context, student))
        contexts = teaching.context is not None or unsaid is not None
        longest = _teacher_context(context, model)
        windows = Windows(texts, objective, contexts=contexts, longest=longest, unsaid=unsaid)
    moving = teacher if isinstance(teacher, SelfTeacher) else None
    held: list[Companion] = [KeptTexts(texts)] if texts is not None else []
    held += [KeptJournal(journal)] if journal is not None else []
    held += [each for each in (teacher, objective.reference) if isinstance(each, SelfTeacher)]
    if objective.policy is not None and isinstance(objective.policy.score, Adversary):
        held.append(objective.policy.score.discriminator)
    if isinstance(objective.aligned, AlignedTeacher):
        held += objective.aligned.companions
    if objective.hints is not None:
        held.append(KeptModule(objective.hints, "hints"))
    companions = Companions(held, moving=moving, trajectories=texts)
    return Equipment(collator, objective, windows, companions, journal, objective.hints)


def _teacher_context(context: Context, model: PreTrainedModel) -> int | None:
    """The most tokens that whoever teaches can read."""
    spec = context.recipe.teaching
    if spec.kind in ("self", "adapter_off"):
        return context_length(model.config)
    return context_length(load_config(context.recipe.teacher))


def as_prompts(rows: list[dict[str, Any]]) -> Any:
    """Collates prompts: their texts are not there yet."""
    return [row_of(row) for row in rows]


def _encoders(context: Context, student: Student) -> tuple[RowEncoder, RowEncoder]:
    """What encodes conversations as the student and as the teacher reads them."""
    theirs = teacher_encoder(context)
    assert theirs is not None
    return RowEncoder(student.tokenizer, add_eos=context.recipe.data.add_eos), theirs


def _collator(context: Context, student: Student, job: Job) -> Collator | SignalCollator | TemplateCollator:
    """Batches of text, with the stored signals where the job has a store, and what the teacher reads."""
    if job.documents is not None and job.objective.needs_teacher:
        longest = context_length(load_config(context.recipe.teacher))
        return TemplateCollator(job.documents, *_encoders(context, student), longest)
    if job.signals is None or not job.objective.needs_teacher:
        return Collator()
    store = SignalStore(job.signals)
    return SignalCollator(store, kinds_of(store, store.source_of(job.dataset[0][KEY])))


def _teacher(
    context: Context, student: Student, job: Job, model: PreTrainedModel, collator: Callable[[Any], Any]
) -> Teacher | None:
    if isinstance(collator, SignalCollator):
        return StoredTeacher(next(iter(collator.kinds.values())))
    if not job.objective.needs_teacher or job.objective.cross_tokenizer is not None:
        return None
    return live_teacher(context, job.objective, student, model)


def _objective(
    context: Context, student: Student, job: Job, model: PreTrainedModel, teacher: Teacher | None, mixed: bool
) -> Objective:
    spec, vocabulary = job.objective, len(student.tokenizer)
    policy, reference, aligned = None, None, None
    if spec.policy.weight > 0:
        score = None
        if spec.policy.kind == "reward":
            score = rewards_of(spec, job.trajectories, student.tokenizer)
        elif spec.policy.kind == "discriminator":
            score = _adversary(context, job, model, mixed)
        policy = Policy(spec.policy, reuse=job.trajectories.rollouts.reuse, score=score)
    if spec.preference.weight > 0 and spec.preference.kind in ("dpo", "ipo"):
        reference = start_of(model, vocabulary)
    try:
        if spec.cross_tokenizer is not None:
            aligned = AlignedTeacher(context, spec.cross_tokenizer, student, model, mixed)
        return Objective(
            spec,
            teacher=teacher,
            vocabulary_size=vocabulary,
            compute_dtype=torch.bfloat16 if mixed else None,
            compiled=context.recipe.machine.compile,
            policy=policy,
            reference=reference,
            aligned=aligned,
            hints=hints_of(context, job, model, teacher, vocabulary),
        )
    except ValueError as error:
        raise RecipeError(f"stage {job.name}: objective: {error}") from error


def _adversary(context: Context, job: Job, model: PreTrainedModel, mixed: bool) -> Adversary:
    spec = job.objective.policy

    def tell(kind: str, **facts: Any) -> None:
        context.folder.event(kind, job.name, **facts)

    judge = Discriminator.of(
        model,
        learning_rate=spec.discriminator_learning_rate,
        compute_dtype=torch.bfloat16 if mixed else None,
    )
    return Adversary(judge, warmup=spec.discriminator_warmup, tell=tell)
