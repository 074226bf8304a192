"""Greedy decoding with a key-value cache, one sequence: what the measures of speed and of memory both run."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from transformers import DynamicCache, PreTrainedModel

from lmdistill.models import cache_argument
from lmdistill.recipe import SpeedSpec


def speed_prompt(model: PreTrainedModel, spec: SpeedSpec) -> torch.Tensor:
    """Random ids of shape (1, prompt tokens), fewer where prompt and new tokens exceed the length of the model."""
    room = getattr(model.config, "max_position_embeddings", None) or spec.prompt_tokens + spec.new_tokens
    prompt_tokens = max(1, min(spec.prompt_tokens, room - spec.new_tokens))
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, model.config.vocab_size, (1, prompt_tokens), generator=random).to(model.device)


@torch.no_grad()
def decode_greedily(model: PreTrainedModel, prompt: torch.Tensor, new_tokens: int) -> Iterator[torch.Tensor]:
    """Read the prompt, then write tokens: yields the chosen token (1, 1) after the prompt and after each new token.

    The first item comes when the prompt has been read, each further one when one more token has passed the model, so
    that a caller can time both phases.
    """
    cache = DynamicCache(config=model.config)
    arguments = {cache_argument(model): cache, "use_cache": True}
    token = model(prompt, logits_to_keep=1, **arguments).logits[:, -1:].argmax(-1)
    yield token
    for _ in range(new_tokens):
        token = model(token, **arguments).logits[:, -1:].argmax(-1)
        yield token
