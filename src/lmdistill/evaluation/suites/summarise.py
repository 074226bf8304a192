"""From a suite's tables to measures with intervals and to comparisons with what they could detect: one way for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from lmdistill.evaluation.significance import LEVEL, benjamini_hochberg, bootstrap_p, holm, mcnemar, smallest_detectable
from lmdistill.evaluation.statistics import Draws, between_seeds, draws, verdict
from lmdistill.evaluation.suite_results import Better, Measure, SuiteComparison, SuiteModel, SuiteSet
from lmdistill.evaluation.suites.overlap import overlap_of
from lmdistill.evaluation.suites.types import Bench, Column, Outcome, Table

Correction = Literal["holm", "benjamini_hochberg", "none"]
_CORRECT: dict[Correction, Callable[[Sequence[float]], list[float]]] = {
    "holm": holm,
    "benjamini_hochberg": benjamini_hochberg,
    "none": list,
}


def summarise(outcomes: Sequence[Outcome], bench: Bench) -> list[SuiteSet]:
    """Every data set of a suite; p values of the main measures are corrected over all of them together."""
    sets = [_set(outcome, bench) for outcome in outcomes]
    return correct(sets, bench.suites.correction)


def correct(sets: Sequence[SuiteSet], correction: Correction) -> list[SuiteSet]:
    """The sets with corrected p values of their main measures, and the verdicts that follow."""
    family = [c for found in sets for c in found.comparisons if c.measure == found.main]
    adjusted = iter(_CORRECT[correction]([comparison.p for comparison in family]))
    return [
        found.model_copy(
            update={
                "comparisons": [
                    _judged(c, found.lower_is_better[c.measure], next(adjusted) if c.measure == found.main else None)
                    for c in found.comparisons
                ]
            }
        )
        for found in sets
    ]


def _judged(comparison: SuiteComparison, lower: bool | None, adjusted: float | None) -> SuiteComparison:
    better: Better = "neither"  # no verdict without correction, or every suite would find something
    if lower is not None and adjusted is not None:
        better = verdict(comparison.difference, lower)  # type: ignore[assignment]
        unknown = not np.isfinite([comparison.difference.low, comparison.difference.high]).all()
        if unknown or adjusted >= LEVEL:
            better = "undecided"
    return comparison.model_copy(update={"p_adjusted": adjusted, "better": better})


def _set(outcome: Outcome, bench: Bench) -> SuiteSet:
    spec = bench.evaluation
    seeds = max((column.seeds for table in outcome.tables for column in table.columns.values()), default=1)
    drawn = draws(outcome.clusters, seeds, spec.bootstrap_samples, spec.confidence, bench.seed)
    student = next((table for table in outcome.tables if table.speaker.role == "student"), None)
    others = [] if student is None else [table for table in outcome.tables if table is not student]
    return SuiteSet(
        name=outcome.name,
        items=len(outcome.clusters),
        clusters=drawn.clusters,
        main=outcome.main,
        lower_is_better=dict(outcome.lower_is_better),
        models=[_model(table, drawn) for table in outcome.tables],
        comparisons=[
            _compare(student, other, measure, outcome, drawn)
            for other in others
            if student is not None
            for measure in outcome.lower_is_better
            if measure in student.columns and measure in other.columns
        ],
        ceiling=outcome.ceiling,
        overlap=overlap_of(bench.train_documents, outcome.texts) if bench.suites.overlap else None,
        notes=list(outcome.notes),
    )


def _model(table: Table, drawn: Draws) -> SuiteModel:
    measures = {name: _measure(column, drawn) for name, column in table.columns.items()}
    return SuiteModel(role=table.speaker.role, label=table.speaker.label, measures=measures)


def _measure(column: Column, drawn: Draws) -> Measure:
    by_seed = [column.of_seed(number) for number in range(column.seeds)] if column.seeds > 1 else []
    return Measure(interval=drawn.interval(column.values(drawn)), by_seed=by_seed, between_seeds=between_seeds(by_seed))


def _compare(student: Table, other: Table, measure: str, outcome: Outcome, drawn: Draws) -> SuiteComparison:
    """Student minus other on the same resamplings; right and wrong of independent items are counted exactly."""
    first, second = student.columns[measure], other.columns[measure]
    differences = first.values(drawn) - second.values(drawn)
    known = differences[1:][np.isfinite(differences[1:])]
    error = float(known.std(ddof=1)) if len(known) > 1 else 0.0
    right, wrong = first.outcomes, second.outcomes
    alone = drawn.clusters == len(outcome.clusters)
    exact = right is not None and wrong is not None and alone
    return SuiteComparison(
        other=other.speaker.role,
        measure=measure,
        difference=drawn.interval(differences),
        test="mcnemar" if exact else "bootstrap",
        p=mcnemar(right or [], wrong or []) if exact else bootstrap_p(differences),
        detectable=smallest_detectable(error) if error > 0 else None,
        better="undecided",
    )
