"""TED's first stage, and its filters between the stages: files in the run folder."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save
from transformers import PreTrainedModel

from lmdistill.io import write_bytes
from lmdistill.models import load_config
from lmdistill.recipe import ObjectiveSpec
from lmdistill.recipe.task import FiltersSpec
from lmdistill.stages.context import Context
from lmdistill.stages.task_data import TaskData
from lmdistill.stages.task_train import Start, TaskJob, train_task
from lmdistill.tasks.filters import FilterLearning, FilterMatching, Filters, make_filters
from lmdistill.tasks.objective import without_teacher

if TYPE_CHECKING:
    from lmdistill.stages.task_run import TaskRun, Teachers

TEACHER, STUDENT = "filters-teacher", "filters-student"
"""Names of the stages in which filters learn the task."""


class KeptLearning(FilterLearning):
    """Filters that learn the task and are written into the run folder at the end."""

    def __init__(self, context: Context, name: str, filters: Filters, model: PreTrainedModel) -> None:
        super().__init__(filters, model)
        self._file = context.folder.file(f"{name}.safetensors")

    def close(self) -> None:
        """Keep the filters and take the hooks away."""
        super().close()
        write_bytes(self._file, save({name: value.detach().cpu() for name, value in self.filters.state_dict().items()}))


def learn_filters(
    context: Context, data: TaskData, teachers: Teachers, spec: FiltersSpec, job: TaskJob, run: TaskRun
) -> tuple[TaskJob, TaskJob]:
    """Let the teacher's filters learn the task; returns the student's job, its weights' name completed, and the job
    before it, in which the student's own filters do."""
    where, key = teachers.weights(job.kind)
    plain = TaskJob(
        name=TEACHER,
        kind=job.kind,
        objective=without_teacher(ObjectiveSpec()),
        training={**job.training, **spec.training},
        dataset=job.dataset,
        collator=job.collator,
        extras=lambda model, _: [KeptLearning(context, TEACHER, _fresh(context, data, spec, model), model)],
        extras_key=spec.model_dump(mode="json"),
        frozen=True,
    )
    start = Start(teachers.folder(where), key, data.tokenizer, data.classes)
    trained = train_task(context, start, [plain], context.folder.file("checkpoints") / TEACHER)
    run.log(TEACHER, trained.skipped)
    own = replace(
        plain,
        name=STUDENT if job.name == "distil" else f"{STUDENT}-{job.name}",
        extras=lambda model, _: [KeptLearning(context, STUDENT, _fresh(context, data, spec, model), model)],
        training={**plain.training, **({} if spec.from_teacher else {"max_steps": 1})},
    )
    return replace(job, teacher_key=f"{key}+{trained.fingerprint}"), own


def matching(
    context: Context, data: TaskData, spec: FiltersSpec, student: PreTrainedModel, teacher: PreTrainedModel
) -> FilterMatching:
    """The second stage's term, with the filters that learnt the task."""
    own, other = (
        _loaded(context, name, _fresh(context, data, spec, model))
        for name, model in ((STUDENT, student), (TEACHER, teacher))
    )
    return FilterMatching(spec.weight, own, other.to(teacher.device), student, teacher)


def _fresh(context: Context, data: TaskData, spec: FiltersSpec, model: PreTrainedModel) -> Filters:
    width = spec.width or int(load_config(context.recipe.teacher).hidden_size)
    return make_filters(model, width, len(data.classes), context.recipe.seed)


def _loaded(context: Context, name: str, filters: Filters) -> Filters:
    tensors: dict[str, Any] = load_file(context.folder.file(f"{name}.safetensors"))
    filters.load_state_dict(tensors)
    return filters
