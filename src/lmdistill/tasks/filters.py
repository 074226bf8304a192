"""Task-aware filters behind layers (TED, Liang et al., 2210.01351).

Shape legend: B rows, L length, H width of a model, F width of what filters give, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from lmdistill.errors import RecipeError
from lmdistill.objectives.hints import hidden_mse
from lmdistill.objectives.hints.pieces import wide
from lmdistill.tasks.encode import IGNORED
from lmdistill.tasks.objective import Said
from lmdistill.training.anatomy import blocks_of
from lmdistill.training.layer_maps import mapped_layers
from lmdistill.training.taps import Place, Taps


class Filters(nn.Module):
    """A linear map behind each block, and for learning the task a pooler and a classifier behind each map.

    As released: maps are linear and keep all positions; each has a pooler of its own on the first position and a
    classifier of its own.
    """

    def __init__(self, depth: int, hidden: int, width: int, classes: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.maps = nn.ModuleList(nn.Linear(hidden, width) for _ in range(depth))
            self.poolers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
            self.heads = nn.ModuleList(nn.Linear(width, classes) for _ in range(depth))

    def logits(self, layer: int, state_BLH: Tensor) -> Tensor:
        """Class logits (B, C) of a block's states; layers are counted from 0."""
        first_BF = _mapped(self.maps[layer], state_BLH[:, :1])[:, 0]
        found: Tensor = self.heads[layer](torch.tanh(self.poolers[layer](first_BF)))
        return found


class FilterLearning:
    """First stage: the mean over layers of the cross-entropy of what filters make of a frozen model's states."""

    name = "filters"

    def __init__(self, filters: Filters, model: PreTrainedModel) -> None:
        self.filters = filters
        self.modules: nn.Module | None = filters
        self._places = [Place("hidden", layer) for layer in range(1, len(filters.maps) + 1)]
        self._taps = Taps(model, self._places)

    def before(self, batch: dict[str, Any], student: nn.Module, teacher: PreTrainedModel | None) -> None:
        """Catch the states behind all blocks."""
        self._taps.open()

    def between(self) -> None:
        """Nothing is done."""

    def after(self) -> None:
        """Catch no more."""
        self._taps.shut()

    def close(self) -> None:
        """Take the hooks away."""
        self._taps.close()

    def __call__(self, said: Said) -> Tensor:
        """The term of a batch; rows without a label are left out."""
        labels_B = said.batch["labels"]
        if not bool((labels_B != IGNORED).any()):
            return said.student_NC.new_zeros(())
        losses = []
        for layer, place in enumerate(self._places):
            logits_BC = self.filters.logits(layer, self._taps.take(place).detach())
            losses.append(F.cross_entropy(wide(logits_BC), labels_B, ignore_index=IGNORED))
        return torch.stack(losses).mean()


class FilterMatching:
    """Second stage: the mean over pairs of layers of MSE(f_S(h_S), f_T(h_T)); the teacher's filters are frozen."""

    name = "filters"

    def __init__(
        self,
        weight: float,
        own: Filters,
        other: Filters,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
    ) -> None:
        self.weight = weight
        self.own, self.other = own, other.requires_grad_(False)
        self.modules: nn.Module | None = own.maps
        self.pairs = mapped_layers("uniform", len(own.maps), len(other.maps))
        self._taps = [
            Taps(model, [Place("hidden", pair[side]) for pair in self.pairs])
            for side, model in enumerate((student, teacher))
        ]

    def before(self, batch: dict[str, Any], student: nn.Module, teacher: PreTrainedModel | None) -> None:
        """Catch the states of paired blocks."""
        for taps in self._taps:
            taps.open()

    def between(self) -> None:
        """Nothing is done."""

    def after(self) -> None:
        """Catch no more."""
        for taps in self._taps:
            taps.shut()

    def close(self) -> None:
        """Take the hooks away."""
        for taps in self._taps:
            taps.close()

    def __call__(self, said: Said) -> Tensor:
        """The term of a batch."""
        mask_BL = said.batch["attention_mask"].bool()
        teacher = {place: self._taps[1].take(place) for place in self._taps[1].places}
        student = {place: self._taps[0].take(place) for place in self._taps[0].places}
        losses = []
        for own, other in self.pairs:
            mine = _mapped(self.own.maps[own - 1], student[Place("hidden", own)])
            with torch.no_grad():
                theirs = _mapped(self.other.maps[other - 1], teacher[Place("hidden", other)])
            losses.append(hidden_mse(mine, theirs, mask_BL))
        return self.weight * torch.stack(losses).mean()


def _mapped(layer: nn.Module, state_BLH: Tensor) -> Tensor:
    """What a filter makes of states, in its own number format or autocast's."""
    weight: Any = layer.weight
    found: Tensor = layer(state_BLH.to(weight.dtype))
    return found


def make_filters(model: PreTrainedModel, width: int, classes: int, seed: int) -> Filters:
    """Fresh filters behind all blocks of a model. Raises RecipeError for fewer than two classes."""
    if classes < 2:
        raise RecipeError(f"task.filters learn to tell classes apart, and there are {classes}")
    return Filters(len(blocks_of(model)), int(model.config.hidden_size), width, classes, seed).to(model.device)
