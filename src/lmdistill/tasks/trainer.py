"""The Trainer of tasks: `DistillTrainer` on labelled rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lmdistill.tasks.encode import IGNORED
from lmdistill.tasks.objective import TaskObjective
from lmdistill.training.companions import Companion
from lmdistill.training.trainer import DistillTrainer


class TaskTrainer(DistillTrainer):
    """Trains a student by a `TaskObjective`; batches are those of `TaskCollator`."""

    def __init__(self, *args: Any, objective: TaskObjective, **kwargs: Any) -> None:
        """As `DistillTrainer`, which asks no more of an objective than that it can be called."""
        super().__init__(*args, objective=objective, **kwargs)  # type: ignore[arg-type]
        self.task_objective = objective
        objective.progress = lambda: self.clock.progress(self.state.global_step, self.state.max_steps)
        objective.step = lambda: self.state.global_step

    def companions(self) -> list[Companion]:
        """What this trainer keeps beside a checkpoint."""
        return []

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's optimiser; what is trained beside the student is a group of its own."""
        made = self.optimizer is None
        optimiser = super().create_optimizer(*args, **kwargs)
        for module in self.task_objective.modules if made else ():
            own_rates = getattr(module, "parameter_groups", None)
            groups = own_rates() if own_rates is not None else [{"params": [*module.parameters()]}]
            for group in groups:
                trained = [parameter for parameter in group["params"] if parameter.requires_grad]
                if trained:
                    optimiser.add_param_group({**group, "params": trained, "weight_decay": 0.0})
        return optimiser

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The micro-batches of one optimiser step, and how many rows (or labelled words) are in them, on all ranks."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        kind = self.task_objective.kind
        if kind in ("token_classification", "masked_lm"):
            count = sum(int((batch["labels"] != IGNORED).sum()) for batch in batches)
        else:
            count = sum(len(batch["input_ids"]) for batch in batches)
        return batches, self._over_ranks(torch.tensor(count))
