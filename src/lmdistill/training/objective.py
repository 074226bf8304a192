"""From a batch to a loss: the student's and the teacher's hidden states, compared by the loss engine.

Shape legend: B batch, L length, N = B * L positions, H student hidden, K teacher hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lmdistill.models import OutputHead, last_hidden, output_head
from lmdistill.objectives import Divergence, distillation_loss
from lmdistill.objectives.chunked import LossParts
from lmdistill.objectives.hints import cosine_distance
from lmdistill.objectives.rows import LogitsView
from lmdistill.objectives.weights import first_share, student_entropy, top_share
from lmdistill.recipe import ObjectiveSpec
from lmdistill.signals import Signal
from lmdistill.teachers.base import Speech, Teacher, model_inputs
from lmdistill.training.groups import IGNORED, Group, Term, groups_of, next_labels

SPEECH = "speech"
"""Where a batch of a prepared window holds what the teacher said of it."""


@dataclass(frozen=True)
class StepLoss:
    """The loss of one micro-batch and its parts, all divided by the tokens of the whole accumulated batch."""

    loss: Tensor
    divergence: Tensor
    cross_entropy: Tensor
    hidden_cosine: Tensor
    token_loss_BL: Tensor
    """What each position added before division, 0 where masked."""
    others: dict[str, Tensor] = field(default_factory=dict)
    """Parts that only some objectives have, by name."""


@dataclass(frozen=True)
class Read:
    """What the student makes of a micro-batch."""

    hidden_NH: Tensor
    head: OutputHead
    labels_N: Tensor
    mask_N: Tensor
    """The trained positions."""
    batch: Mapping[str, Any]

    @property
    def shape(self) -> torch.Size:
        """(B, L)."""
        shape: torch.Size = self.batch["input_ids"].shape
        return shape


class Objective:
    """The weighted sum of terms that an `ObjectiveSpec` describes."""

    def __init__(
        self,
        spec: ObjectiveSpec,
        *,
        teacher: Teacher | None,
        vocabulary_size: int,
        compute_dtype: torch.dtype | None = None,
        compiled: bool = True,
    ) -> None:
        """`vocabulary_size` is the number of real ids; `compute_dtype` the precision of the head's products.

        Raises ValueError where the terms need a teacher and none is given.
        """
        if spec.needs_teacher and teacher is None:
            raise ValueError("this objective compares with a teacher, but none was given")
        self.spec = spec
        self.teacher = teacher if spec.needs_teacher else None
        self.term = Term.of(spec.divergence)
        self.student_term = None if spec.student_divergence is None else Term.of(spec.student_divergence)
        self.vocabulary_size = vocabulary_size
        self.compute_dtype = compute_dtype
        self.compiled = compiled

    @property
    def divergence(self) -> Divergence:
        """The definition of `spec.divergence`."""
        return self.term.definition

    def __call__(
        self, model: nn.Module, bare_model: PreTrainedModel, batch: Mapping[str, Any], num_items: Tensor | float | None
    ) -> StepLoss:
        """The loss of one micro-batch.

        `model` is called (wrapped for several devices or not), `bare_model` is the student inside it.
        """
        hidden_NH = last_hidden(model, model_inputs(batch)).flatten(0, 1)
        labels_N = next_labels(batch["labels"]).flatten()
        head = output_head(bare_model, self.vocabulary_size)
        read = Read(hidden_NH, head, labels_N.clamp_min(0), labels_N != IGNORED, batch)
        speech = self._speech(batch)
        sums = self._compare(read, speech, num_items)
        cosine = hidden_NH.new_zeros((), dtype=torch.float32)
        if self.spec.hidden_cosine.weight > 0 and speech is not None and speech.hidden_NK is not None:
            cosine = cosine_distance(hidden_NH, speech.hidden_NK, read.mask_N, num_items)
        return StepLoss(
            loss=sums.loss + self.spec.hidden_cosine.weight * cosine,
            divergence=sums.divergence,
            cross_entropy=sums.cross_entropy,
            hidden_cosine=cosine.detach(),
            token_loss_BL=sums.token_loss_N.view(read.shape),
        )

    def _speech(self, batch: Mapping[str, Any]) -> Speech | None:
        """What the teacher says; said already where the window was prepared."""
        said: Speech | None = batch.get(SPEECH)
        return said if said is not None or self.teacher is None else self.teacher.speak(batch)

    def _compare(self, read: Read, speech: Speech | None, num_items: Tensor | float | None) -> LossParts:
        """Divergences and cross-entropy over all groups of tokens and all parts of the speech."""
        weight_N = self._weights(read, speech)
        counted_N = read.mask_N if weight_N is None else read.mask_N & (weight_N > 0)
        if num_items is None and weight_N is not None:
            num_items = max(1, int(read.mask_N.sum()))
        found = [
            self._engine(read, group, signal, mask_N, weight_N, count)
            for group in groups_of(self.spec, (self.term, self.student_term), read.batch, counted_N, num_items)
            for signal, mask_N, count in _pieces(group, speech)
        ]
        return _sum(found, read)

    def _engine(
        self,
        read: Read,
        group: Group,
        signal: Signal | None,
        mask_N: Tensor,
        weight_N: Tensor | None,
        num_items: Tensor | float | None,
    ) -> LossParts:
        term = group.term.spec
        return distillation_loss(
            read.hidden_NH,
            read.head.weight_VH,
            signal if term.weight > 0 else None,
            group.term.definition,
            divergence_weight=term.weight,
            labels_N=read.labels_N,
            label_weight=group.label_weight,
            mask_N=mask_N,
            weight_N=weight_N,
            num_items=num_items,
            temperature=term.temperature,
            temperature_squared=term.temperature_squared,
            student_bias=read.head.bias_V,
            logit_scale=read.head.logit_scale,
            softcap=read.head.softcap,
            compute_dtype=self.compute_dtype,
            compiled=self.compiled,
        )

    def _weights(self, read: Read, speech: Speech | None) -> Tensor | None:
        """Weights of the tokens, (N,); None where all count alike."""
        spec = self.spec.tokens
        if spec.by == "all":
            return None
        if spec.by == "position":
            mask_BL = read.mask_N.view(read.shape)
            return first_share(read.batch["position_ids"], mask_BL, spec.keep).flatten()
        if spec.by == "student_entropy":
            return top_share(self._entropy(read), read.mask_N, spec.keep)
        detached = replace(
            read,
            hidden_NH=read.hidden_NH.detach(),
            head=replace(read.head, weight_VH=read.head.weight_VH.detach()),
        )
        with torch.no_grad():
            group = Group(read.mask_N, self.term, 0.0, None)
            scores = [
                self._engine(detached, group, signal, mask_N, None, count)
                for signal, mask_N, count in _pieces(group, speech)
            ]
        return top_share(_sum(scores, read).token_loss_N, read.mask_N, spec.keep)

    def _entropy(self, read: Read) -> Tensor:
        head = read.head
        weight_VH = head.weight_VH[: head.vocabulary_size].detach()
        compute = self.compute_dtype or weight_VH.dtype
        bias_V = None if head.bias_V is None else head.bias_V[: head.vocabulary_size].detach().to(compute)
        return student_entropy(
            read.hidden_NH.detach(),
            weight_VH.to(compute),
            read.mask_N,
            bias_V=bias_V,
            view=LogitsView(head.logit_scale, head.softcap),
            compiled=self.compiled,
        )


def _pieces(group: Group, speech: Speech | None) -> list[tuple[Signal | None, Tensor, Tensor | float | None]]:
    """Calls of the engine that make up one group: (signal, mask, divisor), masks disjoint.

    Several parts share the divisor of the group. Where nobody speaks, the text's own labels may still count.
    """
    if speech is None:
        return [(None, group.mask_N, group.num_items)] if group.label_weight > 0 else []
    if len(speech.parts) == 1 and speech.parts[0].mask_N is None:
        if group.term.spec.weight == 0 and group.label_weight == 0:
            return []
        return [(speech.parts[0].signal, group.mask_N, group.num_items)]
    count = group.num_items if group.num_items is not None else max(1, int(group.mask_N.sum()))
    pieces: list[tuple[Signal | None, Tensor, Tensor | float | None]] = []
    left_N = group.mask_N
    for part in speech.parts:
        said_N = left_N if part.mask_N is None else left_N & part.mask_N
        pieces.append((part.signal, said_N, count))
        left_N = left_N & ~said_N
    return [*pieces, (None, left_N, count)] if group.label_weight > 0 else pieces


def _sum(found: Sequence[LossParts], read: Read) -> LossParts:
    if len(found) == 1:
        return found[0]
    # Nothing was compared: a loss of 0 that still has a gradient, of 0, for the optimiser's sake.
    zero = read.hidden_NH.sum() * 0.0 if not found else read.hidden_NH.new_zeros(())
    none_N = torch.zeros(len(read.hidden_NH), dtype=torch.float32, device=read.hidden_NH.device)
    return LossParts(
        loss=sum((each.loss for each in found), zero.float()),
        divergence=sum((each.divergence for each in found), zero.detach().float()),
        cross_entropy=sum((each.cross_entropy for each in found), zero.detach().float()),
        token_loss_N=sum((each.token_loss_N for each in found), none_N),
    )
