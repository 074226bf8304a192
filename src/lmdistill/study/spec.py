"""The study file: what is varied, what all cells share, and what they are compared by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator, model_validator

from lmdistill.errors import RecipeError
from lmdistill.recipe import FolderName, Positive, Section, nearest
from lmdistill.yamltext import read_yaml

Fields = dict[str, Any]
"""Fields of a recipe."""


class StudyBudget(Section):
    """What every cell may use: one of minutes, tokens and operations."""

    minutes: Positive | None = None
    """Wall-clock minutes of training: the student, its rollouts, its teacher, and what the teacher wrote before."""
    tokens: Positive | None = None
    """Tokens that the student reads in training."""
    flops: Positive | None = None
    """Operations of training, student and teacher, what the teacher wrote before included."""

    @model_validator(mode="after")
    def _one(self) -> StudyBudget:
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            raise ValueError(f"a budget is one of minutes, tokens and flops, and this gives {given or 'none'}")
        return self

    @property
    def label(self) -> str:
        """In words: `0.75 minutes`, `2e+06 tokens`."""
        if self.minutes is not None:
            return f"{self.minutes:g} minutes"
        return f"{self.tokens:.3g} tokens" if self.tokens is not None else f"{self.flops:.3g} FLOP"

    def fields(self) -> Fields:
        """As a recipe says it."""
        return {"budget": {**self.model_dump(exclude_none=True), "whole": True}}


class StudySpec(Section):
    """A whole study."""

    name: FolderName
    """Name of the study and of its folder under `runs`."""
    title: str = ""
    """Title of its page."""
    runs: str = "runs"
    """Folder in which the study's folder is made; its cells are runs in that."""
    base: Fields
    """Fields of a recipe that all cells share: teacher, data, evaluation."""
    methods: Annotated[dict[str, Fields], Field(min_length=1)]
    """What is compared: fields of a recipe by the name that the tables use, laid over `base`."""
    students: Annotated[dict[str, Fields], Field(min_length=1)] = Field(default={"": {}})
    """Students, as fields of a recipe by name; one where absent, that of `base`."""
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1)] = Field(default=[0, 1, 2])
    """Seeds; with one, no difference can be told from chance."""
    budgets: list[StudyBudget] = Field(default_factory=list)
    """What each cell may use, one or several; where absent each method trains as long as its fields say."""
    start: Fields | None = None
    """A training of its own that comes before: all cells begin with the student that it leaves, one for each of
    `students`. Fields of a recipe, laid over `base`."""
    prime: bool = True
    """Take two steps of every method first, not counted: they compile kernels that later processes find ready."""
    baseline: str | None = None
    """The method that others are compared with; the first one where absent."""
    main: list[str] = Field(default_factory=list)
    """Measures that verdicts are about, as `TEXT/MEASURE` or a measure's name; p values are corrected over all
    comparisons of these. Others are shown without a verdict. Where absent: agreement and KL(teacher‖student)."""
    page: str | None = None
    """A Markdown file in which the results are written too, once all cells are done."""
    conditions: str = ""
    """What else a reader must know about how it was run; stands on the page."""
    minutes: Positive | None = None
    """How long the whole should take on the machine it was written for; stands on the page."""

    @field_validator("seeds")
    @classmethod
    def _different(cls, value: list[int]) -> list[int]:
        if len(set(value)) < len(value):
            raise ValueError(f"{value}: the same seed twice is the same run twice; give different ones")
        return value

    @model_validator(mode="after")
    def _baseline(self) -> StudySpec:
        if self.baseline is not None and self.baseline not in self.methods:
            raise ValueError(f"baseline: {self.baseline!r} is no method{nearest(self.baseline, list(self.methods))}")
        return self

    @property
    def reference(self) -> str:
        """The method that others are compared with."""
        return self.baseline or next(iter(self.methods))

    @property
    def folder(self) -> Path:
        """The study's folder, in which its cells' run folders lie."""
        return Path(self.runs) / self.name


def load_study(path: Path) -> StudySpec:
    """Read a study file. Raises RecipeError with the place, the reason and the nearest known name."""
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: cannot be read as a study: {error}") from error
    if not isinstance(values, Mapping):
        raise RecipeError(f"{path}: a study is a mapping of fields; see docs/study.md")
    try:
        return StudySpec.model_validate(dict(values))
    except ValidationError as error:
        raise RecipeError(f"{path}: " + "; ".join(_said(problem) for problem in error.errors())) from error


def _said(problem: Mapping[str, Any]) -> str:
    place = ".".join(str(part) for part in problem["loc"]) or "study"
    if problem["type"] == "extra_forbidden":
        return f"{place}: unknown field{nearest(str(problem['loc'][-1]), list(StudySpec.model_fields))}"
    if problem["type"] == "missing":
        return f"{place}: missing; add it"
    return f"{place}: {str(problem['msg']).removeprefix('Value error, ')}"
