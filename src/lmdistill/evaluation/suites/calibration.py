"""Calibration: whether a model is right as often as it is sure, over the options of questions.

MiniLLM's protocol (2306.08543, section 3.3): the probabilities of the options, renormalised over them; the expected
calibration error by bins of equal width, and beside it the Brier score, which rewards sharpness too, and the surprise
at the right option.
"""

from __future__ import annotations

import numpy as np

from lmdistill.evaluation.suites.choices import Choices, choose
from lmdistill.evaluation.suites.columns import CalibrationError, Mean
from lmdistill.evaluation.suites.items import Item
from lmdistill.evaluation.suites.sets import find_set, load_set
from lmdistill.evaluation.suites.types import Bench, Column, Outcome, Suite, Table
from lmdistill.recipe import CalibrationSpec, SuitesSpec

LOWER_IS_BETTER = {"ece": True, "brier": True, "surprise": True, "accuracy": False, "confidence": None}


def run(bench: Bench, spec: CalibrationSpec) -> list[Outcome]:
    """Every set of the suite."""
    return [_one(bench, spec, name) for name in spec.sets]


def _one(bench: Bench, spec: CalibrationSpec, name: str) -> Outcome:
    found = load_set(name, bench.suites.paths, bench.limit(spec.limit), bench.seed)
    items = [item for item in found.items if item.options]
    tables = []
    total = sum(len(item.options) for item in items) * len(bench.speakers)
    with bench.progress.task(f"calibration on {name}", total=total, unit="options") as task:
        for speaker in bench.speakers:
            chosen = choose(speaker, items, spec.batch_size, task.advance, style="letters")
            tables.append(Table(speaker, columns_of(items, chosen, spec.bins)))
    return Outcome(
        name=name,
        tables=tables,
        clusters=[item.cluster for item in items],
        main="ece",
        lower_is_better=LOWER_IS_BETTER,
        texts=[item.text for item in items],
        notes=found.notes,
    )


def columns_of(items: list[Item], chosen: Choices, bins: int) -> dict[str, Column]:
    """The measures of one model."""
    gold = [item.gold for item in items]
    confidence_I = np.array([found.max() for found in chosen.probabilities])
    correct_I = np.array([found.argmax() == right for found, right in zip(chosen.probabilities, gold, strict=True)])
    brier = [
        float(((found - np.eye(len(found))[right]) ** 2).sum())
        for found, right in zip(chosen.probabilities, gold, strict=True)
    ]
    surprise = [
        -float(np.log(max(found[right], np.finfo(np.float64).tiny)))
        for found, right in zip(chosen.probabilities, gold, strict=True)
    ]
    return {
        "ece": CalibrationError(confidence_I, correct_I.astype(np.float64), bins),
        "brier": Mean.of(brier),
        "surprise": Mean.of(surprise),
        "accuracy": Mean.of(correct_I),
        "confidence": Mean.of(confidence_I),
    }


def check(suites: SuitesSpec, spec: CalibrationSpec) -> None:
    """Whether the sets are there, with gold labels."""
    for name in spec.sets:
        find_set(name, suites.paths)
        load_set(name, suites.paths, 1, 0)


SUITE = Suite("calibration", "Calibration over options", run, check)
