"""What the teacher predicted for similar training rows, asked at test time (ReAugKD, Zhang et al., ACL 2023).

Two stages as published: a projection of the frozen teacher's embeddings to the student's width learns by a contrast of
the labels; then the student learns, beside labels and predictions, to be near the rows that its teacher is near to.

Shape legend: B rows, M rows in memory, H width of the student's embeddings, K of the teacher's, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from lmdistill.objectives.hints.pieces import wide
from lmdistill.recipe.task import ReaugSpec, TaskKind
from lmdistill.tasks.encode import IGNORED
from lmdistill.tasks.models import outputs
from lmdistill.tasks.objective import Said
from lmdistill.training.taps import FINAL, Place, Taps

_LAST = Place("hidden", FINAL)


class Projection(nn.Module):
    """A linear map of the teacher's embeddings to the student's width, and their scaling to length 1."""

    def __init__(self, teacher: int, student: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.map = nn.Linear(teacher, student, bias=False)

    def forward(self, state_BK: Tensor) -> Tensor:
        """(B, H), in at least float32."""
        found: Tensor = F.normalize(wide(self.map(state_BK.to(self.map.weight.dtype))), dim=-1)
        return found


class _Listening:
    """An extra term that looks at the first position's last state of some models."""

    def __init__(self, *models: PreTrainedModel) -> None:
        self._taps = [Taps(model, [_LAST]) for model in models]
        self._stack = ExitStack()

    def before(self, batch: dict[str, Any], student: nn.Module, teacher: PreTrainedModel | None) -> None:
        """Catch the last states."""
        self._stack.close()
        for taps in self._taps:
            self._stack.enter_context(taps.capture())

    def between(self) -> None:
        """Nothing is done."""

    def after(self) -> None:
        """Catch no more."""
        self._stack.close()

    def close(self) -> None:
        """Take the hooks away."""
        for taps in self._taps:
            taps.close()

    def states(self) -> list[Tensor]:
        """What was caught, (B, width) of each model."""
        return [taps.take(_LAST)[:, 0] for taps in self._taps]


class ContrastLearning(_Listening):
    """First stage: the projection of the frozen teacher learns to put rows of one class together (ReAugKD, 3.1)."""

    name = "contrast"

    def __init__(self, spec: ReaugSpec, projection: Projection, teacher: PreTrainedModel) -> None:
        super().__init__(teacher)
        self.spec = spec
        self.projection = projection
        self.modules: nn.Module | None = projection

    def __call__(self, said: Said) -> Tensor:
        """The term of a batch."""
        (state_BK,) = self.states()
        unit_BH = self.projection(state_BK.detach())
        return supervised_contrast(unit_BH, said.batch["labels"], self.spec.relation_temperature)


class Relations(_Listening):
    """Second stage: to whom each row of a batch is near, the teacher's embeddings among each other and the student's to
    the teacher's.

    q_ij = softmax_j(z_i . z_j / tau) over j != i and q'_ij = softmax_j(s_i . z_j / tau) (ReAugKD, 3.2), where z are the
    teacher's last states of the first position through the frozen projection and s the student's as they are, all of
    length 1. The term is the mean over rows of KL(q' ‖ q).
    """

    name = "relations"

    def __init__(
        self, spec: ReaugSpec, projection: Projection, student: PreTrainedModel, teacher: PreTrainedModel
    ) -> None:
        super().__init__(student, teacher)
        self.spec = spec
        self.projection = projection.requires_grad_(False)
        self.modules: nn.Module | None = None

    def __call__(self, said: Said) -> Tensor:
        """The term of a batch."""
        student_BH, teacher_BK = self.states()
        with torch.no_grad():
            teacher_BH = self.projection(teacher_BK)
        spec = self.spec
        found = relation_kl(
            student_BH,
            teacher_BH,
            spec.relation_temperature,
            reverse=spec.relation_direction == "student_teacher",
        )
        return spec.relation_weight * found


