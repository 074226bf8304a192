"""The runs below a folder and how each of them stands, from what lies in it.

A lock is only read: taking it, even for a moment, could turn away the run that is just starting.
"""

from __future__ import annotations

import datetime
import functools
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import yaml
from markupsafe import Markup

from lmdistill.accounting.pulse import FILE as PULSE
from lmdistill.errors import LmdistillError
from lmdistill.report import summary_sentence
from lmdistill.studio import page
from lmdistill.studio.live import LiveRun, LiveRuns, curves
from lmdistill.yamltext import read_yaml

State = Literal["running", "done", "failed", "interrupted", "not started"]

_DEPTH = 3
"""Folders below the given one that are looked into: a study's cells lie two deep."""
_SILENT = 30.0
"""Seconds without a sign of life after which a run on another machine counts as gone."""
_STOPPED = {"Interrupted", "KeyboardInterrupt", "ServerLost", "BudgetSpent"}
_OWNER = re.compile(r"process (\d+) on (\S+) since (\S+)")
_RECIPE_LIMIT = 2**20


@dataclass(frozen=True)
class RunState:
    """How a run stands."""

    name: str
    """Its path below the runs folder."""
    folder: Path
    state: State
    stage: str
    """The stage that it is at, or ended in."""
    why: str
    """For one that failed or was interrupted: what is known of it."""
    method: str
    step: int | None
    steps: int | None
    """How many there will be, where the recipe says so."""
    loss: float | None
    speed: float | None
    """Trained tokens a second."""
    version: int
    """Of its events."""


def find_runs(root: Path) -> dict[str, Path]:
    """Run folders below `root`, or itself, by name; the newest first. Links are not followed."""
    found = list(_runs_below(root, _DEPTH))
    found.sort(key=_changed, reverse=True)
    return {_name(root, folder): folder for folder in found}


def _runs_below(folder: Path, depth: int) -> Iterator[Path]:
    if is_run(folder):
        yield folder
        return
    if depth == 0:
        return
    try:
        inside = sorted(entry.path for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False))
    except OSError:
        return
    for path in map(Path, inside):
        if not path.name.startswith("."):
            yield from _runs_below(path, depth - 1)


def is_run(folder: Path) -> bool:
    """Whether a folder is one of a run."""
    return (folder / "recipe.yaml").is_file() and any(
        (folder / name).exists() for name in ("events.jsonl", "stages", ".lock", "evaluation.json")
    )


def _name(root: Path, folder: Path) -> str:
    return folder.resolve().name if folder == root else folder.relative_to(root).as_posix()


def _changed(folder: Path) -> float:
    times = [0.0]
    for name in ("events.jsonl", "recipe.yaml", "evaluation.json"):
        try:
            times.append((folder / name).stat().st_mtime)
        except OSError:
            continue
    return max(times)


def recipe_of(folder: Path) -> Mapping[str, Any]:
    """A run's recipe as plain values; empty where it cannot be read. An older version's is taken as it is."""
    file = folder / "recipe.yaml"
    try:
        stat = file.stat()
    except OSError:
        return {}
    return _recipe(file, stat.st_size, stat.st_mtime_ns, stat.st_ino) if stat.st_size <= _RECIPE_LIMIT else {}


@functools.lru_cache(maxsize=512)
def _recipe(file: Path, *stamp: int) -> Mapping[str, Any]:
    """A recipe's file, parsed once as long as it is the same: every look at the runs asks for all of them."""
    try:
        value = read_yaml(file.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError, RecursionError, LmdistillError, yaml.YAMLError):
        return {}
    return value if isinstance(value, dict) else {}


def state_of(name: str, folder: Path, live: LiveRun) -> RunState:
    """How a run stands, from its lock, its events and what it left."""
    recipe = recipe_of(folder)
    last = live.last_step or {}
    stage = str(live.stages[-1].get("stage", "")) if live.stages else ""
    state, why = _judged(folder, live)
    training = recipe.get("training")
    steps = training.get("max_steps") if isinstance(training, dict) else None
    return RunState(
        name=name,
        folder=folder,
        state=state,
        stage=stage,
        why=why,
        method=str(recipe.get("method") or ""),
        step=_whole(last.get("step")) if last else _steps_done(live),
        steps=steps if isinstance(steps, int) and steps > 0 and not _is_open_ended(recipe) else None,
        loss=_number(last.get("loss")),
        speed=_number(last.get("tokens_per_second")),
        version=live.version,
    )


