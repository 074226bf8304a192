"""What a run's events say, read as they come: each look reads only what was appended since the last one."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup

from lmdistill.report.charts import heldout_curves, loss_curves, part_curves
from lmdistill.report.run_data import RunData, steps_of
from lmdistill.studio import page
from lmdistill.studio.svg import figure_svg

_READ_LIMIT = 64 * 2**20
"""Bytes that one look reads at most; the next one goes on from there."""
_CURVES = {"step", "heldout"}
_STAGES = {"stage_started", "stage_finished", "stage_failed", "stage_killed"}


class Tail:
    """The lines that were appended to a log since the last look."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._file: tuple[int, int] | None = None

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """New events, and whether the log was begun anew, so that earlier ones count no more.

        A last line without its end waits for the next look; lines that are no JSON objects are left out.
        """
        try:
            with open(self.path, "rb") as file:
                stat = os.fstat(file.fileno())
                known = (stat.st_dev, stat.st_ino)
                anew = self._file is not None and (known != self._file or stat.st_size < self._offset)
                if anew:
                    self._offset = 0
                self._file = known
                file.seek(self._offset)
                data = file.read(_READ_LIMIT)
        except OSError:
            gone, self._file, self._offset = self._file is not None, None, 0
            return [], gone
        data = data[: data.rfind(b"\n") + 1]
        self._offset += len(data)
        return [event for line in data.splitlines() if (event := _event(line)) is not None], anew


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


@dataclass
class LiveRun:
    """One run's events so far."""

    folder: Path
    version: int = 0
    """Rises whenever something new was read."""
    curves: list[dict[str, Any]] = field(default_factory=list)
    """Steps and held-out scores, in the order of the log."""
    stages: list[dict[str, Any]] = field(default_factory=list)
    """Starts and ends of stages."""
    warnings: list[str] = field(default_factory=list)
    _tail: Tail = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        self._tail = Tail(self.folder / "events.jsonl")

    def refresh(self) -> int:
        """Read what is new; returns the version."""
        with self._lock:
            events, anew = self._tail.read()
            if anew:
                self.curves, self.stages, self.warnings = [], [], []
            for event in events:
                kind = event.get("kind")
                if kind in _CURVES and isinstance(event.get("step"), int):
                    self.curves.append(event)
                elif kind in _STAGES:
                    self.stages.append(event)
                elif kind == "warning":
                    self.warnings.append(str(event.get("text", "")))
            self.version += bool(events) or anew
            return self.version

    @property
    def last_step(self) -> dict[str, Any] | None:
        """The newest logged step."""
        return next((event for event in reversed(self.curves) if event.get("kind") == "step"), None)


class LiveRuns:
    """The runs that were looked at, each with its events."""

    def __init__(self) -> None:
        self._runs: dict[Path, LiveRun] = {}
        self._lock = threading.Lock()

    def of(self, folder: Path) -> LiveRun:
        """A run, brought up to date."""
        with self._lock:
            run = self._runs.setdefault(folder, LiveRun(folder))
        run.refresh()
        return run


def curves(run: LiveRun) -> Markup:
    """The run's curves as drawings: loss, its parts, held-out perplexity, speed."""
    data = _as_data(run)
    drawn = [
        _figure(made, title)
        for made, title in (
            (loss_curves(data), "Loss"),
            (part_curves(data), "Parts of the loss"),
            (heldout_curves(data), "Held-out perplexity"),
            (_speed(run.curves), "Training speed"),
        )
        if made is not None
    ]
    if not drawn:
        return page.note("No step has been logged yet.")
    return Markup('<div class="grid">{}</div>').format(Markup("").join(drawn))


def loss_overlay(runs: Mapping[str, LiveRun]) -> Markup | None:
    """The losses of several runs' students in one drawing; None where none has any."""
    figure = go.Figure()
    for name, run in runs.items():
        for stage, events in steps_of(run.curves).items():
            if stage.partition("-")[0] not in ("sft", "none"):
                label = name if stage in ("distil", "train") else f"{name}: {stage}"
                _line(figure, label, [(event.get("tokens"), event.get("loss")) for event in events])
    if not figure.data:
        return None
    _titles(figure, "tokens read", "loss, nats a token")
    return _figure(figure, "Loss of the students")


def _as_data(run: LiveRun) -> RunData:
    """The part of a run that the report's curves are drawn from."""
    return RunData(run.folder, None, None, None, None, None, None, events=run.curves)


def _speed(events: list[dict[str, Any]]) -> go.Figure | None:
    figure = go.Figure()
    for stage, found in steps_of(events).items():
        _line(figure, stage, [(event.get("tokens"), event.get("tokens_per_second")) for event in found])
    _titles(figure, "tokens read", "tokens/s")
    return figure if figure.data else None


def _line(figure: go.Figure, name: str, points: list[tuple[Any, Any]]) -> None:
    numbers = [(x, y) for x, y in points if isinstance(x, int | float) and isinstance(y, int | float)]
    if numbers:
        figure.add_scatter(x=[x for x, _ in numbers], y=[y for _, y in numbers], mode="lines", name=name)


def _titles(figure: go.Figure, x: str, y: str) -> None:
    figure.update_layout(xaxis={"title": {"text": x}}, yaxis={"title": {"text": y}})


def _figure(figure: go.Figure, title: str) -> Markup:
    return figure_svg(figure.to_plotly_json(), title)
