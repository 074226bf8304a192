"""What every teacher does: it says, of a batch, what the student should hold at each position.

A batch holds `input_ids`, `labels` (-100 where nothing is trained, not shifted) and `position_ids` (from 0 again in
each packed row; packed rows do not see each other), where needed `attention_mask`, all (B, L), and the names of its
samples under `row_ids`. Position t speaks of token t + 1.

Shape legend: B batch, L length, N = B * L positions, K teacher hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from lmdistill.signals.types import Signal


@dataclass(frozen=True)
class Part:
    """What one teacher says of some of a batch's positions."""

    signal: Signal
    """Its rows are all N positions of the batch; those that the mask leaves out hold anything."""
    mask_N: Tensor | None = None
    """The positions that it speaks of; None: all."""


@dataclass(frozen=True)
class Speech:
    """All that was said of one batch."""

    parts: tuple[Part, ...]
    """Their masks are disjoint."""
    hidden_NK: Tensor | None = None
    """The last hidden states, where there is one teacher and it is in this process. Rows that the mask of its part
    leaves out hold anything."""


class Teacher(Protocol):
    """Whoever says what the student should hold: a model beside it, a server, several of them, or a store."""

    def speak(self, batch: Mapping[str, Any]) -> Speech:
        """What is said of the positions of a batch."""


def model_inputs(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """What of a batch a model reads."""
    return {name: batch[name] for name in ("input_ids", "position_ids", "attention_mask") if name in batch}
