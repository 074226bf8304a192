"""Progress on the command line: what is said, how often, and that neither foreign text nor a lost reader does harm."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import pty
import re
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from lmdistill.console import (
    JsonProgress,
    PlainProgress,
    RichProgress,
    SafeStream,
    clean,
    count,
    duration,
    make_console_progress,
    to_json,
    values,
)
from lmdistill.progress import Progress

NASTY = "\x1b[31mred\x07 \x9b2J\u202egnp.exe [bold]not bold[/bold] \r\n\tend\udcff"
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += seconds


def plain(interval: float = 5.0) -> tuple[PlainProgress, io.StringIO, Clock]:
    stream, clock = io.StringIO(), Clock()
    return PlainProgress(stream, interval=interval, clock=clock), stream, clock


def rich(width: int = 100) -> tuple[RichProgress, io.StringIO, Clock]:
    stream, clock = io.StringIO(), Clock()
    console = Console(
        file=stream, force_terminal=True, width=width, highlight=False, markup=False, legacy_windows=False
    )
    return RichProgress(stream, clock=clock, console=console), stream, clock


# -- text -------------------------------------------------------------------------------------------------------------


@given(st.text(st.characters(), max_size=60))
@example(NASTY)
def test_clean_text_holds_nothing_that_acts(text: str) -> None:
    shown = clean(text)
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    assert not set(shown) & set("\u202a\u202b\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")
    assert clean(shown) == shown
    shown.encode("utf-8")
    harmless = "".join(c for c in text if c.isalnum())
    assert clean(harmless) == harmless


def test_clean_spells_out_what_it_takes_away() -> None:
    assert clean("a\x1b[31mb\x07\u202ec") == "a\\x1b[31mb\\x07\\u202ec"
    assert clean("a\nb\tc") == "a b c"
    assert clean("a\nb\tc", lines=True) == "a\nb c"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.44, "0.4 s"), (9.94, "9.9 s"), (12, "12 s"), (59.7, "1:00"), (185, "3:05"), (7385, "2:03:05")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_values_name_themselves_and_rates_have_their_unit() -> None:
    assert values({"loss": 3.21449, "tokens_per_second": 412.4, "step": 7}) == "loss 3.214, 412.4 tokens/s, step 7"
    assert values({"tokens_per_second": 12345.6, "state": "a\x1bb"}) == "12,346 tokens/s, state a\\x1bb"
    assert values({"loss": math.nan, "gradient_norm": math.inf}) == "loss nan, gradient norm inf"


def test_counts_show_the_end_where_it_is_known() -> None:
    assert count(12, 100, "steps") == "12/100 steps"
    assert count(1204, None, "rows") == "1,204 rows"
    assert count(3, None, "") == "3"


# -- plain lines ------------------------------------------------------------------------------------------------------


def test_a_stage_is_two_lines_with_its_duration() -> None:
    progress, stream, clock = plain()
    clock.forward(3)
    with progress.stage("distil", "1 forward_kl"):
        clock.forward(3725)
    assert stream.getvalue().splitlines() == ["[00:00:03] distil: 1 forward_kl", "[01:02:08] distil done in 1:02:05"]


def test_a_stage_that_fails_says_so_and_lets_the_error_through() -> None:
    progress, stream, clock = plain()

    def fail() -> None:
        clock.forward(2)
        raise KeyError

    with pytest.raises(KeyError), progress.stage("distil"):
        fail()
    assert stream.getvalue().splitlines()[-1] == "[00:00:02] distil stopped after 2.0 s"


def test_a_task_speaks_every_few_seconds_and_less_often_when_it_is_long() -> None:
    progress, stream, clock = plain(interval=5)
    with progress.task("train", total=10_000, unit="steps") as task:
        for _ in range(10_000):
            clock.forward(1)
            task.advance(1, loss=2.0)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "[00:00:05]   train: 5/10,000 steps, 2:46:35 left, loss 2"
    times = [
        sum(int(part) * scale for part, scale in zip(line[1:9].split(":"), (3600, 60, 1), strict=True))
        for line in lines
    ]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert min(gaps[:-1]) >= 5
    assert max(gaps) <= 60
    assert len(lines) < 300
    assert lines[-1].startswith("[02:46:40]   train: 10,000/10,000 steps")


def test_a_short_task_says_nothing() -> None:
    progress, stream, clock = plain()
    with progress.task("encoding", total=3) as task:
        for _ in range(3):
            clock.forward(1)
            task.advance()
    assert stream.getvalue() == ""


def test_time_left_is_measured_after_the_jump_of_a_run_that_resumes() -> None:
    progress, stream, clock = plain(interval=5)
    with progress.task("train", total=1000, unit="steps") as task:
        clock.forward(3)
        task.advance(900)  # done before
        for _ in range(10):
            clock.forward(1)
            task.advance(1)
    assert "905/1,000 steps, 1:35 left" not in stream.getvalue()
    first = stream.getvalue().splitlines()[0]
    assert first == "[00:00:05]   train: 902/1,000 steps, 1:38 left"


def test_plain_lines_hold_no_control_characters() -> None:
    progress, stream, clock = plain(interval=0)
    with progress.stage(NASTY, NASTY), progress.task(NASTY, unit=NASTY) as task:
        clock.forward(1)
        task.advance(1, **{NASTY: NASTY})
        progress.note(NASTY)
        progress.warn(NASTY)
    lines = stream.getvalue().split("\n")
    assert len(lines) == 7
    assert all(clean(line) == line for line in lines)
    assert all(re.match(r"\[\d\d:\d\d:\d\d\] ", line) for line in lines[:-1])


# -- JSON lines -------------------------------------------------------------------------------------------------------


def test_json_lines_are_objects_with_event_and_seconds() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = JsonProgress(stream, clock=clock)
    with progress.stage("distil", NASTY):
        with progress.task("train", total=20, unit="steps") as task:
            for step in range(20):
                clock.forward(0.5)
                task.advance(1, loss=math.nan if step == 0 else 1.5, best=math.inf)
        progress.warn(NASTY)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert all(isinstance(line["event"], str) and line["seconds"] >= 0 for line in lines)
    assert [line["event"] for line in lines[:2]] == ["stage_started", "progress"]
    assert lines[0]["detail"] == NASTY.encode("utf-8", "surrogatepass").decode("utf-8", "surrogatepass")
    steps = [line for line in lines if line["event"] == "progress"]
    assert 9 <= len(steps) <= 12
    assert steps[0]["loss"] == "NaN"
    assert steps[-1] == {
        **steps[-1],
        "task": "train",
        "done": 20,
        "total": 20,
        "unit": "steps",
        "left": 0,
        "loss": 1.5,
        "best": "Infinity",
    }
    assert lines[-1] == {"event": "stage_finished", "seconds": 10.0, "stage": "distil", "duration": 10.0}


def test_json_lines_tell_of_a_stage_that_stops() -> None:
    stream = io.StringIO()
    with pytest.raises(KeyError), JsonProgress(stream).stage("distil"):
        raise KeyError
    assert json.loads(stream.getvalue().splitlines()[-1])["event"] == "stage_stopped"


def test_json_is_one_line_of_ascii_that_reads_back() -> None:
    text = to_json({"a": [1.5, math.nan, (-math.inf,)], "b": NASTY, "c": None})
    assert text.isascii()
    assert "\n" not in text
    assert json.loads(text)["a"] == [1.5, "NaN", ["-Infinity"]]


# -- live display -----------------------------------------------------------------------------------------------------


def test_a_finished_stage_leaves_one_line_with_its_last_values_and_duration() -> None:
    progress, stream, clock = rich()
    with progress.stage("distil", "1 forward_kl"), progress.task("train", total=5, unit="steps") as task:
        for _ in range(5):
            clock.forward(13)
            task.advance(1, loss=2.5)
    text = ESCAPE.sub("", stream.getvalue())
    assert "✓ distil  1 forward_kl  5 steps, loss 2.500, 1:05" in text


def test_the_live_rows_show_the_stage_and_how_far_the_task_is() -> None:
    progress, _, clock = rich(width=90)
    with progress.stage("distil", "1 forward_kl"), progress.task("train", total=10, unit="steps") as task:
        for _ in range(4):
            clock.forward(1)
            task.advance(1, loss=2.5)
        console = Console(width=90, file=io.StringIO())
        console.print(progress._render())
        stage, row = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        assert re.fullmatch(r". distil  1 forward_kl  4\.0 s\s*", stage)
        assert "━" in row
        assert "4/10 steps, 6.0 s left, loss 2.500" in row
        assert max(len(stage), len(row)) <= 90


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_live_rows_never_wrap(width: int) -> None:
    progress, _, clock = rich(width=width)
    with progress.stage("a long name of a stage " * 3, "detail " * 9), progress.task("train " * 9, total=1e6) as task:
        clock.forward(1)
        task.advance(5, loss=1.0, tokens_per_second=1e6)
        console = Console(width=width, file=io.StringIO())
        console.print(progress._render())
        assert len(console.file.getvalue().splitlines()) == 2  # type: ignore[attr-defined]


def test_a_failing_stage_is_marked_and_the_terminal_given_back() -> None:
    progress, stream, _ = rich()
    with pytest.raises(KeyError), progress.stage("distil"), progress.task("train"):
        raise KeyError
    assert "✗ distil  stopped after 0.0 s" in ESCAPE.sub("", stream.getvalue())
    shown, hidden = stream.getvalue().rfind("\x1b[?25h"), stream.getvalue().rfind("\x1b[?25l")
    assert shown > hidden >= 0  # the cursor is back
    assert progress._live is None
    with progress.stage("again"):
        assert progress._live is not None


def test_foreign_text_neither_colours_nor_moves_the_live_display() -> None:
    progress, stream, clock = rich(width=300)
    with progress.stage("s", NASTY), progress.task(NASTY, total=2, unit=NASTY) as task:
        clock.forward(1)
        task.advance(1, **{NASTY: NASTY})
        progress.warn(NASTY)
        progress.note(NASTY)
    text = ESCAPE.sub("", stream.getvalue())
    assert "[bold]not bold[/bold]" in text
    assert "\\x1b[31mred\\x07" in text
    assert not set(text) & set("\x07\x9b\u202e\x1b")


# -- streams ----------------------------------------------------------------------------------------------------------


def closed_pipe() -> io.TextIOWrapper:
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", buffering=1)


@pytest.mark.parametrize("make", [PlainProgress, JsonProgress, RichProgress])
def test_a_reader_that_goes_away_does_not_stop_the_work(make: Callable[[io.TextIOWrapper], Progress]) -> None:
    stream = closed_pipe()
    progress = make(stream)
    done = 0
    with progress.stage("distil"), progress.task("train", total=3) as task:
        for _ in range(3):
            task.advance()
            progress.note("still here")
            done += 1
    assert done == 3
    with pytest.raises(BrokenPipeError):  # what was written is still in its buffer
        stream.close()


def test_a_stream_that_is_not_utf8_gets_question_marks() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    safe = SafeStream(stream)
    safe.write("distil ✓ ok\n")
    safe.flush()
    assert raw.getvalue() == b"distil ? ok\n"


def test_a_closed_stream_is_no_terminal() -> None:
    stream = io.StringIO()
    stream.close()
    assert not SafeStream(stream).isatty()
    SafeStream(stream).write("x")


def test_the_progress_fits_where_it_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert type(make_console_progress(quiet=True)) is Progress
    assert type(make_console_progress(quiet=True, as_json=True)) is Progress
    assert type(make_console_progress(as_json=True, stream=io.StringIO())) is JsonProgress
    assert type(make_console_progress(stream=io.StringIO())) is PlainProgress
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        assert type(make_console_progress(stream=terminal)) is RichProgress
        assert type(make_console_progress(as_json=True, stream=terminal)) is JsonProgress
        monkeypatch.setenv("TERM", "dumb")
        assert type(make_console_progress(stream=terminal)) is PlainProgress
    os.close(master)
