"""Batches of providers, in OpenAI's format: requests out to files, results back into the ledger.

    files = write_batches(teacher, requests, Path("batches"))     # upload them; hours later, download what came
    outcome = read_batches(teacher, files, [Path("output.jsonl"), Path("errors.jsonl")])

An answer of a batch has the same key as one that was asked for directly, so both can be mixed, and partial results are
kept: `write_batches` with the same requests then writes those alone that are still missing. Torch is not imported here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lmdistill.errors import BudgetSpent, DataError
from lmdistill.io import write_lines
from lmdistill.teachers.api import ApiTeacher
from lmdistill.teachers.api_types import Request
from lmdistill.teachers.api_wire import body_of, call_text, path_of, whole
from lmdistill.teachers.ledger import Stored
from lmdistill.teachers.ledger_rows import now

MOST_REQUESTS = 50_000
MOST_BYTES = 200 * 10**6
"""Of one file, by OpenAI's rules."""
_LINE_LIMIT = 16 * 2**20
_PREFIX = "/v1"


@dataclass
class BatchOutcome:
    """What became of the requests of some batches."""

    stored: int = 0
    """Answers that are in the ledger now, unusable ones included."""
    failed: dict[str, str] = field(default_factory=dict)
    """Why the others have no answer, by their `custom_id`."""
    missing: list[str] = field(default_factory=list)
    """`custom_id` of requests that the results say nothing of."""
    unread: list[str] = field(default_factory=list)
    """Lines of the results that are none, with file and number."""

    def sentence(self) -> str:
        """All of it in words."""
        return (
            f"{self.stored} answers stored, {len(self.failed)} failed, {len(self.missing)} missing, "
            f"{len(self.unread)} lines unreadable"
        )


@dataclass(frozen=True)
class _Line:
    """One request of a batch."""

    custom_id: str
    path: str
    text: str


def write_batches(
    teacher: ApiTeacher, requests: Iterable[Request], folder: Path, *, most_requests: int = MOST_REQUESTS
) -> list[Path]:
    """Write the requests whose answers are missing as batch files, one endpoint a file; the files.

    What they may cost counts against the recipe's limits from now on. Raises BudgetSpent where it is too much (nothing
    is written then), DataError for a request that cannot be asked or a folder that holds batches already.
    """
    if any(folder.glob("batch-*.jsonl")):
        raise DataError(f"{folder} holds batches already; name a new folder, so that no results are mixed up")
    lines, files = list(_missing(teacher, requests)), list[Path]()
    for path in sorted({line.path for line in lines}):
        for part in _parts([line for line in lines if line.path == path], most_requests):
            file = folder / f"batch-{len(files) + 1:04}.jsonl"
            write_lines(file, (line.text for line in part))
            files.append(file)
    return files


def read_batches(
    teacher: ApiTeacher, files: Sequence[Path], results: Sequence[Path], *, discount: float = 0.5
) -> BatchOutcome:
    """Lay results (output files and error files) into the ledger; `discount` is what batches cost less.

    Results may be partial, in any order, and read more than once. Raises DataError where a file is missing.
    """
    asked = {value["custom_id"]: value for file in files for _, value in _read(file, None)}
    outcome, calls, seen = BatchOutcome(), teacher.ledger.batch_calls(), set[str]()
    for file in results:
        for where, value in _read(file, outcome.unread):
            name = str(value.get("custom_id"))
            if name not in asked:
                outcome.unread.append(f"{where}: {name[:80]!r} was not asked for in these batches")
            if name not in asked or name in seen:
                continue
            seen.add(name)
            key, turn = _key_of(name)
            body, problem = _result(value)
            number = calls.get((key, turn), 0)
            if problem is not None:
                outcome.failed[name] = problem
                if number:
                    teacher.ledger.end_call(number, "failed", 0.0, problem, (0, 0))
                continue
            _store(teacher, asked[name], body, key, turn, number, discount)
            outcome.stored += 1
    outcome.missing = [name for name in asked if name not in seen and teacher.ledger.find(_key_of(name)[0]) is None]
    return outcome


