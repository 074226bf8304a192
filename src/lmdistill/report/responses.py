"""What models wrote themselves, as the page shows it: a table for each text, and paired differences."""

from __future__ import annotations

from typing import Any, get_args

from lmdistill.evaluation.results import Comparison, Interval, ModelScores, ResponseMetric
from lmdistill.report.run_data import RunData

RESPONSE_METRICS = frozenset(get_args(ResponseMetric))

_MEASURES: tuple[tuple[str, str, str | None, str], ...] = (
    # field, label, which is better, how a value is written
    ("rouge_teacher", "ROUGE-L to the teacher's answers", "higher", "{:.4f}"),
    ("rouge_reference", "ROUGE-L to the data set's answers", "higher", "{:.4f}"),
    ("coverage", "coverage: surprise at the teacher's answers", "lower", "{:.4f}"),
    ("likelihood", "likelihood: the teacher's surprise at its answers", "lower", "{:.4f}"),
    ("forward_kl_own", "KL(teacher‖student), own prefixes", "lower", "{:.4f}"),
    ("forward_kl_teacher", "KL(teacher‖student), the teacher's prefixes", "lower", "{:.4f}"),
    ("reverse_kl_own", "KL(student‖teacher), own prefixes", "lower", "{:.4f}"),
    ("excess_error", "excess error from its own prefixes", None, "{:+.1f} %"),
    ("own_nll", "surprise at its own answers", None, "{:.4f}"),
    ("length", "tokens an answer", None, "{:.1f}"),
    ("unfinished", "cut by the length limit", None, "{:.1%}"),
    ("repetition", "repeated 4-grams", None, "{:.1%}"),
)


def answered_texts(run: RunData) -> list[str]:
    """Names of the texts whose prompts were answered."""
    models = run.evaluation.models if run.evaluation else []
    return list(models[0].responses) if models else []


def response_table(run: RunData, text: str) -> dict[str, Any]:
    """Rows of measures, columns of models; the best of the students is marked where more or less is better."""
    assert run.evaluation is not None
    models = [model for model in run.evaluation.models if text in model.responses]
    rows = [_row(models, text, *measure) for measure in _MEASURES]
    scores = models[0].responses[text]
    length = next((found for m in models if (found := m.responses[text].excess_length) is not None), None)
    return {
        "text": text,
        "models": models,
        "rows": [row for row in rows if any(row["cells"])],
        "distinct": [model.responses[text].distinct for model in models],
        "prompts": scores.prompts,
        "answers": scores.answers,
        "length": length,
        "differences": response_differences(run, text),
    }


def response_differences(run: RunData, text: str) -> dict[str, Any]:
    """Paired differences of what was written, student minus other: rows of measures, columns of others."""
    comparisons = [c for c in run.evaluation.comparisons if c.text == text] if run.evaluation else []
    found: dict[tuple[str, str], Comparison] = {
        (c.metric, c.other): c for c in comparisons if c.metric in RESPONSE_METRICS and c.other != "teacher"
    }
    others = list(dict.fromkeys(other for _, other in found))
    rows = [
        {"label": label, "cells": [_difference(found.get((name, other)), form) for other in others]}
        for name, label, _, form in _MEASURES
    ]
    return {"others": others, "rows": [row for row in rows if any(row["cells"])]}


def _difference(comparison: Comparison | None, form: str) -> dict[str, str] | None:
    if comparison is None:
        return None
    signed = form if "+" in form else form.replace("{:", "{:+")
    verdict = {"student": "better", "other": "worse", "undecided": "undecided", "neither": ""}[comparison.better]
    return {"verdict": verdict, **shown(comparison.difference, signed)}


def shown(interval: Interval, form: str) -> dict[str, str]:
    """A value and its interval in words."""
    return {
        "value": form.format(interval.value),
        "range": f"{form.format(interval.low)} to {form.format(interval.high)}",
    }


def _row(models: list[ModelScores], text: str, name: str, label: str, better: str | None, form: str) -> dict[str, Any]:
    intervals: list[Interval | None] = [getattr(model.responses[text], name) for model in models]
    students = [
        interval.value
        for interval, model in zip(intervals, models, strict=True)
        if interval is not None and model.role != "teacher"
    ]
    best = None if better is None or not students else max(students) if better == "higher" else min(students)
    cells = [
        None
        if interval is None
        else {**shown(interval, form), "best": model.role != "teacher" and interval.value == best}
        for interval, model in zip(intervals, models, strict=True)
    ]
    return {"label": label, "better": better, "cells": cells}
