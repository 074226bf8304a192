"""A few seconds of the run to come: its own teacher, a student of its size, real steps on its own text.

Everything happens in a temporary folder and leaves nothing. Stages are timed as the run carries them out, through the
same functions; what is scaled from them is in `lmdistill.planning.estimate`.
"""

from __future__ import annotations

import datetime
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from datasets import Dataset

from lmdistill.data import Collator, DataReport, Document
from lmdistill.errors import DataError, RecipeError
from lmdistill.generation.makers import ASKS_THE_STUDENT
from lmdistill.models import output_head, save_model
from lmdistill.planning.asking import Asking, ask_few
from lmdistill.recipe import ObjectiveSpec, Recipe, SourceSpec, StageSpec, TrajectoriesSpec, merge, recipe_stages
from lmdistill.signals.sources import store_folder
from lmdistill.stages.context import Context, Facts
from lmdistill.stages.generated import SEEDS
from lmdistill.stages.jobs import Job
from lmdistill.stages.label import label_dataset
from lmdistill.stages.prepare import Sources, encode, prompts_dataset, read_sources, stage_documents, teacher_dataset
from lmdistill.stages.student import Student, construct_student, needs_calibration, tokenizer_for_calibration
from lmdistill.stages.train import train
from lmdistill.students import with_adapters
from lmdistill.training.arguments import DEFAULTS

STEPS = 3
"""Optimiser steps of a calibration; the first, which compiles and allocates, is not part of the rate."""
_SAMPLE = 256
"""Documents that are encoded."""
_SFT = {"divergence": {"weight": 0.0}, "cross_entropy": {"weight": 1.0}}


@dataclass(frozen=True)
class Text:
    """The text of a stage or of a held-out set."""

    documents: int
    characters: int
    tokens: float
    """Encoded; scaled from a sample."""
    sequences: float
    encode_seconds: float
    """Of all of it."""
    dataset: Dataset
    """The sample."""


@dataclass(frozen=True)
class Pace:
    """How fast a training goes."""

    step_seconds: float
    start_seconds: float
    """What comes before the first step, and what the first step takes longer than others."""
    tokens: float
    """Read by the student in a step."""
    written: float
    """Written by the student in a step."""
    accumulation: int
    """Micro-batches of a step that were left out, as a factor."""


@dataclass
class Calibration:
    """Everything that was measured."""

    read_seconds: float = 0.0
    teacher_load: float = 0.0
    save_rate: float = 0.0
    """Bytes of weights a second, written to the disk."""
    student_load: float = 0.0
    student_bytes: int = 0
    """Of its weights before training."""
    base_seconds: float = 0.0
    """Of the teacher's layers, a token."""
    head_seconds: float = 0.0
    """Of its head, a token."""
    texts: dict[str, Text] = field(default_factory=dict)
    heldout: dict[str, Text] = field(default_factory=dict)
    paces: dict[str, Pace] = field(default_factory=dict)
    generated: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    """By stage: seconds and tokens that the teacher wrote of a sample, and how many times as much the stage needs."""
    labelled: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    """By stage: seconds and tokens that were asked for of a sample, and bytes of the store a token."""
    asking: Asking | None = None
    """What a teacher behind an API is asked; None where nobody makes data."""
    unknown: list[str] = field(default_factory=list)


def small_recipe(recipe: Recipe, runs: str) -> Recipe:
    """The recipe of the calibration: the same models and steps, nothing that takes long before them."""
    student: dict[str, Any] = recipe.student.model_dump(mode="json")
    if recipe.student.depth is not None:
        student["depth"]["importance"] = "uniform"
    student["vocabulary"], student["calibration_tokens"] = None, min(512, recipe.student.calibration_tokens)
    values = merge(recipe.model_dump(mode="json"), {"student": student, "runs": runs, "name": "plan"})
    values = merge(values, {"signals": {"store": None}, "budget": {"minutes": None, "tokens": None, "flops": None}})
    return Recipe.model_validate(values)


