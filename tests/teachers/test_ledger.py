"""The ledger by itself: what is stored is found, damage is told, one process owns it, recordings replay it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from echo_server import EchoServer
from fault_proxy import Body, FaultProxy
from http_server import serving
from lmdistill.errors import CorruptFile, DataError, Refused, RunFolderInUse, StorageError
from lmdistill.recipe import ApiSpec
from lmdistill.teachers.api import ApiTeacher
from lmdistill.teachers.api_types import Message, Request, Sampling, Usage
from lmdistill.teachers.ledger import Facts, Ledger, Spent, Stored, reading
from lmdistill.teachers.ledger_statistics import statistics
from lmdistill.teachers.recordings import Recording, add_recording, write_recording


def stored(number: int, turn: int = 0, raw: bytes | None = None, call: int = 0) -> Stored:
    key = hashlib.sha256(str(number).encode()).hexdigest()
    body = json.dumps({"path": "/chat/completions", "body": {"n": number}}, separators=(",", ":"))
    data = raw if raw is not None else json.dumps({"answer": number}).encode()
    return Stored(key, turn, data, body, 0.25, "2026-01-01T00:00:00.000+00:00", "m", "r", f"row {number}", call)


def fill(path: Path, count: int) -> list[Stored]:
    answers = [stored(number) for number in range(count)]
    with Ledger(path) as ledger:
        for done in [ledger.store(answer) for answer in answers]:
            done.result()
    return answers


def questions(count: int) -> list[Request]:
    return [Request((Message("user", f"q {i}"),), Sampling(max_tokens=8), tag=f"row {i}") for i in range(count)]


def test_what_is_stored_is_found_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "ledger.sqlite"
    odd = [b"", b"\x00\xff" * 9000, "é\u2028".encode(), bytes(range(256)) * 40]
    with Ledger(path) as ledger:
        for number, raw in enumerate(odd):
            ledger.store(stored(number, raw=raw)).result()
        for number, raw in enumerate(odd):
            assert ledger.find(stored(number).key) == stored(number, raw=raw)
        assert ledger.find(stored(99).key) is None
    with Ledger(path) as ledger:
        assert [ledger.find(stored(number).key) for number in range(4)] == [
            stored(number, raw=raw) for number, raw in enumerate(odd)
        ]


def test_the_latest_turn_is_found_and_the_earlier_ones_stay(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    with Ledger(path) as ledger:
        for turn in range(3):
            ledger.store(stored(1, turn)).result()
        found = ledger.find(stored(1).key)
        assert found is not None
        assert found.turn == 2
    with reading(path) as connection:
        assert connection.execute("SELECT count(*) FROM answers").fetchone() == (3,)


def test_facts_come_after_the_bytes_and_are_made_up_for_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    fill(path, 3)
    with Ledger(path) as ledger:
        assert len(ledger.unread()) == 3
        usage = Usage(prompt=5, cached=1, reasoning=2, output=7)
        ledger.add_facts(stored(0), Facts("stop", None, "m-1", "f", usage, 12, "2026-01-01"))
    with Ledger(path) as ledger:
        assert len(ledger.unread()) == 2
        assert ledger.models_answered("m") == ({"m-1"}, {"f"})
        assert ledger.sample_usage("m") == [(len(stored(0).request), Usage(5, 1, 2, 7))]


def test_what_a_run_has_spent_counts_calls_whose_end_nobody_knows(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    with Ledger(path, "mine") as ledger:
        ledger.clock = lambda: 90.0
        key = stored(1).key
        ended, unknown, free = (ledger.open_call(key, 0, "", 100, 1000)[0] for _ in range(3))
        ledger.end_call(ended, "answered", 1.0, "", (10, 20))
        ledger.end_call(free, "busy", 1.0, "", (0, 0))
        assert unknown
    with Ledger(path, "other") as ledger:
        assert ledger.before == Spent()
        ledger.open_call(key, 0, "", 5, 5)
    with Ledger(path, "mine") as ledger:
        assert ledger.before == Spent(calls=3, tokens=110, money=1020, seconds=90.0)


def test_one_process_owns_a_ledger_and_others_read_it(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    with Ledger(path) as ledger:
        ledger.store(stored(1)).result()
        with pytest.raises(RunFolderInUse, match=rf"{path} is in use by process {os.getpid()} on .*api\.ledger"):
            Ledger(path)
        assert statistics(path)["answers"] == 1
    with Ledger(path):
        pass


def test_a_process_that_died_owns_nothing(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    script = (
        "import os, sys; from pathlib import Path; from lmdistill.teachers.ledger import Ledger\n"
        "Ledger(Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == -9
    with Ledger(path) as ledger:
        assert ledger.find(stored(1).key) is None


def test_the_ledger_needs_no_torch() -> None:
    script = (
        "import sys, lmdistill.teachers.api, lmdistill.teachers.ledger_statistics, lmdistill.teachers.recordings\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("content", [b"", b"not a database at all", b"SQLite format 3\x00" + bytes(5000)])
def test_what_is_no_ledger_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "l.sqlite"
    path.write_bytes(content)
    if content:
        with pytest.raises(CorruptFile, match=r"l\.sqlite"):
            Ledger(path)
    with pytest.raises(CorruptFile, match=r"l\.sqlite"), reading(path):
        pass
    with pytest.raises(DataError, match="no such file"), reading(tmp_path / "none"):
        pass


def test_a_ledger_of_another_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    fill(path, 1)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE meta SET value = '99' WHERE name = 'version'")
        connection.commit()
    with pytest.raises(CorruptFile, match="version 99, this lmdistill reads version 1"):
        Ledger(path)


def test_a_flipped_bit_is_never_read_as_something_else(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    answers = fill(path, 40)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    whole, draw = path.read_bytes(), random.Random(0)
    noticed = 0
    for _ in range(60):
        data = bytearray(whole)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        for end in ("", "-wal", "-shm"):
            Path(f"{path}{end}").unlink(missing_ok=True)
        path.write_bytes(data)
        try:
            with Ledger(path) as ledger:
                for answer in answers:
                    with suppress(CorruptFile):
                        found = ledger.find(answer.key)
                        assert found in (None, answer)
        except (CorruptFile, StorageError, sqlite3.DatabaseError):
            noticed += 1
            continue
        try:
            noticed += bool(statistics(path, verify=True)["damaged"])
        except CorruptFile:
            noticed += 1
    assert noticed > 10


def test_a_damaged_answer_is_asked_for_again_and_told(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with serving(EchoServer()) as echo:
        spec = ApiSpec(model="m", base_url=echo.url)
        with ApiTeacher(spec, folder=tmp_path) as teacher:
            list(teacher.answer(questions(5)))
        with closing(sqlite3.connect(path)) as connection:
            changed = "CAST(replace(raw, 'echo: q 3', 'echo: q 4') AS BLOB)"
            connection.execute(f"UPDATE answers SET raw = {changed} WHERE tag = 'row 3'")
            connection.commit()
        found = statistics(path, verify=True)
        assert (found["sound"], len(found["damaged"])) == (4, 1)
        with ApiTeacher(spec, folder=tmp_path) as teacher:
            answers = list(teacher.answer(questions(5)))
            assert [answer.text for answer in answers] == [f"echo: q {i}" for i in range(5)]
            assert [answer.paid for answer in answers] == [False, False, False, True, False]
        assert echo.asked["q 3"] == 2
    assert statistics(path, verify=True)["damaged"] == []


def test_a_full_disk_is_told_and_what_was_stored_stays(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    answers = fill(path, 5)
    script = f"""
