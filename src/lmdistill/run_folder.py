"""The folder of a run: what lies where, which stages are done, and the log of events.

A stage is done when `stages/<name>.json` holds the fingerprint of its present inputs; that file is written last, so
that a stage killed half-way does not count.
"""

from __future__ import annotations

import datetime
import json
import math
from pathlib import Path
from typing import Any

from lmdistill.errors import CorruptFile
from lmdistill.io import append_line, hash_json, read_json, write_json


class RunFolder:
    """Paths, stage records and events of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def report(self) -> Path:
        """The page."""
        return self.path / "report.html"

    def file(self, name: str) -> Path:
        """A file or folder of the run."""
        return self.path / name

    def is_done(self, stage: str, fingerprint: str) -> bool:
        """Whether this stage ended with the same inputs."""
        record = self.record(stage)
        return record is not None and record.get("fingerprint") == fingerprint

    def record(self, stage: str) -> dict[str, Any] | None:
        """What a finished stage left; None where it did not finish."""
        path = self.path / "stages" / f"{stage}.json"
        if not path.is_file():
            return None
        try:
            value = read_json(path)
        except CorruptFile:
            return None  # a stage whose record cannot be read is done again
        return value if isinstance(value, dict) else None

    def finish(self, stage: str, fingerprint: str, **facts: Any) -> None:
        """Record that a stage ended."""
        write_json(self.path / "stages" / f"{stage}.json", {"fingerprint": fingerprint, **facts})

    def events(self) -> list[dict[str, Any]]:
        """What events.jsonl holds; lines that a kill cut are left out."""
        file = self.path / "events.jsonl"
        if not file.is_file():
            return []
        found = []
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                found.append(value)
        return found

    def event(self, kind: str, stage: str, **fields: Any) -> None:
        """Append one line to events.jsonl."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = {"time": now, "kind": kind, "stage": stage}
        line.update({name: _plain(value) for name, value in fields.items() if value is not None})
        append_line(self.path / "events.jsonl", json.dumps(line, ensure_ascii=False, allow_nan=False))


def fingerprint(*parts: Any) -> str:
    """One name for everything that a stage depends on."""
    return hash_json(list(parts))


def _plain(value: Any) -> Any:
    """JSON has no NaN: it is written as a string that reads back."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
