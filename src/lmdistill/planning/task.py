"""A run that trains on a task, planned: the whole run with a few rows and steps, whose stages are scaled.

Encoders are small and their stages many (a teacher that learns the task, masked tokens, filters, the student, its
baseline), so the calibration is the run itself, three steps a training.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from lmdistill.data import DataReport
from lmdistill.errors import DataError
from lmdistill.planning.calibrate import STEPS, moment
from lmdistill.planning.estimate import steps_of
from lmdistill.planning.records import StagePlan
from lmdistill.recipe import Recipe, StageSpec, merge, recipe_stages
from lmdistill.stages.context import Context
from lmdistill.stages.task_data import kind_of
from lmdistill.stages.task_filters import TEACHER as TEACHERS_FILTERS
from lmdistill.stages.task_run import EVALUATE, TEACHER, TaskRun, run_task
from lmdistill.training.arguments import DEFAULTS

_TRAINED = 512
"""Rows of a training source that a calibration reads on."""
SCORED = (64, 192)
"""Rows of a held-out set that it scores, first and then: what grows with the rows is told from what does not."""
_WRITTEN = 32
"""Texts that a language model writes for it (`task.self_sampled`)."""


@dataclass(frozen=True)
class TaskPlan:
    """Stages of a run with a task, and what is in none of them."""

    stages: list[StagePlan]
    other_seconds: float
    disk_bytes: tuple[int, int]
    """At the end, and while it trains."""
    unknown: list[str]


def small_task(recipe: Recipe, runs: str, scored: int) -> Recipe:
    """The recipe with few rows and steps."""
    values = recipe.model_dump(mode="json")
    few = {"max_steps": STEPS, "logging_steps": 1, "save_strategy": "no", "eval_strategy": "no"}
    values = merge(values, {"runs": runs, "name": "plan", "training": few})
    values = merge(values, {"budget": {"minutes": None, "tokens": None, "flops": None}})
    values["evaluation"]["suites"] = None
    for source in [*values["data"]["train"], *(each for stage in values["stages"] for each in stage["train"] or [])]:
        source["limit"] = min(source["limit"] or _TRAINED, _TRAINED)
    for source in values["data"]["evaluation"].values():
        source["limit"] = min(source["limit"] or scored, scored)
    for stage in values["stages"]:
        stage["training"] = {**stage["training"], **few}
    task = values["task"]
    task["teacher"]["training"] = {**task["teacher"]["training"], **few}
    if task["filters"] is not None:
        task["filters"]["training"] = {**task["filters"]["training"], **few}
    if task["self_sampled"] is not None:
        task["self_sampled"]["rows"] = min(task["self_sampled"]["rows"], _WRITTEN)
    return Recipe.model_validate(values)


def plan_task(recipe: Recipe, context: Context) -> TaskPlan:
    """Carry the small run out in its temporary folder and scale it. Raises what the run would raise."""
    started = time.monotonic()
    run = run_task(context)
    records = {name: context.folder.record(name) or {} for name in run.order}
    other = time.monotonic() - started - sum(float(record.get("seconds", 0.0)) for record in records.values())
    at_end = _size(context.folder.path)
    judged = _judged(recipe, context, run, float(records[EVALUATE]["seconds"]))
    stages = [
        judged if name == EVALUATE else _stage(recipe, context, run, name, record) for name, record in records.items()
    ]
    found = [] if recipe.task is None or recipe.task.augment is None else ["making further rows (task.augment)"]
    if recipe.evaluation.suites is not None:
        found.append("the suites of the evaluation (evaluation.suites)")
    return TaskPlan(stages, max(0.0, other), (at_end, at_end + _checkpoints(recipe, context, stages)), found)


def _stage(recipe: Recipe, context: Context, run: TaskRun, name: str, record: Mapping[str, Any]) -> StagePlan:
    """A stage as it was measured, its steps as many as the run will take."""
    seconds = float(record.get("seconds", 0.0))
    if "steps" not in record:
        task = recipe.task
        assert task is not None
        times = 1.0
        if name.startswith("generate-") and task.self_sampled is not None:
            times = task.self_sampled.rows / min(task.self_sampled.rows, _WRITTEN)
        tokens = float(record.get("tokens", 0)) * times
        return StagePlan(name=name, seconds=seconds * times, tokens=tokens, how=f"{times:g} times {seconds:.1f} s")
    moments = [moment(event) for event in context.folder.events() if event["kind"] == "step" and event["stage"] == name]
    if len(moments) < 2:
        raise DataError(f"stage {name}: the rows are over after {len(moments)} steps, too few to time one")
    step = statistics.median(late - early for early, late in pairwise(moments))
    before = max(0.0, seconds - len(moments) * step)
    wanted = steps_of(*_trained_on(recipe, run, name))
    share = wanted / int(record["steps"])
    return StagePlan(
        name=name,
        seconds=before + wanted * step,
        tokens=float(record.get("tokens", 0)) * share,
        flops=float(record.get("flops", 0.0)) * share,
        teacher_flops=float(record.get("teacher_flops", 0.0)) * share,
        steps=wanted,
        how=f"{wanted:,.0f} steps of {step:.2f} s, {before:.1f} s before and behind",
    )


def _trained_on(recipe: Recipe, run: TaskRun, name: str) -> tuple[StageSpec, float]:
    """What a training is told, and the rows that it has in the run."""
    task, stages = recipe.task, recipe_stages(recipe)
    assert task is not None
    own = next((stage for stage in stages if name == stage.name or name.endswith(f"-{stage.name}")), None)
    kinds = {f"{TEACHER}-{kind_of(task, stage)}": stage for stage in reversed(stages)}
    last = [stage for stage in stages if kind_of(task, stage) == task.kind]
    stage = own or kinds.get(name) or last[0]
    training = dict(stage.training)
    if name == TEACHER or name in kinds:
        training = {**recipe.training, **task.teacher.training}
    if task.filters is not None and (name == TEACHERS_FILTERS or "filters" in name):
        training |= task.filters.training
    sampled = task.self_sampled if kind_of(task, stage) == task.kind and not name.startswith((TEACHER, "sft")) else None
    if sampled is not None:
        return stage.model_copy(update={"training": training}), float(sampled.rows)
    report = run.reports.get(name) or run.reports[stage.name]
    return stage.model_copy(update={"training": training}), _whole(report, _limit(recipe, stage))


def _limit(recipe: Recipe, stage: StageSpec) -> int | None:
    """Most rows that the recipe itself wants of a stage's sources; None where one of them is taken whole."""
    limits = [source.limit for source in stage.train or recipe.data.train]
    return None if None in limits else sum(limit or 0 for limit in limits)


