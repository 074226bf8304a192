"""Whether the items of a set stand in the training text."""

from __future__ import annotations

from collections.abc import Sequence

from lmdistill.data.deduplicate import contamination
from lmdistill.data.documents import Document
from lmdistill.evaluation.suite_results import SetOverlap


def overlap_of(train: Sequence[Document], texts: Sequence[str]) -> SetOverlap | None:
    """Items that are in the training text as they are, or share 13 words in a row with it, with examples.

    None where there is nothing to compare.
    """
    if not train or not texts:
        return None
    items = [Document(text=text, origin=f"item {number + 1}") for number, text in enumerate(texts)]
    found = contamination(train, items)
    return SetOverlap(
        train_documents=found.train_documents,
        exact=found.exact,
        overlapping=found.overlapping,
        ngram=found.ngram,
        examples=[*found.exact_examples, *found.overlap_examples],
    )
