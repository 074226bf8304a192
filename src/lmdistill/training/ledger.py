"""The parts of the loss, step by step: what the Trainer's own log does not know."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

PARTS = ("loss", "divergence", "cross_entropy", "hidden_cosine")


class LossLedger(TrainerCallback):
    """Sums the parts over the micro-batches of a step and averages steps between two log lines.

    Must be the first callback: others read `step` at the end of a step and `window` when logs are written.
    """

    def __init__(self) -> None:
        self._open: dict[str, Tensor] = {}
        self._window: list[dict[str, float]] = []
        self.step: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        """The parts of the last whole step."""
        self.window: dict[str, float] = {}
        """Their averages between the last two log lines."""

    def add(self, **parts: Tensor) -> None:
        """Add one micro-batch; each part is already divided by the tokens of the whole step."""
        for name, value in parts.items():
            value = value.detach().to(torch.float64)
            self._open[name] = self._open[name] + value if name in self._open else value

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Close the step."""
        self.step = {name: float(value) for name, value in self._open.items()}
        self._window.append(self.step)
        self._open = {}

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Close the window."""
        if self._window:
            names = self._window[-1]
            self.window = {name: sum(step[name] for step in self._window) / len(self._window) for name in names}
            self._window = []
