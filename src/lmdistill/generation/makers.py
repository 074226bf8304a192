"""The makers of data by name."""

from __future__ import annotations

from lmdistill.generation.answers import make_answers
from lmdistill.generation.desk import Maker

MAKERS: dict[str, Maker] = {
    "answers": make_answers,
}
"""By the name in `generation.maker`."""

ASKS_THE_STUDENT: frozenset[str] = frozenset()
"""Makers that look at what the student answers, so that a round needs the student of the round before."""
