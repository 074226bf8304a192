"""A run's generated data in the format of other tools. Torch is not imported here."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from lmdistill.errors import DataError
from lmdistill.generation.export import EXPORT_FORMATS, ExportFormat, export
from lmdistill.generation.types import Example
from lmdistill.recipe import nearest


def export_run(source: Path, output: Path, format: str) -> int:
    """Write the rows of a run, all of its rounds, or those of one file; returns how many lines were written.

    Raises DataError for an unknown format, for a run without such rows, and for a row that does not fit the format.
    """
    known = next((name for name in EXPORT_FORMATS if name == format), None)
    if known is None:
        raise DataError(f"{format!r} is no format for export{nearest(format, EXPORT_FORMATS)}")
    return export(itertools.chain.from_iterable(map(examples_of, _files(source, known))), output, known)


def _files(source: Path, format: ExportFormat) -> list[Path]:
    """The files to read, in the order of the rounds."""
    if source.is_file():
        return [source]
    name = "preferences.jsonl" if "preference" in format else "examples.jsonl"
    found = [path for path in source.glob(f"generated/round-*/{name}") if path.parent.name[6:].isdecimal()]
    if not found:
        advice = "set generation.preferences" if name.startswith("pref") else "see generation in its recipe"
        raise DataError(f"{source}: no generated/round-*/{name} in this folder; {advice}, and run it")
    return sorted(found, key=lambda path: int(path.parent.name[6:]))


def examples_of(path: Path) -> Iterator[Example]:
    """The examples of a file that a run wrote; of drops, their examples. Raises DataError for another line."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                yield Example.of(row.get("example", row))
            except (ValueError, TypeError, AttributeError) as error:
                raise DataError(f"{path}:{number}: not a row that a run wrote ({error})") from error