def calibrate(recipe: Recipe, context: Context, ask: int) -> tuple[Calibration, Student, Sources]:
    """Measure; `context` is that of the small recipe, `ask` the questions to a teacher behind an API.

    Raises what the run would raise.
    """
    found = Calibration()
    with _timed() as clock:
        sources = read_sources(context)
    found.read_seconds = clock.seconds
    with _timed() as clock:
        teacher = None if context.is_elsewhere else context.teacher
    found.teacher_load = clock.seconds
    tokenizer = tokenizer_for_calibration(context)
    stages = recipe_stages(recipe)
    if any(source.is_generated for stage in stages for source in stage.train or []):
        found.asking = _asking(recipe, context, sources, ask)
        found.unknown += found.asking.unknown
    for stage in stages:
        documents, report, times = _documents(found, sources, stage, recipe.seed)
        found.texts[stage.name] = _encoded(context, documents, tokenizer, f"train-{stage.name}", report, times)
    for name, documents in sources.heldout.items():
        found.heldout[name] = _encoded(context, documents, tokenizer, f"heldout-{name}", DataReport())
    first = found.texts[stages[0].name].dataset
    if teacher is not None:
        found.base_seconds, found.head_seconds = _teacher_rate(teacher, first)
    student, _ = construct_student(context, first if needs_calibration(context.recipe.student) else None)
    found.student_bytes = sum(file.stat().st_size for file in student.folder.glob("*.safetensors"))
    found.save_rate, found.student_load = _disk(context, student, found.student_bytes)
    for stage in stages:
        _stage(context, found, student, stage, sources)
    if "sft" in recipe.evaluation.baselines and _has_sft(found, stages):
        _baseline(context, found, student, stages[-1])
    return found, student, sources


def _asking(recipe: Recipe, context: Context, sources: Sources, ask: int) -> Asking:
    """A few questions to whoever makes data; a maker that asks the student asks it as it is before training."""
    assert recipe.generation is not None
    student = None
    if recipe.generation.maker in ASKS_THE_STUDENT:
        if needs_calibration(context.recipe.student):
            raise RecipeError(
                "the student is built from text that only the student can bring about: set "
                "student.depth.importance: uniform"
            )
        student, _ = construct_student(context, None)
    return ask_few(recipe, context, student, sources.heldout, ask)


def _documents(
    found: Calibration, sources: Sources, stage: StageSpec, seed: int
) -> tuple[list[Document], DataReport, float]:
    """The documents of a stage, and how many times as many the run will have of them."""
    more = 0.0

    def written(source: SourceSpec) -> tuple[list[Document], DataReport]:
        nonlocal more
        assert found.asking is not None
        documents, report, times = found.asking.documents(source, seed)
        more += len(documents) * (times - 1)
        return documents, report

    documents, report = stage_documents(sources, stage, written)
    return documents, report, 1 + more / max(1, len(documents))


def _has_sft(found: Calibration, stages: list[StageSpec]) -> bool:
    """Whether the student is trained once more without the teacher: where that is another training."""
    if found.asking is not None:
        return found.asking.answered
    return any(
        (stage.objective is not None and stage.objective.needs_teacher)
        or (stage.trajectories is not None and stage.trajectories.source != "dataset")
        for stage in stages
    )


