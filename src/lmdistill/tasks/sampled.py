"""Texts without data: a language model writes them, from nothing (LLM-QAT 2305.17888; for masked models 1902.04094).

Shape legend: B texts, L length, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lmdistill.data import Document
from lmdistill.errors import ModelError, RecipeError
from lmdistill.recipe.task import SelfSampledSpec
from lmdistill.tasks.rows import Example

_AT_ONCE = 32


@torch.no_grad()
def sampled_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, spec: SelfSampledSpec, seed: int
) -> list[str]:
    """Texts that a model writes, equal ones once; a causal one word after word from its start token, a masked one by
    passes over positions that all begin as masks.

    Raises ModelError for a tokenizer that has neither the start nor the mask that this needs.
    """
    generator = torch.Generator(device=model.device).manual_seed(seed)
    masked = tokenizer.mask_token_id is not None
    texts: dict[str, None] = {}
    for first in range(0, spec.rows, _AT_ONCE):
        count = min(_AT_ONCE, spec.rows - first)
        draw = _masked if masked else _causal
        ids_BL = draw(model, tokenizer, spec, count, generator)
        for text in tokenizer.batch_decode(ids_BL, skip_special_tokens=True):
            if text.strip():
                texts[text.strip()] = None
    if not texts:
        raise RecipeError(f"task.self_sampled: {spec.rows} texts were drawn and all are empty; raise its temperature")
    return list(texts)


def as_examples(texts: list[str]) -> list[Example]:
    """The texts as rows without a label."""
    return [
        Example(text, None, None, None, Document(text=text, origin=f"self-sampled:{number}"))
        for number, text in enumerate(texts, start=1)
    ]


def _causal(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, spec: SelfSampledSpec, count: int, generator: Any
) -> Tensor:
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise ModelError("this tokenizer has no token that a text could start from")
    ids_BL = torch.full((count, 1), int(start), device=model.device)
    for _ in range(spec.length):
        logits_BV = model(input_ids=ids_BL, use_cache=False).logits[:, -1]
        ids_BL = torch.cat([ids_BL, _drawn(logits_BV, spec.temperature, generator)[:, None]], dim=1)
    return ids_BL


def _masked(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, spec: SelfSampledSpec, count: int, generator: Any
) -> Tensor:
    blocked = torch.tensor(list(tokenizer.all_special_ids), device=model.device)
    body_BL = torch.full((count, spec.length), int(tokenizer.mask_token_id), device=model.device)
    ends = [
        torch.full((count, 1), int(number), device=model.device) for number in (_first(tokenizer), _last(tokenizer))
    ]
    for _ in range(spec.passes):
        for place in torch.randperm(spec.length, generator=generator, device=model.device).tolist():
            body_BL[:, place] = int(tokenizer.mask_token_id)
            logits_BLV = model(input_ids=torch.cat([ends[0], body_BL, ends[1]], dim=1)).logits
            logits_BV = logits_BLV[:, place + 1].index_fill(1, blocked, -torch.inf)
            body_BL[:, place] = _drawn(logits_BV, spec.temperature, generator)
    return body_BL


def _first(tokenizer: PreTrainedTokenizerBase) -> int:
    return int(tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.mask_token_id)


def _last(tokenizer: PreTrainedTokenizerBase) -> int:
    return int(tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.mask_token_id)


def _drawn(logits_BV: Tensor, temperature: float, generator: Any) -> Tensor:
    probabilities_BV = (logits_BV.float() / temperature).softmax(-1)
    return torch.multinomial(probabilities_BV, 1, generator=generator)[:, 0]
