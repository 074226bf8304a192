"""Drawing the next token from logits: temperature, nucleus, and draws that belong to a text, not to its batch.

A token is found by inversion: one uniform number says how far to go along the cumulated probabilities. Each text has
its numbers by position, from (seed, place, stream), so that the same text comes out however rows are batched, padded
or reordered, and whatever ran before.

Shape legend: B texts, V vocabulary, b blocks of the vocabulary, w ids in a block, k likeliest ids.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BLOCK = 256
_LIKELIEST = (512, 4096)
"""Ids that are sorted where a nucleus is asked for; where they hold too little, more are, at last all."""


def uniform_draws(seed: int, place: int, stream: int, count: int) -> NDArray[np.float64]:
    """`count` numbers in [0, 1) of one text; fewer of them are the beginning of more."""
    return np.random.default_rng((seed % 2**64, place, stream)).random(count)


class NextToken:
    """What comes next in several texts: the model's plain distribution, and the one shaped for drawing.

    The shaped one is the plain one at `temperature`, cut to the smallest set of likeliest tokens that holds `top_p`
    (Holtzman et al., 1904.09751). Temperature 0 leaves the likeliest token alone.
    """

    def __init__(self, logits_BV: Tensor, *, temperature: float = 1.0, top_p: float = 1.0) -> None:
        """`logits_BV` of real ids only, any number format; all is computed from their float32 values."""
        self.logits_BV = logits_BV.float()
        self.temperature = temperature
        self.top_p = top_p if temperature > 0 else 1.0

    def broken_rows(self) -> list[int]:
        """Rows whose logits are no distribution: NaN or +inf among them, or -inf alone."""
        return [row for row, good in enumerate(torch.isfinite(self._normaliser).tolist()) if not good]

    def logprobs(self, ids_B: Tensor) -> Tensor:
        """Log-probabilities of these tokens under the plain distribution."""
        return self.logits_BV.gather(1, ids_B[:, None])[:, 0] - self._normaliser

    def shaped_logprobs(self, ids_B: Tensor) -> Tensor:
        """Log-probabilities of these tokens under the distribution that is drawn from; -inf for what it excludes."""
        if self.temperature == 0:
            return torch.where(ids_B == self.likeliest(), 0.0, -torch.inf)
        logprobs_B = self._tempered.gather(1, ids_B[:, None])[:, 0] - self._tempered_normaliser
        if self.top_p == 1.0:
            return logprobs_B
        probs_Bk, kept_Bk, _ = self._nucleus
        smallest_B = torch.where(kept_Bk, probs_Bk, torch.inf).amin(-1)
        inside_B = logprobs_B.exp() >= smallest_B * (1 - 1e-6)
        return torch.where(inside_B, logprobs_B - (probs_Bk * kept_Bk).sum(-1).log(), -torch.inf)

    def among_likeliest(self, ids_B: Tensor, k: int) -> Tensor:
        """Whether each of these tokens is among the k likeliest; a tie with the k-th counts as inside."""
        own_B1 = self.logits_BV.gather(1, ids_B[:, None])
        return (self.logits_BV > own_B1).sum(-1) < k

    def likeliest(self) -> Tensor:
        """The likeliest token of each text."""
        return self.logits_BV.argmax(-1)

    def draw(self, uniform_B: Tensor) -> Tensor:
        """One token for each text, from the shaped distribution, by these numbers in [0, 1) (float64)."""
        if self.temperature == 0:
            return self.likeliest()
        if self.top_p < 1.0:
            probs_Bk, kept_Bk, ids_Bk = self._nucleus
            return ids_Bk.gather(1, _invert(probs_Bk * kept_Bk, uniform_B)[:, None])[:, 0]
        return _invert_in_blocks(self._weights[0], uniform_B)

    @cached_property
    def _normaliser(self) -> Tensor:
        """log of the sum of exponentials of the plain logits, (B,)."""
        return self._tempered_normaliser if self.temperature == 1.0 else self.logits_BV.logsumexp(-1)

    @cached_property
    def _tempered(self) -> Tensor:
        return self.logits_BV if self.temperature == 1.0 else self.logits_BV / self.temperature

    @cached_property
    def _weights(self) -> tuple[Tensor, Tensor]:
        """exp(tempered logit - largest), (B, V), and the largest, (B,): one pass serves the normaliser and the draw."""
        largest_B1 = self._tempered.amax(-1, keepdim=True)
        return (self._tempered - largest_B1).exp_(), largest_B1[:, 0]

    @cached_property
    def _tempered_normaliser(self) -> Tensor:
        weights_BV, largest_B = self._weights
        return largest_B + weights_BV.sum(-1).log()

    @cached_property
    def _nucleus(self) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities of the likeliest ids, largest first; which of them are in the nucleus; the ids."""
        size = self.logits_BV.shape[1]
        for count in (*(count for count in _LIKELIEST if count < size), size):
            values_Bk, ids_Bk = self._tempered.topk(count) if count < size else self._tempered.sort(-1, descending=True)
            probs_Bk = (values_Bk - self._tempered_normaliser[:, None]).exp()
            total_Bk = probs_Bk.double().cumsum(-1)
            if bool((total_Bk[:, -1] >= self.top_p).all()):
                break
        kept_Bk = total_Bk - probs_Bk < self.top_p  # what is before a token does not hold top_p yet
        kept_Bk[:, 0] = True
        return probs_Bk, kept_Bk, ids_Bk


def _invert(weights_Bw: Tensor, uniform_B: Tensor) -> Tensor:
    """The place at which the cumulated weights pass this share of their sum; never one of weight 0."""
    total_Bw = weights_Bw.double().cumsum(-1)
    # Strictly below the sum, so that the place found is where the sum grows.
    target_B = uniform_B.clamp_max(1 - 1e-15) * total_Bw[:, -1]
    return torch.searchsorted(total_Bw, target_B[:, None], right=True)[:, 0].clamp_max(weights_Bw.shape[1] - 1)


def _invert_in_blocks(weights_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """`_invert` over a vocabulary: first among the sums of blocks, then in the block that was met.

    A cumulated sum over the whole of it is slow, and in float32 it would lose the rare ids.
    """
    rows, size = weights_BV.shape
    blocks = -(-size // _BLOCK)
    weights_Bbw = torch.nn.functional.pad(weights_BV, (0, blocks * _BLOCK - size)).view(rows, blocks, _BLOCK)
    sums_Bb = weights_Bbw.sum(-1).double()
    block_B = _invert(sums_Bb, uniform_B)
    ends_Bb = sums_Bb.cumsum(-1)
    own_B1 = sums_Bb.gather(1, block_B[:, None])
    before_B1 = ends_Bb.gather(1, block_B[:, None]) - own_B1
    share_B1 = ((uniform_B[:, None] * ends_Bb[:, -1:] - before_B1) / own_B1).clamp(0.0, 1.0)
    met_Bw = weights_Bbw[torch.arange(rows, device=weights_BV.device), block_B]
    return block_B * _BLOCK + _invert(met_Bw, share_B1[:, 0])
