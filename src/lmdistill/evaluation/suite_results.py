"""What the suites found: of each data set every model's measures, and comparisons with what they could detect."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lmdistill.data.deduplicate import Overlap
from lmdistill.evaluation.records import Interval, Record, Role

SuiteName = Literal["tasks", "instruction", "reasoning", "robustness", "fidelity", "calibration", "efficiency"]
Better = Literal["student", "other", "undecided", "neither"]


class Measure(Record):
    """One figure of one model on one data set."""

    interval: Interval
    by_seed: list[float] = Field(default_factory=list)
    """The estimate of each seed, where models answered with several."""
    between_seeds: float | None = None
    """Standard deviation from seed to seed; the interval contains it."""


class SuiteModel(Record):
    """One model on one data set."""

    role: Role
    label: str
    measures: dict[str, Measure]


class SuiteComparison(Record):
    """Paired difference of a measure, student minus another model, and what the comparison could have found."""

    other: Role
    measure: str
    difference: Interval
    test: Literal["mcnemar", "bootstrap"]
    p: float
    """Two-sided, of this comparison alone."""
    p_adjusted: float | None = None
    """Corrected for all comparisons of the suite's main measures; absent for a measure that is not a main one."""
    detectable: float | None = None
    """Smallest true difference that would be found with 80 % power at a two-sided 5 %; absent where both models are
    equal on every item, which leaves nothing to estimate it from."""
    better: Better
    """Undecided where the interval contains 0 or the corrected p is 5 % and more; neither where no side is better, and
    for measures that are no main ones: many measures without correction always hold a finding."""


class SetOverlap(Record):
    """How much of an evaluation set stands in the training text."""

    train_documents: int
    exact: int
    overlapping: int
    ngram: int
    examples: list[Overlap]


class SuiteSet(Record):
    """One data set of a suite."""

    name: str
    items: int
    clusters: int
    """Independent groups of items; as many as items where each stands alone."""
    main: str
    """The measure that is tested with correction."""
    lower_is_better: dict[str, bool | None]
    """Of each measure; None where neither more nor less is better."""
    models: list[SuiteModel]
    comparisons: list[SuiteComparison] = Field(default_factory=list)
    ceiling: str | None = None
    """The teacher's agreement with itself, in words: no student can be asked for more."""
    overlap: SetOverlap | None = None
    """Absent where there was no training text to compare with."""
    notes: list[str] = Field(default_factory=list)


class SuiteResult(Record):
    """One suite."""

    suite: SuiteName
    sets: list[SuiteSet]
    correction: Literal["holm", "benjamini_hochberg", "none"]
    notes: list[str] = Field(default_factory=list)
    seconds: float
