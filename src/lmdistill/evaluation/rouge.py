"""ROUGE-L, as the distillation papers count it: longest common subsequence of stemmed words, F1, best reference.

Lin, "ROUGE: A Package for Automatic Evaluation of Summaries" (2004), section 3, by Google's package `rouge-score` with
the Porter stemmer, which is also what MiniLLM (2306.08543) and its successors report. Words are runs of a-z and 0-9
after lower-casing: text in other alphabets has none, and a text without words scores 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmdistill.errors import MissingExtra


class RougeL:
    """Scores texts against references. Raises MissingExtra where `rouge-score` is not installed."""

    def __init__(self) -> None:
        try:
            from rouge_score.rouge_scorer import RougeScorer
            from rouge_score.tokenizers import DefaultTokenizer
        except ImportError as error:
            raise MissingExtra(
                "evaluation.responses scores answers with the package rouge-score: pip install 'lmdistill[eval]'"
            ) from error
        self._tokenizer: Any = DefaultTokenizer(use_stemmer=True)
        self._scorer: Any = RougeScorer(["rougeL"], tokenizer=self)
        self._known: dict[str, list[str]] = {}

    def score(self, text: str, references: Sequence[str]) -> float:
        """F1 against the nearest of the references, 0 to 1."""
        return float(self._scorer.score_multi(list(references), text)["rougeL"].fmeasure)

    def tokenize(self, text: str) -> list[str]:
        """The stemmed words of a text; each text is cut once, because references come again with every model."""
        if text not in self._known:
            self._known[text] = self._tokenizer.tokenize(text)
        return self._known[text]
