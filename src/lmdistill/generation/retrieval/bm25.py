"""Okapi BM25 over an inverted index in memory (Robertson & Zaragoza 2009). Torch is not imported here.

The score of a passage d for a query is the sum over the query's words w of

    idf(w) f (k1 + 1) / (f + k1 (1 - b + b |d| / mean length)),   idf(w) = ln(1 + (N - n + 0.5) / (n + 0.5)),

with f the occurrences of w in d, n the passages that hold it, N all passages. A word that stands twice in the query
counts twice.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    """A text's words, without case."""
    return _WORD.findall(text.casefold())


class Bm25:
    """An index of passages."""

    def __init__(self, passages: Sequence[str], *, k1: float = 1.2, b: float = 0.75) -> None:
        """Raises ValueError for k1 below 0 or b outside 0 to 1."""
        if k1 < 0 or not 0 <= b <= 1:
            raise ValueError(f"k1 = {k1} must not be below 0, b = {b} must lie between 0 and 1")
        self.passages = list(passages)
        counts = [Counter(words_of(passage)) for passage in self.passages]
        lengths = np.array([found.total() for found in counts], dtype=np.float64)
        mean = float(lengths.mean()) if lengths.sum() > 0 else 1.0
        norms = k1 * (1 - b + b * lengths / mean)
        places: dict[str, list[int]] = {}
        for place, found in enumerate(counts):
            for word in found:
                places.setdefault(word, []).append(place)
        self._index: dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]] = {}
        for word, held in places.items():
            where = np.array(held, dtype=np.int64)
            often = np.array([counts[place][word] for place in held], dtype=np.float64)
            rare = np.log(1 + (len(counts) - len(held) + 0.5) / (len(held) + 0.5))
            self._index[word] = where, rare * often * (k1 + 1) / (often + norms[where])

    def __len__(self) -> int:
        return len(self.passages)

    def scores(self, query: str) -> NDArray[np.float64]:
        """The score of every passage, in their order."""
        found = np.zeros(len(self.passages), dtype=np.float64)
        for word, times in Counter(words_of(query)).items():
            if word in self._index:
                where, worth = self._index[word]
                found[where] += times * worth
        return found

    def top(self, query: str, count: int) -> list[int]:
        """Places of the best passages, best first; of equal ones the earlier first."""
        scores = self.scores(query)
        return [int(place) for place in np.argsort(-scores, kind="stable")[:count]]
