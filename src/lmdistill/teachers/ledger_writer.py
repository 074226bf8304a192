"""One thread that writes into a database: what waits is committed together. Torch is not imported here.

While one commit is on its way to the disk, further statements gather; the next commit takes them all. So a single
statement waits for nothing but the disk, and many share its cost.
"""

from __future__ import annotations

import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from lmdistill.errors import CorruptFile, LmdistillError, StorageError
from lmdistill.io import free_bytes

MOST_TOGETHER = 256
"""Statements in one commit."""
_DISK = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")
_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB")

_Waiting = tuple[str, Sequence[Any], "Future[None] | None"]


class Writer:
    """Commits statements in the order of their submission, in a thread of its own."""

    def __init__(self, path: Path, before_commit: Callable[[sqlite3.Connection], None] = lambda _: None) -> None:
        """`before_commit` may add statements to each commit. Raises StorageError, CorruptFile."""
        self.path = path
        self.closed = False
        self._before_commit = before_commit
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._error: LmdistillError | None = None
        self._connection = connect(path)
        self._thread = threading.Thread(target=self._run, name="lmdistill-ledger", daemon=True)
        self._thread.start()

    def submit(self, sql: str, values: Sequence[Any]) -> None:
        """Queue a statement. Raises what an earlier commit did."""
        self._put(sql, values, None)

    def submit_and_tell(self, sql: str, values: Sequence[Any]) -> Future[None]:
        """Queue a statement; the future ends when it is on the disk. Raises what an earlier commit did."""
        done: Future[None] = Future()
        self._put(sql, values, done)
        return done

    def close(self) -> None:
        """Commit what waits, and end. Raises StorageError where a commit failed."""
        if not self.closed:
            self.closed = True
            self._waiting.put(None)
            self._thread.join()
            self._connection.close()
            if self._error is not None:
                raise self._error

    def _put(self, sql: str, values: Sequence[Any], done: Future[None] | None) -> None:
        if self._error is not None:
            raise self._error
        if self.closed:
            raise StorageError(f"{self.path} is closed")
        self._waiting.put((sql, values, done))

    def _run(self) -> None:
        last = False
        while not last and (first := self._waiting.get()) is not None:
            batch = [first]
            while len(batch) < MOST_TOGETHER and not self._waiting.empty():
                if (following := self._waiting.get()) is None:
                    last = True
                    break
                batch.append(following)
            self._commit(batch)

    def _commit(self, batch: Sequence[_Waiting]) -> None:
        if self._error is None:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                for sql, values, _ in batch:
                    self._connection.execute(sql, values)
                self._before_commit(self._connection)
                self._connection.execute("COMMIT")
            except sqlite3.Error as error:
                self._error = explained(self.path, error)
                if self._connection.in_transaction:
                    self._connection.rollback()
        for _, _, done in batch:
            if done is None or not done.set_running_or_notify_cancel():
                continue
            if self._error is None:
                done.set_result(None)
            else:
                done.set_exception(self._error)


def connect(path: Path, read_only: bool = False) -> sqlite3.Connection:
    """A connection by whose settings answers survive a loss of power. Raises StorageError, CorruptFile."""
    try:
        if not read_only:
            path.parent.mkdir(parents=True, exist_ok=True)
        address = f"{path.resolve().as_uri()}?mode={'ro' if read_only else 'rwc'}"
        connection = sqlite3.connect(address, uri=True, isolation_level=None, check_same_thread=False, timeout=10)
        try:
            connection.execute("PRAGMA query_only = on" if read_only else "PRAGMA synchronous = FULL")
            if not read_only and (mode := connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]) != "wal":
                raise StorageError(f"{path}: no write-ahead log there (mode {mode}); put the ledger on a local disk")
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        raise explained(path, error) from error
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}") from error
    return connection


def explained(path: Path, error: sqlite3.Error) -> LmdistillError:
    """What SQLite says, as an error with the next step."""
    name = getattr(error, "sqlite_errorname", None) or type(error).__name__
    if name.startswith(_DAMAGED):
        return CorruptFile(
            f"{path} is damaged or no ledger ({error}); `lmdistill ledger export {path}` saves what can be read. Then "
            "name another file (api.ledger)"
        )
    if name.startswith(_DISK):
        return StorageError(
            f"{path}: {error} ({free_bytes(path.parent)} bytes are free); what was stored before is intact. Make room "
            "or mend the rights, then run again"
        )
    return StorageError(f"{path}: {error} ({name})")