def supervised_contrast(unit_BH: Tensor, labels_B: Tensor, temperature: float) -> Tensor:
    """Supervised contrast of embeddings of length 1 (2004.11362, eq. 2), a scalar with gradient.

    The mean over rows of -1 / |P(i)| sum over p in P(i) of log softmax_{j != i}(z_i . z_j / tau)[p], P(i) the other
    rows of the batch with the label of row i. Rows without a label are left out, and those without another of their
    class from the mean; 0 where that are all.
    """
    known_B = labels_B != IGNORED
    unit_BH, labels_B = unit_BH[known_B], labels_B[known_B]
    itself_BB = torch.eye(len(labels_B), dtype=torch.bool, device=unit_BH.device)
    same_BB = (labels_B[:, None] == labels_B) & ~itself_BB
    paired_B = same_BB.any(-1)
    if not bool(paired_B.any()):
        return unit_BH.sum() * 0.0
    scores_BB = (unit_BH @ unit_BH.T / temperature).masked_fill(itself_BB, -torch.inf)
    logs_BB = scores_BB.log_softmax(-1).masked_fill(itself_BB, 0.0)
    mean_B = (logs_BB * same_BB).sum(-1) / same_BB.sum(-1).clamp_min(1)
    return -mean_B[paired_B].mean()


def relation_kl(student_BH: Tensor, teacher_BH: Tensor, temperature: float, *, reverse: bool = False) -> Tensor:
    """The mean over rows of KL(softmax_j(t_i . t_j / tau) ‖ softmax_j(s_i . t_j / tau)), j != i; 0 for a single row.

    `reverse` is KL(student‖teacher) of the same.
    """
    if len(student_BH) < 2:
        return student_BH.sum() * 0.0
    own, other = (F.normalize(wide(x), dim=-1) for x in (student_BH, teacher_BH.detach()))
    apart = ~torch.eye(len(own), dtype=torch.bool, device=own.device)
    log_s, log_t = ((x @ other.T / temperature)[apart].reshape(len(own), -1).log_softmax(-1) for x in (own, other))
    first, second = (log_s, log_t) if reverse else (log_t, log_s)
    return (first.exp() * (first - second)).sum(-1).mean()


@dataclass(frozen=True)
class Memory:
    """The teacher's projected last states and predictions of the training rows."""

    states_MH: Tensor
    """Of length 1."""
    probabilities_MC: Tensor

    def __call__(self, state_BH: Tensor, spec: ReaugSpec) -> Tensor:
        """The mean of the predictions of the nearest rows, weighed by the softmax of their similarities, (B, C)."""
        scores_BM = F.normalize(state_BH.float(), dim=-1) @ self.states_MH.T
        near = scores_BM.topk(min(spec.neighbours, len(self.states_MH)))
        weights_BN = (near.values / spec.temperature).softmax(-1)
        return (weights_BN[..., None] * self.probabilities_MC[near.indices]).sum(1)


@torch.no_grad()
def remember(
    teacher: PreTrainedModel, projection: Projection, batches: Iterable[dict[str, Any]], kind: TaskKind
) -> Memory:
    """Ask the teacher about all training rows."""
    taps, states, found = Taps(teacher, [_LAST]), [], []
    try:
        for batch in batches:
            with taps.capture():
                logits_BC = outputs(teacher, batch, kind)
            states.append(projection(taps.take(_LAST)[:, 0]).float())
            found.append(logits_BC.float().softmax(-1))
    finally:
        taps.close()
    return Memory(torch.cat(states), torch.cat(found))


class Retrieval:
    """Makes of a student's logits the log of (1 - share) its own probabilities + share the retrieved ones."""

    def __init__(self, memory: Memory, spec: ReaugSpec, student: PreTrainedModel) -> None:
        self.memory = memory
        self.spec = spec
        self._student = student
        self._caught: list[Tensor] = []

        def catch(module: nn.Module, arguments: Any, output: Any) -> None:
            self._caught[:] = [output.last_hidden_state[:, 0]]

        student.base_model.register_forward_hook(catch)

    def __call__(self, logits_BC: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """The mixed log-probabilities, (B, C)."""
        near_BC = self.memory(self._caught.pop(), self.spec)
        mixed_BC = (1 - self.spec.share) * logits_BC.softmax(-1) + self.spec.share * near_BC
        return mixed_BC.clamp_min(1e-30).log()
