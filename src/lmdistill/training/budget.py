"""A budget of time, tokens or operations: training ends after the step in which it is used up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Clock(TrainerCallback):
    """The time that training took, held-out scores left out, and an end to it where there is a budget."""

    def __init__(
        self,
        seconds: float | None = None,
        before: float = 0.0,
        *,
        earlier: float = 0.0,
        share: Callable[[TrainerState], float] | None = None,
    ) -> None:
        """`seconds` is the budget; this training used `before` of it already, trainings before it `earlier`.

        `share` tells which part of another budget (tokens, operations) is used after a step.
        """
        self.seconds = seconds
        self.share = share
        self._share = 0.0
        self.before = before
        self.earlier = earlier
        self._paused = 0.0
        self._since = time.monotonic()

    @property
    def used(self) -> float:
        """Seconds that this training took so far."""
        return self.before + time.monotonic() - self._since - self._paused

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave the time of the block out."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._paused += time.monotonic() - started

    def progress(self, step: int, max_steps: int) -> float:
        """The share of training that is done, by steps, time or another budget, whichever is furthest."""
        by_steps = step / max_steps if max_steps > 0 else 0.0
        by_time = (self.earlier + self.used) / self.seconds if self.seconds else 0.0
        return min(1.0, max(by_steps, by_time, self._share))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self._since, self._paused = time.monotonic(), 0.0
        self._share = self.share(state) if self.share is not None else 0.0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """End training where the budget is used up."""
        if self.share is not None:
            self._share = self.share(state)
        if self._share >= 1 or (self.seconds is not None and self.earlier + self.used >= self.seconds):
            control.should_training_stop = True
