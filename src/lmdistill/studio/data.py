"""What was generated for a run: rows that were kept, rows that were dropped and why, and the data card."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from lmdistill.errors import CorruptFile
from lmdistill.io import read_json
from lmdistill.recipe.data import GENERATED
from lmdistill.studio import page

PAGE = 20
"""Rows on a page."""
_LONGEST = 20_000
"""Characters of one text that are shown."""
_LIMIT = 100_000
"""Rows of a file that are read."""
_SAID = ("prompt", "response")


@dataclass(frozen=True)
class Row:
    """One example, kept or dropped."""

    number: int
    """Its line in the file."""
    example: Mapping[str, Any]
    by: str = ""
    """The check that left it out; empty for one that was kept."""
    reason: str = ""
    matched: str = ""

    @property
    def task(self) -> str:
        """What kind of row it is."""
        return str(self.example.get("task", "answer"))


@dataclass(frozen=True)
class Rows:
    """A file of rows."""

    rows: list[Row]
    bad: int
    """Lines that could not be read."""
    more: bool
    """Whether there are lines beyond those that are read."""


@dataclass(frozen=True)
class Wanted:
    """Which rows are to be seen."""

    check: str = ""
    task: str = ""
    text: str = ""
    """What must stand in the prompt, the response or the reason, in any case."""
    first: int = 0


def rounds_of(folder: Path) -> dict[str, Path]:
    """The rounds of a run that wrote anything."""
    found = (path for path in (folder / GENERATED).glob("*") if (path / "examples.jsonl").is_file())
    return {path.name: path for path in sorted(found, key=lambda path: (len(path.name), path.name))}


@dataclass
class RowFiles:
    """Reads files of rows, and keeps the last ones in memory as long as they do not change."""

    kept: int = 2
    _files: dict[tuple[Any, ...], Rows] = field(default_factory=dict)

    def read(self, file: Path) -> Rows:
        """The rows of a file; none where it is missing."""
        try:
            stat = file.stat()
        except OSError:
            return Rows([], 0, False)
        key = (file, stat.st_size, stat.st_mtime_ns, stat.st_ino)
        if key not in self._files:
            while len(self._files) >= self.kept:
                self._files.pop(next(iter(self._files)))
            self._files[key] = read_rows(file)
        return self._files[key]


def read_rows(file: Path) -> Rows:
    """Examples or drops, whichever a line is; lines that are neither are counted."""
    rows: list[Row] = []
    bad = 0
    with open(file, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if number > _LIMIT:
                return Rows(rows, bad, True)
            row = _row(number, line)
            bad += row is None
            rows += [] if row is None else [row]
    return Rows(rows, bad, False)


def _row(number: int, line: str) -> Row | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    inner = value.get("example")
    if isinstance(inner, dict):
        named = (str(value.get(name) or "") for name in ("by", "reason", "matched"))
        return Row(number, inner, *named)
    return Row(number, value) if "prompt" in value or "response" in value else None


def chosen(rows: Sequence[Row], wanted: Wanted) -> list[Row]:
    """The rows that are wanted."""
    text = wanted.text.casefold()
    return [
        row
        for row in rows
        if (not wanted.check or row.by == wanted.check)
        and (not wanted.task or row.task == wanted.task)
        and (not text or any(text in part.casefold() for part in _texts(row)))
    ]


def _texts(row: Row) -> list[str]:
    return [str(row.example.get("prompt", "")), str(row.example.get("response", "")), row.reason]


def values_of(rows: Sequence[Row]) -> tuple[dict[str, int], dict[str, int]]:
    """Checks and tasks that occur, with how often."""
    checks = Counter(row.by for row in rows if row.by)
    return dict(checks.most_common()), dict(Counter(row.task for row in rows).most_common())


def rows_page(rows: Rows, wanted: Wanted) -> str:
    """One page of rows."""
    found = chosen(rows.rows, wanted)
    first = min(max(0, wanted.first), max(0, len(found) - 1)) // PAGE * PAGE
    last = min(first + PAGE, len(found))
    parts = [page.note(f"{len(found):,} of {len(rows.rows):,} rows" + (f", {first + 1} to {last}" if found else ""))]
    if rows.bad:
        parts.append(page.note(f"{rows.bad} lines cannot be read and are left out"))
    if rows.more:
        parts.append(page.note(f"only the first {_LIMIT:,} lines are read"))
    parts += [_shown(row) for row in found[first:last]]
    return page.whole(*parts)


def card_page(folder: Path) -> str:
    """The data card's figures."""
    try:
        card = read_json(folder / "data_card.json")
    except (OSError, CorruptFile):
        card = None
    if not isinstance(card, dict):
        return page.whole(page.note("There is no data card for this round that can be read."))
    given = card.get("costs")
    costs: dict[str, Any] = given if isinstance(given, dict) else {}
    money = costs.get("money") if isinstance(costs.get("money"), int | float) else None
    parts = [
        page.facts(
            [
                ("kept", _counted(card.get("accepted"))),
                ("dropped", _counted(card.get("dropped"))),
                ("calls", _counted(costs.get("calls"))),
                ("tokens written", _counted(costs.get("output_tokens"))),
                ("money", "not known" if money is None else f"{money:.4g} USD"),
            ]
        )
    ]
    drops = card.get("drops")
    if isinstance(drops, dict) and drops:
        counted = [
            (str(name), _counted(found.get("count") if isinstance(found, dict) else found))
            for name, found in drops.items()
        ]
        parts.append(page.table(("dropped by", "rows"), counted, "Rows that each check dropped"))
    return page.whole(*parts)


def _counted(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) else "–"


def _shown(row: Row) -> Markup:
    title = f"line {row.number} · {row.task}" + (f" · dropped by {row.by}" if row.by else "")
    parts = [Markup("<h3>{}</h3>").format(page.shown(title))]
    if row.reason:
        like = f" (too like {row.matched})" if row.matched else ""
        parts.append(Markup('<p class="reason">{}</p>').format(page.shown(row.reason + like)))
    for name in _SAID:
        parts.append(Markup('<p class="said"><b>{}</b>{}</p>').format(name, _cut(row.example.get(name, ""))))
    rest = {key: value for key, value in row.example.items() if key not in (*_SAID, "task") and value not in ("", None)}
    if rest:
        shown = json.dumps(rest, ensure_ascii=False, indent=1)
        parts.append(Markup("<details><summary>all else</summary><pre>{}</pre></details>").format(_cut(shown)))
    return Markup('<article class="row">{}</article>').format(Markup("").join(parts))


def _cut(value: object) -> str:
    text = page.shown(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} … ({len(text) - _LONGEST:,} characters more)"
