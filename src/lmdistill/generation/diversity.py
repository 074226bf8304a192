"""How varied a set of texts is. Torch is not imported here."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from lmdistill.data.word_runs import words_of
from lmdistill.generation.checks.similarity import rouge_l, rouge_words


class Diversity(BaseModel):
    """Measures of variety; None where there is nothing to measure. All but `self_rouge_l` grow with variety, and fall
    with the size of the set: compare sets of one size."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    texts: int
    """Texts that were measured."""
    distinct_1: float | None
    """Share of words that are different ones (Li et al., 1510.03055)."""
    distinct_2: float | None
    """Share of pairs of neighbouring words that are different ones."""
    distinct_first_words: float | None
    """Share of texts' first words that are different ones."""
    self_rouge_l: float | None
    """Mean ROUGE-L F1 of each text of a sample with the one most like it."""
    sample: int
    """Size of that sample."""


def diversity(texts: Sequence[str], sample: int = 100, seed: int = 0) -> Diversity:
    """Measure texts; ROUGE-L on a sample of `sample`, drawn by the seed."""
    words = [words_of(text) for text in texts]
    pairs = [pair for text in words for pair in itertools.pairwise(text)]
    first = [text[0] for text in words if text]
    drawn = random.Random(f"diversity {seed}").sample(list(texts), min(sample, len(texts)))
    return Diversity(
        texts=len(texts),
        distinct_1=_distinct([word for text in words for word in text]),
        distinct_2=_distinct(pairs),
        distinct_first_words=_distinct(first),
        self_rouge_l=_self_rouge_l([rouge_words(text) for text in drawn]),
        sample=len(drawn),
    )


def _distinct(items: Sequence[object]) -> float | None:
    return len(set(items)) / len(items) if items else None


def _self_rouge_l(texts: Sequence[list[str]]) -> float | None:
    if len(texts) < 2:
        return None
    best = [0.0] * len(texts)
    for one, text in enumerate(texts):
        for other in range(one):
            score = rouge_l(text, texts[other])
            best[one], best[other] = max(best[one], score), max(best[other], score)
    return sum(best) / len(best)