def _stage(context: Context, found: Calibration, student: Student, stage: StageSpec, sources: Sources) -> None:
    """Label, let write, train: the first steps of a stage."""
    assert stage.trajectories is not None
    assert stage.objective is not None
    text = found.texts[stage.name]
    documents, _, _ = _documents(found, sources, stage, context.recipe.seed)
    dataset, store = text.dataset, None
    if stage.trajectories.teacher_writes or stage.trajectories.on_policy:
        dataset = _written(context, found, student, stage, documents)
    elif context.recipe.signals.kind != "live" and stage.objective.needs_teacher:
        rows = dataset.select(range(min(len(dataset), STEPS * _rows(stage))))
        with _timed() as clock:
            dataset, result = label_dataset(context, rows, student.tokenizer, stage.name, student.folder)
        store = store_folder(context.recipe)
        size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
        # A new store asks for some rows twice: first to learn its codec from them.
        kept = sum(len(ids) for ids in rows["input_ids"])
        found.labelled[stage.name] = clock.seconds, float(result.tokens), size / max(1, kept)
    found.paces[stage.name] = _pace(context, student, stage, stage.objective, stage.trajectories, dataset, store)


def _written(
    context: Context, found: Calibration, student: Student, stage: StageSpec, documents: list[Document]
) -> Dataset:
    """The data set of a stage whose text is written: a batch of the teacher's, or prompts for the student."""
    assert stage.trajectories is not None
    spec = stage.trajectories
    wanted = min(len(documents), spec.max_prompts or len(documents))
    batch = (
        max(spec.generation.batch_size, STEPS * _rows(stage)) if not spec.teacher_writes else spec.generation.batch_size
    )
    few = stage.model_copy(update={"trajectories": spec.model_copy(update={"max_prompts": min(wanted, batch)})})
    make = prompts_dataset if spec.on_policy else teacher_dataset
    with _timed() as clock:
        dataset = make(context, documents, student.tokenizer, few, DataReport())
    if spec.teacher_writes:
        record = context.folder.record(f"generate-{stage.name}") or {}
        tokens = float(record.get("tokens", 0))
        found.generated[stage.name] = clock.seconds, tokens, wanted / max(1, min(wanted, batch))
    return dataset


def _baseline(context: Context, found: Calibration, student: Student, stage: StageSpec) -> None:
    """The same steps without the teacher."""
    objective = stage.objective
    if objective is None or objective.needs_teacher:
        objective = ObjectiveSpec.model_validate(_SFT)
    dataset = found.texts[stage.name].dataset
    if found.asking is not None:
        documents, report, _ = found.asking.documents(SourceSpec(path=SEEDS), context.recipe.seed)
        dataset = encode(context, documents[:_SAMPLE], student.tokenizer, "train-seeds", report)
    found.paces["sft"] = _pace(context, student, stage, objective, TrajectoriesSpec(), dataset, None, "sft")


def _pace(
    context: Context,
    student: Student,
    stage: StageSpec,
    objective: ObjectiveSpec,
    trajectories: TrajectoriesSpec,
    dataset: Dataset,
    store: Any,
    name: str | None = None,
) -> Pace:
    """Take a few steps as the run does."""
    name = name or stage.name
    accumulation = int(stage.training.get("gradient_accumulation_steps", 1))
    micro = 1 if accumulation > 2 else accumulation
    changes = {"max_steps": STEPS, "logging_steps": 1, "save_strategy": "no", "eval_strategy": "no"}
    training = {**stage.training, **changes, "gradient_accumulation_steps": micro}
    training.pop("num_train_epochs", None)
    model = student.load(context, torch.float32)
    if context.recipe.student.lora is not None:
        model = with_adapters(model, context.recipe.student.lora, seed=context.recipe.seed)
    job = Job(name, objective, training, dataset, {}, trajectories, signals=store)
    facts = Facts()
    with _timed() as clock:
        train(context, student, job, f"plan-{name}", model, facts)
    times = [moment(event) for event in context.folder.events() if event["kind"] == "step" and event["stage"] == name]
    if len(times) < 2:
        raise DataError(f"stage {name}: the text is over after {len(times)} steps, too few to time one")
    step = statistics.median(late - early for early, late in pairwise(times))
    factor = accumulation / micro
    return Pace(
        step_seconds=step * factor,
        start_seconds=max(0.0, clock.seconds - len(times) * step),
        tokens=facts["tokens"] / facts["steps"] * factor,
        written=facts["written_tokens"] / facts["steps"] * factor,
        accumulation=accumulation,
    )


