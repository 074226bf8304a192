"""What suites are given and what they hand back.

A suite asks all models the same items and hands back, for each data set, one table of numbers for each model. What is
made of them (intervals, tests, corrections) is the same for all suites: `lmdistill.evaluation.suites.summarise`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lmdistill.data.documents import Document
from lmdistill.evaluation.fidelity import Subject
from lmdistill.evaluation.speakers import Speaker
from lmdistill.evaluation.statistics import Draws, Floats
from lmdistill.progress import Progress
from lmdistill.recipe import EvaluationSpec, SuitesSpec


class Column(Protocol):
    """The numbers behind one measure of one model."""

    def values(self, draws: Draws) -> Floats:
        """The measure on all items, then on each resampling."""

    @property
    def seeds(self) -> int:
        """How many seeds it holds."""

    def of_seed(self, number: int) -> float:
        """The measure of one seed alone."""

    @property
    def outcomes(self) -> list[bool] | None:
        """Right or wrong of each item, where that is what is measured, once; None otherwise."""


@dataclass(frozen=True)
class Table:
    """One model on one data set."""

    speaker: Speaker | Subject
    columns: Mapping[str, Column]


@dataclass(frozen=True)
class Outcome:
    """One data set of a suite, as it was measured."""

    name: str
    tables: Sequence[Table]
    """For each model; the teacher first, where there is one."""
    clusters: Sequence[Hashable]
    """The group of each item: items of one group may depend on each other."""
    main: str
    lower_is_better: Mapping[str, bool | None]
    texts: Sequence[str] = ()
    """What the items say, for the search in the training text."""
    ceiling: str | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Bench:
    """Everything that a suite may use."""

    speakers: Sequence[Speaker]
    """The teacher first, where there is one."""
    suites: SuitesSpec
    evaluation: EvaluationSpec
    seed: int
    folder: Path
    """Where intermediate files may lie; it is removed afterwards."""
    progress: Progress = field(default_factory=Progress)
    texts: Mapping[str, Dataset] = field(default_factory=dict)
    """Held-out texts in the tokens that all `subjects` share."""
    train: Dataset | None = None
    """The training text, likewise."""
    train_documents: Sequence[Document] = ()
    subjects: Sequence[Subject] = ()
    """The models for comparisons token by token; empty where they do not share their tokens."""
    vocabulary_size: int = 0
    """Real ids of the tokens that the subjects share."""
    tokenizer: PreTrainedTokenizerBase | None = None
    """What cuts text into them; suites let models write from token to token where it is there."""
    judge: Speaker | None = None
    """Who compares answers, where the recipe names one."""

    @property
    def teacher(self) -> Speaker | None:
        """The teacher, where there is one."""
        return next((speaker for speaker in self.speakers if speaker.role == "teacher"), None)

    def limit(self, own: int | None) -> int | None:
        """How many items of a set are taken: the suite's own number, or that of all suites."""
        return own if own is not None else self.suites.limit


Runner = Callable[[Bench, Any], list[Outcome]]


@dataclass(frozen=True)
class Suite:
    """One suite."""

    name: str
    title: str
    run: Runner
    """Takes the bench and the suite's options. Raises what is in `lmdistill.errors`."""
    check: Callable[[SuitesSpec, Any], None] = lambda suites, options: None
    """Whether it can be run here: extras, files, gold labels. Asked before anything is spent."""