def _missing(teacher: ApiTeacher, requests: Iterable[Request]) -> Iterator[_Line]:
    """The lines of the requests without an answer; all are reserved before the first is written."""
    found: dict[str, tuple[Request, int, str, int]] = {}
    tokens = money = 0
    for request in requests:
        key = teacher.key(request)
        reading = teacher.reader.find(key, request)
        if key in found or (reading is not None and teacher.reader.is_final(reading)):
            continue
        turn = 0 if reading is None else reading.turn + 1
        body = body_of(request, teacher.spec.model, turn, teacher.spec.max_tokens_field)
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
        size = len(text.encode("utf-8", "surrogatepass"))
        most = teacher.budget.most(size, len(request.messages), request.sampling.max_tokens)
        tokens, money = tokens + most.tokens, money + most.money
        found[key] = (request, turn, text, size)
    if (spent := teacher.budget.exceeded_by(len(found), tokens, money)) is not None:
        raise BudgetSpent(f"{spent}; no batch is written. Raise the cap, or ask for less")
    for key, (request, turn, text, size) in found.items():
        most = teacher.budget.most(size, len(request.messages), request.sampling.max_tokens)
        number, _ = teacher.ledger.open_call(key, turn, whole(request.tag), most.tokens, most.money)
        teacher.ledger.end_call(number, "batch", 0.0)
        teacher.budget.take(most)
        name, path = key if turn == 0 else f"{key}.{turn}", path_of(request)
        head = json.dumps({"custom_id": name, "method": "POST", "url": _PREFIX + path})
        yield _Line(name, path, f'{head[:-1]}, "body": {text}}}')


def _parts(lines: Sequence[_Line], most_requests: int) -> Iterator[list[_Line]]:
    """Lines in files that a provider takes."""
    part: list[_Line] = []
    size = 0
    for line in lines:
        length = len(line.text.encode("utf-8", "replace")) + 1
        if part and (len(part) >= most_requests or size + length > MOST_BYTES):
            yield part
            part, size = [], 0
        part.append(line)
        size += length
    if part:
        yield part


def _read(file: Path, unread: list[str] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file with their places; what is none goes to `unread`. Raises DataError."""
    try:
        opened = file.open("rb")
    except OSError as error:
        raise DataError(f"{file}: {error.strerror or error}") from error
    with opened:
        for number, line in enumerate(iter(lambda: opened.readline(_LINE_LIMIT), b""), start=1):
            where = f"{file}:{number}"
            try:
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise TypeError(f"a {type(value).__name__}")
            except (ValueError, TypeError, RecursionError) as error:
                if line.strip() and unread is None:
                    raise DataError(f"{where}: not a line of a batch ({error})") from error
                if line.strip() and unread is not None:
                    unread.append(f"{where}: not a line of results ({type(error).__name__})")
                continue
            yield where, value


def _result(value: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """The body of a result, or why there is none."""
    error, response = value.get("error"), value.get("response")
    if error:
        told = error if not isinstance(error, dict) else f"{error.get('code')}: {error.get('message')}"
        return {}, str(told)[:300]
    if not isinstance(response, dict) or not isinstance(response.get("body"), dict):
        return {}, "neither an answer nor an error"
    if response.get("status_code") != 200:
        return {}, f"status {response.get('status_code')}: {json.dumps(response['body'])[:300]}"
    return response["body"], None


def _store(
    teacher: ApiTeacher, line: dict[str, Any], body: dict[str, Any], key: str, turn: int, call: int, discount: float
) -> None:
    path = str(line["url"]).removeprefix(_PREFIX)
    asked = call_text(path, line["body"])
    raw = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    identity = teacher.identity
    stored = Stored(key, turn, raw, asked, 0.0, now(), identity.model, identity.where, "", call)
    teacher.ledger.store(stored)
    facts = teacher.reader.facts(stored)
    if facts.money is not None:
        facts = replace(facts, money=round(facts.money * (1 - discount)))
    teacher.ledger.add_facts(stored, facts)


def _key_of(custom_id: str) -> tuple[str, int]:
    key, _, turn = custom_id.partition(".")
    return key, int(turn or 0)
