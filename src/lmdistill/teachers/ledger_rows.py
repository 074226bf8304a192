"""The tables of a ledger, and its rows as they are written and read. Torch is not imported here."""

from __future__ import annotations

import datetime
import hashlib
import sqlite3
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lmdistill.errors import CorruptFile
from lmdistill.teachers.api_types import Usage

VERSION = 1
_COMPRESS_ABOVE = 4096

SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sessions (
    id INTEGER PRIMARY KEY, run TEXT NOT NULL, started TEXT NOT NULL, seconds REAL NOT NULL);
CREATE TABLE IF NOT EXISTS calls (
    id INTEGER PRIMARY KEY, session INTEGER NOT NULL, key BLOB NOT NULL, turn INTEGER NOT NULL, tag TEXT NOT NULL,
    reserved_tokens INTEGER NOT NULL, reserved_money INTEGER NOT NULL, tokens INTEGER, money INTEGER,
    outcome TEXT, seconds REAL, message TEXT);
CREATE INDEX IF NOT EXISTS calls_session ON calls (session);
CREATE TABLE IF NOT EXISTS answers (
    id INTEGER PRIMARY KEY, key BLOB NOT NULL, turn INTEGER NOT NULL, raw BLOB NOT NULL, request TEXT NOT NULL,
    seconds REAL NOT NULL, asked TEXT NOT NULL, model_asked TEXT NOT NULL, origin TEXT NOT NULL, tag TEXT NOT NULL,
    call INTEGER NOT NULL, packed INTEGER NOT NULL, sha256 BLOB NOT NULL,
    finish TEXT, problem TEXT, model TEXT, fingerprint TEXT, prompt INTEGER, cached INTEGER, reasoning INTEGER,
    output INTEGER, money INTEGER, price TEXT);
CREATE UNIQUE INDEX IF NOT EXISTS answers_key ON answers (key, turn);
CREATE INDEX IF NOT EXISTS answers_unread ON answers (id) WHERE finish IS NULL;
"""

_COLUMNS = ("key", "turn", "raw", "request", "seconds", "asked", "model_asked", "origin", "tag", "call")
_STORED = (*_COLUMNS, "packed", "sha256")
_SELECT = f"SELECT {', '.join(f'a.{name}' for name in _STORED)} FROM answers a"
FIND = f"{_SELECT} WHERE a.key = ? ORDER BY a.turn DESC LIMIT 1"
UNREAD = f"{_SELECT} WHERE a.finish IS NULL ORDER BY a.id"
STORE = f"INSERT OR REPLACE INTO answers ({', '.join(_STORED)}) VALUES ({', '.join('?' * len(_STORED))})"
OPEN_CALL = (
    "INSERT INTO calls (id, session, key, turn, tag, reserved_tokens, reserved_money) VALUES (?, ?, ?, ?, ?, ?, ?)"
)
END_CALL = "UPDATE calls SET outcome = ?, seconds = ?, message = ?, tokens = ?, money = ? WHERE id = ?"
KEEP_TIME = "UPDATE sessions SET seconds = ? WHERE id = ?"
ADD_FACTS = (
    "UPDATE answers SET finish = ?, problem = ?, model = ?, fingerprint = ?, prompt = ?, cached = ?, reasoning = ?, "
    "output = ?, money = ?, price = ? WHERE key = ? AND turn = ?"
)
_OF_RUN = "JOIN calls c ON c.id = a.call JOIN sessions s ON s.id = c.session WHERE s.run = ?"
_SPENT = """
SELECT count(*), sum(coalesce(c.tokens, c.reserved_tokens)), sum(coalesce(c.money, c.reserved_money))
FROM calls c JOIN sessions s ON s.id = c.session WHERE s.run = ? AND s.id <> ?
"""


@dataclass(frozen=True)
class Stored:
    """One answer as it came."""

    key: str
    turn: int
    """0 for the first; later ones were asked for because those before could not be used."""
    raw: bytes
    """The body of the server's answer."""
    request: str
    """JSON of the call: endpoint and body."""
    seconds: float
    asked: str
    """When, in UTC."""
    model_asked: str
    origin: str
    """Revision of the weights or address of the server."""
    tag: str
    """The row that asked first."""
    call: int = 0
    """Number of the call that brought it; 0 where it came from a recording or a batch file."""


