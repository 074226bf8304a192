"""What changes in an objective while it is trained."""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from lmdistill.objectives.divergences import TAID
from lmdistill.training.ledger import LossLedger


class TaidSchedule(TrainerCallback, ExportableState):
    """Moves TAID's intermediate teacher from near the student to the teacher (2501.16937, algorithm 1).

    After each step with divergence J_n: relative change d = (J_(n-1) - J_n) / J_(n-1), momentum
    m = beta m + (1 - beta) d, interpolation i += alpha sigmoid(m) (1 - i); never below the linear schedule from start
    to end, never above end. Its state lies in the checkpoint's trainer_state.json.
    """

    def __init__(self, divergence: TAID, ledger: LossLedger) -> None:
        self.divergence = divergence
        self.ledger = ledger
        self.previous: float | None = None
        self.momentum = 0.0

    def update(self, loss: float, progress: float) -> None:
        """One step: `loss` is the step's divergence, `progress` the share of steps done, 0 to 1."""
        settings = self.divergence
        if self.previous:
            change = (self.previous - loss) / self.previous
            self.momentum = settings.momentum * self.momentum + (1 - settings.momentum) * change
        current = settings.setting
        step = settings.alpha * (1 - current) / (1 + math.exp(-self.momentum))
        linear = settings.start + (settings.end - settings.start) * progress
        settings.interpolation.fill_(min(settings.end, max(linear, current + step)))
        self.previous = loss

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take up the state of the checkpoint that training resumes from."""
        states: Any = state.stateful_callbacks  # a mapping once it is read from a checkpoint
        saved = states.get(type(self).__name__)
        if state.global_step > 0 and isinstance(saved, dict):
            self.previous = saved["attributes"]["previous"]
            self.momentum = saved["attributes"]["momentum"]
            self.divergence.interpolation.fill_(saved["attributes"]["interpolation"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Called by the Trainer after the ledger has closed the step."""
        self.update(self.ledger.step["divergence"], state.global_step / max(1, state.max_steps))

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        attributes = {
            "previous": self.previous,
            "momentum": self.momentum,
            "interpolation": self.divergence.setting,
        }
        return {"args": {}, "attributes": attributes}
