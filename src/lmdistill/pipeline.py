"""Carry a recipe out, stage by stage.

    recipe -> doctor -> data -> student -> training -> baselines -> evaluation -> exports -> report

Each stage writes into the run's folder, is skipped when its inputs are unchanged, and resumes where it was stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lmdistill.data import DataReport, Document
from lmdistill.doctor import examine
from lmdistill.errors import RecipeError
from lmdistill.evaluation import Evaluation, Role
from lmdistill.export import write_card
from lmdistill.io import RunLock, write_json, write_text
from lmdistill.progress import Progress
from lmdistill.recipe import (
    ObjectiveSpec,
    Recipe,
    SourceSpec,
    StageSpec,
    TrajectoriesSpec,
    dump_recipe,
    recipe_stages,
)
from lmdistill.report import summary_sentence, write_report
from lmdistill.run_folder import RunFolder
from lmdistill.signals.sources import store_folder
from lmdistill.stages.context import Context
from lmdistill.stages.dry_run import DryRun, estimate_data
from lmdistill.stages.evaluate import evaluate_models
from lmdistill.stages.export import export_all
from lmdistill.stages.filters import filter_stages
from lmdistill.stages.generate import make_data, round_of
from lmdistill.stages.generated import SEEDS, generated_documents, seeds_with_answers
from lmdistill.stages.jobs import Job
from lmdistill.stages.label import label_dataset
from lmdistill.stages.prepare import (
    Sources,
    encode,
    prompts_dataset,
    read_sources,
    stage_documents,
    teacher_dataset,
    write_data_report,
)
from lmdistill.stages.select import select_documents
from lmdistill.stages.student import Student, construct_student, needs_calibration, tokenizer_for_calibration
from lmdistill.stages.student_writer import StudentAtWork
from lmdistill.stages.suites import run_all
from lmdistill.stages.task_run import run_task
from lmdistill.stages.train import Trained, carry_out, carry_out_part, fingerprints
from lmdistill.stages.verdict import judge
from lmdistill.training.callbacks import stop_flag

__all__ = ["RunResult", "dry_run", "evaluate_models", "label_recipe", "run_recipe"]


@dataclass(frozen=True)
class RunResult:
    """What a run left behind."""

    folder: Path
    report: Path
    summary: str
    """The verdict in one sentence, as at the head of the report."""
    steps: int
    """Optimiser steps of the student over all stages."""


@dataclass
class _Work:
    """What the stages hand on."""

    sources: Sources
    stages: list[StageSpec]
    reports: dict[str, DataReport] = field(default_factory=dict)
    datasets: dict[str, Dataset] = field(default_factory=dict)
    skipped: set[str] = field(default_factory=set)
    order: list[str] = field(default_factory=list)
    heldout: dict[str, Dataset] = field(default_factory=dict)
    made: dict[int, Path] = field(default_factory=dict)
    """Folders of what the teacher wrote, by round."""


def run_recipe(recipe: Recipe, *, progress: Progress | None = None) -> RunResult:
    """Carry out a recipe in its run folder and say what came of it.

    Raises what is in `lmdistill.errors`; whatever was finished before stays and is not done again.
    """
    with _opened(recipe, progress or Progress()) as context:
        _diagnose(context)
        if recipe.task is not None:
            done = run_task(context)
            return _reported(context, done.order, done.skipped, done.steps)
        work = _Work(sources=read_sources(context), stages=recipe_stages(recipe))
        student = _student(context, work)
        trained = _train(context, work, student, "student", work.stages)
        results: dict[Role, Trained] = {"student": trained, **_baselines(context, work, student, trained)}
        _evaluate(context, work, student, results)
        for name, was_there in export_all(context).items():
            _log(work, name, was_there)
        return _write_up(context, work, sum(trained.steps))


def dry_run(recipe: Recipe, *, progress: Progress | None = None) -> DryRun:
    """Check a recipe and say what its teacher would be asked; nothing is asked, trained or paid.

    Raises what is in `lmdistill.errors`, RecipeError among them where the recipe asks no teacher behind an API.
    """
    with _opened(recipe, progress or Progress()) as context:
        _diagnose(context)
        return estimate_data(context)


@contextmanager
def _opened(recipe: Recipe, progress: Progress) -> Iterator[Context]:
    """The run's folder, owned by this process, with the resolved recipe in it."""
    folder = RunFolder(recipe.folder)
    folder.path.mkdir(parents=True, exist_ok=True)
    with RunLock(folder.path), stop_flag() as stop:
        if recipe.machine.threads:
            torch.set_num_threads(recipe.machine.threads)
        write_text(folder.recipe, dump_recipe(recipe))
        yield Context(recipe=recipe, folder=folder, progress=progress, stop=stop)