@dataclass(frozen=True)
class Facts:
    """What a look into an answer found; it can be found again at any time."""

    finish: str
    problem: str | None
    """Why it is not a good answer."""
    model: str = ""
    fingerprint: str = ""
    usage: Usage | None = None
    money: int | None = None
    """Picodollars (1e-12 US dollars); None where there is no price."""
    price: str = ""
    """Date of the price."""


@dataclass(frozen=True)
class Spent:
    """What a run has used of its limits. A call whose end is unknown counts with all that was reserved for it."""

    calls: int = 0
    tokens: int = 0
    money: int = 0
    """Picodollars."""
    seconds: float = 0.0


def now() -> str:
    """The time in UTC, for records alone."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def row_of(answer: Stored) -> tuple[object, ...]:
    """An answer as the values of `STORE`; large ones are compressed."""
    raw, packed = answer.raw, 0
    if len(raw) > _COMPRESS_ABOVE and len(small := zlib.compress(raw, 1)) < len(raw):
        raw, packed = small, 1
    told = (answer.request, answer.seconds, answer.asked, answer.model_asked, answer.origin, answer.tag, answer.call)
    return (bytes.fromhex(answer.key), answer.turn, raw, *told, packed, _row_hash(answer))


def answer_of(path: Path, row: tuple[object, ...]) -> Stored:
    """The answer of a row. Raises CorruptFile where it is not what was stored."""
    key, turn, raw, *told, packed, sha256 = row
    try:
        if not isinstance(key, bytes) or not isinstance(raw, bytes):
            raise TypeError
        answer = Stored(key.hex(), turn, zlib.decompress(raw) if packed else raw, *told)  # type: ignore[arg-type]
        sound = _row_hash(answer) == sha256
    except (zlib.error, TypeError, ValueError):
        sound = False
    if not sound:
        name = key.hex()[:16] if isinstance(key, bytes) else "?"
        raise CorruptFile(
            f"{path}: the answer {name} (turn {turn}) is not what was stored: the disk or another program changed it. "
            "Look at this disk; `lmdistill ledger stat --verify` lists what is damaged"
        )
    return answer


def all_answers(path: Path, connection: sqlite3.Connection, run: str | None, damaged: list[str]) -> Iterator[Stored]:
    """The answers of a ledger in the order of their keys; with `run`, those that this run asked for.

    Those that are not what was stored are left out and told in `damaged`.
    """
    named, values = (_OF_RUN, (run,)) if run is not None else ("", ())
    for row in connection.execute(f"{_SELECT} {named} ORDER BY a.key, a.turn", values):
        try:
            answer = answer_of(path, row)
        except CorruptFile as error:
            damaged.append(str(error))
        else:
            yield answer


def spent_by(connection: sqlite3.Connection, run: str, but: int = 0) -> Spent:
    """What a run has used, the session `but` left out."""
    calls, tokens, money = connection.execute(_SPENT, (run, but)).fetchone()
    sql = "SELECT sum(seconds) FROM sessions WHERE run = ? AND id <> ?"
    seconds = connection.execute(sql, (run, but)).fetchone()[0]
    return Spent(int(calls), int(tokens or 0), int(money or 0), float(seconds or 0.0))


def check_version(path: Path, connection: sqlite3.Connection) -> None:
    """Raises CorruptFile where a file is no ledger, or one of another version."""
    try:
        row = connection.execute("SELECT value FROM meta WHERE name = 'version'").fetchone()
    except sqlite3.Error as error:
        raise CorruptFile(f"{path} is no ledger ({error}); name another file") from error
    if row is None or row[0] != str(VERSION):
        found = "no version" if row is None else f"version {row[0]}"
        raise CorruptFile(f"{path} is a ledger of {found}, this lmdistill reads version {VERSION}; name another file")


def _row_hash(answer: Stored) -> bytes:
    """Over everything that is read back."""
    told = (answer.seconds, answer.asked, answer.model_asked, answer.origin, answer.tag, answer.call, answer.request)
    text = "\0".join(map(str, (answer.key, answer.turn, *told)))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass") + b"\0" + answer.raw).digest()
