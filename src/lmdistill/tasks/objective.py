"""From a batch of a task to a loss: labels, the teacher's logits, hints.

Shape legend: B rows, L length, H hidden, C classes or vocabulary, N rows that are compared (B, or labelled words).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from lmdistill.objectives import find_divergence
from lmdistill.objectives.class_logits import class_divergence, logits_mse, soft_cross_entropy, softmax_mse
from lmdistill.objectives.hints.pieces import wide
from lmdistill.recipe import ObjectiveSpec
from lmdistill.recipe.task import LogitsSpec, TaskKind
from lmdistill.tasks.encode import IGNORED
from lmdistill.tasks.models import backbone, inputs_of, outputs
from lmdistill.training.objective import StepLoss

CONTRAST_TEMPERATURE = 0.05
"""Softening of the cosines of pairs of embeddings in their cross-entropy, as sentence-transformers' scale of 20."""


Distance = Callable[[Tensor, Tensor], Tensor]
"""Of the student's and the teacher's logits, (N, C) each, row by row, (N,)."""


class Extra(Protocol):
    """A further term: hints, mixed rows, filters. What it trains beside the student are its `modules`."""

    name: str
    modules: nn.Module | None

    def before(self, batch: dict[str, Any], student: nn.Module, teacher: PreTrainedModel | None) -> None:
        """Get ready to catch what the forward passes make."""

    def between(self) -> None:
        """The teacher has read the batch, the student has not."""

    def after(self) -> None:
        """The forward passes are done: catch no more."""

    def close(self) -> None:
        """Leave the models as they were."""

    def __call__(self, said: Said) -> Tensor:
        """The term of this micro-batch, a mean over what counts in it, weighed, a scalar with gradient."""


@dataclass
class Said:
    """What both models said of a micro-batch."""

    batch: dict[str, Any]
    model: nn.Module
    """The student as the Trainer wraps it."""
    bare: nn.Module
    student_NC: Tensor
    teacher: PreTrainedModel | None
    teacher_NC: Tensor | None
    rest: Tensor
    """The loss without further terms."""
    progress: float = 0.0
    """The share of training that is done."""
    step: int = 0
    """The optimiser steps that are done."""