def _is_open_ended(recipe: Mapping[str, Any]) -> bool:
    """Whether the number of steps is a limit that other things are reached before, or that of one stage of several."""
    budget = recipe.get("budget")
    values = budget.values() if isinstance(budget, dict) else ()
    given = any(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return given or bool(recipe.get("stages"))


def _steps_done(live: LiveRun) -> int | None:
    """Steps of a training that was too short for a line of its own in the log."""
    return next((steps for event in reversed(live.stages) if (steps := _whole(event.get("steps"))) is not None), None)


def _judged(folder: Path, live: LiveRun) -> tuple[State, str]:
    owner = _owner(folder)
    if owner is not None:
        return "running", owner
    last = live.stages[-1] if live.stages else {}
    kind, stage = last.get("kind"), last.get("stage")
    if kind == "stage_failed":
        error = str(last.get("error", "an error"))
        return ("interrupted", f"{error} in {stage}") if error in _STOPPED else ("failed", f"{error} in {stage}")
    if kind in ("stage_started", "stage_killed"):
        return "interrupted", f"its process ended in {stage}"
    if (folder / "report.html").is_file():
        return "done", ""
    if (folder / "evaluation.json").is_file():
        return "done", "without a report"
    if not live.stages:
        return "not started", ""
    return "interrupted", f"its process ended after {stage}"


def _owner(folder: Path) -> str | None:
    """Who is at work in a folder, from its lock's content; None where nobody is any more."""
    try:
        text = (folder / ".lock").read_text(encoding="utf-8", errors="replace")[:1000]
    except OSError:
        return None
    found = _OWNER.search(text)
    if found is None:
        return None
    number, host, since = int(found[1]), found[2], found[3]
    if host != socket.gethostname():
        return f"on {host}" if _has_pulse(folder) else None
    try:
        # A number is given again to other processes: the owner was there when it took the lock.
        alive = psutil.Process(number).create_time() <= datetime.datetime.fromisoformat(since).timestamp() + 1.0
    except (psutil.Error, ValueError, OverflowError):
        return None
    return f"process {number}" if alive else None


def _has_pulse(folder: Path) -> bool:
    try:
        return time.time() - (folder / PULSE).stat().st_mtime < _SILENT
    except OSError:
        return False


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def states(root: Path, live: LiveRuns) -> list[RunState]:
    """All runs below a folder, those at work first."""
    found = [state_of(name, folder, live.of(folder)) for name, folder in find_runs(root).items()]
    return sorted(found, key=lambda run: run.state != "running")


def runs_table(runs: list[RunState], root: Path) -> str:
    """The list of runs."""
    if not runs:
        return page.whole(page.note(f"No run lies in {root} yet. Start one with: lmdistill run RECIPE"))
    rows = [
        (
            run.name,
            _badge(run),
            run.stage or "–",
            _progress(run),
            _short(run.loss),
            _short(run.speed),
            run.method or "–",
        )
        for run in runs
    ]
    headers = ("run", "state", "stage", "step", "loss", "tokens/s", "method")
    counts = [(state, sum(run.state == state for run in runs)) for state in dict.fromkeys(run.state for run in runs)]
    said = ", ".join(f"{count} {state}" for state, count in counts)
    return page.whole(page.note(f"{len(runs)} runs: {said}"), page.table(headers, rows, "Runs", "runs"))


def run_page(run: RunState, live: LiveRun) -> str:
    """One run: how it stands, its curves, its stages, what it came to."""
    parts = [
        page.heading(run.name, 2),
        page.facts(
            [
                ("state", _badge(run)),
                ("what is known", run.why or "–"),
                ("stage", run.stage or "–"),
                ("step", _progress(run)),
                ("loss", _short(run.loss)),
                ("tokens a second", _short(run.speed)),
            ]
        ),
        _bar(run),
        curves(live),
    ]
    if run.state != "running" and (run.folder / "evaluation.json").is_file():
        parts += [page.heading("What it came to"), _summary(run.folder)]
    if live.warnings:
        parts += [page.heading("Warnings"), Markup("").join(page.note(text) for text in live.warnings[-5:])]
    parts += [
        page.heading("Stages"),
        page.table(("stage", "what", "seconds", "tokens"), _stage_rows(live), "Stages", "stages"),
    ]
    return page.whole(*parts)


def _badge(run: RunState) -> Markup:
    mark = {"running": "▶", "done": "✓", "failed": "✕", "interrupted": "‖", "not started": "○"}[run.state]
    return Markup('<span class="state {}"><span aria-hidden="true">{}</span> {}</span>').format(
        run.state.split()[-1], mark, run.state
    )


def _progress(run: RunState) -> str:
    if run.step is None:
        return "–"
    return f"{run.step:,}" if run.steps is None else f"{run.step:,} of {run.steps:,}"


def _bar(run: RunState) -> Markup:
    if run.state != "running" or run.step is None or run.steps is None:
        return Markup("")
    return Markup('<progress max="{}" value="{}" aria-label="Steps of {}"></progress>').format(
        run.steps, min(run.step, run.steps), page.shown(run.stage)
    )


def _summary(folder: Path) -> Markup:
    try:
        return Markup("<p>{}</p>").format(page.shown(summary_sentence(folder)))
    except (LmdistillError, ValueError, OSError, KeyError, TypeError) as error:
        return page.note(f"evaluation.json cannot be read ({type(error).__name__}); it may be of another version")


def _stage_rows(live: LiveRun) -> list[tuple[page.Cell, ...]]:
    said = {
        "stage_started": "started",
        "stage_finished": "finished",
        "stage_failed": "failed",
        "stage_killed": "killed",
    }
    rows: list[tuple[page.Cell, ...]] = []
    for event in live.stages:
        what = said[str(event["kind"])] + (f": {event['error']}" if "error" in event else "")
        started = rows and rows[-1][0] == event.get("stage") and rows[-1][1] == "started"
        if started:
            rows.pop()
        tokens, seconds = _number(event.get("tokens")), _number(event.get("seconds"))
        rows.append(
            (
                str(event.get("stage", "")),
                what,
                "–" if seconds is None else f"{seconds:,.1f}",
                "–" if tokens is None else f"{tokens:,.0f}",
            )
        )
    return rows


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
