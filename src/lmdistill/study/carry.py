"""Carrying a study out: cell after cell, each in a process of its own; what is done is not done again."""

from __future__ import annotations

import datetime
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lmdistill.errors import CorruptFile, Interrupted, TrainingError
from lmdistill.io import RunLock, read_json, write_json, write_text
from lmdistill.progress import Progress, Task
from lmdistill.study.cells import Cell, cells_of, primers_of, selected, starts_of
from lmdistill.study.spec import StudySpec
from lmdistill.training.callbacks import StopFlag, stop_flag
from lmdistill.yamltext import write_yaml

State = Literal["done", "failed", "open"]
_PATIENCE = 2.0
"""Seconds between looks at a folder that another process holds."""


@dataclass(frozen=True)
class CellState:
    """How far a cell has come."""

    state: State
    seconds: float = 0.0
    """Wall-clock time of its process, the last one."""
    message: str = ""
    """Why it failed."""


@dataclass
class StudyRun:
    """What became of a study."""

    states: dict[str, CellState] = field(default_factory=dict)

    def count(self, state: State) -> int:
        """Cells in this state."""
        return sum(found.state == state for found in self.states.values())


def carry_out(spec: StudySpec, patterns: Sequence[str] = (), progress: Progress | None = None) -> StudyRun:
    """Run what is missing of a study; a cell that fails is told and left, and the others go on.

    Raises Interrupted after a signal, once the cell at work has saved what it had; RecipeError before anything is run
    where a cell's recipe is wrong; TrainingError where what comes before the cells fails.
    """
    progress = progress or Progress()
    cells = selected(cells_of(spec), patterns)
    before = [*starts_of(spec), *primers_of(spec)]
    for cell in [*before, *cells]:
        cell.resolved()
    spec.folder.mkdir(parents=True, exist_ok=True)
    with RunLock(spec.folder), stop_flag() as stop, stop.patient():
        missing = [cell for cell in cells if state_of(cell).state != "done"]
        with progress.task(f"study {spec.name}", total=len(cells), unit="cells") as task:
            task.advance(len(cells) - len(missing))
            for cell in before if missing else []:
                _before(cell, stop, progress)
            for cell in missing:
                _one(cell, stop, progress, task)
    return StudyRun(states_of(spec, patterns))


def states_of(spec: StudySpec, patterns: Sequence[str] = ()) -> dict[str, CellState]:
    """How far each cell has come, by name."""
    return {cell.name: state_of(cell) for cell in selected(cells_of(spec), patterns)}


def state_of(cell: Cell) -> CellState:
    """How far a cell has come; one whose recipe has changed since is open."""
    try:
        value = read_json(_record(cell))
        if value["fingerprint"] == cell.fingerprint:
            return CellState(value["state"], float(value["seconds"]), str(value["message"]))
    except (FileNotFoundError, CorruptFile, KeyError, TypeError, ValueError):
        pass
    return CellState("open")


def _record(cell: Cell) -> Path:
    return cell.folder.with_suffix(".cell.json")


def _before(cell: Cell, stop: StopFlag, progress: Progress) -> None:
    """A run that comes before the cells. Raises TrainingError where it fails."""
    if state_of(cell).state == "done":
        return
    with progress.stage(cell.name, "before the cells"):
        found = _run(cell, stop, progress)
    if found.state == "failed":
        raise TrainingError(
            f"{cell.name}: {found.message}; no cell can begin without it: mend the study's fields (`lmdistill run "
            f"{cell.file}` shows more) and run the same command again"
        )


def _one(cell: Cell, stop: StopFlag, progress: Progress, task: Task) -> None:
    with progress.stage(cell.name):
        found = _run(cell, stop, progress)
    if found.state == "failed":
        progress.warn(f"cell {cell.name} failed: {found.message}")
    task.advance()


def _run(cell: Cell, stop: StopFlag, progress: Progress) -> CellState:
    """`lmdistill run` of a cell, to its end. Raises Interrupted where a signal came."""
    write_text(cell.file, write_yaml(dict(cell.recipe)))
    started, told = time.monotonic(), False
    while not stop.raised:
        code, answer = _process(cell, stop, progress)
        error = answer.get("error") or {}
        if stop.raised or error.get("kind") != "RunFolderInUse":
            break
        if not told:  # a study that was killed leaves the process of its cell at work
            progress.note(f"{cell.name}: {error.get('message')}; waiting for it")
        told = True
        time.sleep(_PATIENCE)
    if stop.raised:
        raise Interrupted(
            f"stopped by {stop.name} in cell {cell.name}; what is done stays: run the same command again to go on"
        )
    message = "" if code == 0 else str(error.get("message") or f"its process ended with {code}")
    found = CellState("done" if code == 0 else "failed", round(time.monotonic() - started, 3), message)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    write_json(
        _record(cell),
        {
            "fingerprint": cell.fingerprint,
            "state": found.state,
            "seconds": found.seconds,
            "message": message,
            "ended": now,
        },
    )
    return found


def _process(cell: Cell, stop: StopFlag, progress: Progress) -> tuple[int, dict[str, Any]]:
    """One process; its exit code and the object that it answered. A signal is handed on to it once."""
    command = [sys.executable, "-m", "lmdistill", "run", str(cell.file), "--json"]
    # A session of its own: Ctrl-C in a terminal would reach it twice, and the second time ends it at once.
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ), start_new_session=True
    )
    asked = False
    last = ""
    with progress.task("run") as task:
        for line in _lines(child):
            if stop.raised and not asked:
                child.send_signal(signal.SIGTERM)
                asked = True
            if line.startswith("{"):
                _tell(line, progress, task)
            elif line:
                last = line
    answer = _answer(child)
    if not answer and last:
        answer = {"error": {"message": last[:300]}}
    return child.wait(), answer


def _lines(child: subprocess.Popen[bytes]) -> Iterator[str]:
    """Lines of a process's standard error, and an empty one now and then while it is silent."""
    lines: queue.Queue[str | None] = queue.Queue()

    def pump() -> None:
        assert child.stderr is not None
        for line in child.stderr:
            lines.put(line.decode("utf-8", errors="replace").strip())
        lines.put(None)

    threading.Thread(target=pump, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=0.5)
        except queue.Empty:
            line = ""
        if line is None:
            return
        yield line


def _tell(line: str, progress: Progress, task: Task) -> None:
    """Pass on what a cell's process says of itself."""
    try:
        event = json.loads(line)
    except ValueError:
        return
    if event.get("event") == "warning":
        progress.warn(str(event.get("text")))
    elif event.get("event") == "stage_started":
        task.advance(0, stage=str(event.get("stage")))


def _answer(child: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert child.stdout is not None
    for line in reversed(child.stdout.read().decode("utf-8", errors="replace").splitlines()):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            return value
    return {}
