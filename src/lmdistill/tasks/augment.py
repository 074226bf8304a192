"""New rows from old ones by replacing words (TinyBERT 1909.10351, algorithm 1), without any file of word vectors.

Shape legend: V vocabulary, H embedding width, K candidates, W words of the vocabulary that may stand for others.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lmdistill.data import Document
from lmdistill.recipe.task import AugmentSpec
from lmdistill.tasks.rows import Example

_WORD = re.compile(r"[^\W\d_]+")
_MASKED_AT_ONCE = 32

Candidates = Callable[[str, Sequence[str]], list[list[str]]]
"""From a text and its words in order to the candidates of each word."""


class Neighbours:
    """The nearest whole words of a vocabulary by a model's input embeddings: cosine, words of one piece alone.

    Stands where TinyBERT has GloVe, which nothing here ships. A word of several pieces is the mean of their embeddings.
    """

    def __init__(self, table_VH: Tensor, tokenizer: PreTrainedTokenizerBase, count: int) -> None:
        """`count` candidates for each word."""
        self._tokenizer = tokenizer
        self._count = count
        words = {token: number for token, number in tokenizer.get_vocab().items() if _WORD.fullmatch(token)}
        self._words = sorted(words)
        self._ids = torch.tensor([words[word] for word in self._words])
        self._table_VH = table_VH.detach().float().cpu()
        self._unit_WH = F.normalize(self._table_VH[self._ids], dim=-1)
        self._known: dict[str, list[str]] = {}

    def __call__(self, text: str, words: Sequence[str]) -> list[list[str]]:
        """The candidates of each word; none where the tokenizer does not know it."""
        return [self.of(word) for word in words]

    def of(self, word: str) -> list[str]:
        """The nearest words, nearest first, the word itself left out."""
        if word not in self._known:
            ids = self._tokenizer(word, add_special_tokens=False)["input_ids"]
            found: list[str] = []
            if ids:
                cosine_W = self._unit_WH @ F.normalize(self._table_VH[torch.tensor(ids)].mean(0), dim=0)
                near = cosine_W.topk(min(self._count + 1, len(self._words))).indices.tolist()
                found = [self._words[place] for place in near if self._words[place] != word.lower()][: self._count]
            self._known[word] = found
        return self._known[word]


class MaskedWords:
    """What a masked language model would put in a word's place, for words of one piece; neighbours for the others."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, neighbours: Neighbours, count: int
    ) -> None:
        """`model` is a masked language model in evaluation mode."""
        self._model = model
        self._tokenizer = tokenizer
        self._neighbours = neighbours
        self._count = count
        vocabulary = tokenizer.get_vocab()
        allowed = [number for token, number in vocabulary.items() if _WORD.fullmatch(token)]
        self._blocked_V = torch.ones(len(tokenizer), dtype=torch.bool)
        self._blocked_V[allowed] = False
        self._token = {number: token for token, number in vocabulary.items()}

    @torch.no_grad()
    def __call__(self, text: str, words: Sequence[str]) -> list[list[str]]:
        """The candidates of each word."""
        encoded = self._tokenizer(text, return_offsets_mapping=True, truncation=True, max_length=512)
        starts = [match.span() for match in _WORD.finditer(text)]
        place_of = {span: place for place, span in enumerate(encoded["offset_mapping"]) if span[0] < span[1]}
        found = [self._neighbours.of(word) for word in words]
        single = [(index, place_of[span]) for index, span in enumerate(starts) if span in place_of]
        ids_L = torch.tensor(encoded["input_ids"])
        device = self._model.device
        for first in range(0, len(single), _MASKED_AT_ONCE):
            part = single[first : first + _MASKED_AT_ONCE]
            rows_bL = ids_L.repeat(len(part), 1)
            places_b = torch.tensor([place for _, place in part])
            rows_bL[torch.arange(len(part)), places_b] = int(self._tokenizer.mask_token_id)
            logits_bLV = self._model(input_ids=rows_bL.to(device)).logits
            logits_bV = logits_bLV[torch.arange(len(part)), places_b.to(device), : len(self._blocked_V)].float().cpu()
            best_bK = logits_bV.masked_fill(self._blocked_V, -torch.inf).topk(self._count + 1).indices
            for (index, _), row in zip(part, best_bK.tolist(), strict=True):
                names = [self._token[number] for number in row]
                found[index] = [name for name in names if name != words[index].lower()][: self._count]
        return found


def augmented(examples: Iterable[Example], spec: AugmentSpec, candidates: Candidates, seed: int) -> list[Example]:
    """New rows without labels: `spec.copies` of each, equal ones and those that changed nothing left out.

    Each word is replaced with `spec.probability` by one of its candidates, all equally likely. What is drawn depends
    on the row and the seed alone.
    """
    made = []
    for example in examples:
        random = _random_of(example, seed)
        sides = [example.text, *([example.pair] if example.pair is not None else [])]
        options = [(side, candidates(side, _WORD.findall(side))) for side in sides]
        seen = {tuple(sides)}
        for _ in range(spec.copies):
            new = tuple(_replaced(side, found, spec.probability, random) for side, found in options)
            if new in seen:
                continue
            seen.add(new)
            content = "\n\n".join(new)
            document = Document(text=content, origin=f"{example.document.origin}, augmented")
            pair = new[1] if len(new) > 1 else None
            made.append(replace(example, text=new[0], pair=pair, words=None, label=None, document=document))
    return made


def _replaced(text: str, candidates: Sequence[Sequence[str]], probability: float, random: np.random.Generator) -> str:
    """A text with some of its words replaced; what is between words stays."""
    draws = iter(zip(candidates, random.random(len(candidates)), strict=True))

    def put(match: re.Match[str]) -> str:
        options, draw = next(draws)
        return str(options[int(random.integers(len(options)))]) if options and draw <= probability else match.group()

    return _WORD.sub(put, text)


def _random_of(example: Example, seed: int) -> np.random.Generator:
    digest = hashlib.sha256(f"augment:{seed}:{example.document.id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))
