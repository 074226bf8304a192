"""Which positions of a batch are compared, for hints: by their labels, by padding, and by the text they belong to.

Shape legend: B batch, L length, K width of the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lmdistill.errors import RecipeError
from lmdistill.teachers.reading import PLACES, trained_positions


@dataclass(frozen=True)
class Positions:
    """The positions of a batch."""

    trained_BL: Tensor
    """Those whose next token is trained (of a decoder), or that have a label."""
    real_BL: Tensor
    """All but padding."""
    segments_BL: Tensor | None = None
    """The text that each belongs to, -1 for padding; None: each row is one text."""
    places_BL: Tensor | None = None
    """Where in the teacher's own text, flat, each of these positions is; -1 for nowhere. None: it reads the same."""

    def chosen(self, which: Literal["trained", "all", "first"]) -> Tensor:
        """The positions that a hint speaks of, (B, L)."""
        if which == "first":
            first_BL = torch.zeros_like(self.real_BL)
            first_BL[:, 0] = self.real_BL[:, 0]
            return first_BL
        return self.trained_BL if which == "trained" else self.real_BL

    def of_teacher(self, states: Tensor) -> Tensor:
        """The teacher's states at these positions, (B, L, K)."""
        if self.places_BL is None:
            return states
        return states.flatten(0, 1)[self.places_BL.clamp_min(0)]

    def both(self) -> Positions:
        """The positions where the teacher reads the same token too."""
        if self.places_BL is None:
            return self
        there_BL = self.places_BL >= 0
        return replace(self, trained_BL=self.trained_BL & there_BL, real_BL=self.real_BL & there_BL)

    def same_text(self) -> None:
        """Raises RecipeError where the teacher reads a text of its own."""
        if self.places_BL is not None:
            raise RecipeError(
                "objective.hints: attention, relations and flows compare pairs of positions, which a teacher that "
                "reads a text of its own does not share: use hidden-state hints, or take teaching.context away"
            )


def decoder_positions(batch: Mapping[str, Any]) -> Positions:
    """The positions of a batch for a causal model; packed rows begin where `position_ids` is 0.

    A packed row without a trained token is padding.
    """
    trained_BL = trained_positions(batch)
    if "position_ids" in batch:
        segments_BL = (batch["position_ids"] == 0).cumsum(1) - 1
    else:
        segments_BL = torch.zeros_like(batch["input_ids"])
    segments_BL = segments_BL.clamp_min(0)
    counts_BL = torch.zeros_like(segments_BL).scatter_add(1, segments_BL, trained_BL.long())
    real_BL = counts_BL.gather(1, segments_BL) > 0
    if "attention_mask" in batch:
        real_BL = real_BL & batch["attention_mask"].bool()
    return Positions(trained_BL, real_BL, segments_BL.masked_fill(~real_BL, -1), batch.get(PLACES)).both()


def encoder_positions(attention_mask_BL: Tensor, labels_BL: Tensor | None = None) -> Positions:
    """The positions of a batch for an encoder; without labels of its own every token that is no padding is trained."""
    real_BL = attention_mask_BL.bool()
    trained_BL = real_BL if labels_BL is None else real_BL & (labels_BL >= 0)
    return Positions(trained_BL, real_BL, torch.where(real_BL, 0, -1))
