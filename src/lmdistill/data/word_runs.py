"""Runs of 13 words of some texts, as hashes, to look other texts up in one at a time. Torch is not imported here.

Runs of 13 words are the measure of GPT-3's contamination study (2005.14165, appendix C). Words are compared without
case and punctuation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

NGRAM = 13
_WORD = re.compile(r"\w+")
_FACTORS = np.random.Generator(np.random.PCG64(20051416)).integers(0, 2**63, NGRAM, dtype=np.uint64) * np.uint64(
    2
) + np.uint64(1)


def words_of(text: str) -> list[str]:
    """The words of a text without case and punctuation."""
    return _WORD.findall(text.casefold())


class WordRuns:
    """All runs of NGRAM words of some texts."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._vocabulary: dict[str, int] = {}
        number = self._vocabulary.setdefault
        self.of_text = [
            _run_hashes([number(word, len(self._vocabulary) + 1) for word in words_of(text)]) for text in texts
        ]
        """Hashes of the runs of each text, in its order."""
        self.distinct = np.unique(np.concatenate([*self.of_text, np.empty(0, np.uint64)]))
        """The different ones among them, sorted."""

    def places(self, text: str) -> NDArray[np.int64]:
        """For each run of a text, in its order, the place in `distinct`, or -1 where it is not there."""
        # 0 for words that none of the texts has: no run with one can match
        runs = _run_hashes([self._vocabulary.get(word, 0) for word in words_of(text)])
        if not len(self.distinct):
            return np.full(len(runs), -1, dtype=np.int64)
        at = np.searchsorted(self.distinct, runs)
        known = self.distinct[np.minimum(at, len(self.distinct) - 1)] == runs
        return np.where((at < len(self.distinct)) & known, at, -1)


def _run_hashes(words: Sequence[int]) -> NDArray[np.uint64]:
    """A 64-bit hash of every run of NGRAM words, which come as numbers.

    Words are spread by a fixed odd factor and a shift, then summed with one fixed odd factor for each place, modulo
    2^64. Two different runs among ten million collide with a chance of about 10^-5.
    """
    count = len(words) - NGRAM + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    spread_L = np.array(words, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    spread_L ^= spread_L >> np.uint64(29)
    total = np.zeros(count, np.uint64)
    for place in range(NGRAM):
        total += spread_L[place : place + count] * _FACTORS[place]
    return total
