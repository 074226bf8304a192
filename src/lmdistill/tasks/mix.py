"""Mixed rows beside the rows (MixKD, Liang et al., 2011.00593).

Shape legend: B rows, L length, H embedding width, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from lmdistill.objectives.hints.pieces import wide
from lmdistill.recipe.task import MixSpec, TaskKind
from lmdistill.tasks.encode import IGNORED
from lmdistill.tasks.models import outputs
from lmdistill.tasks.objective import Distance, Said


class MixedRows:
    """alpha_SM CE(student(x'), y') + alpha_TMKD d(teacher(x'), student(x')), means over the mixed rows.

    x' = lambda e(x_i) + (1 - lambda) e(x_j) are word embeddings of two rows of the batch, by each model's own table,
    and y' their labels in the same proportion (2011.00593, eq. 1 to 6). lambda is drawn once for a batch, from Beta(a,
    a). The shorter row is mixed with padding, and a position counts where it is text of either row.
    """

    name = "mixed"
    modules: nn.Module | None = None

    def __init__(self, spec: MixSpec, kind: TaskKind, distance: Distance) -> None:
        self.spec = spec
        self.kind = kind
        self.distance = distance

    def before(self, batch: dict[str, Any], student: nn.Module, teacher: PreTrainedModel | None) -> None:
        """Nothing is caught."""

    def between(self) -> None:
        """Nothing is done."""

    def after(self) -> None:
        """Nothing is caught."""

    def close(self) -> None:
        """Nothing was changed."""

    def __call__(self, said: Said) -> Tensor:
        """The term of a batch; a batch of one row has nothing to be mixed with and gives 0."""
        count = len(said.batch["input_ids"])
        if count < 2:
            return said.student_NC.new_zeros(())
        device = said.student_NC.device
        share = float(torch.distributions.Beta(self.spec.alpha, self.spec.alpha).sample())
        other_B = torch.randperm(count).to(device)
        mixed = mixed_batch(said.batch, other_B)
        student_BC = outputs(
            said.model, mixed, self.kind, embeds=mixed_embeddings(said.bare, said.batch, other_B, share), bare=said.bare
        )
        total = student_BC.new_zeros(())
        if self.spec.student_weight:
            labels_B = said.batch["labels"]
            total = total + self.spec.student_weight * mixed_cross_entropy(student_BC, labels_B, other_B, share)
        if said.teacher is not None and self.spec.teacher_weight:
            with torch.no_grad():
                embeds = mixed_embeddings(said.teacher, said.batch, other_B, share)
                teacher_BC = outputs(said.teacher, mixed, self.kind, embeds=embeds)
            total = total + self.spec.teacher_weight * self.distance(student_BC, teacher_BC).mean()
        return total


def mixed_embeddings(model: nn.Module, batch: dict[str, Any], other_B: Tensor, share: float) -> Tensor:
    """share e(x_i) + (1 - share) e(x_j) by a model's own word embeddings, (B, L, H)."""
    table: Any = model.get_input_embeddings()  # type: ignore[operator]
    embeds_BLH: Tensor = table(batch["input_ids"])
    return share * embeds_BLH + (1 - share) * embeds_BLH[other_B]


def mixed_batch(batch: dict[str, Any], other_B: Tensor) -> dict[str, Any]:
    """The batch of mixed rows: what is text in either of both is text."""
    mask_BL = batch["attention_mask"]
    return {**batch, "attention_mask": torch.maximum(mask_BL, mask_BL[other_B])}


def mixed_cross_entropy(student_BC: Tensor, labels_B: Tensor, other_B: Tensor, share: float) -> Tensor:
    """share CE(y_i) + (1 - share) CE(y_j), the mean over rows of which both have a label; 0 where none has."""
    both_B = (labels_B != IGNORED) & (labels_B[other_B] != IGNORED)
    if not bool(both_B.any()):
        return student_BC.new_zeros(())
    logits, first, second = wide(student_BC[both_B]), labels_B[both_B], labels_B[other_B][both_B]
    return share * F.cross_entropy(logits, first) + (1 - share) * F.cross_entropy(logits, second)
