"""Rows that occur in an evaluation set: shared runs of 13 words, whole short rows, the same answer to a like question.

Runs of words are found by the hashes of `lmdistill.data.word_runs` and compared word by word before anything is
dropped. Short rows have no such run: they are compared as a whole. Signs count there, so that 3 + 4 is not 3 - 4.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmdistill.data.word_runs import NGRAM, WordRuns, words_of
from lmdistill.generation.checks.base import Check, Finding
from lmdistill.generation.checks.similarity import jaccard
from lmdistill.generation.types import Example
from lmdistill.recipe.generation_filters import ContaminationFilter

EvaluationSets = Mapping[str, Iterable[str | tuple[str, str]]]
"""Evaluation sets by name: texts, or (question, answer)."""

_FEWEST_ROWS = 10
"""A set with fewer rows has no template: its rows may all be about one text."""
_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+|[^\s\w.,;:!?\"'`“”‘’«»()\[\]]")
_ARTICLES = frozenset(("a", "an", "the"))


@dataclass(frozen=True)
class _Row:
    """A row of an evaluation set."""

    name: str
    question: str
    answer: str | None

    @property
    def text(self) -> str:
        return self.question if self.answer is None else f"{self.question}\n\n{self.answer}"


class ContaminationCheck(Check):
    """Drops what occurs in one of the evaluation sets; its findings name the set, the row and the words."""

    name = "contamination"

    def __init__(self, spec: ContaminationFilter, evaluation_sets: EvaluationSets) -> None:
        self._spec = spec
        self._rows = [row for name, texts in evaluation_sets.items() for row in _rows(name, texts)]
        self._runs = WordRuns(row.text for row in self._rows)
        self._owner = self._owners({row.name.rpartition(":")[0] for row in self._rows})
        self._whole: dict[str, int] = {}
        self._answers: dict[str, dict[int, list[tuple[int, frozenset[str]]]]] = {}
        for number, row in enumerate(self._rows):
            for text in (row.question, row.text):
                if whole := normal_text(text):
                    self._whole.setdefault(whole, number)
            if row.answer is not None and (answer := normal_answer(row.answer)):
                question = frozenset(normal_text(row.question).split())
                self._answers.setdefault(answer, {}).setdefault(len(question), []).append((number, question))

    def look(self, example: Example) -> Finding | None:
        """A finding for the first overlap."""
        if not self._rows:
            return None
        return self._whole_match(example) or self._shared_run(example) or self._same_answer(example)

    def _owners(self, sets: set[str]) -> NDArray[np.int64]:
        """For each distinct run the first row that has it, or -1 where it is only the template of a set."""
        owner = np.full(len(self._runs.distinct), -1, dtype=np.int64)
        for name in sorted(sets):
            numbers = [number for number, row in enumerate(self._rows) if row.name.rpartition(":")[0] == name]
            places = {
                number: np.searchsorted(self._runs.distinct, np.unique(self._runs.of_text[number]))
                for number in numbers
            }
            count = np.bincount(np.concatenate([*places.values()]), minlength=len(owner))
            least = max(_FEWEST_ROWS, self._spec.template_share * len(numbers))
            for number in reversed(numbers):
                own = places[number][count[places[number]] < least]
                owner[own] = number
        return owner

    def _shared_run(self, example: Example) -> Finding | None:
        if not self._spec.runs or not len(self._owner):
            return None
        text = f"{example.prompt}\n\n{example.response}"
        places = self._runs.places(text)
        owners = np.where(places >= 0, self._owner[np.maximum(places, 0)], -1)
        words: list[str] = []
        for place in np.flatnonzero(owners >= 0).tolist():
            words = words or words_of(text)
            run, row = words[place : place + NGRAM], self._rows[int(owners[place])]
            if _holds(words_of(row.text), run):
                return Finding(f"{NGRAM} words of {row.name}: {' '.join(run)!r}", row.name)
        return None

    def _whole_match(self, example: Example) -> Finding | None:
        prompt, response = normal_text(example.prompt), normal_text(example.response)
        for name, text in (("prompt", prompt), ("row", f"{prompt} {response}"), ("response", response)):
            number = self._whole.get(text)
            telling = name != "response" or len(text.split()) >= self._spec.answer_words
            if number is not None and telling:
                row = self._rows[number]
                return Finding(f"the {name} is {row.name} as a whole: {text[:100]!r}", row.name)
        return None

    def _same_answer(self, example: Example) -> Finding | None:
        answer = normal_answer(example.response if example.answer is None else example.answer)
        known = self._answers.get(answer)
        if known is None:
            return None
        if len(answer.split()) >= self._spec.answer_words:
            row = self._rows[min(number for rows in known.values() for number, _ in rows)]
            return Finding(f"the answer is that of {row.name}: {answer[:100]!r}", row.name)
        question, least = frozenset(normal_text(example.prompt).split()), self._spec.question_similarity
        near = [
            (jaccard(question, other), -number)
            for size, rows in known.items()
            if min(size, len(question)) >= least * max(size, len(question))
            for number, other in rows
            if _numbers(other) == _numbers(question)
        ]
        similarity, place = max(near, default=(0.0, 0))
        if similarity < least:
            return None
        row = self._rows[-place]
        return Finding(
            f"the answer {answer[:60]!r} is that of {row.name}, and {similarity:.2f} of the questions' words, at "
            f"least {least:.2f}, and all of their numbers are the same",
            row.name,
        )


def normal_text(text: str) -> str:
    """A text without case, punctuation and white space that tells nothing; signs of arithmetic stay.

    Unicode form NFKC, so that full-width letters and ligatures are the plain ones.
    """
    return " ".join(_TOKEN.findall(unicodedata.normalize("NFKC", text).casefold()))


def normal_answer(text: str) -> str:
    """`normal_text` of the final answer (what stands behind the last `####`, where there is one), without articles,
    currency signs and the commas of thousands; 72.0 is 72."""
    words = normal_text(text.rpartition("####")[2]).split()
    words = [_number(word) for word in words if word not in _ARTICLES and word not in "$€£%"]
    return " ".join(words)


def _numbers(words: frozenset[str]) -> set[str]:
    return {word for word in words if word[0].isdecimal()}


def _number(word: str) -> str:
    if not word[0].isdecimal():
        return word
    plain = re.sub(r",(?=\d{3}(?:\D|$))", "", word)
    return plain.rstrip("0").rstrip(".") if "." in plain and plain.count(".") == 1 else plain


def _rows(name: str, texts: Iterable[str | tuple[str, str]]) -> list[_Row]:
    """The rows of a set, named `set:number`, counted from 1."""
    pairs = [(text, None) if isinstance(text, str) else text for text in texts]
    return [_Row(f"{name}:{number}", question, answer) for number, (question, answer) in enumerate(pairs, start=1)]


def _holds(words: list[str], run: list[str]) -> bool:
    return any(words[start : start + len(run)] == run for start in range(len(words) - len(run) + 1))
