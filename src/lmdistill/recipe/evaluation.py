"""What is measured."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lmdistill.recipe.base import Count, NonNegative, Section
from lmdistill.recipe.suites import SuitesSpec
from lmdistill.recipe.trajectories import AnswerSpec


class SpeedSpec(Section):
    """How speed is measured."""

    prompt_tokens: Count = 256
    """Length of the prompt of the prefill measurement."""
    new_tokens: Count = 32
    """Tokens decoded one by one."""
    repeats: Count = 3
    """Measurements; the median is reported."""


class ResponsesSpec(Section):
    """What every model writes by itself to held-out prompts, and how far that is from what the teacher writes: ROUGE-L,
    exposure bias, coverage and likelihood. Needs `pip install 'lmdistill[eval]'`."""

    texts: list[str] | None = None
    """Names of held-out sets (`data.evaluation`) whose prompts are answered; all of them where absent."""
    prompts: Count = 100
    """Held-out prompts of each set; intervals are over them."""
    prompt_tokens: Count = 32
    """For plain text, the length of the beginning that is continued. Chat and prompt rows give prompts of their own."""
    max_new_tokens: Count = 128
    """Longest answer in tokens; the data set's own answers are cut there too before they are compared."""
    temperature: NonNegative = 1.0
    """Sampling temperature; 0 decodes greedily."""
    samples: Count = 1
    """Answers of each model to each prompt. All models are given the same draws."""
    references: Count = 1
    """Further answers of the teacher, from draws of their own, that each answer is compared with: the nearest counts.
    The teacher's own answers against them are the ceiling."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """Seed of the draws; the recipe's where absent."""
    batch_size: Count = 16
    """Prompts answered at a time."""
    shown: Annotated[int, Field(ge=0)] = 3
    """Prompts of each set whose answers stand side by side in the report."""

    @model_validator(mode="after")
    def _greedy_is_one_text(self) -> ResponsesSpec:
        if self.temperature == 0 and max(self.samples, self.references) > 1:
            raise ValueError(
                f"{max(self.samples, self.references)} greedy answers to one prompt are the same text; raise "
                "temperature above 0, or ask for 1 in samples and references"
            )
        return self


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
    responses: ResponsesSpec | None = None
    """What models write by themselves to held-out prompts; null leaves it out."""
    suites: SuitesSpec | None = None
    """Suites that are run on the finished models beside all this; null: none."""
    batch_size: Count = 8
    """Sequences scored at a time."""
