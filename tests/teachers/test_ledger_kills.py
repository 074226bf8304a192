"""Labelling that is killed at any instant loses nothing that it had, and pays for nothing twice."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from echo_server import EchoServer
from http_server import serving
from labelling_child import REQUESTS, Forker, forking
from lmdistill.teachers.ledger import reading

ROWS = 40
EXPECTED = [f"echo: row {i}" for i in range(ROWS)]


@pytest.fixture(scope="module")
def forker() -> Iterator[Forker]:
    with forking() as started:
        yield started


def stored_prompts(ledger: Path) -> set[str]:
    """The questions whose answers are in a ledger."""
    with reading(ledger) as connection:
        calls = [json.loads(text) for (text,) in connection.execute("SELECT request FROM answers")]
    return {call["body"]["messages"][-1]["content"] for call in calls}


def stored_keys(ledger: Path) -> set[str]:
    with reading(ledger) as connection:
        return {key.hex() for (key,) in connection.execute("SELECT key FROM answers")}


def acknowledged_keys(folder: Path) -> set[str]:
    with suppress(FileNotFoundError):
        return set((folder / "acknowledged").read_text().split("\n")[:-1])
    return set()


def kill_and_finish(forker: Forker, echo: EchoServer, folder: Path, calls: int, delay: float) -> tuple[int, int]:
    """Kill a run after some time, run it again to its end; answers that were stored, and calls that were repeated."""
    folder.mkdir()
    echo.asked.clear()
    already = echo.calls
    child = forker.start(folder, echo.url, ROWS)
    until = time.monotonic() + 60
    while echo.calls < already + calls and time.monotonic() < until:
        time.sleep(0.0005)
    time.sleep(delay)
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    forker.wait()
    time.sleep(0.02)  # what the dead process had sent comes to the server
    ledger = folder / "ledger.sqlite"
    had = stored_prompts(ledger) if ledger.is_file() and ledger.stat().st_size and _has_tables(ledger) else set()
    acknowledged = acknowledged_keys(folder)
    if acknowledged:
        assert acknowledged <= stored_keys(ledger), "an answer that was given out is not in the ledger"
    before = dict(echo.asked)
    forker.start(folder, echo.url, ROWS)
    assert forker.wait() == 0
    assert json.loads((folder / "rows.json").read_text()) == EXPECTED
    assert all(echo.asked[prompt] == before[prompt] for prompt in had), "a stored answer was asked for again"
    assert stored_prompts(ledger) == {f"row {i}" for i in range(ROWS)}
    repeated = sum(echo.asked.values()) - ROWS
    assert repeated <= REQUESTS
    shutil.rmtree(folder)
    return len(had), repeated


def _has_tables(ledger: Path) -> bool:
    """Whether the kill came after the ledger was made."""
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(ledger)) as connection:
        return connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'answers'").fetchone()[0] == 1


def kills(forker: Forker, tmp_path: Path, count: int, seed: int) -> None:
    draw = random.Random(seed)
    with serving(EchoServer(delay=0.003)) as echo:
        results = []
        for number in range(count):
            # A moment after so many calls, so that a slow machine is killed everywhere too; sometimes before the first.
            calls, delay = draw.randrange(ROWS) if number % 5 else 0, draw.uniform(0, 0.02)
            results.append(kill_and_finish(forker, echo, tmp_path / str(number), calls, delay))
    assert any(0 < had < ROWS for had, _ in results), "no kill came in the middle"


def test_killed_at_ten_random_instants(forker: Forker, tmp_path: Path) -> None:
    kills(forker, tmp_path, 10, seed=0)


@pytest.mark.slow
def test_killed_at_fifty_random_instants(forker: Forker, tmp_path: Path) -> None:
    kills(forker, tmp_path, 50, seed=1)


def test_killed_again_and_again_it_still_comes_to_its_end(forker: Forker, tmp_path: Path) -> None:
    draw = random.Random(2)
    with serving(EchoServer(delay=0.003)) as echo:
        for _ in range(4):
            child = forker.start(tmp_path, echo.url, ROWS)
            time.sleep(draw.uniform(0.02, 0.2))
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            forker.wait()
        forker.start(tmp_path, echo.url, ROWS)
        assert forker.wait() == 0
        assert json.loads((tmp_path / "rows.json").read_text()) == EXPECTED
        assert sum(echo.asked.values()) - ROWS <= 4 * REQUESTS
        with reading(tmp_path / "ledger.sqlite") as connection:
            calls, answered = connection.execute("SELECT count(*), sum(outcome = 'answered') FROM calls").fetchone()
        assert calls >= sum(echo.asked.values())  # each call was written down before it was sent
        assert answered == ROWS


def test_an_interrupted_run_waits_for_what_it_has_sent(forker: Forker, tmp_path: Path) -> None:
    with serving(EchoServer(delay=0.05)) as echo:
        child = forker.start(tmp_path, echo.url, ROWS)
        until = time.monotonic() + 60
        while echo.calls < 10 and time.monotonic() < until:
            time.sleep(0.001)
        os.kill(child, signal.SIGINT)
        assert forker.wait() == 1
        assert echo.calls < ROWS
        with reading(tmp_path / "ledger.sqlite") as connection:
            endings = {ending for (ending,) in connection.execute("SELECT DISTINCT outcome FROM calls")}
        assert endings == {"answered"}
        forker.start(tmp_path, echo.url, ROWS)
        assert forker.wait() == 0
        assert max(echo.asked.values()) == 1
