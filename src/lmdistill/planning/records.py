"""The records of a plan: `plan.json` is their dump."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class StagePlan(_Record):
    """One stage of the run to come."""

    name: str
    seconds: float
    tokens: float = 0.0
    """Tokens that go through the student, or that the teacher writes or reads."""
    written: float = 0.0
    """Of a training, tokens that the student writes; of the teacher's text, those that it writes."""
    flops: float = 0.0
    teacher_flops: float = 0.0
    """Of `flops`, the teacher's."""
    steps: float = 0.0
    """Optimiser steps of a training."""
    how: str = ""
    """What was measured and how it was scaled."""


class ApiPlan(_Record):
    """What a teacher behind an API is asked in a round, and what that takes."""

    requests: int
    stored: int
    """Of these, answers that are in the ledger already, those of the calibration among them."""
    calls: int
    """Requests that are left to ask; none is taken to fail."""
    prompt_tokens: int
    output_tokens: int
    money: float | None
    """US dollars by the recipe's prices or the table; None where the model has none."""
    seconds: float | None = None
    """Of asking; None where the teacher could not be timed."""
    call_seconds: float = 0.0
    """Of one call, as measured."""
    at_a_time: int = 1
    asked: int = 0
    """Calls of the calibration, failed ones among them; answers are in the run's ledger and not paid for again."""
    problem: str = ""
    """Why the teacher could not be timed."""
    limit: str = ""
    """Which of the recipe's limits will end the asking before its end."""


class HardwarePlan(_Record):
    """The same run on other hardware."""

    name: str
    seconds: float
    """Of the stages whose operations are counted; loading, reading and the like are left out."""
    money: float | None
    joules: float | None
    utilisation: float
    """Share of the peak that is assumed to be reached in training and scoring."""
    fits: bool
    """Whether a step's memory, as the doctor estimates it, is within one device."""
    detail: str


class ScalePlan(_Record):
    """The same recipe with another number of training tokens."""

    tokens: float
    student_flops: float
    teacher_flops: float
    seconds: float
    """On this machine, training alone."""
    signals_bytes: float | None
    """Size of a store of the teacher's signals; None where the recipe keeps none."""
    hardware: HardwarePlan | None
    advice: list[str]


class Plan(_Record):
    """What a run would take."""

    recipe: str
    """The run's name."""
    made: str
    """When it was made (ISO)."""
    machine: dict[str, Any]
    stages: list[StagePlan]
    other_seconds: float
    """Checking, reading and encoding text, in no stage."""
    startup_seconds: float
    """From the start of the process until it begins: loading Python's libraries. In no sum below."""
    seconds: float
    """All stages and the rest."""
    memory_bytes: int
    """Most memory that the calibration held, which did all that the run does, each once."""
    memory_estimate_bytes: int
    """The doctor's estimate from the models' shapes."""
    disk_bytes: int
    """In the run's folder at the end."""
    peak_disk_bytes: int
    """While it trains: checkpoints come to it."""
    money: float | None
    """US dollars: the machine's, where the recipe says what it costs, and the API's."""
    joules: float
    energy: str
    """By which watts."""
    calibration_seconds: float
    unknown: list[str] = []
    """What the run does and the plan does not know."""
    api: ApiPlan | None = None
    """Of a round in which a teacher behind an API is asked."""
    hardware: HardwarePlan | None = None
    scale: ScalePlan | None = None
