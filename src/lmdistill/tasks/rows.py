"""Labelled rows: from the columns of a source to examples of a task.

Rows are read by `lmdistill.data.load`, so files, packages and splits are what they are for text. A split depends on the
text alone: rows that differ in their label only never stand on both sides.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lmdistill.data import DataReport, Document
from lmdistill.data.documents import BadRow, EmptyRow, check_text
from lmdistill.data.load import choose, read_rows
from lmdistill.errors import DataError
from lmdistill.progress import Progress
from lmdistill.recipe import SourceSpec, nearest
from lmdistill.recipe.task import TaskKind, TaskSpec

Label = str | float | list[str] | None


@dataclass(frozen=True)
class Example:
    """One row of a task."""

    text: str
    pair: str | None
    words: list[str] | None
    """The words of the text, where each has a label."""
    label: Label
    """A class, a number, a class for each word, or None where there is none."""
    document: Document
    """Its text, origin and hash."""


def read_examples(
    source: SourceSpec,
    task: TaskSpec,
    *,
    seed: int,
    on_bad_rows: Literal["stop", "skip"],
    progress: Progress,
    kind: TaskKind | None = None,
) -> tuple[list[Example], DataReport]:
    """Read a source as rows of a task, or of another kind over the same columns (`masked_lm` needs no label).

    Raises DataError for a bad row (`on_bad_rows="stop"`), and where nothing is left.
    """
    kind = kind or task.kind
    report = DataReport(sources=[source.path])
    found: dict[int, Example] = {}
    documents: list[Document] = []
    for row in read_rows(source, progress):
        report.rows_read += 1
        try:
            if row.row is None:
                raise BadRow(row.problem)
            example = to_example(row.row, task, kind, row.origin)
        except EmptyRow:
            report.empty += 1
        except BadRow as problem:
            if on_bad_rows == "stop":
                raise DataError(
                    f"{row.origin}: {problem}. Repair this row, or set data.on_bad_rows: skip to leave such rows out "
                    "and count them"
                ) from None
            report.add_bad(row.origin, str(problem))
        else:
            documents.append(example.document)
            found[id(example.document)] = example
    kept = [found[id(document)] for document in choose(documents, source, seed, report)]
    if not kept:
        raise DataError(f"{source.path}: no row for the task is left; {report.explain()}")
    return kept, report


def to_example(row: Mapping[str, Any], task: TaskSpec, kind: TaskKind, origin: str) -> Example:
    """Make an example of a row. Raises BadRow with the reason, or EmptyRow."""
    words = None
    if kind == "token_classification":
        words = _words(_column(row, task.text, "task.text"), task.text)
        text = " ".join(words)
    else:
        value = _column(row, task.text, "task.text")
        text = " ".join(_words(value, task.text)) if isinstance(value, list) else check_text(value, repr(task.text))
    pair = None
    if task.text_pair is not None:
        pair = check_text(_column(row, task.text_pair, "task.text_pair"), repr(task.text_pair))
    if not text.strip():
        raise EmptyRow("empty text")
    label = None if kind == "masked_lm" or task.label is None else _label(row, task, kind, words)
    content = text if pair is None else f"{text}\n\n{pair}"
    return Example(text, pair, words, label, Document(text=content, origin=origin))


def _column(row: Mapping[str, Any], name: str, field: str) -> Any:
    if name not in row:
        raise BadRow(f"no column {name!r} ({field}){nearest(name, [str(key) for key in row])}")
    if row[name] is None:
        raise BadRow(f"{name!r} is null")
    return row[name]


def _words(value: Any, name: str) -> list[str]:
    if isinstance(value, str):
        return check_text(value, repr(name)).split()
    if not isinstance(value, list | tuple):
        raise BadRow(f"{name!r} is a {type(value).__name__}, not a list of words")
    words = [check_text(word, f"a word of {name!r}") for word in value]
    if not words:
        raise EmptyRow("no words")
    return words


def _label(row: Mapping[str, Any], task: TaskSpec, kind: TaskKind, words: Sequence[str] | None) -> Label:
    assert task.label is not None
    if kind == "sentence_embedding" and task.label not in row:
        return None
    value = _column(row, task.label, "task.label")
    if kind in ("sequence_regression", "sentence_embedding"):
        return _number(value, task.label)
    if kind == "sequence_classification":
        name = class_name(value, task.label)
        return name if task.label_pattern is None else _found(name, task.label_pattern, task.label)
    tags = value.split() if isinstance(value, str) else value
    if not isinstance(tags, list | tuple):
        raise BadRow(f"{task.label!r} is a {type(value).__name__}, not a list of labels")
    assert words is not None
    if len(tags) != len(words):
        raise BadRow(f"{len(words)} words but {len(tags)} labels")
    return [class_name(tag, task.label) for tag in tags]


def class_name(value: Any, column: str) -> str:
    """A label as the name of a class: true and false of JSON by these words, whole numbers by their digits."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, str):
        raise BadRow(f"{column!r} is empty; a label is missing")
    raise BadRow(f"{column!r} is a {type(value).__name__}, not the name of a class")


def _found(name: str, pattern: str, column: str) -> str:
    """The class that a pattern finds in a label."""
    match = re.search(pattern, name)
    found = match and (match[1] if match.re.groups else match[0])
    if not found:
        raise BadRow(f"{column!r} is {name[:40]!r}, in which task.label_pattern {pattern!r} finds no class")
    return found


def _number(value: Any, column: str) -> float:
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise BadRow(f"{column!r} is {str(value)[:40]!r}, not a finite number")
    return number


def classes_of(task: TaskSpec, examples: Iterable[Example]) -> list[str]:
    """The classes in the order of their numbers: the recipe's, or those of the training rows, sorted.

    Raises DataError where the training rows hold fewer than two classes, or one that the recipe does not name.
    """
    counts: Counter[str] = Counter()
    for example in examples:
        labels = example.label if isinstance(example.label, list) else [example.label]
        counts.update(str(label) for label in labels)
        check_classes(example, task.labels)
    if len(counts) < 2:
        only = next(iter(counts), "none")
        raise DataError(
            f"all {sum(counts.values())} labels of the training rows are {only!r}: nothing can be learnt from 1 class. "
            "Is task.label the right column, and is the file sorted by it (a limit takes a shuffled part)?"
        )
    return list(task.labels) if task.labels is not None else sorted(counts)


def check_classes(example: Example, classes: Sequence[str] | None) -> None:
    """Raise DataError for a label that is not among the classes, naming its row and those that are."""
    if classes is None:
        return
    labels = example.label if isinstance(example.label, list) else [example.label]
    for label in labels:
        if label not in classes:
            known = nearest(str(label), [str(name) for name in classes])
            raise DataError(
                f"{example.document.origin}: the label {str(label)[:60]!r} is none of the {len(classes)} "
                f"classes{known}. Add it to task.labels, or repair the row"
            )
