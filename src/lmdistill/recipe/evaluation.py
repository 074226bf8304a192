"""What is measured."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lmdistill.recipe.base import Count, Section
from lmdistill.recipe.trajectories import AnswerSpec


class SpeedSpec(Section):
    """How speed is measured."""

    prompt_tokens: Count = 256
    """Length of the prompt of the prefill measurement."""
    new_tokens: Count = 32
    """Tokens decoded one by one."""
    repeats: Count = 3
    """Measurements; the median is reported."""


class EvaluationSpec(Section):
    """What is measured at the end, and against what."""

    baselines: list[Literal["none", "sft"]] = Field(default=["none", "sft"])
    """The answers to 'was it worth it': the student before training (`none`), and the same student trained on the same
    text for the same tokens without the teacher (`sft`)."""
    max_tokens: Count = 20000
    """Tokens of each held-out set that are scored."""
    bootstrap_samples: Annotated[int, Field(ge=100)] = 1000
    """Resamplings for the intervals; whole sequences are resampled."""
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    """Coverage of the intervals."""
    calibration_bins: Annotated[int, Field(ge=2)] = 15
    """Bins of the expected calibration error."""
    heatmap_texts: Annotated[int, Field(ge=0)] = 4
    """Texts whose tokens are shown coloured by the divergence that remains."""
    prompts: list[str] = Field(default_factory=list)
    """Prompts that all models answer side by side in the report."""
    generation: AnswerSpec = Field(default_factory=AnswerSpec)
    """How they answer."""
    speed: SpeedSpec | None = Field(default_factory=SpeedSpec)
    """How speed and memory are measured; null leaves the measurement out."""
    batch_size: Count = 8
    """Sequences scored at a time."""
