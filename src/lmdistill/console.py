"""How a run shows itself on the command line: a live display, plain lines, JSON lines, or nothing.

Everything here goes to standard error, so that standard output holds results only. Text that comes from models, data
and file names is shown with its control characters spelled out, and never read as rich's markup. A reader that goes
away (`2>&1 | head`, a closed terminal) silences the display and never stops the run.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePath
from typing import IO, Any, Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from lmdistill.progress import Progress, Task

Clock = Callable[[], float]
Shown = Mapping[str, float | str]

_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def clean(text: str, lines: bool = False) -> str:
    """Text in which nothing can move the cursor, ring, recolour or reorder: such characters are spelled out.

    With `lines`, line breaks stay.
    """
    return "".join(
        character
        if (lines and character == "\n") or not (character in _BIDI or unicodedata.category(character) in _UNSEEN)
        else _spelled(character)
        for character in text
    )


_UNSEEN = ("Cc", "Cs", "Zl", "Zp")  # controls, lone surrogates, line and paragraph separators


def _spelled(character: str) -> str:
    if character in "\n\t":
        return " "
    return character.encode("unicode_escape").decode("ascii")


def duration(seconds: float) -> str:
    """A length of time in a few characters: `0.4 s`, `12 s`, `3:05`, `2:03:05`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    minutes, seconds_left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{seconds_left:02}" if hours else f"{minutes}:{seconds_left:02}"


def values(shown: Shown) -> str:
    """Named values in one line: `loss 3.214, 412 tokens/s`."""
    return ", ".join(_value(name, value) for name, value in shown.items())


def _value(name: str, value: float | str) -> str:
    if isinstance(value, str):
        number = clean(value)
    elif math.isfinite(value) and (abs(value) >= 1000 or value == int(value)):
        number = f"{value:,.0f}"
    else:
        number = f"{value:#.4g}"  # as many digits each time, so that a live line stands still
    if name.endswith("_per_second"):
        return f"{number} {clean(name.removesuffix('_per_second'))}/s"
    return f"{clean(name).replace('_', ' ')} {number}"


def count(done: float, total: float | None, unit: str) -> str:
    """How far a task is: `12/100 steps`, `1,204 rows`."""
    amount = f"{done:,.0f}" + (f"/{total:,.0f}" if total is not None else "")
    return f"{amount} {clean(unit)}".rstrip()


