"""A model that reads several texts side by side, a token or a block at a time; texts come and go as others go on.

Shape legend: B texts, q new tokens of each, L columns, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from lmdistill.errors import ModelError
from lmdistill.models import cache_argument
from lmdistill.trajectories.columns import ColumnCache


class Reader:
    """Reads with one model. The texts are numbered 0 to B - 1; the last takes the number of one that leaves."""

    def __init__(self, model: PreTrainedModel, vocabulary_size: int) -> None:
        """`vocabulary_size` is the number of real ids. Raises ModelError for layers whose state is no list of keys."""
        self.model = model
        self.context = context_of(model)
        self._vocabulary_size = vocabulary_size
        self._cache_argument = cache_argument(model)
        self._check_layers()
        self._cache = ColumnCache()

    def clear(self) -> None:
        """Forget all texts and give the buffers back."""
        self._cache = ColumnCache()

    @torch.inference_mode()
    def admit(self, texts: Sequence[Sequence[int]]) -> None:
        """Read new texts, which may be empty; they take the next numbers. Equal ones are read once."""
        found = DynamicCache()  # without the configuration: a sliding window's layer would keep its padded end only
        rows = {text: row for row, text in enumerate(dict.fromkeys(map(tuple, texts)))}
        longest = max(map(len, rows))
        if longest > 0:
            ids_BL = torch.zeros(len(rows), longest, dtype=torch.long)
            for text, row in rows.items():  # padded behind: what comes later changes nothing of what is before
                ids_BL[row, : len(text)] = torch.tensor(text)
            none = torch.empty(0, dtype=torch.long, device=self.model.device)
            self._forward(ids_BL, found, logits_to_keep=none)
        self._cache.add(found, [rows[tuple(text)] for text in texts], [len(text) for text in texts])

    @torch.inference_mode()
    def read(self, ids_Bq: Tensor) -> Tensor:
        """Read q more tokens of every text; the logits of what follows each, (B, q, V), real ids only."""
        cache, new = self._cache, ids_Bq.shape[1]
        cache.reserve(len(cache.starts), before=0, after=new)
        starts_B1 = torch.tensor(cache.starts)[:, None]
        positions_Bq = cache.end - starts_B1 + torch.arange(new)
        if self.context is not None:  # a block may reach beyond what is kept; learned positions end there
            positions_Bq.clamp_max_(self.context - 1)
        mask_BL = (torch.arange(cache.first, cache.end + new) >= starts_B1).long()
        device = self.model.device
        logits_BqV = self._forward(
            ids_Bq, cache, attention_mask=mask_BL.to(device), position_ids=positions_Bq.to(device)
        )
        cache.end += new
        return logits_BqV[..., : self._vocabulary_size]

    @torch.inference_mode()
    def take_back(self, counts: Sequence[int]) -> None:
        """Forget the last tokens of each text, so many of each."""
        self._cache.take_back(counts)

    @torch.inference_mode()
    def leave(self, number: int) -> None:
        """Forget a text; the last one takes its number."""
        self._cache.leave(number)

    def _forward(self, ids_Bq: Tensor, cache: Any, **arguments: Any) -> Tensor:
        model: Any = self.model
        arguments[self._cache_argument] = cache
        return cast(Tensor, model(ids_Bq.to(self.model.device), use_cache=True, **arguments).logits)

    def _check_layers(self) -> None:
        for number, layer in enumerate(DynamicCache(config=self.model.config).layers):
            if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) and type(layer).__name__ != "DummyLayer":
                raise ModelError(
                    f"layer {number} of {type(self.model).__name__} keeps a {type(layer).__name__}, not the keys and "
                    "values of each token; let a server write with it (trajectories.rollouts.engine: server)"
                )


def context_of(model: PreTrainedModel) -> int | None:
    """Longest text that the model's configuration allows, in tokens; None where it names no limit."""
    config: Any = model.config.get_text_config()
    value = getattr(config, "max_position_embeddings", None)
    return int(value) if value else None
