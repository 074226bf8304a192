"""From a study to its recipes: one for each cell, those that come before, and those that compile kernels."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmdistill.errors import RecipeError
from lmdistill.io import hash_json
from lmdistill.recipe import Recipe, merge, resolve_recipe
from lmdistill.study.spec import StudyBudget, StudySpec

_STEPS = 1_000_000
"""Most steps of a cell whose end its budget decides."""


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    name: str
    """Of its run folder."""
    recipe: Mapping[str, Any]
    """As plain values, as they are written into its file."""
    method: str = ""
    student: str = ""
    budget: str = ""
    """In words; empty where there is none."""
    seed: int = 0

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return Path(self.recipe["runs"]) / self.name

    @property
    def file(self) -> Path:
        """Its recipe on disk."""
        return self.folder.with_suffix(".yaml")

    @property
    def fingerprint(self) -> str:
        """One name for everything that it says."""
        return hash_json(dict(self.recipe))

    def resolved(self) -> Recipe:
        """Its recipe, checked. Raises RecipeError naming the cell."""
        return resolve_recipe(self.recipe, source=f"cell {self.name}")


def cells_of(spec: StudySpec) -> list[Cell]:
    """All cells, seed by seed: a study that is cut short still compares all methods. Raises RecipeError."""
    budgets: list[StudyBudget | None] = [*spec.budgets] or [None]
    cells = [
        _cell(spec, method, student, budget, seed)
        for seed in spec.seeds
        for budget in budgets
        for student in spec.students
        for method in spec.methods
    ]
    names = [cell.name for cell in cells]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RecipeError(f"two cells are called {twice}: give methods, students and budgets names that differ")
    return cells


def starts_of(spec: StudySpec) -> list[Cell]:
    """The trainings that come before: one for each student."""
    if spec.start is None:
        return []
    return [
        Cell(
            _join("start", student), _named(spec, merge(merge(spec.base, fields), spec.start), _join("start", student))
        )
        for student, fields in spec.students.items()
    ]


def primers_of(spec: StudySpec) -> list[Cell]:
    """Two steps of each method with each student, evaluated as little as possible."""
    if not spec.prime:
        return []
    short = {
        "training": {"max_steps": 2},
        "trajectories": {"max_prompts": 16},
        "evaluation": {"baselines": [], "max_tokens": 64, "speed": None, "responses": None, "suites": None},
    }
    found = []
    for student in spec.students:
        for method in spec.methods:
            cell = _cell(spec, method, student, None, spec.seeds[0])
            name = _join("prime", method, student)
            found.append(Cell(name, {**merge(cell.recipe, short), "name": name, "budget": {}}))
    return found


def selected(cells: Sequence[Cell], patterns: Sequence[str]) -> list[Cell]:
    """The cells whose names fit one of the patterns (`gkd-*`); all where there are none. Raises RecipeError."""
    if not patterns:
        return list(cells)
    found = [cell for cell in cells if any(fnmatch.fnmatchcase(cell.name, pattern) for pattern in patterns)]
    if not found:
        raise RecipeError(
            f"--cells {', '.join(patterns)}: no cell is called so; there are {cells[0].name}, ... (--dry-run)"
        )
    return found


def _cell(spec: StudySpec, method: str, student: str, budget: StudyBudget | None, seed: int) -> Cell:
    fields = merge(merge(spec.base, spec.students[student]), spec.methods[method])
    if budget is not None:
        fields = merge(merge(fields, budget.fields()), {"training": {"max_steps": _STEPS}})
        if "stages" in fields:
            stages = [merge(stage, {"training": {"max_steps": _STEPS}}) for stage in fields["stages"][-1:]]
            fields = {**fields, "stages": [*fields["stages"][:-1], *stages]}
    if spec.start is not None:
        left = spec.folder / _join("start", student) / "student"
        given = fields.get("student") or {}
        kept = {name: given[name] for name in ("lora", "freeze_head", "save_dtype") if name in given}
        # Whatever cuts a student has been done before.
        fields = {**fields, "student": {**kept, "start": "pretrained", "model": {"model": str(left)}}}
    several = len(spec.budgets) > 1
    name = _join(method, student, budget.label if budget is not None and several else "", f"s{seed}")
    recipe = {**_named(spec, fields, name), "seed": seed}
    return Cell(name, recipe, method, student, budget.label if budget is not None else "", seed)


def _named(spec: StudySpec, fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {"seed": spec.seeds[0], **fields, "name": name, "runs": str(spec.folder)}


def _join(*parts: str) -> str:
    """Names as one folder's name."""
    return "-".join(re.sub(r"[^a-z0-9.]+", "-", part.lower()).strip("-") for part in parts if part)[:100]