def _diagnose(context: Context) -> None:
    with context.progress.stage("doctor", "is this sound?"):
        diagnosis = examine(context.recipe, progress=context.progress)
    write_json(context.folder.file("doctor.json"), diagnosis.model_dump(mode="json"))
    for finding in diagnosis.findings:
        if finding.severity == "warning":
            context.warn(f"{finding.check}: {finding.message}" + (f" {finding.fix}" if finding.fix else ""))
    diagnosis.raise_for_errors()


def _student(context: Context, work: _Work) -> Student:
    """Build the student, then encode the held-out texts with its tokenizer."""
    student, skipped = construct_student(context, _calibration(context, work))
    _log(work, "student", skipped)
    for name, held in work.sources.heldout.items():
        work.heldout[name] = encode(context, held, student.tokenizer, f"heldout-{name}", work.sources.reports[name])
    return student


def _calibration(context: Context, work: _Work) -> Dataset | None:
    """The text that the student's construction looks at: that of the first stage; None where it looks at none."""
    if not needs_calibration(context.recipe.student):
        return None
    documents, report = _documents(context, work, work.stages[0])
    # Trimming the vocabulary changes the tokenizer; otherwise training finds this text encoded already.
    name = "calibration" if context.recipe.student.vocabulary else f"train-{work.stages[0].name}"
    return encode(context, documents, tokenizer_for_calibration(context), name, report)


def _train(context: Context, work: _Work, student: Student, role: Role, stages: list[StageSpec]) -> Trained:
    """Train the student, or a baseline of it, through all stages."""
    is_student = role == "student"
    jobs: list[Job] = []
    for stage in stages:
        if is_student:
            _make_data(context, work, student, stage, jobs)
        jobs.append(
            Job(
                name=stage.name if is_student else role if len(stages) == 1 else f"{role}-{stage.name}",
                objective=stage.objective or context.recipe.objective,
                training=stage.training,
                trajectories=stage.trajectories or context.recipe.trajectories,
                seconds=_budget(context) if is_student else None,
                limited=is_student,
                unfreeze=stage.unfreeze if is_student else None,
                pruning=stage.pruning if is_student else None,
                **_text_and_signals(context, work, student, stage),
                heldout=work.heldout,
            )
        )
    target = context.folder.file("student" if is_student else f"baselines/{role}")
    trained = carry_out(context, student, jobs, target)
    for job in jobs:
        for name in (*filter_stages(job), job.name):
            _log(work, name, trained.skipped)
    return trained


def _make_data(
    context: Context, work: _Work, student: Student | None, stage: StageSpec, before: list[Job]
) -> Path | None:
    """Let the teacher write the data that a stage trains on; its folder, or None where the stage has other text.

    `before` are the trainings that come before it: a maker that asks the student asks it as they leave it.
    """
    if not any(source.is_generated for source in stage.train or []):
        return None
    number = round_of(context.recipe, stage.name)
    if number in work.made:
        return work.made[number]

    def as_it_is() -> tuple[StudentAtWork, str]:
        if student is None:
            raise RecipeError(
                "the student is built from text that only the student can bring about: set "
                "student.depth.importance: uniform"
            )
        started = student
        weights = fingerprints(context, started, before)[-1]
        assert context.recipe.generation is not None

        def find() -> Path:
            return carry_out_part(context, started, before) if before else started.folder

        return StudentAtWork(context, find, context.recipe.generation.ask), weights

    made = make_data(context, number, as_it_is, work.sources.heldout)
    _log(work, f"generate-round-{number}", made.skipped)
    work.made[number] = made.folder
    return made.folder


