"""Rows of CSV and CoNLL files: where a row stands, its columns or None, and why there are none.

- `*.csv`, `*.tsv`: the first line names the columns; quoted cells may hold line breaks; every value is text.
- `*.conll`: a word a line with its columns, sentences apart by blank lines; a row is a sentence with the lists `tokens`
  (first column) and `tags` (last column). Lines that begin with `-DOCSTART-` or `#` are left out.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Found = tuple[str, dict[str, Any] | None, str]

CELL_LIMIT = 16 * 2**20
"""Longest cell of a CSV file, in characters."""


def read_csv(path: Path, name: str) -> Iterator[Found]:
    """Rows of a CSV file; `name` is what origins call it. A row with too many or too few cells has no columns."""
    csv.field_size_limit(CELL_LIMIT)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        header = next(lines, None)
        if not header:
            return
        while True:
            origin = f"{name}:{lines.line_num + 1}"
            try:
                cells = next(lines)
            except StopIteration:
                return
            except csv.Error as error:
                yield origin, None, f"not valid CSV: {error}"
                continue
            if not cells:
                continue
            if len(cells) != len(header):
                yield origin, None, f"{len(cells)} cells where the first line names {len(header)} columns"
                continue
            yield origin, dict(zip(header, cells, strict=True)), ""


def read_conll(path: Path, name: str) -> Iterator[Found]:
    """Sentences of a CoNLL file; `name` is what origins call it."""
    words: list[str] = []
    tags: list[str] = []
    start = 1
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            cells = line.split()
            if not cells or cells[0] == "-DOCSTART-":
                if words:
                    yield f"{name}:{start}", {"tokens": words, "tags": tags}, ""
                words, tags = [], []
                continue
            if cells[0].startswith("#") and len(cells) < 2:
                continue
            start = start if words else number
            words.append(cells[0])
            tags.append(cells[-1] if len(cells) > 1 else "")
    if words:
        yield f"{name}:{start}", {"tokens": words, "tags": tags}, ""
