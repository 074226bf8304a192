"""A discriminator as the judge of a window's texts (GAD 2511.10643): it scores them, then learns from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lmdistill.training.discriminator import Discriminator
from lmdistill.training.pairs import pairs_of


class Adversary:
    """Scores each row of a window's batches; what it learns from them counts from the next window on."""

    def __init__(
        self,
        discriminator: Discriminator,
        *,
        warmup: int = 0,
        tell: Callable[..., None] = lambda kind, **facts: None,
    ) -> None:
        """For the first `warmup` windows all scores are 0, so that the student's policy waits until there is a judge.

        `tell` writes an event of a kind.
        """
        self.discriminator = discriminator
        self.warmup = warmup
        self._tell = tell

    def __call__(self, batches: Sequence[dict[str, Any]]) -> list[Tensor]:
        """The score of each row, (B,), of each batch."""
        ready = self.discriminator.updates >= self.warmup
        scores = [self.discriminator.score(batch) for batch in batches]
        step = self.discriminator.update(batches, [pairs_of(batch) for batch in batches])
        self._tell("discriminator", update=self.discriminator.updates, loss=step.loss, accuracy=step.accuracy)
        return scores if ready else [torch.zeros_like(score_B) for score_B in scores]
