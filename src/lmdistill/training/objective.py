"""From a batch to a loss: the student's and the teacher's hidden states, compared by the loss engine.

Shape legend: B batch, L length, N = B * L positions, H student hidden, K teacher hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from lmdistill.models import OutputHead, last_hidden, output_head
from lmdistill.objectives import Divergence, distillation_loss, find_divergence
from lmdistill.objectives.hints import cosine_distance
from lmdistill.objectives.rows import LogitsView
from lmdistill.objectives.weights import first_share, student_entropy, top_share
from lmdistill.recipe import ObjectiveSpec
from lmdistill.signals import Signal
from lmdistill.teachers.base import Teacher, model_inputs

IGNORED = -100


@dataclass(frozen=True)
class StepLoss:
    """The loss of one micro-batch and its parts, all divided by the tokens of the whole accumulated batch."""

    loss: Tensor
    divergence: Tensor
    cross_entropy: Tensor
    hidden_cosine: Tensor
    token_loss_BL: Tensor
    """What each position added before division, 0 where masked."""


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
        self.divergence: Divergence = find_divergence(spec.divergence.kind, **spec.divergence.parameters)
        self.vocabulary_size = vocabulary_size
        self.compute_dtype = compute_dtype
        self.compiled = compiled

    def __call__(
        self, model: nn.Module, bare_model: PreTrainedModel, batch: Mapping[str, Any], num_items: Tensor | float | None
    ) -> StepLoss:
        """The loss of one micro-batch.

        `model` is called (wrapped for several devices or not), `bare_model` is the student inside it.
        """
        hidden_BLH = last_hidden(model, model_inputs(batch))
        hidden_NH = hidden_BLH.flatten(0, 1)
        labels_N = next_labels(batch["labels"]).flatten()
        mask_N = labels_N != IGNORED
        trained = max(1, int(mask_N.sum())) if num_items is None else 0
        speech = self.teacher.speak(batch) if self.teacher is not None else None
        signal = speech.parts[0].signal if speech is not None else None
        teacher_NK = speech.hidden_NK if speech is not None else None
        head = output_head(bare_model, self.vocabulary_size)
        term = self.spec.divergence
        weight_N = self._weights(hidden_NH, head, signal, mask_N, batch)
        counted_N = mask_N if weight_N is None else mask_N & (weight_N > 0)
        parts = None
        if (signal is not None and term.weight > 0) or self.spec.cross_entropy.weight > 0:
            parts = distillation_loss(
                hidden_NH,
                head.weight_VH,
                signal if term.weight > 0 else None,
                self.divergence,
                divergence_weight=term.weight,
                labels_N=labels_N.clamp_min(0),
                label_weight=self.spec.cross_entropy.weight,
                mask_N=counted_N,
                weight_N=weight_N,
                num_items=num_items if num_items is not None or weight_N is None else trained,
                temperature=term.temperature,
                temperature_squared=term.temperature_squared,
                student_bias=head.bias_V,
                logit_scale=head.logit_scale,
                softcap=head.softcap,
                compute_dtype=self.compute_dtype,
                compiled=self.compiled,
            )
        zero = hidden_NH.new_zeros((), dtype=torch.float32)
        cosine = zero
        if self.spec.hidden_cosine.weight > 0 and teacher_NK is not None:
            cosine = cosine_distance(hidden_NH, teacher_NK, mask_N, num_items)
        loss = (parts.loss if parts is not None else zero) + self.spec.hidden_cosine.weight * cosine
        return StepLoss(
            loss=loss,
            divergence=parts.divergence if parts is not None else zero,
            cross_entropy=parts.cross_entropy if parts is not None else zero,
            hidden_cosine=cosine.detach(),
            token_loss_BL=(parts.token_loss_N if parts is not None else zero.expand(len(hidden_NH))).view(
                hidden_BLH.shape[:2]
            ),
        )

    def _weights(
        self, hidden_NH: Tensor, head: OutputHead, signal: Signal | None, mask_N: Tensor, batch: Mapping[str, Any]
    ) -> Tensor | None:
        """Weights of the tokens, (N,); None where all count alike."""
        spec = self.spec.tokens
        if spec.by == "all":
            return None
        if spec.by == "position":
            mask_BL = mask_N.view(batch["input_ids"].shape)
            return first_share(batch["position_ids"], mask_BL, spec.keep).flatten()
        if spec.by == "student_entropy":
            weight_VH = head.weight_VH[: head.vocabulary_size].detach()
            compute = self.compute_dtype or weight_VH.dtype
            bias_V = None if head.bias_V is None else head.bias_V[: head.vocabulary_size].detach().to(compute)
            view = LogitsView(head.logit_scale, head.softcap)
            score_N = student_entropy(
                hidden_NH.detach(), weight_VH.to(compute), mask_N, bias_V=bias_V, view=view, compiled=self.compiled
            )
            return top_share(score_N, mask_N, spec.keep)
        with torch.no_grad():
            score_N = distillation_loss(
                hidden_NH.detach(),
                head.weight_VH.detach(),
                signal,
                self.divergence,
                mask_N=mask_N,
                temperature=self.spec.divergence.temperature,
                student_bias=head.bias_V,
                logit_scale=head.logit_scale,
                softcap=head.softcap,
                compute_dtype=self.compute_dtype,
                compiled=self.compiled,
            ).token_loss_N
        return top_share(score_N, mask_N, spec.keep)


def next_labels(labels_BL: Tensor) -> Tensor:
    """The label that each position predicts: the next one; the last predicts none."""
    return F.pad(labels_BL[:, 1:], (0, 1), value=IGNORED)
