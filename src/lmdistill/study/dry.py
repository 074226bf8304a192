"""What a study would take: the plan of each kind of cell, made once and kept beside the cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmdistill.errors import CorruptFile, LmdistillError
from lmdistill.io import read_json, write_json
from lmdistill.planning import Plan, make_plan
from lmdistill.progress import Progress
from lmdistill.recipe import merge, resolve_recipe
from lmdistill.study.carry import state_of
from lmdistill.study.cells import Cell, cells_of, selected, starts_of
from lmdistill.study.spec import StudySpec


def dry_cells(spec: StudySpec, patterns: Sequence[str], progress: Progress) -> list[dict[str, Any]]:
    """Every cell that would be run or is done, with what is planned for it; seeds share a plan.

    A cell whose plan cannot be made is listed with the reason.
    """
    rows = []
    for cell in [*starts_of(spec), *selected(cells_of(spec), patterns)]:
        state = state_of(cell)
        row: dict[str, Any] = {"cell": cell.name, "state": state.state, "seconds": state.seconds or None, "problem": ""}
        if state.state != "done":
            try:
                plan = _plan(spec, cell, progress)
                row["seconds"] = plan.seconds + plan.startup_seconds
                row["memory_bytes"], row["disk_bytes"] = plan.memory_bytes, plan.disk_bytes
                row["flops"] = sum(stage.flops for stage in plan.stages)
            except LmdistillError as error:
                row["problem"] = str(error)
        rows.append(row)
    return rows


def _plan(spec: StudySpec, cell: Cell, progress: Progress) -> Plan:
    """The plan of a cell, or of the one that differs by its seed alone."""
    anchored = Cell(cell.name, _startable(spec, cell))
    nameless = Cell("", {**anchored.recipe, "name": "", "seed": 0})
    file = spec.folder / "plans" / f"{nameless.fingerprint[:16]}.json"
    try:
        return Plan.model_validate(read_json(file))
    except (FileNotFoundError, CorruptFile, ValueError):
        pass
    with progress.stage(f"plan {cell.name}"):
        plan = make_plan(resolve_recipe(anchored.recipe, source=f"cell {cell.name}"), ask=0, progress=progress)
    write_json(file, plan.model_dump(mode="json"))
    return plan


def _startable(spec: StudySpec, cell: Cell) -> dict[str, Any]:
    """A cell's recipe whose student can be built now: before the study's start is done, one of the same shape."""
    recipe = dict(cell.recipe)
    model = ((recipe.get("student") or {}).get("model") or {}).get("model")
    if spec.start is None or not cell.method or (model and (Path(model) / "config.json").is_file()):
        return recipe
    fields = merge(merge(spec.base, spec.students[cell.student]), spec.start)
    return {**recipe, "student": fields.get("student", {})}
