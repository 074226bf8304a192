"""What a method is: a paper, a partial recipe, and what to know before trusting it.

Methods are plain data. Everything that computes lives on the axes (objectives, trajectories, students); a method only
names a point on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Paper:
    """The publication that a method comes from."""

    title: str
    authors: str
    """The first author, and whether there are others."""
    year: int
    arxiv: str | None = None
    """Number on arXiv, such as `1503.02531`."""
    url: str | None = None
    """Address, for a paper that is not on arXiv."""

    def __post_init__(self) -> None:
        if (self.arxiv is None) == (self.url is None):
            raise ValueError(f"{self.title}: give its arXiv number or its address, one of them")

    @property
    def link(self) -> str:
        """Address of the paper."""
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else str(self.url)

    @property
    def citation(self) -> str:
        """Authors, year and arXiv number in a few words."""
        return f"{self.authors} {self.year}" + (f", arXiv {self.arxiv}" if self.arxiv else "")


@dataclass(frozen=True, kw_only=True)
class Method:
    """One published method, as a point on the toolkit's axes."""

    name: str
    """The name in `method:` of a recipe, and of the files in `recipes/` and `docs/methods/`."""
    title: str
    """The method in a few words."""
    paper: Paper
    """Where it was published."""
    summary: str
    """What the student learns from, in one sentence."""
    formula: str
    """The loss of one token (or sequence), in plain characters. p is the teacher, q the student."""
    fragment: Mapping[str, Any]
    """A partial recipe in plain values, laid under what the user writes."""
    example: Mapping[str, Any] = field(default_factory=lambda: {"student": {"depth": {"keep": 16}}})
    """What the user has to choose beside it, for the demo's teacher of 30 layers; `lmdistill new` starts from it."""
    notes: tuple[str, ...] = ()
    """Settings of the publication, differences from it, and traps."""
    aliases: tuple[str, ...] = ()
    """Other names under which it is found."""
