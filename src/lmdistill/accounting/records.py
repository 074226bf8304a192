"""The records of an accounting: `accounting.json` is their dump."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Part = Literal["student", "teacher", "comparison"]
"""Whom a stage serves: the student, the teacher's word for it, or the comparison (evaluation and baselines)."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class StageCost(_Record):
    """One stage of a run."""

    name: str
    seconds: float
    tokens: int = 0
    """Tokens that went through the student, or that the teacher wrote."""
    flops: float = 0.0
    """Floating-point operations of the matrix products, student and teacher together."""
    skipped: bool = False
    """Whether an earlier run of the same recipe had done it; its cost then counts as that run's."""
    part: Part = "student"
    teacher_flops: float = 0.0
    """Those of `flops` that are the teacher's."""
    attempts: int = 1
    """How often it was begun."""
    lost_seconds: float = 0.0
    """Seconds of attempts whose work is not in the result: killed, failed, or replaced by a later one."""
    lost_flops: float = 0.0
    """Operations of those attempts, estimated at the stage's own rate; of unfinished stages none are known."""
    joules: float | None = None
    """Energy that the processor's meter counted meanwhile, of all that ran on the machine; None where none is read."""


class ApiCost(_Record):
    """What asking a teacher behind an API took, failed calls included."""

    calls: int
    tokens: int
    money: float
    """US dollars."""
    flops: float | None = None
    """2 x parameters x tokens; None where the size of the model is not known."""


class Energy(_Record):
    """Energy of all stages, lost attempts included."""

    joules: float
    how: Literal["measured", "declared", "assumed"]
    """By the processor's meter (RAPL), from watts that the recipe declares, or from assumed watts."""
    detail: str


class Total(_Record):
    """One total: a lower bound where something is not known."""

    flops: float
    money: float | None = None
    """US dollars; None where no price is known."""
    unknown: list[str] = []
    """What belongs to it and is not known."""


class Totals(_Record):
    """What making the student took, evaluation and baselines apart."""

    student: Total
    """Building, training and its own writing, what was lost included."""
    with_teacher: Total
    """The teacher's inference too: live, for labels, for text, behind an API."""
    with_training: Total
    """A share of the teacher's training too, as the recipe declares it."""
    comparison: Total
    """Evaluation and baselines: in none of the totals above."""


class Accounting(_Record):
    """All stages and the machine."""

    stages: list[StageCost]
    machine: dict[str, Any]
    other_seconds: float = 0.0
    """Of the last start: loading, checking, reading and encoding text, in no stage."""
    peak_memory_bytes: int = 0
    """Most memory that the process of the last start held."""
    disk_bytes: int = 0
    """What the run's folder held at the end."""
    api: ApiCost | None = None
    energy: Energy | None = None
    totals: Totals | None = None
