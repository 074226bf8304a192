"""What the teacher predicted for similar training rows, asked at test time (ReAugKD, Zhang et al., ACL 2023).

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
from lmdistill.tasks.models import outputs
from lmdistill.tasks.objective import Said
from lmdistill.training.taps import FINAL, Place, Taps

_LAST = Place("hidden", FINAL)


class Relations:
    """KL(teacher's relations ‖ student's) within a batch: to whom each row is near, the teacher's states to its own and
    the student's to the teacher's.

    q_ij = softmax_j(t_i . t_j / tau) over j != i and q'_ij = softmax_j(s_i . t_j / tau) (ReAugKD, eq. 3 and 4), where t
    and s are the first position's last states, scaled to length 1. The student's go through a learnt map to the
    teacher's width, which stays with it for retrieval. The paper maps the teacher to the student's width and trains
    that map by a contrastive loss of the labels first; here there is one map, trained by this term itself.
    """

    name = "relations"

    def __init__(self, spec: ReaugSpec, student: PreTrainedModel, teacher: PreTrainedModel) -> None:
        widths = [int(model.config.hidden_size) for model in (student, teacher)]
        self.spec = spec
        self.projector = nn.Linear(widths[0], widths[1], bias=False).to(student.device)
        if widths[0] == widths[1]:
            nn.init.eye_(self.projector.weight)
        self.modules: nn.Module | None = self.projector
        self._taps = [Taps(model, [_LAST]) for model in (student, teacher)]
        self._stack = ExitStack()

    def before(self, batch: dict[str, Any], student: nn.Module, teacher: PreTrainedModel | None) -> None:
        """Catch the last states of both models."""
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

    def __call__(self, said: Said) -> Tensor:
        """The term of a batch."""
        student_BH, teacher_BK = (taps.take(_LAST)[:, 0] for taps in self._taps)
        own_BK = self.projector(student_BH.to(self.projector.weight.dtype))
        return self.spec.relation_weight * relation_kl(own_BK, teacher_BK, self.spec.relation_temperature)


def relation_kl(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> Tensor:
    """The mean over rows of KL(softmax_j(t_i . t_j / tau) ‖ softmax_j(s_i . t_j / tau)), j != i; 0 for a single row."""
    if len(student_BK) < 2:
        return student_BK.sum() * 0.0
    own, other = (F.normalize(wide(x), dim=-1) for x in (student_BK, teacher_BK.detach()))
    apart = ~torch.eye(len(own), dtype=torch.bool, device=own.device)
    log_s, log_t = ((x @ other.T / temperature)[apart].reshape(len(own), -1).log_softmax(-1) for x in (own, other))
    return (log_t.exp() * (log_t - log_s)).sum(-1).mean()


@dataclass(frozen=True)
class Memory:
    """The teacher's last states and predictions of the training rows."""

    states_MK: Tensor
    """Of length 1."""
    probabilities_MC: Tensor

    def __call__(self, state_BK: Tensor, spec: ReaugSpec) -> Tensor:
        """The mean of the predictions of the nearest rows, weighed by the softmax of their similarities, (B, C)."""
        scores_BM = F.normalize(state_BK.float(), dim=-1) @ self.states_MK.T
        near = scores_BM.topk(min(spec.neighbours, len(self.states_MK)))
        weights_BN = (near.values / spec.temperature).softmax(-1)
        return (weights_BN[..., None] * self.probabilities_MC[near.indices]).sum(1)


@torch.no_grad()
def remember(teacher: PreTrainedModel, batches: Iterable[dict[str, Any]], kind: TaskKind) -> Memory:
    """Ask the teacher about all training rows."""
    taps, states, found = Taps(teacher, [_LAST]), [], []
    try:
        for batch in batches:
            with taps.capture():
                logits_BC = outputs(teacher, batch, kind)
            states.append(F.normalize(taps.take(_LAST)[:, 0].float(), dim=-1))
            found.append(logits_BC.float().softmax(-1))
    finally:
        taps.close()
    return Memory(torch.cat(states), torch.cat(found))


class Retrieval:
    """Makes of a student's logits the log of (1 - share) its own probabilities + share the retrieved ones."""

    def __init__(self, memory: Memory, spec: ReaugSpec, student: PreTrainedModel, projector: nn.Module) -> None:
        self.memory = memory
        self.spec = spec
        self.projector = projector
        self._student = student
        self._caught: list[Tensor] = []

        def catch(module: nn.Module, arguments: Any, output: Any) -> None:
            self._caught[:] = [output.last_hidden_state[:, 0]]

        student.base_model.register_forward_hook(catch)

    def __call__(self, logits_BC: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """The mixed log-probabilities, (B, C)."""
        near_BC = self.memory(self.projector(self._caught.pop().float()), self.spec)
        mixed_BC = (1 - self.spec.share) * logits_BC.softmax(-1) + self.spec.share * near_BC
        return mixed_BC.clamp_min(1e-30).log()
