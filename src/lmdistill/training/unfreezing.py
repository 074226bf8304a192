"""Which of the student's blocks are trained when: XtremeDistil's unfreezing, MobileBERT's progressive transfer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lmdistill.recipe import UnfreezeSpec
from lmdistill.training.anatomy import bare, blocks_of
from lmdistill.training.hints import HintSet


class Unfreezing(TrainerCallback):
    """Lets parameters of the student be trained by the share of training that is done.

    The optimiser is made before the first step, with everything in it; what is frozen has no gradient, and no step of
    the optimiser moves it. Only what was trainable at the start is ever switched. Has no state of its own: what is
    trained follows from the progress.
    """

    def __init__(
        self,
        spec: UnfreezeSpec,
        model: nn.Module,
        progress: Callable[[], float],
        hints: HintSet | None = None,
    ) -> None:
        """`progress` tells the share of training that is done; `hints` are told which block is the current one."""
        self.spec = spec
        self.progress = progress
        self.hints = hints
        inner: Any = bare(model)
        blocks = blocks_of(inner)
        self.blocks = [_trainable(block) for block in blocks]
        inside = {id(p) for block in self.blocks for p in block}
        self.embeddings = [p for p in _trainable(inner.get_input_embeddings()) if id(p) not in inside]
        # Position embeddings, and whatever else lies before the first block, go with the word embeddings.
        table = {id(p) for p in self.embeddings}
        first = next((name for name, p in inner.named_parameters() if id(p) in inside), None)
        before = True
        self.head: list[nn.Parameter] = []
        for name, parameter in inner.named_parameters():
            before = before and name != first
            if parameter.requires_grad and id(parameter) not in inside | table:
                (self.embeddings if before else self.head).append(parameter)

    def active(self, progress: float) -> tuple[list[int], int | None]:
        """The blocks that are trained, counted from 1, and the one whose turn it is; None where all are."""
        count = len(self.blocks)
        if progress >= self.spec.until:
            return [*range(1, count + 1)], None
        order = [*range(count, 0, -1)] if self.spec.order == "top_down" else [*range(1, count + 1)]
        turn = min(count - 1, int(progress / self.spec.until * count))
        return (order[: turn + 1] if self.spec.mode == "accumulate" else [order[turn]]), order[turn]

    def apply(self, progress: float) -> None:
        """Switch all parameters."""
        active, turn = self.active(progress)
        for number, parameters in enumerate(self.blocks, start=1):
            _switch(parameters, number in active)
        choice = self.spec.embeddings
        _switch(self.embeddings, choice == "always" or (choice == "with_first" and 1 in active))
        _switch(self.head, self.spec.head or len(self.blocks) in active)
        if self.hints is not None:
            self.hints.current = turn if self.spec.mode == "one" else None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called by the Trainer before the micro-batches of a step."""
        self.apply(self.progress())

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave everything trainable that was."""
        for parameters in (*self.blocks, self.embeddings, self.head):
            _switch(parameters, True)


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _switch(parameters: list[nn.Parameter], trained: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(trained)
        if not trained:
            parameter.grad = None
