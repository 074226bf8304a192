"""Where the student starts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from lmdistill.recipe.base import Count, Positive, Section, Share
from lmdistill.recipe.models import ModelSpec


class DepthSpec(Section):
    """Which decoder layers of the teacher the student keeps."""

    keep: Count
    """Number of layers to keep."""
    importance: Literal["uniform", "first", "last", "block_influence", "perplexity", "greedy_perplexity"] = (
        "block_influence"
    )
    """How layers are ranked: evenly spaced; the first or last ones; block influence (1 - cosine between a layer's
    input and output, ShortGPT 2403.03853); the rise of perplexity when one layer is left out (each measured alone), or
    measured again after every removal (`greedy_perplexity`)."""
    protect_first: Annotated[int, Field(ge=0)] = 1
    """This many first layers are never removed."""
    protect_last: Annotated[int, Field(ge=0)] = 1
    """This many last layers are never removed."""


class WidthSpec(Section):
    """How narrow the student's layers become; what stays is chosen by activation importance (Minitron 2407.14679)."""

    intermediate: Count | None = None
    """MLP neurons to keep in each layer."""
    heads: Count | None = None
    """Query heads to keep; with grouped-query attention whole groups go, so it must divide evenly into them."""
    hidden: Count | None = None
    """Hidden channels to keep, in the whole network."""


class VocabularySpec(Section):
    """Trim the vocabulary to the tokens that the training corpus uses."""

    minimum_count: Count = 1
    """Tokens that occur at least this often in the corpus stay; special tokens and single bytes always stay."""


class LoraSpec(Section):
    """Train low-rank adapters instead of all weights (LoRA 2106.09685); needs `lmdistill[lora]`."""

    rank: Count = 16
    """Rank of the adapters."""
    alpha: Positive = 32.0
    """Scale: the update is multiplied by alpha / rank."""
    dropout: Share = 0.0
    """Dropout on the adapters' input."""
    target_modules: list[str] | Literal["all-linear"] = "all-linear"
    """Names of the modules that get adapters."""
    merge: bool = True
    """Merge the adapters into the weights when the student is saved, so that it loads without peft."""


class StudentSpec(Section):
    """Where the student starts; all parts combine."""

    start: Literal["teacher", "pretrained", "config"] = "teacher"
    """Cut from the teacher's weights, a pretrained model of its own, or fresh weights from a configuration."""
    model: ModelSpec | None = None
    """The pretrained model (`start: pretrained`), or the model whose configuration is the template (`start: config`;
    the teacher's where this is absent)."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Configuration values that differ from the template, for `start: config` (for example `num_hidden_layers: 6`)."""
    layers: list[Annotated[int, Field(ge=0)]] | None = None
    """Keep exactly these layers, counted from 0."""
    depth: DepthSpec | None = None
    """Prune layers by importance."""
    width: WidthSpec | None = None
    """Prune neurons, heads and channels by importance."""
    vocabulary: VocabularySpec | None = None
    """Trim the vocabulary."""
    lora: LoraSpec | None = None
    """Train adapters only."""
    freeze_head: bool = False
    """Do not train the output head (nor the embedding where it is tied to it)."""
    calibration_tokens: Count = 16384
    """Tokens of training text on which importance is measured."""
    save_dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16"
    """Number format in which the finished student is saved; it is trained in float32 in any case."""

    @model_validator(mode="after")
    def _check(self) -> StudentSpec:
        if self.start == "pretrained" and self.model is None:
            raise ValueError("start: pretrained needs student.model; name a folder or a Hugging Face model")
        if self.start == "teacher" and self.model is not None:
            raise ValueError("start: teacher cuts the student from the teacher; remove student.model or set start")
        if self.layers is not None and self.depth is not None:
            raise ValueError(
                "student.layers and student.depth both choose layers; keep one of them "
                "(depth: null takes away what a method brought)"
            )
        if self.config and self.start != "config":
            raise ValueError(f"student.config is only used with start: config, not start: {self.start}")
        return self
