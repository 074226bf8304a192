"""Responses that go round in circles: repeated runs of words, one word over and over, loops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lmdistill.generation.checks.base import Check, Finding
from lmdistill.generation.types import Example
from lmdistill.recipe.generation_filters import RepetitionFilter

_WORD_LIMIT = 20
"""Longest mean word, in characters: above it a text is written without spaces, and its characters are the units."""


class RepetitionCheck(Check):
    """Judges the response by its words; where a script has no spaces, by its characters."""

    name = "repetition"

    def __init__(self, spec: RepetitionFilter) -> None:
        self._spec = spec

    def look(self, example: Example) -> Finding | None:
        """A finding for the first measure that is passed."""
        spec, words = self._spec, units(example.response)
        loop = longest_loop(words, spec.longest_loop, (spec.max_run, spec.max_loops))
        if loop is not None:
            passage, times = loop
            return Finding(
                f"{' '.join(passage)[:80]!r} stands {times} times in succession, more than "
                f"{spec.max_run if len(passage) == 1 else spec.max_loops}"
            )
        if len(words) >= spec.min_words:
            share = repeated_share(words, spec.ngram)
            if share > spec.max_share:
                return Finding(
                    f"{share:.0%} of the runs of {spec.ngram} words occurred before, more than {spec.max_share:.0%}"
                )
        return None


def units(text: str) -> list[str]:
    """The words of a text, or its characters where it has no spaces to speak of."""
    words = text.split()
    return [c for c in text if not c.isspace()] if len(text) > _WORD_LIMIT * max(len(words), 1) else words


def repeated_share(words: Sequence[str], ngram: int) -> float:
    """Share of the runs of `ngram` words that occurred before in the text; 0 for a text without any."""
    runs = [tuple(words[start : start + ngram]) for start in range(len(words) - ngram + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def longest_loop(words: Sequence[str], longest: int, most: tuple[int, int]) -> tuple[list[str], int] | None:
    """(passage, times) of the shortest passage that stands too often in succession, or None.

    `most` is how often a single word and a longer passage may. Passages without a word of two letters do not count:
    2 x 2 x 2 and rows of a table are no loop.
    """
    numbers: dict[str, int] = {}
    word_L = np.array([numbers.setdefault(word, len(numbers)) for word in words], dtype=np.int64)
    for period in range(1, longest + 1):
        allowed = most[0] if period == 1 else most[1]
        if len(words) < period * (allowed + 1):
            break
        # a passage stands n times where n - 1 periods in succession equal what stands one period before
        for start, length in _runs_of_true(word_L[period:] == word_L[:-period], period * allowed):
            times = length // period + 1
            passage = list(words[start : start + period])
            if times > allowed and _says_something(passage):
                return passage, times
    return None


def _says_something(passage: Sequence[str]) -> bool:
    """Whether there is a word of two letters, or a letter of a script whose characters are the units."""
    return any(sum(c.isalpha() for c in word) > 1 or (word.isalpha() and not word.isascii()) for word in passage)


def _runs_of_true(same_L: NDArray[np.bool_], shortest: int) -> list[tuple[int, int]]:
    """(start, length) of each run of at least `shortest` true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], same_L, [False]]).astype(np.int8)))
    starts, lengths = edges[::2], edges[1::2] - edges[::2]
    long = lengths >= shortest
    return list(zip(starts[long].tolist(), lengths[long].tolist(), strict=True))
