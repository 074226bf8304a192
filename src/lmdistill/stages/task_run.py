"""A run whose recipe has a task: rows, teacher, student, training, baselines, evaluation.

The pipeline opens the run's folder, asks the doctor, and writes accounting and report, as for any run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from lmdistill.data import DataReport, fingerprint
from lmdistill.errors import RecipeError
from lmdistill.evaluation import Role
from lmdistill.evaluation.results import Evaluation
from lmdistill.io import read_json, write_json
from lmdistill.models import load_config, load_tokenizer, model_fingerprint, save_model
from lmdistill.packages import resolve_path
from lmdistill.recipe import ModelSpec, ObjectiveSpec, StageSpec, recipe_stages
from lmdistill.recipe.task import TaskKind
from lmdistill.run_folder import fingerprint as fingerprint_of
from lmdistill.stages.context import Context
from lmdistill.stages.prepare import write_data_report
from lmdistill.stages.task_data import TaskData, kind_of, read_task, stage_rows
from lmdistill.stages.task_extras import made_rows, retrieval_of, sampled_rows, trainer_of
from lmdistill.stages.task_train import Start, TaskJob, load_for, train_task
from lmdistill.stages.train import Trained
from lmdistill.tasks import students
from lmdistill.tasks.evaluate import TaskSubject, evaluate_task
from lmdistill.tasks.models import load_task_model
from lmdistill.tasks.objective import without_teacher

STUDENT, EVALUATE = "student", "evaluate"
TEACHER = "teacher"
"""Name of the stage that fine-tunes the teacher; that for masked tokens is `teacher-masked_lm`."""


@dataclass
class TaskRun:
    """What a run with a task hands on to the report."""

    order: list[str] = field(default_factory=list)
    skipped: set[str] = field(default_factory=set)
    steps: int = 0
    reports: dict[str, DataReport] = field(default_factory=dict)
    """What became of the rows of each training and held-out set."""

    def log(self, name: str, skipped: bool) -> None:
        """Note that a stage was carried out, or was there already."""
        if name not in self.order:
            self.order.append(name)
            if skipped:
                self.skipped.add(name)


@dataclass
class Teachers:
    """The teacher of each kind of task, fine-tuned where the recipe says so, loaded when first asked for."""

    context: Context
    data: TaskData
    run: TaskRun
    _folders: dict[str, tuple[ModelSpec, str]] = field(default_factory=dict)
    _models: dict[str, PreTrainedModel] = field(default_factory=dict)

    def weights(self, kind: TaskKind) -> tuple[ModelSpec, str]:
        """Where the teacher's weights for a kind of task lie, and their fingerprint."""
        if kind not in self._folders:
            self._folders[kind] = self._prepared(kind)
        return self._folders[kind]

    def folder(self, spec: ModelSpec) -> Path:
        """The folder of weights that `weights` named."""
        return Path(resolve_path(spec.model)).expanduser()

    def model(self, kind: TaskKind, *, trained: bool = False) -> PreTrainedModel:
        """The teacher for a kind of task, frozen; one of its own in float32 where it is `trained` too."""
        spec, _ = self.weights(kind)
        if trained:
            return self._load(spec, kind, torch.float32)
        if kind not in self._models:
            self._models[kind] = self._load(spec, kind, self.context.dtype_of(self.context.recipe.teacher))
            self._models[kind].requires_grad_(False)
        return self._models[kind]

    def _load(self, spec: ModelSpec, kind: TaskKind, dtype: torch.dtype) -> PreTrainedModel:
        classes = self.data.classes if kind == self.data.task.kind else []
        model, missing = load_task_model(
            spec, kind, classes, dtype=dtype, device=self.context.device, seed=self.context.recipe.seed
        )
        if missing and kind == self.data.task.kind and not self.data.task.teacher.fine_tune:
            raise RecipeError(
                f"{spec.model}: {len(missing)} weights of the head are missing (first: {missing[0]}), so this teacher "
                "has not learnt the task: set task.teacher.fine_tune: true"
            )
        return model

    def _prepared(self, kind: TaskKind) -> tuple[ModelSpec, str]:
        """Fine-tune the teacher where it must be, or find that done."""
        context, task = self.context, self.data.task
        given, key = context.recipe.teacher, model_fingerprint(context.recipe.teacher)
        if kind == task.kind:
            wanted = task.teacher.fine_tune and kind != "sentence_embedding"
        else:
            wanted = self._needs_head(kind)
        if not wanted:
            return given, key
        name = TEACHER if kind == task.kind else f"{TEACHER}-{kind}"
        start = self._start(kind, key)
        stages = [stage for stage in recipe_stages(context.recipe) if kind_of(task, stage) == kind]
        rows, report = stage_rows(self.data, stages[0], kind, context.recipe.data.max_length)
        self.data.reports[name] = report
        job = TaskJob(
            name=name,
            kind=kind,
            objective=without_teacher(ObjectiveSpec()),
            training={**context.recipe.training, **task.teacher.training},
            dataset=rows,
            collator=self.data.collator(kind),
        )
        trained = train_task(context, start, [job], context.folder.file(name))
        self.run.log(name, trained.skipped)
        return ModelSpec(model=str(trained.folder), dtype=given.dtype, attention=given.attention), trained.fingerprint

    def _needs_head(self, kind: TaskKind) -> bool:
        """Whether stages of this kind look at the teacher's logits while its files have no such head."""
        stages = [stage for stage in recipe_stages(self.context.recipe) if kind_of(self.data.task, stage) == kind]
        if not any(stage.objective is not None and stage.objective.divergence.weight > 0 for stage in stages):
            return False
        _, missing = load_task_model(
            self.context.recipe.teacher, kind, [], dtype=torch.float32, device=torch.device("cpu"), seed=0
        )
        return bool(missing)

    def _start(self, kind: TaskKind, key: str) -> Start:
        """The teacher before it learns the task, as a folder that training can start from."""
        context = self.context
        folder = context.folder.file("teacher-initial")
        name = "save-teacher-initial"
        found = fingerprint_of(key)
        if not (context.folder.is_done(name, found) and (folder / "config.json").is_file()):
            model, _ = load_task_model(
                context.recipe.teacher,
                "sentence_embedding",  # the encoder alone
                [],
                dtype=torch.float32,
                device=torch.device("cpu"),
                seed=context.recipe.seed,
            )
            save_model(model, self.data.tokenizer, folder)
            context.folder.finish(name, found)
        classes = self.data.classes if kind == self.data.task.kind else []
        return Start(folder, key, self.data.tokenizer, classes)


