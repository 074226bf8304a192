"""What models do on a task, as typed records inside `evaluation.json`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lmdistill.evaluation.records import Interval, Record, Role


class TaskScores(Record):
    """One model on one held-out set of a task; intervals are over rows."""

    rows: int
    items: int
    """What is predicted: rows, labelled words or masked tokens."""
    metrics: dict[str, Interval]
    """By name: accuracy, f1, macro_f1, matthews, pearson, spearman, entity_f1, cosine_spearman."""
    reference: Literal["labels", "teacher"] = "labels"
    """What embeddings are compared with: similarities of the data set, or, where it has none, the teacher's."""
    agreement: Interval | None = None
    """Share of items whose likeliest class is the teacher's; of numbers and embeddings Spearman's correlation with the
    teacher's. Absent for the teacher itself."""
    forward_kl: Interval | None = None
    """KL(teacher‖model) of the class probabilities, nats an item."""
    calibration_error: Interval | None = None
    """Expected calibration error of the likeliest class's probability."""


class TaskComparison(Record):
    """Paired difference of the student and another model on one held-out set (student minus other)."""

    other: Role
    text: str
    metric: str
    difference: Interval
    better: Literal["student", "other", "undecided"]
    """Undecided where the interval contains 0."""


class EncoderEfficiency(Record):
    """Size and speed of a model of a task on this machine."""

    parameters: int
    embedding_parameters: int
    """Parameters of the word embeddings."""
    bytes: int
    """Size of the weights as they are scored."""
    rows_per_second: float
    """Held-out rows read a second, in batches of `batch_rows`; the median of the repeats."""
    batch_rows: int
    dtype: str


class TaskSummary(Record):
    """What was predicted, and what that came to."""

    kind: str
    classes: list[str] = Field(default_factory=list)
    comparisons: list[TaskComparison] = Field(default_factory=list)
