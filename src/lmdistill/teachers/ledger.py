"""Every answer of a teacher behind an API, paid for once: what was asked, what came back, and what it took.

A file of SQLite. An answer's bytes are on the disk before anything looks into them, under the hash of all that it
depends on (`api_wire.request_key`) and a number, since an unusable answer may be asked for again. Each call is written
down before it is sent, so that a killed run knows what it may have spent. One process owns a ledger at a time; others
may read. Torch is not imported here.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from lmdistill.errors import DataError
from lmdistill.io import FileLock
from lmdistill.teachers import ledger_rows as rows
from lmdistill.teachers.api_types import Usage
from lmdistill.teachers.ledger_rows import Facts, Spent, Stored
from lmdistill.teachers.ledger_writer import Writer, connect, explained


class Ledger:
    """The answers and calls of one file; a context manager."""

    def __init__(self, path: Path, run: str = "run") -> None:
        """Opens or makes the file and owns it. `run` names what limits are counted for.

        Raises RunFolderInUse while another process has it, CorruptFile, StorageError.
        """
        self.path = path
        self.clock: Callable[[], float] = lambda: 0.0
        """Seconds of asking in this session, kept with every commit."""
        self._reading = threading.Lock()
        advice = "wait for it, stop it, or name another ledger (api.ledger)"
        with ExitStack() as owned:
            owned.enter_context(FileLock(path.with_name(path.name + ".lock"), path, advice))
            self._reader = owned.enter_context(closing(connect(path)))
            self._session, self.before, self._next_call = self._begin(run)
            self._writer = owned.enter_context(closing(Writer(path, self._keep_time)))
            self._owned = owned.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write what waits and let others have the file. Raises StorageError where writing failed."""
        if not self._writer.closed:
            self._writer.submit(rows.KEEP_TIME, (self.clock(), self._session))
        self._owned.close()

    def find(self, key: str) -> Stored | None:
        """The latest answer under a key; None where there is none. Raises CorruptFile where it was changed since."""
        with self._reading:
            row = self._reader.execute(rows.FIND, (bytes.fromhex(key),)).fetchone()
        return None if row is None else rows.answer_of(self.path, row)

    def time_of(self, keys: Sequence[str]) -> str:
        """When the last of the answers under some keys was asked for (UTC, ISO 8601); empty where there is none."""
        marks = ", ".join("?" * len(keys))
        sql = f"SELECT max(asked) FROM answers WHERE key IN ({marks})"
        with self._reading:
            row = self._reader.execute(sql, [bytes.fromhex(key) for key in keys]).fetchone()
        return str(row[0] or "")

    def open_call(
        self, key: str, turn: int, tag: str, reserved_tokens: int, reserved_money: int
    ) -> tuple[int, Future[None]]:
        """Write down that a call will be sent, and what it may take; its number, and when that is on the disk."""
        number = self._next_call
        self._next_call += 1
        values = (number, self._session, bytes.fromhex(key), turn, tag, reserved_tokens, reserved_money)
        return number, self._writer.submit_and_tell(rows.OPEN_CALL, values)

    def end_call(
        self,
        number: int,
        outcome: str,
        seconds: float,
        message: str | None = None,
        taken: tuple[int, int] | None = None,
    ) -> None:
        """Write down how a call ended, and the tokens and picodollars that it took; None: not known, so its reservation
        counts."""
        tokens, money = taken if taken is not None else (None, None)
        self._writer.submit(rows.END_CALL, (outcome, seconds, message, tokens, money, number))

    def store(self, answer: Stored) -> Future[None]:
        """Keep an answer; the future ends when it is on the disk. One under the same key and number is replaced."""
        if answer.call:
            self.end_call(answer.call, "answered", answer.seconds)
        return self._writer.submit_and_tell(rows.STORE, rows.row_of(answer))

    def add_facts(self, answer: Stored, facts: Facts) -> None:
        """Write down what a look into an answer found, and what its call took."""
        usage = facts.usage
        counts = (None,) * 4 if usage is None else (usage.prompt, usage.cached, usage.reasoning, usage.output)
        named = (facts.finish, facts.problem, facts.model, facts.fingerprint)
        at = (bytes.fromhex(answer.key), answer.turn)
        self._writer.submit(rows.ADD_FACTS, (*named, *counts, facts.money, facts.price, *at))
        if usage is not None and answer.call:
            taken = (usage.prompt + usage.output, facts.money or 0)
            self.end_call(answer.call, "answered", answer.seconds, "", taken)

    def flush(self) -> None:
        """Wait until all that was handed in is on the disk, so that reading finds it."""
        self._writer.submit_and_tell(rows.KEEP_TIME, (self.clock(), self._session)).result()

    def unread(self) -> list[Stored]:
        """Answers that nobody has looked into, since a kill came between."""
        with self._reading:
            found = self._reader.execute(rows.UNREAD).fetchall()
        return [rows.answer_of(self.path, row) for row in found]

    def models_answered(self, model_asked: str) -> tuple[set[str], set[str]]:
        """Names and fingerprints under which a model has answered so far."""
        sql = "SELECT DISTINCT model, fingerprint FROM answers WHERE model_asked = ? AND model <> ''"
        found = self._reader.execute(sql, (model_asked,)).fetchall()
        return {model for model, _ in found}, {fingerprint for _, fingerprint in found if fingerprint}

    def sample_usage(self, model_asked: str, most: int = 1000) -> list[tuple[int, Usage]]:
        """Bytes of the call's JSON and what the answer took, of the latest answers of a model."""
        sql = (
            "SELECT length(CAST(request AS BLOB)), prompt, cached, reasoning, output FROM answers "
            "WHERE model_asked = ? AND prompt IS NOT NULL ORDER BY id DESC LIMIT ?"
        )
        return [(size, Usage(*counts)) for size, *counts in self._reader.execute(sql, (model_asked, most))]

    def batch_calls(self) -> dict[tuple[str, int], int]:
        """Numbers of the calls that went out in batch files, by key and number of the try; the latest of each."""
        sql = "SELECT key, turn, id FROM calls WHERE outcome = 'batch' ORDER BY id"
        with self._reading:
            return {(key.hex(), turn): number for key, turn, number in self._reader.execute(sql)}

    def note(self, name: str, value: str) -> None:
        """Remember a value under a name."""
        self._writer.submit("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def noted(self, name: str) -> str | None:
        """A value that was remembered."""
        row = self._reader.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def _begin(self, run: str) -> tuple[int, Spent, int]:
        """A new session; what the run used before; the number of the next call."""
        reader = self._reader
        try:
            reader.executescript(f"BEGIN IMMEDIATE; {rows.SCHEMA} COMMIT;")
            reader.execute("INSERT OR IGNORE INTO meta VALUES ('version', ?)", (str(rows.VERSION),))
            rows.check_version(self.path, reader)
            begun = reader.execute("INSERT INTO sessions (run, started, seconds) VALUES (?, ?, 0)", (run, rows.now()))
            last = reader.execute("SELECT max(id) FROM calls").fetchone()[0] or 0
            session = int(begun.lastrowid or 0)
            return session, rows.spent_by(reader, run, session), int(last) + 1
        except sqlite3.Error as error:
            raise explained(self.path, error) from error

    def _keep_time(self, connection: sqlite3.Connection) -> None:
        connection.execute(rows.KEEP_TIME, (self.clock(), self._session))


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A ledger to be read, which may be in use. Raises DataError where there is no file, CorruptFile, StorageError."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; a run's ledger is ledger.sqlite in its folder")
    with closing(connect(path, read_only=True)) as connection:
        rows.check_version(path, connection)
        try:
            yield connection
        except sqlite3.Error as error:
            raise explained(path, error) from error


__all__ = ["Facts", "Ledger", "Spent", "Stored", "reading"]
