"""Task-aware filters behind layers of causal models (TED, Liang et al., 2210.01351).

A filter is a linear map behind a block. First it learns the task with the model frozen: here the next token, by the
teacher's frozen final norm and head. Then the student learns while its filtered states are drawn to the teacher's,
whose filters are frozen. (Filters of encoders, which learn classes, are in `lmdistill.tasks.filters`.)

TED gives each filter a head of its own while it learns. Of a causal model that would be a table of vocabulary x width
for each layer; all filters, the student's too, share the teacher's head instead, so that both sides give states of the
teacher's width that say something under one head.

Shape legend: B batch, L length, N = B * L positions, H width of a model, K of the teacher.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lmdistill.objectives import distillation_loss
from lmdistill.recipe import ObjectiveSpec, ProjectorSpec
from lmdistill.teachers import LocalTeacher
from lmdistill.training.anatomy import final_norm
from lmdistill.training.groups import IGNORED, next_labels
from lmdistill.training.objective import StepLoss
from lmdistill.training.projectors import make_projector, project
from lmdistill.training.taps import Place, Taps

Read = Callable[[nn.Module, Mapping[str, Any]], object]
"""Lets a model read a batch."""


class LayerFilters(nn.Module):
    """A linear map behind each of some blocks of a model, the identity at first where it keeps the width."""

    def __init__(self, layers: Sequence[int], given: int, wanted: int, seed: int) -> None:
        """`layers` are counted from 1; maps go from width `given` to `wanted`."""
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.maps = nn.ModuleDict({str(layer): make_projector(ProjectorSpec(), given, wanted) for layer in layers})
        self.progress: Callable[[], float] = lambda: 0.0
        """The share of training that is done; the Trainer sets it."""
        self.step: Callable[[], int] = lambda: 0
        """The optimiser steps that are done; the Trainer sets it."""

    @property
    def places(self) -> list[Place]:
        """What is filtered."""
        return [Place("hidden", int(layer)) for layer in self.maps]

    def at(self, layer: int) -> nn.Module:
        """The map behind a block."""
        return self.maps[str(layer)]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What an optimiser trains."""
        return [{"params": list(self.parameters())}]


@dataclass(frozen=True)
class FilterPair:
    """The filters of both models that learnt the task."""

    student: LayerFilters
    teacher: LayerFilters


class FilterObjective:
    """First stage: the mean over layers of the cross-entropy of the next token by filtered states of a frozen model."""

    aligned = None
    divergence = None

    def __init__(
        self,
        filters: LayerFilters,
        model: PreTrainedModel,
        teacher: LocalTeacher,
        read: Read,
        *,
        compute_dtype: torch.dtype | None = None,
        compiled: bool = True,
    ) -> None:
        """`model` is whose filters learn, by `teacher`'s norm and head; hooked until `close`. `read` is how the model
        reads a batch: a teacher of a student with fewer words reads other ids."""
        self.spec = ObjectiveSpec.model_validate({"divergence": {"weight": 0.0}, "cross_entropy": {"weight": 1.0}})
        self.filters = filters
        self.hints = filters  # what the Trainer trains beside the model
        self.head = teacher.head
        # Of its own in float32: a norm of 16 bits would round what filters say.
        self.norm = copy.deepcopy(final_norm(teacher.model)).float().requires_grad_(False)
        self.read = read
        self.compute_dtype = compute_dtype
        self.compiled = compiled
        self._taps = Taps(model, filters.places)

    def close(self) -> None:
        """Take the hooks away."""
        self._taps.close()

    def __call__(
        self, model: nn.Module, bare_model: nn.Module, batch: Mapping[str, Any], num_items: Tensor | float | None
    ) -> StepLoss:
        """The loss of a micro-batch; only filters have a gradient."""
        with torch.no_grad(), self._taps.capture():
            self.read(model, batch)
        labels_N = next_labels(batch["labels"]).flatten()
        losses, tokens = [], []
        for place in self.filters.places:
            assert isinstance(place.layer, int)
            state_BLK = project(self.filters.at(place.layer), self._taps.take(place).detach())
            found = distillation_loss(
                self.norm(state_BLK.float() if state_BLK.dtype != torch.float64 else state_BLK).flatten(0, 1),
                self.head.weight_VH,
                None,
                divergence_weight=0.0,
                labels_N=labels_N.clamp_min(0),
                label_weight=1.0,
                mask_N=labels_N != IGNORED,
                num_items=num_items,
                student_bias=self.head.bias_V,
                logit_scale=self.head.logit_scale,
                softcap=self.head.softcap,
                vocab_size=self.head.vocabulary_size,
                compute_dtype=self.compute_dtype,
                compiled=self.compiled,
            )
            losses.append(found.loss)
            tokens.append(found.token_loss_N)
        loss = torch.stack(losses).mean()
        zero = loss.detach() * 0.0
        rows_BL = torch.stack(tokens).mean(0).view(batch["labels"].shape)
        return StepLoss(loss, zero, loss.detach(), zero, rows_BL)