class SafeStream:
    """A text stream whose reader may go away: from then on what is written is dropped."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._broken = False

    def write(self, text: str) -> int:
        """Write, unless the other end is gone."""
        if not self._broken:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:  # a terminal that is not UTF-8
                encoding = getattr(self._stream, "encoding", None) or "ascii"
                return self.write(text.encode(encoding, errors="replace").decode(encoding))
            except (OSError, ValueError):
                self._broken = True
        return len(text)

    def flush(self) -> None:
        """Flush, unless the other end is gone."""
        if not self._broken:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._broken = True

    def isatty(self) -> bool:
        """Whether this is a terminal."""
        try:
            return self._stream.isatty()
        except (OSError, ValueError):
            return False

    @property
    def encoding(self) -> str:
        """Encoding of the stream; rich asks for it to choose its characters."""
        return getattr(self._stream, "encoding", None) or "utf-8"


class _Counter(Task):
    """A task that counts, and estimates what is left."""

    def __init__(
        self, name: str, total: float | None, unit: str, clock: Clock, changed: Callable[[_Counter], None]
    ) -> None:
        self.name = name
        self.total = total
        self.unit = unit
        self.done = 0.0
        self.shown: dict[str, float | str] = {}
        self.started = clock()
        self._clock = clock
        self._changed = changed
        self._first: tuple[float, float] | None = None

    def advance(self, amount: float = 1, **shown: float | str) -> None:
        """Count and show."""
        self.done += amount
        self.shown.update(shown)
        if self._first is None:
            # The first advance may be a jump (a run that resumes) or hold the warm-up: time is measured after it.
            self._first = (self._clock(), self.done)
        self._changed(self)

    @property
    def elapsed(self) -> float:
        """Seconds since the task began."""
        return self._clock() - self.started

    @property
    def left(self) -> float | None:
        """Seconds that are left at the mean speed so far; None while nothing is known."""
        if self.total is None or self._first is None:
            return None
        since, done = self._first
        speed = (self.done - done) / max(1e-9, self._clock() - since)
        return max(0.0, self.total - self.done) / speed if speed > 0 else None

    def describe(self) -> str:
        """The task in one line."""
        parts = [count(self.done, self.total, self.unit)]
        if self.left is not None and self.done < (self.total or 0):
            parts.append(f"{duration(self.left)} left")
        parts.append(values(self.shown))
        return f"{clean(self.name)}: " + ", ".join(part for part in parts if part)

    def result(self) -> str:
        """What remains to be said when the task is over."""
        return ", ".join(part for part in (count(self.done, None, self.unit), values(self.shown)) if part)


class _LineProgress(Progress):
    """Progress that is written line by line, at most every `interval` seconds for a task."""

    def __init__(self, stream: IO[str], interval: float, clock: Clock) -> None:
        self._stream = SafeStream(stream)
        self._interval = interval
        self._clock = clock
        self._started = clock()

    @contextmanager
    def stage(self, name: str, detail: str = "") -> Iterator[None]:
        """One line at the start, one at the end."""
        started = self._clock()
        self._stage_started(name, detail)
        try:
            yield
        except BaseException:
            self._stage_ended("stopped", name, self._clock() - started)
            raise
        self._stage_ended("finished", name, self._clock() - started)

    def _stage_started(self, name: str, detail: str) -> None:
        raise NotImplementedError

    def _stage_ended(self, how: Literal["stopped", "finished"], name: str, seconds: float) -> None:
        raise NotImplementedError


class PlainProgress(_LineProgress):
    """Lines of plain text, each with the time since the start; for logs and pipes.

    A task speaks at most every `interval` seconds, and after a while every twentieth of its own time, at most a
    minute, so that a day's run leaves a log that can be read.
    """

    def __init__(self, stream: IO[str], interval: float = 5.0, clock: Clock = time.monotonic) -> None:
        super().__init__(stream, interval, clock)

    def _stage_started(self, name: str, detail: str) -> None:
        self._line(clean(name) + (f": {clean(detail)}" if detail else ""))

    def _stage_ended(self, how: Literal["stopped", "finished"], name: str, seconds: float) -> None:
        self._line(f"{clean(name)} {'done in' if how == 'finished' else 'stopped after'} {duration(seconds)}")

    @contextmanager
    def task(self, name: str, total: float | None = None, unit: str = "") -> Iterator[Task]:
        """A line now and then, and one at the end if any was written before."""
        last = self._clock()
        spoken = False

        def changed(counter: _Counter) -> None:
            nonlocal last, spoken
            now = self._clock()
            if now - last >= max(self._interval, min(60.0, counter.elapsed / 20)):
                last, spoken = now, True
                self._line(f"  {counter.describe()}")

        counter = _Counter(name, total, unit, self._clock, changed)
        yield counter
        if spoken:
            self._line(f"  {counter.describe()}")

    def note(self, text: str) -> None:
        """A line."""
        self._line(f"note: {clean(text)}")

    def warn(self, text: str) -> None:
        """A line."""
        self._line(f"warning: {clean(text)}")

    def _line(self, text: str) -> None:
        whole = int(self._clock() - self._started)
        self._stream.write(f"[{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}] {text}\n")
        self._stream.flush()


class JsonProgress(_LineProgress):
    """One JSON object a line, with `event` and `seconds` since the start; for programs.

    Events: stage_started, stage_finished, stage_stopped, progress (at most one a second for each task, and its last),
    note, warning. Numbers that JSON lacks are the strings "NaN", "Infinity", "-Infinity".
    """

    def __init__(self, stream: IO[str], interval: float = 1.0, clock: Clock = time.monotonic) -> None:
        super().__init__(stream, interval, clock)

    def _stage_started(self, name: str, detail: str) -> None:
        self._event("stage_started", stage=name, detail=detail)

    def _stage_ended(self, how: Literal["stopped", "finished"], name: str, seconds: float) -> None:
        self._event(f"stage_{how}", stage=name, duration=round(seconds, 3))

    @contextmanager
    def task(self, name: str, total: float | None = None, unit: str = "") -> Iterator[Task]:
        """A line a second at most."""
        last = -math.inf

        def tell(counter: _Counter) -> None:
            left = None if counter.left is None else round(counter.left, 1)
            self._event("progress", task=name, done=counter.done, total=total, unit=unit, left=left, **counter.shown)

        def changed(counter: _Counter) -> None:
            nonlocal last
            if self._clock() - last >= self._interval:
                last = self._clock()
                tell(counter)

        counter = _Counter(name, total, unit, self._clock, changed)
        yield counter
        tell(counter)

    def note(self, text: str) -> None:
        """A line."""
        self._event("note", text=text)

    def warn(self, text: str) -> None:
        """A line."""
        self._event("warning", text=text)

    def _event(self, event: str, **fields: Any) -> None:
        line = {"event": event, "seconds": round(self._clock() - self._started, 3), **fields}
        self._stream.write(to_json(line) + "\n")
        self._stream.flush()


def to_json(value: Any) -> str:
    """JSON in one line of ASCII; paths, and the numbers that JSON lacks, are strings."""
    return json.dumps(_plain(value), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


@dataclass
class _Row:
    """One line of the live display: a stage, or a task inside it."""

    label: str
    detail: str
    depth: int
    started: float
    counter: _Counter | None = None


class RichProgress(Progress):
    """A live display: a row for each stage and task that is under way, a line for each stage that is over."""

    def __init__(self, stream: IO[str], clock: Clock = time.monotonic, console: Console | None = None) -> None:
        self._clock = clock
        file: Any = SafeStream(stream)  # it has all of a text file that rich uses
        self._console = console or Console(file=file, highlight=False, markup=False, emoji=False)
        self._live: Live | None = None
        self._rows: list[_Row] = []
        self._results: list[str] = []

    @contextmanager
    def stage(self, name: str, detail: str = "") -> Iterator[None]:
        """A row while it runs; afterwards a line with its duration and what its last task showed."""
        self._results.append("")
        ended = False
        with self._row(name, detail) as row:
            try:
                yield
                ended = True
            finally:
                result, took = self._results.pop(), duration(self._clock() - row.started)
                if ended:
                    self._over(("✓ ", "green"), row, f"{result}, {took}" if result else took)
                else:
                    self._over(("✗ ", "red"), row, f"stopped after {took}")

    @contextmanager
    def task(self, name: str, total: float | None = None, unit: str = "") -> Iterator[Task]:
        """A row with a bar."""
        with self._row(name) as row:
            row.counter = _Counter(name, total, unit, self._clock, lambda counter: None)
            yield row.counter
            if self._results and row.counter.shown:
                self._results[-1] = row.counter.result()

    def note(self, text: str) -> None:
        """A line above the live rows."""
        self._console.print(Text.assemble("  ", (clean(text), "dim")))

    def warn(self, text: str) -> None:
        """A line above the live rows."""
        self._console.print(Text.assemble(("! ", "bold yellow"), (clean(text), "yellow")))

    @contextmanager
    def _row(self, label: str, detail: str = "") -> Iterator[_Row]:
        """A row of the display, which lives as long as it has rows."""
        row = _Row(clean(label), clean(detail), depth=len(self._rows), started=self._clock())
        self._rows.append(row)
        if self._live is None:
            self._live = Live(console=self._console, get_renderable=self._render, transient=True, refresh_per_second=4)
            self._live.start()
        try:
            yield row
        finally:
            self._rows.remove(row)
            if not self._rows and self._live is not None:
                self._live.stop()
                self._live = None

    def _over(self, mark: tuple[str, str], row: _Row, result: str) -> None:
        line = Text.assemble(mark, (row.label, "bold"), f"  {row.detail}" if row.detail else "")
        self._console.print(line.append(f"  {result}", style="dim"))

    def _render(self) -> RenderableType:
        """All rows, one line each, as wide as the terminal."""
        width = self._console.width
        lines = [self._task_line(row, width) if row.counter else self._stage_line(row, width) for row in self._rows]
        return Group(*lines)

    def _stage_line(self, row: _Row, width: int) -> Text:
        elapsed = self._clock() - row.started
        spinner = _SPINNER[int(elapsed * 8) % len(_SPINNER)]
        end = Text(f"  {duration(elapsed)}", style="dim")
        line = Text.assemble("  " * row.depth, (f"{spinner} ", "cyan"), (row.label, "bold"), f"  {row.detail}")
        return _fitted(line, width - len(end)).append(end)

    def _task_line(self, row: _Row, width: int) -> Text:
        counter = row.counter
        assert counter is not None
        time_left = duration(counter.elapsed) if counter.left is None else f"{duration(counter.left)} left"
        facts = [count(counter.done, counter.total, counter.unit), time_left, values(counter.shown)]
        line = Text("  " * row.depth + row.label + "  ")
        end = Text(", ".join(fact for fact in facts if fact), style="cyan")
        room = width - len(line) - len(end) - 2
        if counter.total and room >= 8:
            line.append(_bar(counter.done / counter.total, min(room, 32))).append("  ")
        return _fitted(line.append(end), width)


_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


def _bar(share: float, width: int) -> Text:
    full = round(min(1.0, max(0.0, share)) * width)
    return Text.assemble(("━" * full, "green"), ("─" * (width - full), "bright_black"))


def _fitted(line: Text, width: int) -> Text:
    line.no_wrap = True
    line.truncate(max(1, width), overflow="ellipsis")
    return line


def make_console_progress(quiet: bool = False, as_json: bool = False, stream: IO[str] | None = None) -> Progress:
    """The progress that fits: silent, JSON lines, a live display on a terminal, plain lines elsewhere."""
    target = stream if stream is not None else sys.stderr
    if quiet:
        return Progress()
    if as_json:
        return JsonProgress(target)
    if SafeStream(target).isatty() and os.environ.get("TERM") != "dumb":
        return RichProgress(target)
    return PlainProgress(target)
