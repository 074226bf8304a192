"""What the suites found, as the page and the terminal show it: a table for each set, and the comparisons."""

from __future__ import annotations

from typing import Any

from lmdistill.evaluation.records import Interval
from lmdistill.evaluation.suite_results import SuiteComparison, SuiteResult, SuiteSet
from lmdistill.report.run_data import RunData

TITLES = {
    "tasks": "Tasks",
    "instruction": "Instruction following",
    "reasoning": "Reasoning",
    "robustness": "Robustness",
    "fidelity": "Fidelity to the teacher",
    "calibration": "Calibration over options",
    "efficiency": "Efficiency",
}
NAMES = {
    "acc": "accuracy",
    "acc_norm": "accuracy, by length",
    "rouge_l": "ROUGE-L",
    "rouge_l_0_5": "ROUGE-L, references of 0 to 5 words",
    "rouge_l_6_10": "ROUGE-L, 6 to 10 words",
    "rouge_l_11": "ROUGE-L, 11 words and more",
    "rouge_teacher": "ROUGE-L to the teacher's answers",
    "asr": "attack success rate",
    "asr_character": "by characters",
    "asr_word": "by words",
    "asr_sentence": "by sentences",
    "accuracy_attacked": "accuracy under attack",
    "macro_f1": "macro F1",
    "ece": "calibration error (ECE)",
    "brier": "Brier score",
    "surprise": "surprise, nats",
    "las": "leakage-adjusted simulatability",
    "simulated": "simulated with the explanation",
    "simulated_without": "simulated without it",
    "leaking": "explanations that leak the answer",
    "forward_kl": "KL(teacher‖student)",
    "reverse_kl": "KL(student‖teacher)",
    "surprise_gap": "gap of surprise, nats",
    "agreement_gap": "gap of agreement",
    "forward_kl_gap": "gap of KL(teacher‖student)",
    "acceptance": "acceptance of a drafted token",
    "tokens_a_pass": "tokens a pass of the teacher, expected",
    "greedy_tokens_a_pass": "tokens a pass, greedy, counted",
    "greedy_accepted_a_block": "accepted of a block, greedy, counted",
    "expected_speedup": "speed-up, expected",
}
_SHARES = (
    "acc", "accuracy", "agreement", "unanswered", "macro_f1", "win_rate", "ties", "longer_wins", "unreadable",
    "simulated", "leaking", "confidence", "pass@", "maj@", "asr", "acceptance", "unfinished", "exact_match",
)  # fmt: skip
_WHOLE = ("parameters", "bytes", "peak_memory_bytes")
_POINTS = 0.05
"""A corrected p below it is shown in bold."""


def name_of(measure: str) -> str:
    """A measure as tables call it."""
    return NAMES.get(measure, measure.replace("_", " "))


def form_of(measure: str, sign: bool = False) -> str:
    """How a measure is written."""
    plus = "+" if sign else ""
    if measure in _WHOLE:
        return f"{{:{plus},.0f}}"
    if measure.endswith(("_per_second", "_ms", "tokens")):
        return f"{{:{plus}.1f}}"
    if measure.startswith(_SHARES) and not measure.endswith("_gap"):
        return f"{{:{plus}.1%}}"
    return f"{{:{plus}.3f}}"


def suites_of(run: RunData) -> list[dict[str, Any]]:
    """Every suite of a run for the page."""
    return [_suite(result) for result in (run.evaluation.suites if run.evaluation else ())]


def _suite(result: SuiteResult) -> dict[str, Any]:
    return {
        "title": TITLES[result.suite],
        "suite": result.suite,
        "sets": [_set(found) for found in result.sets],
        "correction": {"holm": "Holm", "benjamini_hochberg": "Benjamini and Hochberg", "none": None}[result.correction],
        "minutes": f"{result.seconds / 60:.1f}",
        "notes": result.notes,
    }


def _set(found: SuiteSet) -> dict[str, Any]:
    measures = list(dict.fromkeys(name for model in found.models for name in model.measures))
    rows = []
    for measure in measures:
        lower = found.lower_is_better.get(measure)
        cells = [
            _cell(model.measures[measure].interval, measure, model.measures[measure].between_seeds)
            if measure in model.measures
            else None
            for model in found.models
        ]
        better = None if lower is None else "lower" if lower else "higher"
        rows.append({"label": name_of(measure), "better": better, "cells": cells, "main": measure == found.main})
    return {
        "name": found.name,
        "count": found.items,
        "clusters": found.clusters,
        "roles": [model.role for model in found.models],
        "rows": rows,
        "comparisons": [comparison_row(c) for c in found.comparisons if _worth_showing(c, found)],
        "ceiling": found.ceiling,
        "overlap": found.overlap,
        "notes": found.notes,
    }


def _worth_showing(comparison: SuiteComparison, found: SuiteSet) -> bool:
    """The main measure, and others that have a better side."""
    return comparison.measure == found.main or found.lower_is_better.get(comparison.measure) is not None


def _cell(interval: Interval, measure: str, between_seeds: float | None) -> dict[str, str]:
    form = form_of(measure)
    if interval.low == interval.high == interval.value and measure in (*_WHOLE, "prefill_tokens_per_second"):
        return {"value": form.format(interval.value), "range": ""}
    seeds = "" if between_seeds is None else f", seeds ± {form.format(between_seeds)}"
    return {
        "value": form.format(interval.value),
        "range": f"{form.format(interval.low)} to {form.format(interval.high)}{seeds}",
    }


def comparison_row(comparison: SuiteComparison) -> dict[str, Any]:
    """One comparison in words."""
    form = form_of(comparison.measure, sign=True)
    low, high = comparison.difference.low, comparison.difference.high
    detectable = "equal on every item"
    if comparison.detectable is not None:
        detectable = form_of(comparison.measure).format(comparison.detectable)
    said = {"student": "better", "other": "worse", "undecided": "undecided", "neither": ""}
    return {
        "other": comparison.other,
        "measure": name_of(comparison.measure),
        "difference": form.format(comparison.difference.value),
        "range": f"{form.format(low)} to {form.format(high)}",
        "detectable": detectable,
        "p": _p(comparison.p),
        "p_adjusted": "" if comparison.p_adjusted is None else _p(comparison.p_adjusted),
        "test": "McNemar" if comparison.test == "mcnemar" else "bootstrap",
        "verdict": said[comparison.better],
        "found": comparison.p_adjusted is not None and comparison.p_adjusted < _POINTS,
    }


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
