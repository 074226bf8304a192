"""The student's model card, with the paper of its method, written into its folder."""

from __future__ import annotations

from pathlib import Path

import yaml

from lmdistill.errors import RecipeError
from lmdistill.io import write_text
from lmdistill.methods import find_method
from lmdistill.report import Origin, student_card


def write_card(folder: Path) -> None:
    """Write `student/README.md` of a run's folder from what lies in it. Raises DataError where it is no run's."""
    write_text(folder / "student" / "README.md", student_card(folder, origin_of(folder)))


def origin_of(folder: Path) -> Origin | None:
    """The method of a run and its paper; None where its recipe names none that is known."""
    recipe = folder / "recipe.yaml"
    values = yaml.safe_load(recipe.read_text(encoding="utf-8", errors="replace")) if recipe.is_file() else None
    name = values.get("method") if isinstance(values, dict) else None
    if not isinstance(name, str):
        return None
    try:
        method = find_method(name)
    except RecipeError:
        return None
    return Origin(
        method.name, method.title, method.summary, method.paper.title, method.paper.citation, method.paper.link
    )