def _whole(report: DataReport, limit: int | None) -> float:
    """Rows that there are, made from those that were read; at most those that the recipe takes, and what is made."""
    read = max(1, report.documents)
    there = report.documents + report.beyond_limit
    return float(there if limit is None else min(there, max(limit, read)))


def _judged(recipe: Recipe, context: Context, run: TaskRun, first: float) -> StagePlan:
    """Evaluation, scored on few rows and then on more: the difference is what a row takes."""
    totals = {name: _whole(run.reports[name], source.limit) for name, source in recipe.data.evaluation.items()}
    few, more = (sum(min(total, scored) for total in totals.values()) for scored in SCORED)
    seconds, a_row = first, 0.0
    record = context.folder.record(EVALUATE) or {}
    tokens = float(record.get("tokens", 0))
    if more > few:
        again = Context(
            recipe=small_task(recipe, context.recipe.runs, SCORED[1]),
            folder=context.folder,
            progress=context.progress,
            stop=context.stop,
        )
        run_task(again)
        record = context.folder.record(EVALUATE) or {}
        seconds, tokens = float(record.get("seconds", first)), float(record.get("tokens", 0))
        a_row = max(0.0, seconds - first) / (more - few)
    whole = sum(totals.values())
    return StagePlan(
        name=EVALUATE,
        seconds=seconds + a_row * (whole - more),
        tokens=tokens * whole / max(1.0, more),
        how=f"{more:,.0f} rows took {seconds:.1f} s, there are {whole:,.0f}",
    )


def _checkpoints(recipe: Recipe, context: Context, stages: list[StagePlan]) -> int:
    """Bytes of the checkpoints that lie beside the rest while it trains: weights, and two moments of each."""
    folder = context.folder.file("student")
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    size = {"bfloat16": 2, "float16": 2, "float32": 4}[recipe.student.save_dtype]
    saves = int(recipe.training.get("save_steps", DEFAULTS["save_steps"]))
    steps = max(stage.steps for stage in stages)
    keep = int(recipe.training.get("save_total_limit", DEFAULTS["save_total_limit"])) + 1
    return keep * 12 * weights // size if steps >= saves else 4 * weights // size


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
