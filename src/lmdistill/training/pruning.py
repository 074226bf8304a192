"""Neurons go while the student learns (HomoDistil, 2302.09632): masks during training, a smaller model at the end.

Shape legend: I neurons of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lmdistill.errors import CorruptFile, RecipeError
from lmdistill.io import write_bytes
from lmdistill.recipe import PruneWhileSpec
from lmdistill.training.anatomy import bare, blocks_of
from lmdistill.training.neurons import narrow_neurons, neuron_axes, neuron_count

FILE = "pruning.safetensors"


class PruneWhile(TrainerCallback):
    """Removes the neurons of each block that matter least, a few at a time, and keeps them at zero.

    A neuron's importance is |sum of w dL/dw| over its weights, by which the loss would change to first order if it went
    (HomoDistil, eq. 6, after 1905.10650), averaged over steps. The number that is left falls on a cubic curve
    (1710.01878) from all to `intermediate`; each block keeps as many, so that the result is an ordinary model.
    Is a companion too: its state lies in checkpoints.
    """

    def __init__(self, spec: PruneWhileSpec, model: nn.Module, progress: Callable[[], float]) -> None:
        """`model` is the student in training; `progress` tells the share of training that is done.

        Raises RecipeError where more neurons are to be left than there are, ModelError for blocks without known ones.
        """
        self.spec = spec
        self.progress = progress
        self.blocks = blocks_of(model)
        self.sizes = [neuron_count(block) for block in self.blocks]
        if spec.intermediate > min(self.sizes):
            raise RecipeError(f"pruning.intermediate = {spec.intermediate}, but blocks have {min(self.sizes)} neurons")
        device = next(bare(model).parameters()).device
        self.alive = [torch.ones(size, dtype=torch.bool, device=device) for size in self.sizes]
        self.scores = [torch.zeros(size, device=device) for size in self.sizes]

    def wanted(self, progress: float, size: int) -> int:
        """How many of a block's neurons are left at a share of training."""
        spec = self.spec
        done = min(1.0, max(0.0, (progress - spec.start) / (spec.end - spec.start)))
        return round(spec.intermediate + (size - spec.intermediate) * (1 - done) ** 3)

    @torch.no_grad()
    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the step's gradients into the scores."""
        decay = self.spec.average
        for block, scores_I in zip(self.blocks, self.scores, strict=True):
            change_I = torch.zeros_like(scores_I)
            for name, axis in neuron_axes(block).items():
                parameter = block.get_parameter(name)
                if parameter.grad is not None:
                    terms = (parameter * parameter.grad).float()
                    change_I += terms.transpose(0, axis).flatten(1).sum(1) if terms.ndim > 1 else terms
            scores_I.mul_(decay).add_(change_I.abs(), alpha=1 - decay)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Prune where it is time; what is gone stays gone, whatever the optimiser's momentum does."""
        if state.global_step % self.spec.every == 0:
            self.prune(self.progress())
        self._mask()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Training that went to its end leaves as many neurons as were asked for."""
        if self.progress() >= self.spec.end:
            self.prune(1.0)
            self._mask()

    def prune(self, progress: float) -> None:
        """Keep the most important ones of those that are there."""
        for alive_I, scores_I in zip(self.alive, self.scores, strict=True):
            count = self.wanted(progress, len(alive_I))
            if count < int(alive_I.sum()):
                kept = scores_I.masked_fill(~alive_I, -1.0).topk(count).indices
                alive_I.zero_()
                alive_I[kept] = True

    def shrink(self, model: nn.Module) -> None:
        """Take the neurons that are gone out of the model, which goes on saying the same."""
        if not all(bool(alive_I.all()) for alive_I in self.alive):
            narrow_neurons(model, [alive_I.nonzero()[:, 0] for alive_I in self.alive])

    def save(self, checkpoint: Path) -> None:
        """Write which neurons are there, and the scores."""
        tensors: dict[str, Tensor] = {}
        for number, (alive_I, scores_I) in enumerate(zip(self.alive, self.scores, strict=True)):
            tensors |= {f"alive.{number}": alive_I.cpu(), f"scores.{number}": scores_I.cpu()}
        write_bytes(checkpoint / FILE, save(tensors))

    def restore(self, checkpoint: Path) -> None:
        """Go on with them. Raises CorruptFile where they do not fit."""
        try:
            found = load_file(checkpoint / FILE)
            for number, (alive_I, scores_I) in enumerate(zip(self.alive, self.scores, strict=True)):
                alive_I.copy_(found[f"alive.{number}"])
                scores_I.copy_(found[f"scores.{number}"])
        except (OSError, KeyError, RuntimeError, SafetensorError) as error:
            raise CorruptFile(f"{checkpoint / FILE}: does not fit ({error}); start this stage anew") from error

    @torch.no_grad()
    def _mask(self) -> None:
        for block, alive_I in zip(self.blocks, self.alive, strict=True):
            for name, axis in neuron_axes(block).items():
                parameter = block.get_parameter(name)
                shape = [1] * parameter.ndim
                shape[axis] = -1
                parameter.mul_(alive_I.view(shape).to(parameter.dtype))