def _documents(context: Context, work: _Work, stage: StageSpec) -> tuple[list[Document], DataReport]:
    """The documents of a stage, what the teacher wrote for it among them."""

    def written(source: SourceSpec) -> tuple[list[Document], DataReport]:
        folder = _make_data(context, work, None, stage, [])
        assert folder is not None
        return generated_documents(folder, source, context.recipe.seed)

    return stage_documents(work.sources, stage, written)


def _budget(context: Context) -> float | None:
    """Seconds that the student may train."""
    minutes = context.recipe.budget.minutes
    return None if minutes is None else minutes * 60


def _text_and_signals(context: Context, work: _Work, student: Student, stage: StageSpec) -> dict[str, Any]:
    """The text of a stage, and the store of the teacher's signals where it is kept on disk."""
    dataset = _stage_dataset(context, work, student.tokenizer, stage)
    objective = stage.objective or context.recipe.objective
    if context.recipe.teaching.template == "teacher" and stage.trajectories and not stage.trajectories.on_policy:
        documents, _ = _documents(context, work, stage)
        return {"dataset": dataset, "documents": {document.id: document for document in documents}}
    if context.recipe.signals.kind == "live" or not objective.needs_teacher:
        return {"dataset": dataset}
    labelled = _labelled(context, work, student.tokenizer, stage, student.folder)
    return {"dataset": labelled, "signals": store_folder(context.recipe)}


def _labelled(
    context: Context, work: _Work, tokenizer: PreTrainedTokenizerBase, stage: StageSpec, student: Path | None
) -> Dataset:
    """The text of a stage with the keys of its signals, all of which are in the store."""
    dataset = _stage_dataset(context, work, tokenizer, stage)
    labelled, result = label_dataset(context, dataset, tokenizer, stage.name, student)
    _log(work, f"label-{stage.name}", skipped=result.computed == 0)
    return labelled


def label_recipe(recipe: Recipe, *, progress: Progress | None = None) -> Path:
    """Fill the store of a recipe with the teacher's signals of all its training text; returns the store's folder.

    Raises RecipeError where the recipe keeps no signals, and what is in `lmdistill.errors`.
    """
    if recipe.signals.kind == "live":
        raise RecipeError("signals.kind is live, so there is nothing to store; set it to top_k or another kind")
    with _opened(recipe, progress or Progress()) as context:
        _diagnose(context)
        work = _Work(sources=read_sources(context), stages=recipe_stages(recipe))
        student = _student(context, work) if recipe.signals.kind == "head_expectation" else None
        tokenizer = student.tokenizer if student is not None else tokenizer_for_calibration(context)
        for stage in work.stages:
            objective = stage.objective or recipe.objective
            if objective.needs_teacher:
                _labelled(context, work, tokenizer, stage, student.folder if student is not None else None)
        return store_folder(recipe)


def _stage_dataset(context: Context, work: _Work, tokenizer: PreTrainedTokenizerBase, stage: StageSpec) -> Dataset:
    """The encoded and packed text of a stage, made once."""
    assert stage.trajectories is not None
    name = f"{stage.trajectories.source}-{stage.name}" + ("-seeds" if _has_seeds(stage) else "")
    if name not in work.datasets:
        documents, report = _documents(context, work, stage)
        if context.recipe.data.difference is not None:
            documents, skipped = select_documents(context, documents, tokenizer, stage.name)
            _log(work, f"select-{stage.name}", skipped)
        if stage.trajectories.teacher_writes:
            _log(work, f"generate-{stage.name}", False)
        if stage.trajectories.on_policy:
            dataset = prompts_dataset(context, documents, tokenizer, stage, report)
        elif stage.trajectories.source == "teacher":
            dataset = teacher_dataset(context, documents, tokenizer, stage, report)
        else:
            kept = f"train-{stage.name}" + ("-seeds" if _has_seeds(stage) else "")
            dataset = encode(context, documents, tokenizer, kept, report)
        work.datasets[name], work.reports[name] = dataset, report
    return work.datasets[name]


