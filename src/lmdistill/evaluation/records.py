"""What all results of an evaluation are made of."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Role = Literal["teacher", "student", "none", "sft"]
"""`none` is the student before training, `sft` the same student trained on the same text without the teacher."""


class Record(BaseModel):
    """Base of the result records: NaN and infinities survive JSON, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings", use_attribute_docstrings=True)


class Interval(Record):
    """An estimate with its bootstrap interval."""

    value: float
    low: float
    high: float
