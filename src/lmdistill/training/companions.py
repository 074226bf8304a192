"""What lives beside the student while it trains, and must be in its checkpoints: texts, averages, a discriminator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lmdistill.io import read_json, write_json
from lmdistill.trajectories.window import Trajectories

FILE = "trajectories.json"


class Companion(Protocol):
    """Something with a state of its own."""

    def save(self, checkpoint: Path) -> None:
        """Write the state into a checkpoint's folder."""

    def restore(self, checkpoint: Path) -> None:
        """Take the state from a checkpoint's folder."""


class KeptTexts:
    """The texts of a training as a companion."""

    def __init__(self, trajectories: Trajectories) -> None:
        self.trajectories = trajectories

    def save(self, checkpoint: Path) -> None:
        """Write shares, buffer and texts that are still to be used."""
        write_json(checkpoint / FILE, self.trajectories.state())

    def restore(self, checkpoint: Path) -> None:
        """Go on with them."""
        self.trajectories.restore(read_json(checkpoint / FILE))


class Companions(TrainerCallback):
    """Saves companions with each checkpoint, before it is sealed; moves averages; tells held-out losses."""

    def __init__(
        self, companions: Sequence[Companion], *, moving: Any | None = None, trajectories: Trajectories | None = None
    ) -> None:
        """`moving` has an `update(model)` that is called after each optimiser step."""
        self.companions = companions
        self.moving = moving
        self.trajectories = trajectories

    def restore(self, checkpoint: Path) -> None:
        """Take all states from a checkpoint."""
        for companion in self.companions:
            companion.restore(checkpoint)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write all states beside the Trainer's files."""
        if state.is_world_process_zero:
            for companion in self.companions:
                companion.save(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Let averages follow the student."""
        if self.moving is not None:
            self.moving.update(kwargs["model"])

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Tell the mean held-out loss, in nats a token, to whom it makes a difference."""
        metrics = kwargs.get("metrics") or {}
        losses = [math.log(value) for name, value in metrics.items() if name.endswith("/perplexity")]
        if losses and self.trajectories is not None:
            self.trajectories.heard(sum(losses) / len(losses))
