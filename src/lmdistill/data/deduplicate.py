"""Texts that occur in training and in held-out data: exact copies, and shared runs of 13 words.

Runs of 13 words are the measure of GPT-3's contamination study (2005.14165, appendix C). Words are compared without
case and punctuation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from lmdistill.data.documents import Document

NGRAM = 13
_WORD = re.compile(r"\w+")
_EXAMPLES_SHOWN = 5


class Overlap(BaseModel):
    """One held-out document and a training document that it shares text with."""

    model_config = ConfigDict(extra="forbid")

    heldout: str
    train: str
    shared: str


class Contamination(BaseModel):
    """How much of the held-out documents occurs in the training documents."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    train_documents: int
    heldout_documents: int
    exact: int
    """Held-out documents that are in the training data as they are (but for white space and Unicode form)."""
    overlapping: int
    """Held-out documents that share at least one run of words with a training document (exact copies of that length
    included)."""
    ngram: int
    """Length of the runs, in words."""
    heldout_ngrams: int
    """Runs in the held-out documents."""
    shared_ngrams: int
    """Runs of these that occur in the training documents too."""
    exact_examples: list[Overlap]
    """The first few exact copies."""
    overlap_examples: list[Overlap]
    """The first few overlaps of documents that are not exact copies."""


def contamination(train_docs: Sequence[Document], heldout_docs: Sequence[Document]) -> Contamination:
    """Compare held-out with training documents; dump it with `model_dump()` for data.json."""
    train_exact = {document.normal_id: document.origin for document in reversed(train_docs)}
    copies = [document for document in heldout_docs if document.normal_id in train_exact]
    vocabulary: dict[str, int] = {}
    heldout_runs = [
        _run_hashes([vocabulary.setdefault(word, len(vocabulary) + 1) for word in _words(document)])
        for document in heldout_docs
    ]
    wanted = np.unique(np.concatenate([*heldout_runs, np.empty(0, np.uint64)]))
    found_at = _find(train_docs, vocabulary, wanted)
    shared_total, overlapping = 0, 0
    examples: list[Overlap] = []
    for document, runs in zip(heldout_docs, heldout_runs, strict=True):
        sources = found_at[np.searchsorted(wanted, runs)] if len(runs) else np.empty(0, np.int64)
        hits = np.flatnonzero(sources >= 0)
        shared_total += len(hits)
        if len(hits):
            overlapping += 1
            if document.normal_id not in train_exact and len(examples) < _EXAMPLES_SHOWN:
                at = int(hits[0])
                words = _words(document)[at : at + NGRAM]
                origin = train_docs[int(sources[at])].origin
                examples.append(Overlap(heldout=document.origin, train=origin, shared=" ".join(words)))
    return Contamination(
        train_documents=len(train_docs),
        heldout_documents=len(heldout_docs),
        exact=len(copies),
        overlapping=overlapping,
        ngram=NGRAM,
        heldout_ngrams=sum(map(len, heldout_runs)),
        shared_ngrams=shared_total,
        exact_examples=[
            Overlap(heldout=copy.origin, train=train_exact[copy.normal_id], shared=copy.plain[:100])
            for copy in copies[:_EXAMPLES_SHOWN]
        ],
        overlap_examples=examples,
    )


def _words(document: Document) -> list[str]:
    return _WORD.findall(document.plain.casefold())


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


_FACTORS = np.random.Generator(np.random.PCG64(20051416)).integers(0, 2**63, NGRAM, dtype=np.uint64) * np.uint64(
    2
) + np.uint64(1)


def _find(train_docs: Sequence[Document], vocabulary: dict[str, int], wanted: NDArray[np.uint64]) -> NDArray[np.int64]:
    """For each wanted hash the number of the first training document that has it, or -1."""
    found_at = np.full(len(wanted), -1, dtype=np.int64)
    if not len(wanted):
        return found_at
    for number, document in enumerate(train_docs):
        # 0 for words that no held-out document has: no run with one can match
        runs = _run_hashes([vocabulary.get(word, 0) for word in _words(document)])
        at = np.searchsorted(wanted, runs)
        at = at[(at < len(wanted)) & (wanted[np.minimum(at, len(wanted) - 1)] == runs)]
        new = at[found_at[at] < 0]
        found_at[new] = number
    return found_at
