"""accounting.json: what a run cost, from the records and events that its stages left."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from lmdistill.accounting import (
    Accounting,
    ApiCost,
    StageCost,
    account,
    attempts_of,
    describe_machine,
    lost_seconds,
    meta_model,
    role_of,
    training_flops_of,
)
from lmdistill.accounting.machine import peak_memory
from lmdistill.io import write_json
from lmdistill.models import load_config
from lmdistill.recipe import Recipe
from lmdistill.run_folder import RunFolder
from lmdistill.teachers.ledger_statistics import statistics


def write_costs(
    recipe: Recipe,
    folder: RunFolder,
    names: Sequence[str],
    skipped: Collection[str],
    *,
    device: torch.device,
    dtype: torch.dtype,
    other_seconds: float,
) -> Accounting:
    """Write what the stages of these names cost, killed and failed attempts included."""
    accounting = account(
        stage_costs(folder, names, skipped),
        recipe.accounting,
        describe_machine(device, dtype),
        api=api_cost(recipe, folder),
        teacher_training_flops=_teacher_training(recipe),
        other_seconds=other_seconds,
        peak_memory_bytes=peak_memory(),
        disk_bytes=_size(folder.path),
    )
    write_json(folder.file("accounting.json"), accounting.model_dump(mode="json"))
    return accounting


def stage_costs(folder: RunFolder, names: Sequence[str], skipped: Collection[str]) -> list[StageCost]:
    """What each stage cost; a stage that never ended has lost seconds alone."""
    attempts = attempts_of(folder.events())
    found = []
    for name in names:
        record = folder.record(name) or {}
        seconds, flops = float(record.get("seconds", 0.0)), float(record.get("flops", 0.0))
        lost = lost_seconds(attempts, name, float(record.get("resumed_seconds", 0.0)))
        found.append(
            StageCost(
                name=name,
                seconds=seconds,
                tokens=record.get("tokens", 0),
                flops=flops,
                skipped=name in skipped,
                part=role_of(name),
                teacher_flops=record.get("teacher_flops", 0.0),
                attempts=max(1, sum(attempt.stage == name for attempt in attempts)),
                lost_seconds=round(lost, 3),
                lost_flops=flops * lost / seconds if seconds else 0.0,
                joules=record.get("joules"),
            )
        )
    return found


def api_cost(recipe: Recipe, folder: RunFolder) -> ApiCost | None:
    """What asking the API took for this run, killed starts included, by its ledger; None where nobody was asked."""
    if recipe.api is None:
        return None
    file = Path(recipe.api.ledger).expanduser() if recipe.api.ledger else folder.file("ledger.sqlite")
    if not file.is_file():
        return None
    used = statistics(file)["runs"].get(recipe.name)
    if used is None:
        return None
    size = recipe.accounting.api_parameters
    flops = None if size is None else 2 * size * used["tokens"]
    return ApiCost(calls=used["calls"], tokens=used["tokens"], money=used["money"], flops=flops)


def _teacher_training(recipe: Recipe) -> float | None:
    """Operations of the teacher's whole training, as declared; None where they are not."""
    declared = recipe.accounting.teacher_training
    if declared is None or declared.flops is not None:
        return None if declared is None else declared.flops
    if declared.tokens is None:
        return None
    if recipe.teacher_is_remote:
        size = recipe.accounting.api_parameters
        return None if size is None else 6 * size * declared.tokens
    return training_flops_of(meta_model(load_config(recipe.teacher)), declared.tokens, 0)


def _size(folder: Path) -> int:
    """Bytes of all files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
