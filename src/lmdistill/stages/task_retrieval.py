"""ReAugKD's first stage, and its projection between the stages: a file in the run folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save
from torch import Tensor
from transformers import PreTrainedModel

from lmdistill.io import write_bytes
from lmdistill.models import load_config
from lmdistill.recipe import ModelSpec, ObjectiveSpec
from lmdistill.recipe.task import ReaugSpec, TaskKind
from lmdistill.stages.context import Context
from lmdistill.stages.task_data import TaskData
from lmdistill.stages.task_train import Start, TaskJob, train_task
from lmdistill.tasks.objective import without_teacher
from lmdistill.tasks.retrieval import ContrastLearning, Projection, Relations, Retrieval, remember

if TYPE_CHECKING:
    from lmdistill.stages.task_run import TaskRun, Teachers

STAGE = "retrieval-teacher"
"""Name of the stage in which the teacher's projection learns the classes."""
FILE = "retrieval-projection.safetensors"
"""Where a run folder keeps it."""


class KeptContrast(ContrastLearning):
    """A projection that learns, and is written into the run folder at the end."""

    def __init__(self, context: Context, spec: ReaugSpec, projection: Projection, teacher: PreTrainedModel) -> None:
        super().__init__(spec, projection, teacher)
        self._file = context.folder.file(FILE)

    def close(self) -> None:
        """Keep the projection and take the hooks away."""
        super().close()
        tensors = {name: value.detach().cpu() for name, value in self.projection.state_dict().items()}
        write_bytes(self._file, save(tensors))


def learn_projection(
    context: Context, data: TaskData, teachers: Teachers, spec: ReaugSpec, job: TaskJob, run: TaskRun
) -> TaskJob:
    """Let the teacher's projection learn the classes; returns the student's job, its weights' name completed."""
    where, key = teachers.weights(job.kind)
    width = _student_width(context)
    plain = TaskJob(
        name=STAGE,
        kind=job.kind,
        objective=without_teacher(ObjectiveSpec()),
        training={**job.training, **spec.training},
        dataset=job.dataset,
        collator=job.collator,
        extras=lambda model, _: [KeptContrast(context, spec, _fresh(context, model), model)],
        extras_key=[spec.model_dump(mode="json"), width],
        frozen=True,
    )
    start = Start(teachers.folder(where), key, data.tokenizer, data.classes)
    trained = train_task(context, start, [plain], context.folder.file("checkpoints") / STAGE)
    run.log(STAGE, trained.skipped)
    return replace(job, teacher_key=f"{key}+{trained.fingerprint}")


def relations(context: Context, spec: ReaugSpec, student: PreTrainedModel, teacher: PreTrainedModel) -> Relations:
    """The second stage's term, with the projection that learnt the classes."""
    return Relations(spec, _loaded(context, teacher), student, teacher)


def retrieval(
    context: Context,
    spec: ReaugSpec,
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    batches: Iterable[dict[str, Any]],
    kind: TaskKind,
) -> Callable[[Tensor, Mapping[str, Any]], Tensor]:
    """What becomes of the student's logits at test time, with what the teacher says of `batches`."""
    return Retrieval(remember(teacher, _loaded(context, teacher), batches, kind), spec, student)


def _student_width(context: Context) -> int:
    return int(load_config(ModelSpec(model=str(context.folder.file("student-initial")))).hidden_size)


def _fresh(context: Context, teacher: PreTrainedModel) -> Projection:
    made = Projection(int(teacher.config.hidden_size), _student_width(context), context.recipe.seed)
    return made.to(teacher.device)


def _loaded(context: Context, teacher: PreTrainedModel) -> Projection:
    projection = _fresh(context, teacher)
    projection.load_state_dict(load_file(context.folder.file(FILE)))
    return projection
