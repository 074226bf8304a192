"""How alike two texts are: Jaccard similarity of sets, and ROUGE-L by an exact longest common subsequence."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from lmdistill.data.word_runs import words_of

_ROUGE_WORD = re.compile(r"[a-z0-9]+")


def jaccard(a: AbstractSet[object], b: AbstractSet[object]) -> float:
    """Share of what is in either set that is in both; two empty sets are the same."""
    common = len(a & b)
    return common / (len(a) + len(b) - common) if a or b else 1.0


def shingles(text: str, size: int) -> frozenset[str]:
    """The runs of `size` words without case and punctuation; a shorter text is one shingle, and one without words is
    itself."""
    words = words_of(text)
    if len(words) < size:
        return frozenset([" ".join(words) or text.strip()])
    return frozenset(" ".join(words[start : start + size]) for start in range(len(words) - size + 1))


def rouge_words(text: str) -> list[str]:
    """The words that ROUGE counts, as the package rouge-score cuts them without stemming.

    These are runs of a-z and 0-9. A text that has none of them, in another alphabet, is cut into its letters and
    digits, where the package would find nothing.
    """
    return _ROUGE_WORD.findall(text.lower()) or [c for c in text.casefold() if c.isalnum()]


def lcs_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence.

    Bit-parallel (Hyyrö 2004, "Bit-parallel LCS-length computation revisited"): a zero bit of `row` says that the
    longest common subsequence grows at that place of `a`, so that a word of `b` costs one addition of long integers.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & full
    return len(a) - row.bit_count()


def rouge_l(a: Sequence[str], b: Sequence[str]) -> float:
    """ROUGE-L F1 of two lists of words (Lin 2004): 2 LCS / (|a| + |b|), 0 where one is empty."""
    return 2 * lcs_length(a, b) / (len(a) + len(b)) if a and b else 0.0


def rouge_l_bound(a: Counter[str], b: Counter[str], total: int) -> float:
    """An upper bound of ROUGE-L F1: no subsequence is longer than the bags of words overlap. `total` is |a| + |b|."""
    small, large = (a, b) if len(a) <= len(b) else (b, a)
    return 2 * sum(min(count, large[word]) for word, count in small.items()) / total if total else 0.0
