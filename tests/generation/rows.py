"""Rows for tests of checks."""

from __future__ import annotations

from typing import Any

from lmdistill.generation.types import Drop, Example
from lmdistill.recipe.generation_filters import FilterSpec

NOTHING: dict[str, Any] = {
    "verdict": "any",
    "empty": False,
    "refusal": None,
    "repetition": None,
    "markers": None,
    "pii": None,
    "contamination": None,
    "near_duplicate": None,
}
"""A spec without any check, to which a test adds its own."""


def only(**checks: Any) -> FilterSpec:
    return FilterSpec(**{**NOTHING, **checks})


def row(response: str, prompt: str = "What is it?", name: str = "r", **more: Any) -> Example:
    return Example(id=name, prompt=prompt, response=response, **more)


def split(results: list[Example | Drop]) -> tuple[list[Example], list[Drop]]:
    kept = [each for each in results if isinstance(each, Example)]
    return kept, [each for each in results if isinstance(each, Drop)]
