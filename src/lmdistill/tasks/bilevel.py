"""A teacher that learns to teach (MetaDistil, Zhou et al., 2106.04570).

Before each step of the student, on the same batch: the step is tried, theta' = theta - eta grad L_S(theta, phi); the
student theta' takes a quiz, rows that are trained on nowhere; the teacher phi moves down the gradient of that quiz's
cross-entropy, which goes through the tried step; then the student takes its step by the moved teacher.

Shape legend: N rows, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from lmdistill.errors import RecipeError
from lmdistill.io import write_bytes
from lmdistill.objectives.hints.pieces import wide
from lmdistill.recipe import ObjectiveSpec
from lmdistill.recipe.task import BilevelSpec, LogitsSpec
from lmdistill.tasks.models import outputs
from lmdistill.tasks.trainer import TaskTrainer
from lmdistill.training.companions import Companion


class BilevelTrainer(TaskTrainer):
    """Trains the student, and its teacher on the way."""

    def __init__(self, *args: Any, quiz: Dataset, bilevel: BilevelSpec, logits: LogitsSpec, **kwargs: Any) -> None:
        """`quiz` are the rows that the teacher is moved by; the rest is `TaskTrainer`'s."""
        super().__init__(*args, **kwargs)
        teacher = self.task_objective.teacher
        if teacher is None:
            raise RecipeError("task.bilevel moves a teacher: give objective.divergence a weight above 0")
        self.bilevel = bilevel
        self.quiz = quiz
        self.distance = two_sided(self.task_objective.spec, logits)
        self.teacher: PreTrainedModel = teacher.requires_grad_(True)
        self.optimiser = torch.optim.AdamW(teacher.parameters(), lr=bilevel.teacher_learning_rate, weight_decay=0.0)
        self.quiz_loss = float("nan")
        self._asked = -1

    def companions(self) -> list[Companion]:
        """The teacher as it moved."""
        return [KeptTeacher(self.teacher, self.optimiser)]

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Move the teacher, once for each step of the student, then the student's loss by it."""
        step = self.state.global_step
        if step % self.bilevel.every == 0 and step != self._asked and model.training:
            self._asked = step
            self.quiz_loss = self._teach(model, inputs)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _teach(self, model: nn.Module, inputs: dict[str, Any]) -> float:
        """One step of the teacher; returns the loss of the quiz before it."""
        assert self.optimizer is not None
        rate = float(self.optimizer.param_groups[0]["lr"])
        rows = [self.quiz[place] for place in self._places(len(inputs["input_ids"]))]
        quiz = self._prepare_inputs(self.data_collator(rows))
        device = inputs["input_ids"].device
        with torch.autocast(device.type, enabled=False):
            loss = quiz_loss(
                model,
                self.teacher,
                inputs,
                quiz,
                rate=rate,
                distance=self.distance,
                weights=(self.task_objective.spec.divergence.weight, self.task_objective.spec.cross_entropy.weight),
            )
            gradients = torch.autograd.grad(loss, [*self.teacher.parameters()], allow_unused=True)
        for parameter, gradient in zip(self.teacher.parameters(), gradients, strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(self.teacher.parameters(), self.args.max_grad_norm or 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return float(loss.detach())

    def _places(self, count: int) -> Iterator[int]:
        """The quiz's rows of this step: all in turn, in an order of the seed and the round."""
        size = len(self.quiz)
        for number in range(self.state.global_step * count, self.state.global_step * count + min(count, size)):
            shuffle = torch.Generator().manual_seed(self.args.seed + number // size)
            yield int(torch.randperm(size, generator=shuffle)[number % size])


def quiz_loss(
    student: nn.Module,
    teacher: nn.Module,
    batch: Mapping[str, Any],
    quiz: Mapping[str, Any],
    *,
    rate: float,
    distance: Callable[[Tensor, Tensor], Tensor],
    weights: tuple[float, float],
) -> Tensor:
    """Cross-entropy of the quiz after a tried step of the student, a scalar with gradient for the teacher.

    The tried step is plain gradient descent with the student's present step size, as released; `weights` are those of
    the distance to the teacher and of the labels.
    """
    kind = "sequence_classification"
    names = [name for name, parameter in student.named_parameters() if parameter.requires_grad]
    own = dict(student.named_parameters())
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        theirs_NC = outputs(teacher, batch, kind)  # type: ignore[arg-type]
        mine_NC = outputs(student, batch, kind)  # type: ignore[arg-type]
        inner = weights[0] * distance(mine_NC, theirs_NC).mean()
        inner = inner + weights[1] * F.cross_entropy(wide(mine_NC), batch["labels"])
        gradients = torch.autograd.grad(inner, [own[name] for name in names], create_graph=True, allow_unused=True)
        moved = {
            name: own[name] if gradient is None else own[name] - rate * gradient
            for name, gradient in zip(names, gradients, strict=True)
        }

        def tried(**inputs: Any) -> Any:
            return torch.func.functional_call(student, moved, args=(), kwargs=inputs)

        said_NC = outputs(tried, quiz, kind, bare=student)  # type: ignore[arg-type]
    return F.cross_entropy(wide(said_NC), quiz["labels"])


def two_sided(spec: ObjectiveSpec, logits: LogitsSpec) -> Callable[[Tensor, Tensor], Tensor]:
    """The distance of logits (student (N, C), teacher (N, C)) -> (N,) with gradient for both. Raises RecipeError.

    `softmax_mse` is what the released code has; `divergence: forward_kl` what the paper writes.
    """
    term = spec.divergence
    factor = term.temperature**2 if term.temperature_squared else 1.0

    def squares(mine_NC: Tensor, theirs_NC: Tensor) -> Tensor:
        s_NC, t_NC = ((wide(x) / term.temperature).softmax(-1) for x in (mine_NC, theirs_NC))
        square_NC = (s_NC - t_NC).square()
        return factor * (square_NC.sum(-1) if logits.over_classes is False else square_NC.mean(-1))

    def kl(mine_NC: Tensor, theirs_NC: Tensor) -> Tensor:
        log_s_NC, log_t_NC = ((wide(x) / term.temperature).log_softmax(-1) for x in (mine_NC, theirs_NC))
        return factor * (log_t_NC.exp() * (log_t_NC - log_s_NC)).sum(-1)

    if logits.kind == "softmax_mse":
        return squares
    if logits.kind == "divergence" and term.kind == "forward_kl":
        return kl
    raise RecipeError(
        f"task.bilevel needs a distance with a gradient for the teacher: task.logits.kind softmax_mse, or "
        f"divergence with forward_kl, not {logits.kind} with {term.kind}"
    )


def split_quiz(rows: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Rows to train on and rows of the quiz, drawn by the seed. Raises RecipeError where either is empty."""
    count = round(len(rows) * share)
    if not 0 < count < len(rows):
        raise RecipeError(f"task.bilevel.quiz_share = {share} of {len(rows)} rows are {count}; both parts need rows")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    return rows.select(sorted(order[count:])), rows.select(sorted(order[:count]))


class KeptTeacher:
    """The moved teacher and its optimiser, as a companion of checkpoints."""

    file = "moved-teacher.safetensors"

    def __init__(self, teacher: PreTrainedModel, optimiser: torch.optim.Optimizer) -> None:
        self._teacher = teacher
        self._optimiser = optimiser

    def save(self, checkpoint: Path) -> None:
        """Write weights and moments."""
        tensors = {}
        for name, parameter in self._teacher.named_parameters():
            tensors[f"weight.{name}"] = parameter.detach().cpu().contiguous().clone()
            for key, value in self._optimiser.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value.detach().cpu().contiguous().clone()
        write_bytes(checkpoint / self.file, save(tensors))

    def restore(self, checkpoint: Path) -> None:
        """Take them."""
        tensors = load_file(checkpoint / self.file)
        with torch.no_grad():
            for name, parameter in self._teacher.named_parameters():
                parameter.copy_(tensors[f"weight.{name}"])
                keys = ("step", "exp_avg", "exp_avg_sq")
                if all(f"{key}.{name}" in tensors for key in keys):
                    self._optimiser.state[parameter] = {
                        key: tensors[f"{key}.{name}"].to("cpu" if key == "step" else parameter.device) for key in keys
                    }