def run_task(context: Context) -> TaskRun:
    """Carry out a recipe with a task in its open run folder."""
    recipe = context.recipe
    assert recipe.task is not None
    run = TaskRun()
    own_words = recipe.student.start == "pretrained" and recipe.student.model is not None and recipe.task.bilstm is None
    tokenizer = load_tokenizer(recipe.student.model if own_words and recipe.student.model else recipe.teacher)
    data = read_task(context, tokenizer)
    run.reports = data.reports
    teachers = Teachers(context, data, run)
    start = _student(context, data, teachers, run)
    stages = recipe_stages(recipe)
    trained = _trained(context, data, teachers, start, stages, "student", run)
    results: dict[Role, Trained] = {"student": trained}
    results |= _baselines(context, data, teachers, start, run)
    _judge(context, data, teachers, results, run)
    heldout = {name: data.reports[name] for name in data.heldout}
    names = {stage.name: data.reports[stage.name] for stage in stages if stage.name in data.reports}
    write_data_report(context, names, heldout, data.sources)
    run.steps = sum(int((context.folder.record(stage.name) or {}).get("steps", 0)) for stage in stages)
    return run


def _student(context: Context, data: TaskData, teachers: Teachers, run: TaskRun) -> Start:
    """Build the student and save it, or find it built."""
    recipe, task = context.recipe, data.task
    spec = recipe.student
    apart = task.bilstm or task.bottleneck
    cut = spec.start == "teacher" and apart is None
    weights = teachers.weights(task.kind)[1] if cut and task.student_from == "fine_tuned" else None
    key = fingerprint_of(
        spec.model_dump(mode="json"),
        recipe.teacher.model_dump(mode="json"),
        apart.model_dump(mode="json") if apart else None,
        task.kind,
        data.classes,
        weights,
        recipe.seed,
    )
    folder = context.folder.file("student-initial")
    found = Start(folder, key, data.tokenizer, data.classes)
    if context.folder.is_done(STUDENT, key) and (folder / "config.json").is_file():
        run.log(STUDENT, True)
        return found
    with context.stage(
        STUDENT, key, f"build it from {'words' if task.bilstm else 'bottlenecks' if apart else spec.start}"
    ) as facts:
        model, description = _built(context, data, teachers)
        save_model(model, data.tokenizer, folder)
        write_json(context.folder.file("student.json"), description)
        facts["parameters"] = description["parameters_after"]
    run.log(STUDENT, False)
    return found


def _built(context: Context, data: TaskData, teachers: Teachers) -> tuple[PreTrainedModel, dict[str, Any]]:
    recipe, task = context.recipe, data.task
    spec, cpu = recipe.student, torch.device("cpu")
    first = kind_of(task, recipe_stages(recipe)[0])

    def load(model: ModelSpec) -> PreTrainedModel:
        classes = data.classes if first == task.kind else []
        return load_task_model(model, first, classes, dtype=torch.float32, device=cpu, seed=recipe.seed)[0]

    if task.bilstm is not None:
        return students.bilstm(task.bilstm, load(recipe.teacher), data.classes, recipe.seed)
    if task.bottleneck is not None:
        return students.bottleneck(task.bottleneck, load_config(recipe.teacher), first, data.classes, recipe.seed)
    if spec.start == "pretrained":
        assert spec.model is not None  # the recipe checks it
        model = load(spec.model)
        count = sum(parameter.numel() for parameter in model.parameters())
        return model, {"start": "pretrained", "parameters_before": count, "parameters_after": count}
    if spec.start == "config":
        return students.from_config(spec, load_config(recipe.teacher), first, data.classes, recipe.seed)
    fine_tuned = task.student_from == "fine_tuned"
    return students.from_teacher(spec, load(teachers.weights(task.kind)[0] if fine_tuned else recipe.teacher))


