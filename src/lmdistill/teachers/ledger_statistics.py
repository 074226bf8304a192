"""What a ledger holds, in numbers. Torch is not imported here."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from lmdistill.teachers.ledger import reading
from lmdistill.teachers.ledger_rows import all_answers, spent_by
from lmdistill.teachers.prices import dollars

_MODELS = """
SELECT model_asked, coalesce(nullif(model, ''), '?'), count(*), sum(problem IS NULL AND finish IS NOT NULL),
       sum(prompt), sum(cached), sum(reasoning), sum(output), sum(money), sum(money IS NULL), avg(seconds), max(seconds)
FROM answers GROUP BY 1, 2 ORDER BY 1, 2
"""
_MODEL_FIELDS = (
    "asked_as", "answered_as", "answers", "good", "prompt_tokens", "cached_tokens", "reasoning_tokens", "output_tokens",
    "money", "without_price", "seconds_mean", "seconds_longest",
)  # fmt: skip
_ENDINGS = "SELECT coalesce(outcome, 'unknown'), count(*) FROM calls GROUP BY 1 ORDER BY 2 DESC, 1"
_SPAN = "SELECT count(*), count(DISTINCT key), min(asked), max(asked), coalesce(sum(length(raw)), 0) FROM answers"


def statistics(path: Path, verify: bool = False) -> dict[str, Any]:
    """Answers, models, calls and runs of a ledger, which may be in use; with `verify`, every answer is checked.

    Money is in US dollars. Raises DataError where there is no file, CorruptFile where it is no ledger.
    """
    with reading(path) as connection:
        answers, keys, first, last, size = connection.execute(_SPAN).fetchone()
        found: dict[str, Any] = {
            "ledger": str(path),
            "answers": answers,
            "requests": keys,
            "bytes": size,
            "first": first,
            "last": last,
            "models": [_model(row) for row in connection.execute(_MODELS)],
            "calls": dict(connection.execute(_ENDINGS).fetchall()),
            "runs": _runs(connection),
        }
        if verify:
            damaged: list[str] = []
            sound = sum(1 for _ in all_answers(path, connection, None, damaged))
            told = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(20)")]
            found |= {"sound": sound, "damaged": damaged + ([] if told == ["ok"] else told)}
    return found


def _model(row: tuple[Any, ...]) -> dict[str, Any]:
    value = dict(zip(_MODEL_FIELDS, row, strict=True))
    value["money"] = None if value["money"] is None else dollars(value["money"])
    return value


def _runs(connection: sqlite3.Connection) -> dict[str, dict[str, Any]]:
    """What each run has used of its limits."""
    found = {}
    for (run,) in connection.execute("SELECT DISTINCT run FROM sessions ORDER BY 1").fetchall():
        spent = spent_by(connection, run)
        minutes = round(spent.seconds / 60, 2)
        found[run] = {
            "calls": spent.calls, "tokens": spent.tokens, "money": dollars(spent.money), "minutes": minutes
        }  # fmt: skip
    return found
