"""How well models do on a task, how like their teacher they are, and how large and fast.

Shape legend: B rows of a batch, S rows, N items (rows, or labelled words), C classes, M bins, R resamplings.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn

from lmdistill.errors import DataError
from lmdistill.evaluation.records import Interval, Role
from lmdistill.evaluation.results import Evaluation, ModelScores
from lmdistill.evaluation.statistics import Resampling, resampling, verdict
from lmdistill.evaluation.task_results import EncoderEfficiency, TaskComparison, TaskScores, TaskSummary
from lmdistill.models import count_parameters
from lmdistill.progress import Progress
from lmdistill.recipe import EvaluationSpec
from lmdistill.recipe.task import TaskSpec
from lmdistill.tasks.encode import IGNORED, TaskCollator
from lmdistill.tasks.metrics import Floats, Items, by_row, correlations, measure, weights_of
from lmdistill.tasks.models import outputs

LOWER_IS_BETTER = ("forward_kl", "calibration_error")


@dataclass(frozen=True)
class TaskSubject:
    """One model that is scored."""

    role: Role
    label: str
    model: nn.Module
    adjust: Callable[[Tensor, Mapping[str, Any]], Tensor] | None = None
    """What becomes of its logits (N, C) of a batch before they are scored: retrieval."""


@dataclass
class _Found:
    """What one model said of one held-out set, item by item."""

    top: list[Floats] = field(default_factory=list)
    confidence: list[Floats] = field(default_factory=list)
    agrees: list[Floats] = field(default_factory=list)
    kl: list[Floats] = field(default_factory=list)


def evaluate_task(
    subjects: Sequence[TaskSubject],
    texts: Mapping[str, Dataset],
    task: TaskSpec,
    classes: Sequence[str],
    collator: TaskCollator,
    spec: EvaluationSpec,
    *,
    seed: int,
    progress: Progress,
) -> Evaluation:
    """Score models on the held-out sets of a task; the first may be the teacher, which others are compared with."""
    started = time.perf_counter()
    scores: dict[Role, dict[str, TaskScores]] = {subject.role: {} for subject in subjects}
    comparisons: list[TaskComparison] = []
    for name, dataset in texts.items():
        drawn = resampling(len(dataset), spec.bootstrap_samples, spec.confidence, seed)
        labels, found = _predict(subjects, dataset, task, collator, progress, name)
        values: dict[Role, dict[str, Floats]] = {}
        for subject in subjects:
            values[subject.role], scores[subject.role][name] = _score(
                subject, labels, found, task, classes, drawn, spec.calibration_bins
            )
        comparisons += _compare(values, name, drawn)
    timed = next(iter(texts.values()), None)
    models = [
        ModelScores(
            role=subject.role,
            label=subject.label,
            texts={},
            task=scores[subject.role],
            encoder=_efficiency(subject, timed, task, collator, spec) if spec.speed and timed is not None else None,
        )
        for subject in subjects
    ]
    return Evaluation(
        models=models,
        comparisons=[],
        heat=[],
        generations=[],
        task=TaskSummary(kind=task.kind, classes=list(classes), comparisons=comparisons),
        confidence=spec.confidence,
        bootstrap_samples=spec.bootstrap_samples,
        seconds=round(time.perf_counter() - started, 3),
    )


@dataclass
class _Labels:
    """What is right, item by item."""

    row_N: Any
    label_N: Floats
    rows: int


@torch.no_grad()
def _predict(
    subjects: Sequence[TaskSubject],
    dataset: Dataset,
    task: TaskSpec,
    collator: TaskCollator,
    progress: Progress,
    name: str,
) -> tuple[_Labels, dict[Role, _Found]]:
    found: dict[Role, _Found] = {subject.role: _Found() for subject in subjects}
    rows: list[Any] = []
    labels: list[Any] = []
    device = next(subjects[0].model.parameters()).device
    with progress.task(f"score {name}", total=len(dataset), unit="rows") as bar:
        for first in range(0, len(dataset), task.batch_rows):
            batch = collator([dataset[place] for place in range(first, min(len(dataset), first + task.batch_rows))])
            batch = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
            row_n, label_n = _items_of(batch, task)
            rows.append(row_n + first)
            labels.append(label_n)
            teacher_NC = None
            for subject in subjects:
                said_NC = outputs(subject.model, batch, task.kind).float()
                if subject.adjust is not None:
                    said_NC = subject.adjust(said_NC, batch)
                _note(found[subject.role], said_NC, teacher_NC, task, len(batch["row_ids"]))
                if subject.role == "teacher":
                    teacher_NC = said_NC
            bar.advance(len(batch["row_ids"]))
    return _Labels(np.concatenate(rows), np.concatenate(labels), len(dataset)), found


def _items_of(batch: Mapping[str, Any], task: TaskSpec) -> tuple[Any, Floats]:
    """The row of each item of a batch, and what is right."""
    labels = batch["labels"].cpu()
    if task.kind in ("token_classification", "masked_lm"):
        places = (labels != IGNORED).nonzero()
        return places[:, 0].numpy(), labels[labels != IGNORED].double().numpy()
    return np.arange(len(labels)), labels.double().numpy()


def _note(found: _Found, said_NC: Tensor, teacher_NC: Tensor | None, task: TaskSpec, rows: int) -> None:
    if task.kind == "sequence_regression":
        found.top.append(said_NC[:, 0].double().cpu().numpy())
        return
    if task.kind == "sentence_embedding":
        found.top.append(_cosines(said_NC, rows).double().cpu().numpy())
        return
    log_s_NC = said_NC.log_softmax(-1)
    confidence_N, top_N = log_s_NC.exp().max(-1)
    found.top.append(top_N.double().cpu().numpy())
    found.confidence.append(confidence_N.double().cpu().numpy())
    if teacher_NC is not None:
        log_t_NC = teacher_NC.log_softmax(-1)
        found.agrees.append((log_t_NC.argmax(-1) == top_N).double().cpu().numpy())
        found.kl.append((log_t_NC.exp() * (log_t_NC - log_s_NC)).sum(-1).double().cpu().numpy())


def _cosines(embeddings_BH: Tensor, rows: int) -> Tensor:
    """The cosine of each text and its pair; where rows are no pairs, of each text and the next one of its batch."""
    if len(embeddings_BH) == rows:
        return (embeddings_BH * embeddings_BH.roll(-1, dims=0)).sum(-1)
    return (embeddings_BH[:rows] * embeddings_BH[rows:]).sum(-1)


def _score(
    subject: TaskSubject,
    labels: _Labels,
    found: Mapping[Role, _Found],
    task: TaskSpec,
    classes: Sequence[str],
    drawn: Resampling,
    bins: int,
) -> tuple[dict[str, Floats], TaskScores]:
    """All measures of a model on one set: on the data and each resampling, and as intervals."""
    own = found[subject.role]
    value_N, weights_RS = np.concatenate(own.top), weights_of(drawn)
    teacher = found.get("teacher") if subject.role != "teacher" else None
    label_N, reference = labels.label_N, "labels"
    if task.kind == "sentence_embedding" and not np.isfinite(label_N).all():
        label_N = np.concatenate(found["teacher"].top) if "teacher" in found else value_N
        reference = "teacher"
    items = Items(labels.row_N, labels.rows, label_N, value_N)
    values: dict[str, Floats] = {metric: measure(metric, items, weights_RS, classes) for metric in task.all_metrics}
    named = {metric: drawn.interval(value) for metric, value in values.items()}
    others: dict[str, Interval] = {}
    if teacher is not None:
        if own.agrees:
            count_S = by_row(np.ones(len(items.row_N)), items)
            for name, parts in (("agreement", own.agrees), ("forward_kl", own.kl)):
                values[name] = drawn.ratio(by_row(np.concatenate(parts), items), count_S)
        else:
            values["agreement"] = correlations(value_N, np.concatenate(teacher.top), weights_RS, ranks=True)
    if own.confidence:
        values["calibration_error"] = _calibration(items, np.concatenate(own.confidence), drawn, bins)
    for name in ("agreement", "forward_kl", "calibration_error"):
        if name in values:
            others[name] = drawn.interval(values[name])
    return values, TaskScores(
        rows=labels.rows,
        items=len(items.row_N),
        metrics=named,
        reference="teacher" if reference == "teacher" else "labels",
        **others,
    )


def _calibration(items: Items, confidence_N: Floats, drawn: Resampling, bins: int) -> Floats:
    bin_N = np.minimum((confidence_N * bins).astype(np.int64), bins - 1)
    right_N = (items.label_N == items.value_N).astype(np.float64)
    sums = [np.zeros((items.rows, bins)) for _ in range(3)]
    for table_SM, value_N in zip(sums, (np.ones_like(right_N), confidence_N, right_N), strict=True):
        np.add.at(table_SM, (items.row_N, bin_N), value_N)
    return drawn.calibration_error(*sums)


def _compare(values: Mapping[Role, Mapping[str, Floats]], text: str, drawn: Resampling) -> list[TaskComparison]:
    """The student minus each other model, on the same resamplings."""
    student = values.get("student")
    found = []
    for other, theirs in values.items():
        if student is None or other == "student":
            continue
        for metric, value in student.items():
            if metric not in theirs:
                continue
            difference = drawn.interval(value - theirs[metric])
            better = verdict(difference, metric in LOWER_IS_BETTER)
            found.append(
                TaskComparison(
                    other=other,
                    text=text,
                    metric=metric,
                    difference=difference,
                    better="student" if better == "student" else "other" if better == "other" else "undecided",
                )
            )
    return found


@torch.no_grad()
def _efficiency(
    subject: TaskSubject, dataset: Dataset, task: TaskSpec, collator: TaskCollator, spec: EvaluationSpec
) -> EncoderEfficiency:
    """Parameters, bytes and rows a second on the first rows of a held-out set."""
    assert spec.speed is not None
    if not len(dataset):
        raise DataError("there are no held-out rows to measure speed on")
    count = min(task.batch_rows, len(dataset))
    model: Any = subject.model
    device = next(model.parameters()).device
    batch = collator([dataset[place] for place in range(count)])
    batch = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
    seconds = []
    for repeat in range(spec.speed.repeats + 1):
        start = time.perf_counter()
        outputs(model, batch, task.kind)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if repeat:  # the first one warms up
            seconds.append(time.perf_counter() - start)
    parameters = list(model.parameters())
    return EncoderEfficiency(
        parameters=count_parameters(model),
        embedding_parameters=model.get_input_embeddings().weight.numel(),
        bytes=sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        rows_per_second=count / statistics.median(seconds),
        batch_rows=count,
        dtype=str(parameters[0].dtype).removeprefix("torch."),
    )