class TaskObjective:
    """The weighted sum of cross-entropy with the labels, a distance to the teacher's logits, and further terms."""

    aligned = None
    divergence = None

    def __init__(
        self,
        spec: ObjectiveSpec,
        kind: TaskKind,
        logits: LogitsSpec,
        *,
        teacher: PreTrainedModel | None,
        extras: tuple[Extra, ...] = (),
    ) -> None:
        """Raises ValueError where the terms need a teacher and none is given."""
        if spec.needs_teacher and teacher is None:
            raise ValueError("this objective compares with a teacher, but none was given")
        self.spec = spec
        self.kind = kind
        self.logits = logits
        self.teacher = teacher
        self.extras = extras
        # A number has no distribution: KL of a single class would be 0.
        self.distance = logits_mse if kind == "sequence_regression" else distance_of(spec, logits)
        self.progress: Callable[[], float] = lambda: 0.0
        """The share of training that is done; the Trainer sets it."""
        self.step: Callable[[], int] = lambda: 0
        """The optimiser steps that are done; the Trainer sets it."""

    @property
    def modules(self) -> list[nn.Module]:
        """What is trained beside the student."""
        return [extra.modules for extra in self.extras if extra.modules is not None]

    def __call__(
        self, model: nn.Module, bare: nn.Module, batch: dict[str, Any], num_items: Tensor | int | None = None
    ) -> StepLoss:
        """The loss of a micro-batch; `num_items` are the rows (or labelled words) of the whole accumulated batch."""
        for extra in self.extras:
            extra.before(batch, bare, self.teacher)
        teacher_NC = self._ask(batch)
        for extra in self.extras:
            extra.between()
        student_NC = self._read(model, bare, batch)
        for extra in self.extras:
            extra.after()
        own = max(1, len(student_NC))
        if self._inside_alone:
            own = max(1, int((batch["labels"] != IGNORED).sum()))
        total = own if num_items is None else num_items
        zero = student_NC.new_zeros(())
        ce_N = self._labels(student_NC, batch)
        kd_N = zero.expand(len(ce_N)) if teacher_NC is None else self._distance(student_NC, teacher_NC)
        ce, kd = self.spec.cross_entropy.weight * ce_N.sum() / total, self.spec.divergence.weight * kd_N.sum() / total
        said = Said(batch, model, bare, student_NC, self.teacher, teacher_NC, ce + kd, self.progress(), self.step())
        # A further term is a mean over this micro-batch: it counts as much as its share of the rows.
        others = {extra.name: extra(said) * (own / total) for extra in self.extras}
        loss = ce + kd + sum(others.values(), zero)
        rows_B1 = (ce_N.detach() + kd_N.detach())[:, None] if len(ce_N) == len(kd_N) else loss.detach().reshape(1, 1)
        if len(rows_B1) != len(batch["row_ids"]):
            rows_B1 = loss.detach().expand(len(batch["row_ids"]), 1)
        others = {name: value.detach() for name, value in others.items()}
        return StepLoss(loss, kd.detach(), ce.detach(), zero.detach(), rows_B1, others)

    def _ask(self, batch: dict[str, Any]) -> Tensor | None:
        """The teacher's logits, (N, C); None where there is no teacher."""
        if self.teacher is None:
            return None
        with torch.no_grad():
            if self._inside_alone:
                backbone(self.teacher)(**inputs_of(backbone(self.teacher), batch))
                return None
            return outputs(self.teacher, batch, self.kind).detach()

    @property
    def _inside_alone(self) -> bool:
        """Whether layers alone are compared, so that no head of all words needs to speak."""
        return self.kind == "masked_lm" and self.spec.cross_entropy.weight == 0 and self.spec.divergence.weight == 0

    def _read(self, model: nn.Module, bare: nn.Module, batch: dict[str, Any]) -> Tensor:
        """The student's logits, (N, C); a single 0 where layers alone are compared."""
        if self._inside_alone and model is bare:
            encoder = backbone(cast(PreTrainedModel, bare))
            state_BLH: Tensor = encoder(**inputs_of(encoder, batch)).last_hidden_state
            return state_BLH.new_zeros(1, 1)
        return outputs(model, batch, self.kind, bare=bare)

    def _labels(self, student_NC: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Cross-entropy (or squared error) with the labels, (N,); 0 where a row has none."""
        if self.spec.cross_entropy.weight == 0:
            return student_NC.new_zeros(len(student_NC))
        return label_loss(student_NC, batch, self.kind)

    def _distance(self, student_NC: Tensor, teacher_NC: Tensor) -> Tensor:
        if self.spec.divergence.weight == 0:
            return student_NC.new_zeros(len(student_NC))
        if self.kind == "sentence_embedding" and self.logits.kind != "logits_mse":
            # Which other texts of the batch a text is like, so that widths may differ.
            return self.distance(similarities(student_NC), similarities(teacher_NC))
        return self.distance(student_NC, teacher_NC)


def label_loss(student_NC: Tensor, batch: Mapping[str, Any], kind: TaskKind) -> Tensor:
    """What the labels themselves say, for each row or labelled word, (N,); 0 where a row has no label.

    Cross-entropy; squared error of a number; of embeddings, cross-entropy of each text's pair among all pairs of the
    batch (in-batch negatives).
    """
    labels: Tensor = batch["labels"]
    wide_NC = wide(student_NC)
    if kind == "sequence_regression":
        return (wide_NC[:, 0] - labels.float()).square()
    if kind == "sentence_embedding":
        half = len(wide_NC) // 2
        if 2 * half != len(wide_NC) or len(labels) != half:
            return wide_NC.new_zeros(len(wide_NC))
        scores = wide_NC[:half] @ wide_NC[half:].T / CONTRAST_TEMPERATURE
        found = F.cross_entropy(scores, torch.arange(half, device=scores.device), reduction="none")
        return torch.cat([found, found])
    if kind in ("token_classification", "masked_lm"):
        labels = labels[labels != IGNORED]
    return F.cross_entropy(wide_NC, labels, ignore_index=IGNORED, reduction="none")


def similarities(embeddings_BH: Tensor) -> Tensor:
    """Cosines of each text with all others of the batch, itself left out, by `CONTRAST_TEMPERATURE`; (B, B - 1)."""
    unit_BH = F.normalize(wide(embeddings_BH), dim=-1)
    scores_BB = unit_BH @ unit_BH.T / CONTRAST_TEMPERATURE
    other = ~torch.eye(len(scores_BB), dtype=torch.bool, device=scores_BB.device)
    return scores_BB[other].reshape(len(scores_BB), -1)


def distance_of(spec: ObjectiveSpec, logits: LogitsSpec) -> Distance:
    """The distance of logits that a recipe names: (student (N, C), teacher (N, C)) -> (N,)."""
    term, over = spec.divergence, logits.over_classes
    warm = {"temperature": term.temperature}
    if logits.kind == "soft_cross_entropy":
        mean = True if over is None else over
        factor = term.temperature**2 if term.temperature_squared else 1.0
        return lambda s, t: factor * soft_cross_entropy(s, t, over_classes=mean, **warm)
    if logits.kind == "softmax_mse":
        mean = True if over is None else over
        return lambda s, t: softmax_mse(s, t, temperature_squared=term.temperature_squared, over_classes=mean, **warm)
    if logits.kind == "logits_mse":
        return lambda s, t: logits_mse(s, t, over_classes=bool(over))
    divergence = find_divergence(term.kind, **term.parameters)
    return lambda s, t: class_divergence(s, t, divergence, temperature_squared=term.temperature_squared, **warm)


def without_teacher(spec: ObjectiveSpec) -> ObjectiveSpec:
    """The objective of plain fine-tuning."""
    return ObjectiveSpec.model_validate(
        {"divergence": {"weight": 0.0}, "cross_entropy": {"weight": spec.cross_entropy.weight or 1.0}}
    )
