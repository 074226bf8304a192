"""Recordings: a ledger's answers in a text file, and answering from one without any server.

A recording is JSON lines: first what it is, then one answer a line in the order of the keys, so that two recordings of
the same answers are the same file. Torch is not imported here.
"""

from __future__ import annotations

import base64
import itertools
import json
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmdistill.errors import CorruptFile, DataError, Refused
from lmdistill.io import write_lines
from lmdistill.teachers.api_wire import Identity, read_facts
from lmdistill.teachers.ledger import Facts, Ledger, Stored
from lmdistill.teachers.ledger_rows import all_answers

VERSION = 1
_LINE_LIMIT = 64 * 2**20
_SECONDS = "seconds"


@dataclass(frozen=True)
class _Place:
    offset: int
    length: int
    line: int


class Recording:
    """A file of answers, of which only the places are in memory."""

    def __init__(self, path: Path) -> None:
        """Looks through the file. Raises DataError where it is missing, CorruptFile where it is cut or no recording."""
        self.path = path
        if not path.is_file():
            raise DataError(f"{path}: no such recording; `lmdistill ledger export` writes one")
        self.teachers: set[Identity] = set()
        """Whose answers it holds."""
        self._places: dict[tuple[str, int], _Place] = {}
        self._file = path.open("rb")
        try:
            self._look_through()
        except BaseException:
            self._file.close()
            raise

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Stored]:
        for key, turn in self._places:
            found = self.find(key, turn)
            assert found is not None
            yield found

    def find(self, key: str, turn: int) -> Stored | None:
        """One answer."""
        place = self._places.get((key, turn))
        if place is None:
            return None
        self._file.seek(place.offset)
        return self._answer(self._file.read(place.length), place.line)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def identity(self, model: str, where: str | None) -> Identity:
        """Whose answers a recipe means by a model's name, which may be served anywhere. Raises DataError."""
        named = sorted((teacher for teacher in self.teachers if teacher.model == model), key=lambda one: one.where)
        fitting = [teacher for teacher in named if teacher.where == where] or named
        if len(fitting) == 1:
            return fitting[0]
        known = ", ".join(sorted(f"{teacher.model} at {teacher.where}" for teacher in self.teachers)) or "nobody"
        which = "none" if not fitting else "several"
        raise DataError(f"{self.path}: {which} of its teachers is meant by api.model = {model!r}; it holds {known}")

    def _look_through(self) -> None:
        offset, expected = 0, 0
        for line, data in enumerate(iter(lambda: self._file.readline(_LINE_LIMIT), b""), start=1):
            if line == 1:
                expected = self._head(data)
            else:
                answer = self._answer(data, line)
                self.teachers.add(Identity(answer.model_asked, answer.origin))
                self._places[answer.key, answer.turn] = _Place(offset, len(data), line)
            offset += len(data)
        if len(self._places) != expected or offset == 0:
            raise CorruptFile(f"{self.path} holds {len(self._places)} of {expected} answers; export it again")

    def _head(self, data: bytes) -> int:
        try:
            head = json.loads(data)
            version, answers = head["recording"], int(head["answers"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CorruptFile(f"{self.path} is no recording ({type(error).__name__} in its first line)") from error
        if version != VERSION:
            raise CorruptFile(f"{self.path}: version {version!r}, known is {VERSION}; export it again")
        return answers

    def _answer(self, data: bytes, line: int) -> Stored:
        try:
            value = json.loads(data)
            raw = base64.b64decode(value["base64"]) if "base64" in value else value["raw"].encode()
            call = json.dumps(value["request"], ensure_ascii=False, separators=(",", ":"))
            told = (float(value[_SECONDS]), value["asked"], value["model"], value["where"], value["tag"])
            answer = Stored(value["key"], int(value["turn"]), raw, call, *told)
            bytes.fromhex(answer.key)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptFile(f"{self.path}:{line}: no answer of a recording ({type(error).__name__})") from error
        return answer


class ReplayTransport:
    """Answers from a recording, behind the same seam as a server."""

    paid = False

    def __init__(self, recording: Recording) -> None:
        self._recording = recording

    async def send(self, key: str, turn: int, path: str, body: Mapping[str, Any], deadline: float) -> bytes:
        """See `Transport.send`. Raises Refused where the recording does not hold the answer."""
        found = self._recording.find(key, turn)
        if found is None:
            asked = json.dumps(body.get("messages") or body.get("prompt"), ensure_ascii=True)[-200:]
            raise Refused(
                f"{self._recording.path} holds no answer to {key[:16]} (… {asked}): the recipe, its data or this "
                "program changed since. Record again: take api.recording away, run, then `lmdistill ledger export`"
            )
        return found.raw

    async def close(self) -> None:
        """Close the file."""
        self._recording.close()


def write_recording(
    ledger: Path, connection: sqlite3.Connection, path: Path, run: str | None = None
) -> tuple[int, list[str]]:
    """Write a ledger's answers (those that a run asked for) as a recording; how many, and what is damaged and left out.

    Raises StorageError.
    """
    damaged: list[str] = []
    count = sum(1 for _ in all_answers(ledger, connection, run, damaged))
    head = json.dumps({"recording": VERSION, "answers": count})
    lines = (_line(answer) for answer in all_answers(ledger, connection, run, []))
    write_lines(path, itertools.chain([head], lines))
    return count, damaged


def add_recording(ledger: Ledger, recording: Recording) -> int:
    """Lay a recording's answers into a ledger, those that it has left as they are; how many were new."""
    added = 0
    for answer in recording:
        there = ledger.find(answer.key)
        if there is None or there.turn < answer.turn:
            ledger.store(answer)
            usage, finish, model, fingerprint = read_facts(answer.raw)
            problem = None if finish else "no answer in it"
            ledger.add_facts(answer, Facts(finish or "failed", problem, model, fingerprint, usage))
            added += 1
    ledger.flush()
    return added


def _line(answer: Stored) -> str:
    value: dict[str, Any] = {
        "key": answer.key,
        "turn": answer.turn,
        "model": answer.model_asked,
        "where": answer.origin,
        "tag": answer.tag,
        "asked": answer.asked,
        _SECONDS: round(answer.seconds, 4),
        "request": json.loads(answer.request),
    }
    try:
        value["raw"] = answer.raw.decode()
    except UnicodeDecodeError:
        value["base64"] = base64.b64encode(answer.raw).decode()
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))