def moment(event: Mapping[str, Any]) -> float:
    """When an event of a run was written, in seconds."""
    return datetime.datetime.fromisoformat(event["time"]).timestamp()


def _encoded(
    context: Context, documents: list[Document], tokenizer: Any, name: str, report: DataReport, times: float = 1.0
) -> Text:
    """A sample of the documents, spread over all of them, encoded and packed; the whole by its characters.

    `times` is how many times as much text there will be.
    """
    if not documents:
        raise RecipeError(f"{name}: no document is left")
    every = max(1, len(documents) // _SAMPLE)
    sample = _with_all_tasks(documents[::every][:_SAMPLE], documents)
    few = _with_all_tasks(sample[: max(1, len(sample) // 8)], sample)
    with _timed() as small:
        encode(context, few, tokenizer, f"few-{name}", DataReport())
    with _timed() as large:
        dataset = encode(context, sample, tokenizer, name, report)
    whole, of_sample, of_few = (sum(len(each.plain) for each in part) for part in (documents, sample, few))
    # Setting up costs the same for any number of documents; the rest grows with their length.
    slope = max(0.0, large.seconds - small.seconds) / max(1, of_sample - of_few)
    seconds = large.seconds + slope * max(0.0, times * whole - of_sample)
    share = times * whole / max(1, of_sample)
    tokens = sum(len(ids) for ids in dataset["input_ids"])
    counts = round(times * len(documents)), round(times * whole)
    return Text(*counts, tokens * share, len(dataset) * share, seconds, dataset)


def _with_all_tasks(part: list[Document], whole: list[Document]) -> list[Document]:
    """Some of the documents, and the first one of each task that they lack: `data.balance` wants rows of each."""
    first = {document.task: document for document in reversed(whole)}
    there = {document.task for document in part}
    return [*part, *(document for task, document in first.items() if task not in there)]


@torch.no_grad()
def _teacher_rate(teacher: Any, dataset: Dataset) -> tuple[float, float]:
    """Seconds a token of the teacher's layers and of its head, on two batches of which the second is timed."""
    batch = Collator()([dataset[row] for row in range(min(4, len(dataset)))])
    inputs = {name: batch[name].to(teacher.device) for name in ("input_ids", "position_ids")}
    head = output_head(teacher)
    for _ in range(2):
        with _timed() as base:
            hidden_BLH = teacher.base_model(**inputs, use_cache=False)[0]
        with _timed() as last:
            torch.nn.functional.linear(hidden_BLH.flatten(0, 1)[:256], head.weight_VH, head.bias_V)
    tokens = inputs["input_ids"].numel()
    return base.seconds / tokens, last.seconds / min(256, tokens)


def _disk(context: Context, student: Student, weights: int) -> tuple[float, float]:
    """Bytes a second that weights are written with, and the seconds that reading the student's takes."""
    with _timed() as load:
        model = student.load(context, context.save_dtype)
    with _timed() as save:
        save_model(model, student.tokenizer, context.folder.file("speed-of-the-disk"))
    return weights / max(1e-6, save.seconds), load.seconds


def _rows(stage: StageSpec) -> int:
    """Sequences of an optimiser step, as far as a calibration takes it."""
    accumulation = int(stage.training.get("gradient_accumulation_steps", 1))
    rows = int(stage.training.get("per_device_train_batch_size", DEFAULTS["per_device_train_batch_size"]))
    return rows * (1 if accumulation > 2 else accumulation)


@dataclass
class Stopwatch:
    """Seconds of a block."""

    seconds: float = 0.0


@contextmanager
def _timed() -> Iterator[Stopwatch]:
    watch, started = Stopwatch(), time.monotonic()
    yield watch
    watch.seconds = time.monotonic() - started
