"""Text that the student writes as training goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from transformers import PreTrainedModel

from lmdistill.trajectories.types import Trajectory


class Writer(Protocol):
    """Writes an answer to each prompt with the student's weights of its last `refresh`."""

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        seed: int,
        step: int,
        row_ids: Sequence[str],
        max_new_tokens: int | None = None,
        told: Callable[[int], None] = lambda tokens: None,
    ) -> list[Trajectory]:
        """One answer a prompt, in the order of the prompts; `told` hears of each finished row's answer tokens.

        `max_new_tokens` shortens the limit of this call below that of the recipe; a text then is the beginning of what
        it would have been.

        The same seed, prompts and weights give the same text, whatever ran before and however rows are batched.
        Raises DataError for a prompt that leaves no room for the answer in the model's context, TrainingError for NaN
        logits; nothing that exists is lost.
        """
        ...

    def refresh(self, model: PreTrainedModel, step: int) -> None:
        """Take over the student's present weights, which are those of this optimiser step."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...
