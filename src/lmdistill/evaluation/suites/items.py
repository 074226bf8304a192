"""Items of evaluation sets, and how rows of the files that people have become items."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmdistill.errors import DataError

_OPTION = re.compile(r"(?:^|\n)\s*([A-Z])\. ?")
_ANSWER = re.compile(r"\s*([A-Z])\. ?(.*)", re.DOTALL)
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_GOLD_FIELDS = ("answer", "label", "gold", "answerKey", "Answer", "output", "response", "instances", "Sentiment")
NLI_LABELS = ("entailment", "neutral", "contradiction")

Row = Mapping[str, Any]


class NoGold(Exception):
    """A row that does not say what is right."""


class Unreadable(Exception):
    """A row that is no item, with the reason."""


@dataclass(frozen=True)
class Item:
    """One thing that is asked, and what is right."""

    id: str
    question: str
    passage: str = ""
    options: tuple[str, ...] = ()
    gold: int = -1
    """Place of the right option; -1 where there are none."""
    answers: tuple[str, ...] = ()
    """Right answers, where they are written freely."""

    @property
    def cluster(self) -> str:
        """What it shares with others: its passage, or itself."""
        return hashlib.sha256((self.passage or self.id).encode("utf-8", "surrogatepass")).hexdigest()[:16]

    @property
    def text(self) -> str:
        """Passage and question, for comparison with training text."""
        return f"{self.passage}\n{self.question}".strip()


Reader = Callable[[Row, str], Item]


@dataclass(frozen=True)
class Found:
    """The items of a file."""

    items: list[Item]
    notes: list[str]


def read_items(path: Path, name: str, reader: Reader) -> Found:
    """Every item of a JSON-lines, JSON or CSV file.

    Rows without a gold label are left out with a note; raises DataError where none has one, and for a file that cannot
    be read or in which no row is an item.
    """
    items, without, unreadable, total = [], 0, [], 0
    for total, row in enumerate(_rows(path), start=1):
        try:
            items.append(reader(row, f"{name}:{total}"))
        except NoGold:
            without += 1
        except Unreadable as error:
            unreadable.append(f"row {total}: {error}")
    if total == 0:
        raise DataError(f"{path}: no rows; give a file with one JSON object a line, or a CSV file with a header")
    if without == total:
        raise DataError(
            f"{path}: none of {total:,} rows has a gold label (looked for {', '.join(_GOLD_FIELDS[:5])}), so nothing "
            "can be scored; use a split that has labels, such as the validation split"
        )
    if not items:
        raise DataError(f"{path}: none of {total:,} rows is an item of {name!r} ({unreadable[0]})")
    notes = [f"{without:,} of {total:,} rows have no gold label and were left out"] if without else []
    if unreadable:
        notes.append(f"{len(unreadable):,} of {total:,} rows are no items and were left out ({unreadable[0]})")
    return Found(items, notes)


def _rows(path: Path) -> Iterator[Row]:
    try:
        if path.suffix.lower() == ".csv":
            with open(path, encoding="utf-8", newline="") as file:
                yield from csv.DictReader(file)
            return
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".json":
            yield from json.loads(text)
            return
        # Not splitlines: JSON strings may hold U+2028, which is no end of a line here.
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise DataError(f"{path}:{number}: a row is a JSON object, this is a {type(row).__name__}")
                yield row
    except (OSError, UnicodeDecodeError, ValueError, csv.Error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read as rows ({error}); give JSON lines, JSON or CSV in UTF-8") from error


def lettered(row: Row, name: str) -> Item:
    """`question`, `options` as lines of `A. text`, `answer` as `B. text`; `passage` where there is one."""
    if not row.get("answer"):
        raise NoGold
    parts = _OPTION.split(str(row["options"]))
    letters, options = "".join(parts[1::2]), tuple(part.strip().strip('"').strip() for part in parts[2::2])
    answer = _ANSWER.match(str(row["answer"]))
    if len(letters) < 2 or letters != _LETTERS[: len(letters)] or not all(options):
        raise Unreadable(f"options are not A, B, ... with a text each: {str(row['options'])[:80]!r}")
    if answer is None or answer[1] not in letters:
        raise Unreadable(f"the answer {str(row['answer'])[:40]!r} names none of the options {letters}")
    return _item(row, name, options, letters.index(answer[1]))


def yes_or_no(row: Row, name: str) -> Item:
    """`question`, `passage`, and `label` or `answer`: true or false."""
    said = row.get("label", row.get("answer"))
    if said is None or said == "":
        raise NoGold
    return _item(row, name, ("no", "yes"), int(str(said).lower() in ("true", "yes", "1")))


def yes_no_maybe(row: Row, name: str) -> Item:
    """`question`, `passage`, `answer`: yes, no or maybe."""
    if not row.get("answer"):
        raise NoGold
    options = ("yes", "no", "maybe")
    if row["answer"] not in options:
        raise Unreadable(f"the answer {row['answer']!r} is none of yes, no, maybe")
    return _item(row, name, options, options.index(row["answer"]))


def sentiment(row: Row, name: str) -> Item:
    """A review (`text`, `Summary`, `Review`) and its label: positive, negative or neutral; `pos` and `neg` too."""
    said = str(row.get("label") or row.get("Sentiment") or row.get("sentiment") or "").strip().lower()
    if not said:
        raise NoGold
    words = {"neg": "negative", "0": "negative", "pos": "positive", "1": "positive"}
    options = ("negative", "positive", "neutral")
    label = words.get(said, said)
    text = str(row.get("text") or row.get("Summary") or row.get("sentence") or row.get("Review") or "").strip()
    if label not in options or not text:
        raise Unreadable(f"no review with the label positive, negative or neutral (label {said!r})")
    return Item(id=name, question="", passage=text, options=options, gold=options.index(label))


def inference(row: Row, name: str) -> Item:
    """`premise` (or `context`), `hypothesis`, `label`: entailment, neutral or contradiction, in words or 0, 1, 2."""
    said = str(row.get("label", "")).strip().lower()
    if said in ("", "none", "-1"):
        raise NoGold
    short = {"e": 0, "n": 1, "c": 2, "0": 0, "1": 1, "2": 2} | {label: n for n, label in enumerate(NLI_LABELS)}
    if said not in short or not row.get("hypothesis"):
        raise Unreadable(f"no premise and hypothesis with a label of ANLI's (label {said!r})")
    premise = str(row.get("premise") or row.get("context") or "")
    return Item(name, str(row["hypothesis"]), premise, NLI_LABELS, short[said])


def free_answer(row: Row, name: str) -> Item:
    """`question` (behind `passage` or SVAMP's `Body`) and `answer`: a number or words, GSM8K's worked ones too."""
    said = row.get("answer", row.get("Answer"))
    if said is None or said == "" or said == []:
        raise NoGold
    answers = [str(one) for one in said] if isinstance(said, list) else [str(said).rpartition("####")[2].strip()]
    body = str(row.get("passage") or row.get("Body") or "").strip()
    question = str(row.get("question") or row.get("Question") or "").strip()
    if not question:
        raise Unreadable("no question")
    return Item(name, f"{body} {question}".strip(), answers=tuple(answers))


def classified(classes: Sequence[str]) -> Reader:
    """A reader of `text` with a `label` that is one of these classes."""

    def read(row: Row, name: str) -> Item:
        said = str(row.get("label") or "").strip()
        if not said:
            raise NoGold
        if said not in classes or not row.get("text"):
            raise Unreadable(f"no text with one of {len(classes)} labels (label {said!r})")
        return Item(name, "", str(row["text"]), tuple(classes), classes.index(said))

    return read


def any_item(row: Row, name: str) -> Item:
    """The reader that fits a row's columns: what a user's own file is read with."""
    if "hypothesis" in row:
        return inference(row, name)
    if isinstance(row.get("choices", row.get("options")), list | dict):
        return listed(row, name)
    if isinstance(row.get("options"), str):
        return lettered(row, name)
    if "Sentiment" in row or "sentiment" in row or ("text" in row and "question" not in row):
        return sentiment(row, name)
    if isinstance(row.get("label", row.get("answer")), bool):
        return yes_or_no(row, name)
    return free_answer(row, name)


def listed(row: Row, name: str) -> Item:
    """`question` and `choices` as a list (or ARC's `{text, label}`), the right one by place, letter or text."""
    choices = row.get("choices", row.get("options"))
    labels = [str(label) for label in choices.get("label", [])] if isinstance(choices, dict) else []
    texts = [str(text) for text in (choices.get("text", []) if isinstance(choices, dict) else choices or [])]
    said = next((row[key] for key in ("answerKey", "answer", "gold", "label") if row.get(key) not in (None, "")), None)
    if said is None:
        raise NoGold
    if len(texts) < 2:
        raise Unreadable("fewer than two choices")
    word = str(said)
    for known in (labels, texts, list(_LETTERS[: len(texts)]), [str(n) for n in range(len(texts))]):
        if word in known:
            return _item(row, name, tuple(texts), known.index(word))
    raise Unreadable(f"the answer {word!r} names none of {len(texts)} choices")


def _item(row: Row, name: str, options: tuple[str, ...], gold: int) -> Item:
    question = str(row.get("question") or "").strip()
    if not question:
        raise Unreadable("no question")
    return Item(name, question, str(row.get("passage") or "").strip(), options, gold)