import resource, sys
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parent.parent)]!r}
from pathlib import Path
from test_ledger import stored
from lmdistill.errors import StorageError
from lmdistill.teachers.ledger import Ledger
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    with Ledger(Path({str(path)!r})) as ledger:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        for number in range(5, 400):
            ledger.store(stored(number, raw=bytes(__import__("random").Random(number).randbytes(4000)))).result()
except StorageError as error:
    print(error)
    sys.exit(7)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 7, ended.stderr[-2000:]
    assert "what was stored before is intact" in ended.stdout
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    with Ledger(path) as ledger:
        assert [ledger.find(answer.key) for answer in answers] == answers
        ledger.store(stored(1000)).result()
    assert statistics(path, verify=True)["damaged"] == []


def test_many_threads_may_store_at_once(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:

        def work(first: int) -> None:
            for number in range(first, first + 50):
                ledger.store(stored(number)).result()
                assert ledger.find(stored(number).key) == stored(number)

        threads = [threading.Thread(target=work, args=(50 * n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert statistics(tmp_path / "l.sqlite", verify=True)["sound"] == 400


def test_a_recording_answers_in_place_of_the_server(tmp_path: Path) -> None:
    html = Body(b"<html>\xff</html>", kind="text/html")
    with serving(EchoServer()) as echo, serving(FaultProxy(echo.address, [html])) as proxy:
        with ApiTeacher(ApiSpec(model="m", base_url=proxy.url, requests=1), folder=tmp_path / "a") as teacher:
            first = list(teacher.answer(questions(10)))
        assert proxy.calls == 11
    recording = tmp_path / "recording.jsonl"
    with reading(tmp_path / "a" / "ledger.sqlite") as connection:
        assert write_recording(tmp_path / "a" / "ledger.sqlite", connection, recording) == (11, [])
    spec = ApiSpec(model="m", recording=str(recording))
    with ApiTeacher(spec, folder=tmp_path / "b") as teacher:
        again = list(teacher.answer(questions(10)))
        assert [answer.text for answer in again] == [answer.text for answer in first]
        assert [answer.key for answer in again] == [answer.key for answer in first]
        assert not any(answer.paid for answer in again)
        assert teacher.spent().calls == 0
        with pytest.raises(Refused, match=r"holds no answer.*api\.recording"):
            list(teacher.answer(questions(11)))


def test_a_recording_is_the_same_file_whatever_the_order_of_asking(tmp_path: Path) -> None:
    files = []
    for name, order in (("a", list(range(20))), ("b", list(reversed(range(20))))):
        with Ledger(tmp_path / f"{name}.sqlite") as ledger:
            for number in order:
                ledger.store(stored(number)).result()
        with reading(tmp_path / f"{name}.sqlite") as connection:
            write_recording(tmp_path / f"{name}.sqlite", connection, tmp_path / f"{name}.jsonl")
        files.append((tmp_path / f"{name}.jsonl").read_bytes())
    assert files[0] == files[1]
    with closing(Recording(tmp_path / "a.jsonl")) as recording, Ledger(tmp_path / "c.sqlite") as ledger:
        assert add_recording(ledger, recording) == 20
        assert add_recording(ledger, recording) == 0
        assert ledger.find(stored(3).key) == stored(3)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda lines: lines[:-1], "holds 4 of 5 answers"),
        (lambda lines: [*lines[:-1], lines[-1][:50]], "no answer of a recording"),
        (lambda lines: ["{}", *lines[1:]], "is no recording"),
        (lambda lines: [lines[0].replace("1", "9", 1), *lines[1:]], "version 9"),
        (lambda lines: [], "holds 0 of 0 answers"),
    ],
)
def test_a_damaged_recording_is_told(tmp_path: Path, change: Any, why: str) -> None:
    fill(tmp_path / "l.sqlite", 5)
    file = tmp_path / "r.jsonl"
    with reading(tmp_path / "l.sqlite") as connection:
        write_recording(tmp_path / "l.sqlite", connection, file)
    file.write_text("\n".join(change(file.read_text().splitlines())))
    with pytest.raises(CorruptFile, match=why):
        Recording(file)
    with pytest.raises(DataError, match="no such recording"):
        Recording(tmp_path / "none.jsonl")


def lmdistill(*words: str | Path) -> tuple[int, dict[str, Any]]:
    from typer.testing import CliRunner

    from lmdistill.cli import app

    ended = CliRunner().invoke(app, [str(word) for word in words])
    return ended.exit_code, json.loads(ended.stdout)


def test_the_command_line_shows_exports_and_replays(tmp_path: Path) -> None:
    wild = "\x1b[2J<script>\u202e"
    with serving(EchoServer()) as echo:
        echo.model = wild
        with ApiTeacher(ApiSpec(model="gpt-4o", base_url=echo.url), folder=tmp_path, run="mine") as teacher:
            list(teacher.answer(questions(4)))
    path, recording, other = tmp_path / "ledger.sqlite", tmp_path / "r.jsonl", tmp_path / "other.sqlite"
    code, found = lmdistill("ledger", "stat", path, "--verify", "--json")
    assert (code, found["ok"], found["answers"], found["sound"], found["damaged"]) == (0, True, 4, 4, [])
    (model,) = found["models"]
    assert (model["asked_as"], model["answered_as"], model["good"]) == ("gpt-4o", wild, 4)
    assert model["money"] == pytest.approx(4 * (2 * 2.5 + 3 * 10) / 1e6)
    assert found["runs"]["mine"]["calls"] == 4
    assert found["calls"] == {"answered": 4}
    assert lmdistill("ledger", "export", path, "-o", recording, "--run", "nobody", "--json")[1]["answers"] == 0
    assert lmdistill("ledger", "export", path, "-o", recording, "--run", "mine", "--json")[1]["answers"] == 4
    assert lmdistill("ledger", "replay", recording, other, "--json")[1] == {
        "ok": True,
        "ledger": str(other),
        "answers": 4,
        "added": 4,
    }
    from typer.testing import CliRunner

    from lmdistill.cli import app

    shown = CliRunner().invoke(app, ["ledger", "stat", str(path)]).stdout
    assert "\\x1b[2J" in shown
    assert not {"\x1b", "\u202e"} & set(shown)


def test_the_command_line_ends_with_an_error_for_damage(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    fill(path, 3)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE answers SET seconds = 9 WHERE id = 2")
        connection.commit()
    assert lmdistill("ledger", "stat", path, "--verify", "--json")[0] == 1
    code, found = lmdistill("ledger", "export", path, "-o", tmp_path / "r.jsonl", "--json")
    assert (code, found["ok"], found["answers"], len(found["damaged"])) == (1, False, 2, 1)
    with closing(Recording(tmp_path / "r.jsonl")) as recording:
        assert len(recording) == 2