def _baselines(context: Context, work: _Work, student: Student, trained: Trained) -> dict[Role, Trained]:
    """The student before training, and trained on the same text for as many steps without the teacher."""
    wanted = context.recipe.evaluation.baselines
    results: dict[Role, Trained] = {}
    if "none" in wanted:
        results["none"] = Trained(folder=student.folder, fingerprint=student.fingerprint, steps=[], skipped=True)
    if "sft" in wanted:
        stages = [_without_teacher(stage, steps) for stage, steps in zip(work.stages, trained.steps, strict=True)]
        if context.recipe.generation is not None and any(_has_seeds(stage) for stage in stages):
            if all(seeds_with_answers(folder) for folder in work.made.values()):
                results["sft"] = _train(context, work, student, "sft", stages)
            else:
                context.note("the seeds have no answers of their own: no sft baseline beside the student")
        elif all(not stage.objective.needs_teacher for stage in work.stages if stage.objective) and all(
            stage.trajectories is None or stage.trajectories.source == "dataset" for stage in work.stages
        ):
            context.note("the method itself is fine-tuning without a teacher: no sft baseline beside it")
        else:
            results["sft"] = _train(context, work, student, "sft", stages)
    return results


def _without_teacher(stage: StageSpec, steps: int) -> StageSpec:
    """The same stage on the data set's own text, with cross-entropy alone, for the same number of steps."""
    objective = stage.objective
    if objective is None or objective.needs_teacher:
        objective = ObjectiveSpec.model_validate({"divergence": {"weight": 0.0}, "cross_entropy": {"weight": 1.0}})
    training = {**stage.training, "max_steps": steps}
    own = [_own_answers(source) for source in stage.train or []]
    changes = {"objective": objective, "trajectories": TrajectoriesSpec(), "training": training, "train": own}
    return stage.model_copy(update=changes)


def _own_answers(source: SourceSpec) -> SourceSpec:
    """A source of the baseline: the seeds' own answers where the teacher wrote, else the source itself."""
    return SourceSpec(path=SEEDS, limit=source.limit) if source.is_generated else source


def _has_seeds(stage: StageSpec) -> bool:
    """Whether a stage learns the seeds' own answers."""
    return any(source.path == SEEDS for source in stage.train or [])


def _evaluate(context: Context, work: _Work, student: Student, results: dict[Role, Trained]) -> Evaluation:
    train_set = _stage_dataset(context, work, student.tokenizer, work.stages[0])
    foreign = None
    if context.is_foreign:
        tokenizer = context.teacher_tokenizer()
        foreign = {
            name: encode(context, held, tokenizer, f"foreign-{name}", DataReport())
            for name, held in work.sources.heldout.items()
        }
    evaluation, skipped = judge(context, student, results, work.heldout, train_set, foreign)
    _log(work, "evaluate", skipped)
    documents = [document for found in work.sources.train.values() for document in found]
    evaluation, there = run_all(context, evaluation, student, results, work.heldout, train_set, documents)
    for name, was_there in there.items():
        _log(work, name, was_there)
    return evaluation


def _write_up(context: Context, work: _Work, steps: int) -> RunResult:
    heldout = {name: work.sources.reports[name] for name in work.heldout}
    write_data_report(context, work.reports, heldout, work.sources)
    return _reported(context, work.order, work.skipped, steps)


def _reported(context: Context, order: list[str], skipped: set[str], steps: int) -> RunResult:
    """What a run cost, its report, and the student's card."""
    context.write_accounting(order, skipped)
    with context.progress.stage("report"):
        report = write_report(context.folder.path)
        write_card(context.folder.path)
    return RunResult(
        folder=context.folder.path, report=report, summary=summary_sentence(context.folder.path), steps=steps
    )


def _log(work: _Work, name: str, skipped: bool) -> None:
    if name not in work.order:
        work.order.append(name)
        if skipped:
            work.skipped.add(name)
