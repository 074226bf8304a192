"""Neurons, heads and channels go while the student learns (HomoDistil, 2302.09632): masks during training, a smaller
model at the end.

Shape legend: U units that are ranked among each other.
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

from lmdistill.errors import CorruptFile
from lmdistill.io import write_bytes
from lmdistill.recipe import PruneWhileSpec
from lmdistill.training.anatomy import bare
from lmdistill.training.neurons import narrow_neurons
from lmdistill.training.units import mask_norms, narrow_units, units_of

FILE = "pruning.safetensors"


class PruneWhile(TrainerCallback):
    """Removes the units that matter least, a few at a time, and keeps them at zero.

    A unit's importance is |sum of w dL/dw| over its weights, by which the loss would change to first order if it went
    (HomoDistil, eq. 6, after 1905.10650), averaged over steps; a weight that joins a channel to itself counts twice.
    The number that is left falls on a cubic curve (1710.01878) from all to what the recipe says. HomoDistil prunes the
    columns of each matrix by themselves; here what belongs together goes as one, each block keeps as many neurons and
    heads, and all blocks the same channels, so that the result is an ordinary model. Norms see the channels that are
    there alone, so that cutting changes nothing of what the model says.
    Is a companion too: its state lies in checkpoints.
    """

    def __init__(self, spec: PruneWhileSpec, model: nn.Module, progress: Callable[[], float]) -> None:
        """`model` is the student in training; `progress` tells the share of training that is done.

        Raises RecipeError where more is to be left than there is or sizes do not fit together, ModelError for a model
        whose units are not known.
        """
        self.spec = spec
        self.progress = progress
        self.model = bare(model)
        found = units_of(self.model, spec)
        self.units = [units for units, _ in found]
        self.left = [left for _, left in found]
        device = next(self.model.parameters()).device
        self.alive = [torch.ones(units.size, dtype=torch.bool, device=device) for units in self.units]
        self.scores = [torch.zeros(units.size, device=device) for units in self.units]
        hidden = [place for place, units in enumerate(self.units) if units.kind == "hidden"]
        self._undo = [mask_norms(self.model, self.units[place], self.alive[place]) for place in hidden]

    def wanted(self, progress: float, size: int, left: int) -> int:
        """How many of `size` units are there at a share of training, of which `left` are there at the end."""
        spec = self.spec
        done = min(1.0, max(0.0, (progress - spec.start) / (spec.end - spec.start)))
        return round(left + (size - left) * (1 - done) ** 3)

    @torch.no_grad()
    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the step's gradients into the scores."""
        decay = self.spec.average
        parameters = dict(self.model.named_parameters())
        terms = {name: (p * p.grad).float() for name, p in parameters.items() if p.grad is not None}
        for units, scores_U in zip(self.units, self.scores, strict=True):
            change_U = torch.zeros_like(scores_U)
            for part in units.slices:
                if part.path in terms:
                    change_U += part.by_unit(terms[part.path])
            scores_U.mul_(decay).add_(change_U.abs(), alpha=1 - decay)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Prune where it is time; what is gone stays gone, whatever the optimiser's momentum does."""
        if state.global_step % self.spec.every == 0:
            self.prune(self.progress())
        self._mask()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Training that went to its end leaves as many units as were asked for."""
        if self.progress() >= self.spec.end:
            self.prune(1.0)
            self._mask()

    def prune(self, progress: float) -> None:
        """Keep the most important ones of those that are there."""
        for left, alive_U, scores_U in zip(self.left, self.alive, self.scores, strict=True):
            count = self.wanted(progress, len(alive_U), left)
            if count < int(alive_U.sum()):
                kept = scores_U.masked_fill(~alive_U, -1.0).topk(count).indices
                alive_U.zero_()
                alive_U[kept] = True

    def shrink(self, model: nn.Module) -> None:
        """Take what is gone out of the model, which goes on saying the same.

        A training that was stopped before `end` by its budget leaves more units than were asked for. Raises RecipeError
        where a model of that many cannot be: heads that do not fill a BERT's width.
        """
        for undo in self._undo:
            undo()
        if all(bool(alive_U.all()) for alive_U in self.alive):
            return
        if all(units.kind == "neurons" for units in self.units):
            narrow_neurons(model, [alive_U.nonzero()[:, 0] for alive_U in self.alive])
        else:
            narrow_units(model, self._left_now(), self.units, self.alive)

    def _left_now(self) -> PruneWhileSpec:
        """The recipe's section with what is left indeed."""
        counts = {units.kind: int(alive_U.sum()) for units, alive_U in zip(self.units, self.alive, strict=True)}
        config: Any = self.model.config
        values: dict[str, int] = {}
        if "neurons" in counts:
            values["intermediate"] = counts["neurons"]
        if "heads" in counts:
            groups = next(units.size for units in self.units if units.kind == "heads")
            values["heads"] = counts["heads"] * int(config.num_attention_heads) // groups
        if "hidden" in counts:
            values["hidden"] = counts["hidden"]
        return self.spec.model_copy(update=values)

    def save(self, checkpoint: Path) -> None:
        """Write which units are there, and the scores."""
        tensors: dict[str, Tensor] = {}
        for number, (alive_U, scores_U) in enumerate(zip(self.alive, self.scores, strict=True)):
            tensors |= {f"alive.{number}": alive_U.cpu(), f"scores.{number}": scores_U.cpu()}
        write_bytes(checkpoint / FILE, save(tensors))

    def restore(self, checkpoint: Path) -> None:
        """Go on with them. Raises CorruptFile where they do not fit."""
        try:
            found = load_file(checkpoint / FILE)
            for number, (alive_U, scores_U) in enumerate(zip(self.alive, self.scores, strict=True)):
                alive_U.copy_(found[f"alive.{number}"])
                scores_U.copy_(found[f"scores.{number}"])
        except (OSError, KeyError, RuntimeError, SafetensorError) as error:
            raise CorruptFile(f"{checkpoint / FILE}: does not fit ({error}); start this stage anew") from error

    @torch.no_grad()
    def _mask(self) -> None:
        parameters = dict(self.model.named_parameters())
        for units, alive_U in zip(self.units, self.alive, strict=True):
            for part in units.slices:
                parameter = parameters[part.path]
                shape = [1] * parameter.ndim
                shape[part.axis] = -1
                parameter.mul_(part.spread(alive_U).view(shape).to(parameter.dtype))
