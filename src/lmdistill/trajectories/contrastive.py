"""Greedy text of one model that fits one prompt more than another.

SCOTT (Wang et al., arXiv 2305.01879, section 3.1) writes a rationale for the right answer against a wrong one, so that
what it says would not be said whatever the answer were:

    r_t = argmax_v  log p(v | x, y, r_<t) - weight log p(v | x, y', r_<t)

Shape legend: B texts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from lmdistill.errors import DataError
from lmdistill.trajectories.reader import Reader


def write_contrastively(
    readers: tuple[Reader, Reader],
    prompts: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    weight: float,
    max_new_tokens: int,
    end_ids: Collection[int],
    batch_size: int = 8,
    told: Callable[[int], None] = lambda texts: None,
) -> list[list[int]]:
    """The ids of a text for each pair of prompts (for, against), without its end token; both readers hold one model.

    A text ends where the plain distribution behind the first prompt has an end token as its likeliest, too: the
    difference alone would seldom end. Raises DataError for an empty prompt, or one that leaves no room for the text.
    """
    for pair in prompts:
        longest = max(map(len, pair))
        if min(map(len, pair)) == 0:
            raise DataError("contrastive decoding: a prompt has no tokens")
        if readers[0].context is not None and longest + max_new_tokens > readers[0].context:
            raise DataError(
                f"contrastive decoding: a prompt of {longest} tokens and up to {max_new_tokens} new ones do not fit "
                f"into the model's {readers[0].context}; lower generation.contrastive.max_tokens"
            )
    found: list[list[int]] = []
    for first in range(0, len(prompts), batch_size):
        found += _batch(readers, prompts[first : first + batch_size], weight, max_new_tokens, frozenset(end_ids))
        told(len(found))
    return found


def _batch(
    readers: tuple[Reader, Reader],
    prompts: Sequence[tuple[Sequence[int], Sequence[int]]],
    weight: float,
    max_new_tokens: int,
    end_ids: frozenset[int],
) -> list[list[int]]:
    """The texts of some prompts, side by side; a finished one is read on, and what it says no more is ignored."""
    texts: list[list[int]] = [[] for _ in prompts]
    open_places = set(range(len(prompts)))
    last_2B = [torch.tensor([[pair[side][-1]] for pair in prompts]) for side in (0, 1)]
    try:
        for side, reader in enumerate(readers):
            reader.clear()
            reader.admit([pair[side][:-1] for pair in prompts])
        for _ in range(max_new_tokens):
            plain_BV, other_BV = (
                reader.read(last_B1)[:, 0].float() for reader, last_B1 in zip(readers, last_2B, strict=True)
            )
            chosen_B = choose(plain_BV, other_BV, weight)
            for place in list(open_places):
                token, likeliest = int(chosen_B[place]), int(plain_BV[place].argmax())
                if token in end_ids or likeliest in end_ids:
                    open_places.remove(place)
                else:
                    texts[place].append(token)
            if not open_places:
                break
            last_2B = [chosen_B[:, None].cpu(), chosen_B[:, None].cpu()]
    finally:
        for reader in readers:
            reader.clear()
    return texts


def choose(plain_BV: Tensor, other_BV: Tensor, weight: float) -> Tensor:
    """The token of each text, (B,), from the logits behind both prompts."""
    return (torch.log_softmax(plain_BV, -1) - weight * torch.log_softmax(other_BV, -1)).argmax(-1)
