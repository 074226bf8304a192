"""What the student reads."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from lmdistill.recipe.base import Count, Section, Share, names_a_folder
from lmdistill.recipe.models import ModelSpec

GENERATED = "generated"
"""Path of a training source that means what this run's teacher wrote."""


class FieldNames(Section):
    """Names of the columns in a source."""

    text: str = "text"
    """Column of plain text."""
    prompt: str = "prompt"
    """Column of the prompt."""
    response: str = "response"
    """Column of the response, on which the loss is taken."""
    messages: str = "messages"
    """Column with a list of chat messages, each with `role` and `content`."""
    context: str | None = None
    """Column of what the teacher alone reads (`teaching.context`): a demonstration, a solution, feedback."""
    teacher: str | None = None
    """Column with the name of the teacher that speaks of the row (`teaching.kind: routed`)."""


class SourceSpec(Section):
    """One source of data: JSONL, Parquet or text files, or a data set folder or name of `datasets`."""

    path: str
    """A file, a folder, a Hugging Face data set, or `package:NAME/path` for a file that an installed package ships. In
    training, `generated` is what the teacher wrote for this run (`generation`), `generated:TASK` its rows of one task,
    `generated:seeds` the seeds with their own answers."""
    format: Literal["auto", "text", "prompt_response", "messages"] = "auto"
    """What a row holds; `auto` looks at the columns of the first row."""
    fields: FieldNames = Field(default_factory=FieldNames)
    """Names of the columns."""
    subset: str | None = None
    """Configuration of a Hugging Face data set."""
    split: str = "train"
    """Split of a Hugging Face data set."""
    unique: bool = True
    """Drop rows whose content was seen before in this source."""
    part: Literal["all", "train", "heldout"] = "all"
    """Take all rows, or one side of a split by the hash of the content: equal texts always fall on the same side, so
    that `train` and `heldout` never share one."""
    heldout_share: Share = 0.02
    """Share of rows on the held-out side."""
    limit: Count | None = None
    """At most this many rows, taken after splitting, in an order shuffled by the seed."""

    @property
    def is_generated(self) -> bool:
        """Whether it is what the run's teacher writes."""
        return self.path == GENERATED or self.path.startswith(f"{GENERATED}:")


class DifferenceSpec(Section):
    """Difference sampling (MiniPLM, 2410.17215): train on what the teacher finds likely and a small model does not."""

    reference: ModelSpec
    """The small model; it must have the teacher's tokenizer."""
    keep: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Share of the documents that stay: those with the largest difference of log-probabilities a token."""


class DataSpec(Section):
    """What the student reads in training and in evaluation."""

    train: list[SourceSpec] = Field(min_length=1)
    """Training sources, concatenated."""
    evaluation: dict[str, SourceSpec] = Field(default_factory=dict)
    """Held-out sources by name; each is scored and reported apart."""
    max_length: Annotated[int, Field(ge=2)] = 512
    """Longest sequence in tokens."""
    truncation: Literal["split", "drop", "left", "right", "error"] = "split"
    """What happens to a longer row: plain text is split into several rows (prompt/response and chat rows, which cannot
    be, are cut at the left of the prompt); or it is dropped, cut at the left, cut at the right, or refused. Counted in
    the report either way."""
    packing: bool = True
    """Put several rows into one sequence; attention never crosses from one to another."""
    add_eos: bool = True
    """End each row with the end-of-text token and train on it."""
    on_bad_rows: Literal["stop", "skip"] = "stop"
    """What an unreadable row does: stop the run with its file, line and reason, or be skipped and counted."""
    shuffle: bool = True
    """Shuffle the rows once, by the seed, before packing."""
    balance: dict[str, Share] | None = None
    """Shares of the loss by the task of the rows that a teacher wrote, summing to 1: each task's tokens weigh so that
    its mean loss has this share, however many they are. Absent: all tokens count alike."""
    difference: DifferenceSpec | None = None
    """Choose the training documents by how much more the teacher makes of them than a reference model."""

    @field_validator("balance")
    @classmethod
    def _whole(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        if value is not None and (not value or abs(sum(value.values()) - 1) > 1e-6):
            raise ValueError(f"the shares sum to {sum(value.values()):g}; they must sum to 1")
        return value

    @field_validator("evaluation")
    @classmethod
    def _names(cls, value: dict[str, SourceSpec]) -> dict[str, SourceSpec]:
        for name in value:
            if not names_a_folder(name):
                raise ValueError(f"{name!r} cannot name a held-out set; use 1 to 100 of A-Z a-z 0-9 . _ -")
        return value
