"""Whose text is trained on, and how text is sampled."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lmdistill.recipe.base import Count, NonNegative, Section


class GenerationSpec(Section):
    """How text is sampled."""

    max_new_tokens: Count = 128
    """Longest answer in tokens."""
    temperature: NonNegative = 1.0
    """Sampling temperature; 0 decodes greedily."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Nucleus: sample from the smallest set of tokens with this probability."""
    num_beams: Count = 1
    """Beams; above 1 the most likely sequence is searched for (SeqKD as published uses 5)."""
    samples_per_prompt: Count = 1
    """Answers to each prompt."""
    batch_size: Count = 8
    """Prompts answered at a time."""
    prompt_tokens: Count = 32
    """For plain text, the length of the beginning that the teacher continues."""

    @model_validator(mode="after")
    def _check(self) -> GenerationSpec:
        if self.temperature == 0 and self.samples_per_prompt > 1 and self.num_beams == 1:
            raise ValueError(
                f"{self.samples_per_prompt} greedy samples of one prompt are the same text; "
                "raise temperature above 0 or ask for 1"
            )
        return self


class AnswerSpec(GenerationSpec):
    """How models answer the prompts of the report: greedily and briefly where the recipe does not say."""

    max_new_tokens: Count = 48
    """Longest answer in tokens."""
    temperature: NonNegative = 0.0
    """Sampling temperature; 0 decodes greedily."""


class TrajectoriesSpec(Section):
    """Whose text is trained on."""

    source: Literal["dataset", "teacher"] = "dataset"
    """The data set's own text, or text that the teacher writes from its prompts (sequence-level KD, 1606.07947)."""
    generation: GenerationSpec = Field(default_factory=GenerationSpec)
    """How the teacher writes (`source: teacher`)."""
    max_prompts: Count | None = None
    """Use at most this many prompts."""
