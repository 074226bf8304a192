"""What a report says of a task: the table, the differences, the sentence, the student's card."""

from __future__ import annotations

from typing import Any

from lmdistill.evaluation.records import Interval, Role
from lmdistill.evaluation.task_results import TaskScores
from lmdistill.report.run_data import RunData

NAMES = {
    "accuracy": "accuracy",
    "f1": "F1 of the second class",
    "macro_f1": "F1, mean over classes",
    "matthews": "Matthews' correlation",
    "pearson": "Pearson's correlation",
    "spearman": "Spearman's correlation",
    "entity_f1": "F1 of entities",
    "cosine_spearman": "Spearman's correlation of cosines",
    "agreement": "agreement with the teacher",
    "forward_kl": "KL(teacher‖student)",
    "calibration_error": "calibration error (ECE)",
}
_LOWER = ("forward_kl", "calibration_error")
_WHO: dict[Role, str] = {
    "teacher": "the teacher",
    "none": "the student before training",
    "sft": "the same student fine-tuned for as many steps without the teacher",
}


def task_tables(run: RunData) -> list[dict[str, Any]]:
    """For each held-out set the measures (rows) of all models (columns); empty where the run has no task."""
    evaluation = run.evaluation
    if evaluation is None or evaluation.task is None:
        return []
    tables = []
    for text in dict.fromkeys(name for model in evaluation.models for name in model.task):
        models = [model for model in evaluation.models if text in model.task]
        found = [_all(model.task[text]) for model in models]
        names = dict.fromkeys(name for values in found for name in values)
        rows = [
            {
                "label": NAMES.get(name, name),
                "better": "lower" if name in _LOWER else "higher",
                "cells": [_cell(values.get(name)) for values in found],
            }
            for name in names
        ]
        scores = models[0].task[text]
        tables.append(
            {"text": text, "rows_scored": scores.rows, "labels_scored": scores.items, "models": models, "rows": rows}
            | {"by_teacher": scores.reference == "teacher"}
        )
    return tables


def task_differences(run: RunData) -> list[dict[str, str]]:
    """The student minus each other model."""
    if run.evaluation is None or run.evaluation.task is None:
        return []
    return [
        {
            "text": found.text,
            "other": found.other,
            "metric": NAMES.get(found.metric, found.metric),
            "value": f"{found.difference.value:+.3f}",
            "range": f"{found.difference.low:+.3f} to {found.difference.high:+.3f}",
            "verdict": {"student": "better", "other": "worse"}.get(found.better, "undecided"),
        }
        for found in run.evaluation.task.comparisons
    ]


def task_summary(run: RunData) -> str:
    """The verdict of a run with a task, in a few sentences; made from the numbers."""
    student, teacher = run.model("student"), run.model("teacher")
    if student is None or not student.task:
        return "This run has no held-out rows: nothing can be said about its student."
    text, scores = next(iter(student.task.items()))
    metric, value = next(iter(scores.metrics.items()))
    parts = ["The student"]
    if teacher is not None and teacher.encoder and student.encoder:
        small, large = student.encoder, teacher.encoder
        parts.append(
            f"has {small.parameters / large.parameters:.0%} of its teacher's parameters, reads "
            f"{small.rows_per_second / large.rows_per_second:.1f} times as fast and"
        )
    parts.append(f"reaches {NAMES[metric]} {_shown(value)} on {scores.rows:,} held-out rows of {text}")
    if teacher is not None and text in teacher.task:
        parts.append(f"(teacher {_shown(teacher.task[text].metrics[metric])})")
    said = " ".join(parts) + "."
    evaluation = run.evaluation
    assert evaluation is not None
    for found in evaluation.task.comparisons if evaluation.task else ():
        if (found.text, found.metric, found.other) == (text, metric, "sft"):
            words = {"student": "better than", "other": "worse than"}.get(found.better, "not to be told apart from")
            said += f" It is {words} {_WHO['sft']} ({found.difference.value:+.3f}, {_range(found.difference)})."
    return said


def card_table(run: RunData) -> list[str]:
    """The measures as lines of Markdown, for the student's card."""
    lines: list[str] = []
    for table in task_tables(run):
        roles = [str(model.role) for model in table["models"]]
        lines += [f"## Held-out {table['text']} ({table['rows_scored']} rows)", ""]
        lines += ["| | " + " | ".join(roles) + " |", "|---|" + "---|" * len(roles)]
        for row in table["rows"]:
            cells = [f"{cell['value']} ({cell['range']})" if cell else "–" for cell in row["cells"]]
            lines.append(f"| {row['label']} | " + " | ".join(cells) + " |")
        lines.append("")
    return lines


def card_head(run: RunData) -> tuple[str, str]:
    """Pipeline tag and the class of transformers that loads the student."""
    assert run.evaluation is not None
    assert run.evaluation.task is not None
    return {
        "sequence_classification": ("text-classification", "AutoModelForSequenceClassification"),
        "sequence_regression": ("text-classification", "AutoModelForSequenceClassification"),
        "token_classification": ("token-classification", "AutoModelForTokenClassification"),
        "sentence_embedding": ("sentence-similarity", "AutoModel"),
        "masked_lm": ("fill-mask", "AutoModelForMaskedLM"),
    }[run.evaluation.task.kind]


def _all(scores: TaskScores) -> dict[str, Interval]:
    values = dict(scores.metrics)
    for name in ("agreement", "forward_kl", "calibration_error"):
        found = getattr(scores, name)
        if found is not None:
            values[name] = found
    return values


def _cell(interval: Interval | None) -> dict[str, str] | None:
    return None if interval is None else {"value": f"{interval.value:.3f}", "range": _range(interval)}


def _shown(interval: Interval) -> str:
    return f"{interval.value:.3f}"


def _range(interval: Interval) -> str:
    return f"{interval.low:.3f} to {interval.high:.3f}"