def _trained(
    context: Context,
    data: TaskData,
    teachers: Teachers,
    start: Start,
    stages: Sequence[StageSpec],
    role: Role,
    run: TaskRun,
) -> Trained:
    """Train the student, or a baseline of it, through all stages."""
    own = role == "student"
    minutes = context.recipe.budget.minutes
    jobs = []
    for stage in stages:
        kind = kind_of(data.task, stage)
        extra = made_rows(context, data, teachers, stage, run) if own else []
        instead = sampled_rows(context, data, run) if own and kind == data.task.kind else None
        rows, report = stage_rows(data, stage, kind, context.recipe.data.max_length, extra, instead)
        if own:
            data.reports[stage.name] = report
        job = TaskJob(
            name=stage.name if own else role if len(stages) == 1 else f"{role}-{stage.name}",
            kind=kind,
            objective=stage.objective or context.recipe.objective,
            training=stage.training,
            dataset=rows,
            collator=data.collator(kind),
            seconds=None if minutes is None or not own else 60 * minutes,
            unfreeze=stage.unfreeze if own else None,
            pruning=stage.pruning if own else None,
        )
        jobs += [*trainer_of(context, data, teachers, stage, job, run)] if own else [job]
    target = context.folder.file("student" if own else f"baselines/{role}")
    trained = train_task(context, start, jobs, target)
    for job in jobs:
        run.log(job.name, trained.skipped)
    return trained


def _baselines(context: Context, data: TaskData, teachers: Teachers, start: Start, run: TaskRun) -> dict[Role, Trained]:
    """The student before training, and the same student fine-tuned on the labels for as many steps."""
    wanted = context.recipe.evaluation.baselines
    results: dict[Role, Trained] = {}
    if "none" in wanted:
        results["none"] = Trained(start.folder, start.fingerprint, [], skipped=True)
    stages = [stage for stage in recipe_stages(context.recipe) if kind_of(data.task, stage) == data.task.kind]
    if "sft" in wanted and stages:
        if all(stage.objective is not None and not stage.objective.needs_teacher for stage in stages):
            context.note("the method itself is fine-tuning without a teacher: no sft baseline beside it")
        elif data.task.kind == "sentence_embedding" and data.task.text_pair is None:
            context.note("texts without pairs have nothing to be fine-tuned on: no sft baseline beside the student")
        else:
            plain = [_without_teacher(context, stage) for stage in stages]
            results["sft"] = _trained(context, data, teachers, start, plain, "sft", run)
    return results


def _without_teacher(context: Context, stage: StageSpec) -> StageSpec:
    """The same stage by the labels alone, for the same number of steps."""
    objective = without_teacher(stage.objective or ObjectiveSpec())
    steps = int((context.folder.record(stage.name) or {}).get("steps", 1))
    return stage.model_copy(update={"objective": objective, "training": {**stage.training, "max_steps": steps}})


def _judge(
    context: Context, data: TaskData, teachers: Teachers, results: dict[Role, Trained], run: TaskRun
) -> Evaluation:
    """Score the teacher and every result on the held-out rows."""
    recipe, task = context.recipe, data.task
    _, teacher_key = teachers.weights(task.kind)
    key = fingerprint_of(
        {role: result.fingerprint for role, result in results.items()},
        {name: fingerprint(dataset) for name, dataset in data.heldout.items()},
        recipe.evaluation.model_dump(mode="json"),
        task.model_dump(mode="json"),
        teacher_key,
        recipe.seed,
    )
    file = context.folder.file("evaluation.json")
    if context.folder.is_done(EVALUATE, key) and file.is_file():
        run.log(EVALUATE, True)
        return Evaluation.model_validate(read_json(file))
    labels: dict[Role, str] = {
        "student": "student",
        "none": "student, not trained",
        "sft": "student, fine-tuned without the teacher",
    }
    with context.stage(EVALUATE, key, "against the teacher and the baselines") as facts:
        subjects = [TaskSubject("teacher", "teacher", teachers.model(task.kind))]
        for role, result in results.items():
            model = load_for(context, result.folder, task.kind, data.classes)
            adjust = retrieval_of(context, data, teachers, model) if role == "student" else None
            subjects.append(TaskSubject(role, labels[role], _fast(context, model), adjust))
        evaluation = evaluate_task(
            subjects,
            data.heldout,
            task,
            data.classes,
            data.collator(task.kind, fixed=True),
            recipe.evaluation,
            seed=recipe.seed,
            progress=context.progress,
        )
        write_json(file, evaluation.model_dump(mode="json"))
        facts["tokens"] = sum(len(row) for dataset in data.heldout.values() for row in dataset["input_ids"])
    run.log(EVALUATE, False)
    return evaluation


def _fast(context: Context, model: PreTrainedModel) -> PreTrainedModel:
    """Weights in the format that this machine multiplies fastest; an LSTM stays as it is."""
    if model.config.model_type == "lmdistill_bilstm":
        return model
    plain: Any = model
    fast: PreTrainedModel = plain.to(context.fast_dtype)
    return fast
