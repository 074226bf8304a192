"""What a method adds to training on a task: hints, rows that are made, mixed rows, filters, retrieval."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import PreTrainedModel

from lmdistill.recipe import StageSpec
from lmdistill.stages.context import Context
from lmdistill.stages.task_data import TaskData
from lmdistill.stages.task_train import TaskJob
from lmdistill.tasks.objective import Extra
from lmdistill.tasks.rows import Example

if TYPE_CHECKING:
    from lmdistill.stages.task_run import TaskRun, Teachers


def trainer_of(
    context: Context, data: TaskData, teachers: Teachers, stage: StageSpec, job: TaskJob
) -> Iterable[TaskJob]:
    """The job with its teacher and further terms; the jobs that must come before it first."""
    if job.objective.needs_teacher:
        _, key = teachers.weights(job.kind)
        job = replace(job, teacher=lambda: teachers.model(job.kind), teacher_key=key)
    yield job


def extras_of(context: Context, data: TaskData, job: TaskJob) -> Callable[..., Sequence[Extra]]:
    """The further terms of a job."""
    return lambda student, teacher: ()


def made_rows(context: Context, data: TaskData, teachers: Teachers, stage: StageSpec, run: TaskRun) -> list[Example]:
    """Rows that are made from the training rows of a stage."""
    return []


def retrieval_of(
    context: Context, data: TaskData, teachers: Teachers, model: PreTrainedModel
) -> Callable[[Tensor, Mapping[str, Any]], Tensor] | None:
    """What becomes of the student's logits at test time."""
    return None
