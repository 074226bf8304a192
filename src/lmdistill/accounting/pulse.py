"""A sign of life of the stage at work, so that a process that is killed leaves the time that it cost."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from lmdistill.errors import CorruptFile, LmdistillError
from lmdistill.io import read_json, write_json

FILE = "pulse.json"


class Pulse:
    """Writes every few seconds how long the stage has been at work, and takes the file away at its end."""

    def __init__(self, folder: Path, stage: str, interval: float = 5.0) -> None:
        self.file = folder / FILE
        self.stage = stage
        self.interval = interval
        self._ended = threading.Event()
        self._since = time.monotonic()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self.file.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._ended.wait(self.interval):
            seconds = round(time.monotonic() - self._since, 3)
            with contextlib.suppress(LmdistillError, OSError):  # a full disk is for the stage itself to tell
                write_json(self.file, {"stage": self.stage, "seconds": seconds})


def left_behind(folder: Path) -> tuple[str, float] | None:
    """The stage that a dead process was at and the seconds that it had spent on it; the file is taken away.

    To be called by the owner of the folder alone.
    """
    file = folder / FILE
    try:
        value = read_json(file)
        found = str(value["stage"]), float(value["seconds"])
    except FileNotFoundError:
        return None
    except (CorruptFile, KeyError, TypeError, ValueError):
        found = None
    file.unlink(missing_ok=True)
    return found
