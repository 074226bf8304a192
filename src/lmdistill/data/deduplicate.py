"""Texts that occur in training and in held-out data: exact copies, and shared runs of 13 words (`word_runs`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from lmdistill.data.documents import Document
from lmdistill.data.word_runs import NGRAM, WordRuns, words_of

__all__ = ["NGRAM", "Contamination", "Overlap", "contamination"]

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
    heldout = WordRuns(document.plain for document in heldout_docs)
    found_at = _find(train_docs, heldout)
    shared_total, overlapping = 0, 0
    examples: list[Overlap] = []
    for document, runs in zip(heldout_docs, heldout.of_text, strict=True):
        sources = found_at[np.searchsorted(heldout.distinct, runs)] if len(runs) else np.empty(0, np.int64)
        hits = np.flatnonzero(sources >= 0)
        shared_total += len(hits)
        if len(hits):
            overlapping += 1
            if document.normal_id not in train_exact and len(examples) < _EXAMPLES_SHOWN:
                at = int(hits[0])
                words = words_of(document.plain)[at : at + NGRAM]
                origin = train_docs[int(sources[at])].origin
                examples.append(Overlap(heldout=document.origin, train=origin, shared=" ".join(words)))
    return Contamination(
        train_documents=len(train_docs),
        heldout_documents=len(heldout_docs),
        exact=len(copies),
        overlapping=overlapping,
        ngram=NGRAM,
        heldout_ngrams=sum(map(len, heldout.of_text)),
        shared_ngrams=shared_total,
        exact_examples=[
            Overlap(heldout=copy.origin, train=train_exact[copy.normal_id], shared=copy.plain[:100])
            for copy in copies[:_EXAMPLES_SHOWN]
        ],
        overlap_examples=examples,
    )


def _find(train_docs: Sequence[Document], heldout: WordRuns) -> NDArray[np.int64]:
    """For each distinct held-out run the number of the first training document that has it, or -1."""
    found_at = np.full(len(heldout.distinct), -1, dtype=np.int64)
    for number, document in enumerate(train_docs if len(found_at) else ()):
        at = heldout.places(document.plain)
        at = at[at >= 0]
        found_at[at[found_at[at] < 0]] = number
    return found_at
