"""What lives beside the student while it trains, and must be in its checkpoints: texts, averages, a discriminator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lmdistill.errors import CorruptFile
from lmdistill.io import read_json, write_bytes, write_json
from lmdistill.trajectories.journal import Journal
from lmdistill.trajectories.window import Trajectories

FILE = "trajectories.json"
_JOURNAL = "journal.json"


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


class KeptJournal:
    """How much of the journal belongs to a checkpoint: what was written down after it is written down once more."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def save(self, checkpoint: Path) -> None:
        """Write the number of texts."""
        write_json(checkpoint / _JOURNAL, {"texts": self.journal.kept})

    def restore(self, checkpoint: Path) -> None:
        """Cut the journal there; a checkpoint of an older version does not say where."""
        if (checkpoint / _JOURNAL).is_file():
            self.journal.cut(int(read_json(checkpoint / _JOURNAL)["texts"]))


class KeptModule:
    """A module that is trained beside the student and never inside it, as a companion."""

    def __init__(self, module: nn.Module, name: str) -> None:
        """`name` is that of its file in a checkpoint."""
        self.module = module
        self.file = f"{name}.safetensors"

    def save(self, checkpoint: Path) -> None:
        """Write its weights."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.module.state_dict().items()}
        write_bytes(checkpoint / self.file, save(tensors))

    def restore(self, checkpoint: Path) -> None:
        """Take its weights. Raises CorruptFile where they do not fit."""
        try:
            self.module.load_state_dict(load_file(checkpoint / self.file))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise CorruptFile(f"{checkpoint / self.file}: does not fit ({error}); start this stage anew") from error


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
