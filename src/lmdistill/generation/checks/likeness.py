"""Checks that compare a row with those that stayed before it: near-duplicates, novelty, rationales of one seed.

The earlier row stays, so what is dropped depends on the order of the rows, and on nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from lmdistill.data.word_runs import words_of
from lmdistill.errors import MissingExtra
from lmdistill.generation.checks.base import Check, Finding, texts_of
from lmdistill.generation.checks.similarity import jaccard, rouge_l, rouge_l_bound, rouge_words, shingles
from lmdistill.generation.types import Example
from lmdistill.recipe.generation_filters import NearDuplicateFilter, NoveltyFilter, RationaleFilter

_SEED = 20080117
_RECALL = 0.95
"""Share of pairs exactly at the threshold that are proposed; of pairs above it more are."""


class NearDuplicateCheck(Check):
    """MinHash with locality-sensitive hashing proposes rows, the exact Jaccard similarity of shingles decides.

    Broder, "On the resemblance and containment of documents" (1997). No row is dropped below the threshold; of pairs at
    the threshold one in twenty may be missed, of more similar ones fewer. Shingles of prompt and response stay apart.
    Raises MissingExtra where `datasketch` is not installed.
    """

    name = "near_duplicate"

    def __init__(self, spec: NearDuplicateFilter) -> None:
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError as error:
            raise MissingExtra(
                "generation.filters.near_duplicate needs the package datasketch: pip install 'lmdistill[generate]'"
            ) from error
        self._spec = spec
        self._make: Any = MinHash
        self._empty: Any = MinHash(num_perm=spec.permutations, seed=_SEED)
        self._index: Any = MinHashLSH(num_perm=spec.permutations, params=bands(spec.threshold, spec.permutations))
        self._kept: list[tuple[str, list[tuple[str, str]]]] = []
        self._last: tuple[Example, Any] | None = None

    def look(self, example: Example) -> Finding | None:
        """A finding where an earlier row is at least as like as the threshold; the most like one is named."""
        own, sketch = self._shingles(texts_of(example, self._spec.side)), self._sketch(example)
        best, matched = 0.0, ""
        for place in sorted(self._index.query(sketch)):
            name, texts = self._kept[place]
            similarity = jaccard(own, self._shingles(texts))
            if similarity > best:
                best, matched = similarity, name
        if best < self._spec.threshold:
            return None
        return Finding(
            f"{best:.2f} of the runs of {self._spec.shingle} words are those of {matched}, at least "
            f"{self._spec.threshold:.2f}",
            matched,
        )

    def keep(self, example: Example) -> None:
        """Later rows are compared with this one."""
        self._index.insert(len(self._kept), self._sketch(example))
        self._kept.append((example.id, texts_of(example, self._spec.side)))

    def _shingles(self, texts: list[tuple[str, str]]) -> frozenset[str]:
        return frozenset(f"{name}:{shingle}" for name, text in texts for shingle in shingles(text, self._spec.shingle))

    def _sketch(self, example: Example) -> Any:
        """The MinHash of a row; the last one is remembered, because a row that stays is looked at and kept."""
        if self._last is None or self._last[0] is not example:
            sketch = self._make(
                num_perm=self._spec.permutations,
                seed=_SEED,
                permutations=self._empty.permutations,
                scheme=self._empty.scheme,
            )
            own = self._shingles(texts_of(example, self._spec.side))
            sketch.update_batch([shingle.encode("utf-8", "surrogatepass") for shingle in own])
            self._last = (example, sketch)
        return self._last[1]


def bands(threshold: float, permutations: int) -> tuple[int, int]:
    """(bands, rows in a band): the longest bands, which propose the fewest rows in vain, that find `_RECALL` of the
    pairs at the threshold. A pair of similarity s is proposed with the chance 1 - (1 - s^rows)^bands."""
    rows = 1
    while rows < permutations and 1 - (1 - threshold ** (rows + 1)) ** (permutations // (rows + 1)) >= _RECALL:
        rows += 1
    return permutations // rows, rows


@dataclass(frozen=True)
class _Text:
    """A text of the pool."""

    name: str
    words: list[str]
    bag: Counter[str] = field(repr=False)


class NoveltyCheck(Check):
    """Self-Instruct's novelty (2212.10560, section 2.2): ROUGE-L below 0.7 with everything in the pool.

    The pool is what it starts with and every row that stays. Several answers to one seed with the same prompt are one
    text of the pool. Bounds by length and by bags of words spare most exact comparisons and change no result.
    """

    name = "novelty"

    def __init__(self, spec: NoveltyFilter, pool: Iterable[str] = ()) -> None:
        self._spec = spec
        self._pool = [self._text(f"pool:{number}", text) for number, text in enumerate(pool, start=1)]
        self._asked: set[tuple[str, str]] = set()

    def look(self, example: Example) -> Finding | None:
        """A finding with the text of the pool that is most like it."""
        if self._name(example) in self._asked:
            return None
        own = self._text(example.id, getattr(example, self._spec.side))
        best, matched = 0.0, ""
        for other in self._pool:
            total, floor = len(own.words) + len(other.words), max(best, self._spec.threshold)
            if 2 * min(len(own.words), len(other.words)) < floor * total:
                continue
            if rouge_l_bound(own.bag, other.bag, total) < floor:
                continue
            score = rouge_l(own.words, other.words)
            if score > best:
                best, matched = score, other.name
        if best < self._spec.threshold:
            return None
        return Finding(f"ROUGE-L {best:.2f} with {matched}, not below {self._spec.threshold:.2f}", matched)

    def keep(self, example: Example) -> None:
        """The row joins the pool."""
        if self._name(example) not in self._asked:
            self._pool.append(self._text(example.id, getattr(example, self._spec.side)))
        if example.seed and self._spec.side == "prompt":
            self._asked.add(self._name(example))

    @staticmethod
    def _name(example: Example) -> tuple[str, str]:
        return example.seed, example.prompt

    @staticmethod
    def _text(name: str, text: str) -> _Text:
        words = rouge_words(text)
        return _Text(name, words, Counter(words))


class RationaleCheck(Check):
    """MCC-KD's diversity (2310.14747, section 3.2): Jaccard similarity of word sets between responses to one seed."""

    name = "rationale"

    def __init__(self, spec: RationaleFilter) -> None:
        self._threshold = spec.threshold
        self._kept: dict[str, list[tuple[str, frozenset[str]]]] = {}

    def look(self, example: Example) -> Finding | None:
        """A finding where an earlier response to the same seed uses almost the same words."""
        own = frozenset(words_of(example.response))
        for name, words in self._kept.get(example.seed, ()) if example.seed else ():
            similarity = jaccard(own, words)
            if similarity >= self._threshold:
                return Finding(
                    f"{similarity:.2f} of the words are those of {name}, of the same seed, at least "
                    f"{self._threshold:.2f}",
                    name,
                )
        return None

    def keep(self, example: Example) -> None:
        """Later responses to the same seed are compared with this one."""
        self._kept.setdefault(example.seed, []).append((example.id, frozenset(words_of(example.response))))
