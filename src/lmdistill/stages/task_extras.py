"""What a method adds to training on a task: hints, rows that are made, mixed rows, filters, relations, retrieval."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lmdistill.errors import RecipeError
from lmdistill.io import read_json, write_json
from lmdistill.models import load_model, load_tokenizer, model_fingerprint
from lmdistill.recipe import HintSpec, ModelSpec, StageSpec, recipe_stages
from lmdistill.recipe.task import AugmentSpec, BilevelSpec
from lmdistill.run_folder import fingerprint as fingerprint_of
from lmdistill.stages.context import Context
from lmdistill.stages.task_data import TaskData, kind_of, stage_rows
from lmdistill.stages.task_filters import learn_filters, matching
from lmdistill.stages.task_retrieval import learn_projection, relations, retrieval
from lmdistill.stages.task_train import TaskJob
from lmdistill.tasks.augment import Candidates, MaskedWords, Neighbours, augmented
from lmdistill.tasks.bilevel import BilevelTrainer, split_quiz
from lmdistill.tasks.hints import HintTerms
from lmdistill.tasks.mix import MixedRows
from lmdistill.tasks.models import load_task_model
from lmdistill.tasks.objective import Extra, distance_of
from lmdistill.tasks.rows import Example
from lmdistill.tasks.sampled import as_examples, sampled_texts

if TYPE_CHECKING:
    from lmdistill.stages.task_run import TaskRun, Teachers


def trainer_of(
    context: Context, data: TaskData, teachers: Teachers, stage: StageSpec, job: TaskJob, run: TaskRun
) -> Iterable[TaskJob]:
    """The job with its teacher and further terms; jobs that must come before it are given first."""
    task = data.task
    own = job.kind == task.kind
    if job.objective.needs_teacher or (own and (task.retrieval or task.bilevel or task.filters)):
        _, key = teachers.weights(job.kind)
        moves = own and task.bilevel is not None
        job = replace(job, teacher=lambda: teachers.model(job.kind, trained=moves), teacher_key=key)
    parts: list[Any] = [[hint.model_dump(mode="json") for hint in job.objective.hints], job.objective.block_inputs]
    if own:
        given = (task.mix, task.retrieval, task.filters, task.bilevel)
        parts += [each.model_dump(mode="json") for each in given if each is not None]
    if own and task.bilevel is not None:
        job = _bilevel(context, data, task.bilevel, job)
    if own and task.retrieval is not None:
        job = learn_projection(context, data, teachers, task.retrieval, job, run)
    if own and task.filters is not None:
        job, learn = learn_filters(context, data, teachers, task.filters, job, run)
        yield learn
    yield replace(job, extras=extras_of(context, data, job, own), extras_key=parts)


def _bilevel(context: Context, data: TaskData, spec: BilevelSpec, job: TaskJob) -> TaskJob:
    rows, quiz = split_quiz(job.dataset, spec.quiz_share, context.recipe.seed)
    options = {"quiz": quiz, "bilevel": spec, "logits": data.task.logits}
    return replace(job, dataset=rows, trainer=BilevelTrainer, trainer_options=options)


def extras_of(context: Context, data: TaskData, job: TaskJob, own: bool) -> Callable[..., Sequence[Extra]]:
    """Makes the further terms of a job."""
    task = data.task

    def make(student: PreTrainedModel, teacher: PreTrainedModel | None) -> list[Extra]:
        found: list[Extra] = []
        hints = [hint for hint in job.objective.hints if hint.weight > 0 or hint.weight_end]
        if hints:
            assert teacher is not None
            found.append(_hints(context, job, hints, student, teacher))
        if own and task.filters is not None:
            assert teacher is not None
            found.append(matching(context, data, task.filters, student, teacher))
        if own and task.retrieval is not None and task.retrieval.relation_weight:
            assert teacher is not None
            found.append(relations(context, task.retrieval, student, teacher))
        if own and task.mix is not None:
            found.append(MixedRows(task.mix, job.kind, distance_of(job.objective, task.logits)))
        return found

    return make


def _hints(
    context: Context, job: TaskJob, hints: Sequence[HintSpec], student: PreTrainedModel, teacher: PreTrainedModel
) -> HintTerms:
    rows = [job.dataset[place] for place in range(min(32, len(job.dataset)))]
    return HintTerms(
        hints,
        job.kind,
        student,
        teacher,
        batch=_on(job.collator(rows), context.device),
        block_inputs=job.objective.block_inputs == "teacher",
        seed=context.recipe.seed,
        tell=context.note,
    )


def made_rows(context: Context, data: TaskData, teachers: Teachers, stage: StageSpec, run: TaskRun) -> list[Example]:
    """Rows that are made from the training rows of a stage; those of an equal stage are made once."""
    spec, task = data.task.augment, data.task
    if spec is None or kind_of(task, stage) != task.kind:
        return []
    keys = [f"{task.kind}:{source.model_dump_json()}" for source in stage.train or []]
    name = fingerprint_of(keys)
    if name not in data.made:
        rows = [example for key in keys for example in data.examples[key]]
        with context.progress.stage("augment", f"{spec.copies} copies of {len(rows):,} rows"):
            data.made[name] = augmented(rows, spec, _candidates(context, data, teachers, spec), context.recipe.seed)
        context.note(f"{len(data.made[name]):,} rows made of {len(rows):,}")
    return data.made[name]


def sampled_rows(context: Context, data: TaskData, run: TaskRun) -> list[Example] | None:
    """Texts that a language model wrote, in place of those of a stage; None where the recipe wants none."""
    spec = data.task.self_sampled
    if spec is None:
        return None
    where = spec.model or context.recipe.teacher
    name, file = "generate-self-sampled", context.folder.file("self-sampled.json")
    key = fingerprint_of(spec.model_dump(mode="json"), model_fingerprint(where), context.recipe.seed)
    done = context.folder.is_done(name, key) and file.is_file()
    if not done:
        with context.stage(name, key, f"{where.model} writes {spec.rows:,} texts") as facts:
            model, tokenizer = _writer(context, where)
            write_json(file, sampled_texts(model, tokenizer, spec, context.recipe.seed))
            facts["tokens"] = spec.rows * spec.length
    run.log(name, done)
    return as_examples(read_json(file))


def _writer(context: Context, where: ModelSpec) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = load_tokenizer(where)
    if tokenizer.mask_token_id is None:
        return load_model(where, dtype=context.fast_dtype, device=context.device), tokenizer
    model, missing = load_task_model(
        where, "masked_lm", [], dtype=context.fast_dtype, device=context.device, seed=context.recipe.seed
    )
    if missing:
        raise RecipeError(
            f"task.self_sampled: {where.model} has no trained head for masked tokens ({len(missing)} weights are "
            "missing), so it cannot write: name a language model in task.self_sampled.model"
        )
    return model, tokenizer


def _candidates(context: Context, data: TaskData, teachers: Teachers, spec: AugmentSpec) -> Candidates:
    table: Any = teachers.model(data.task.kind).get_input_embeddings()
    near = Neighbours(table.weight, data.tokenizer, spec.candidates)
    if spec.words == "neighbours":
        return near
    where = ModelSpec(model=spec.model) if spec.model else context.recipe.teacher
    model, missing = load_task_model(
        where, "masked_lm", [], dtype=context.fast_dtype, device=context.device, seed=context.recipe.seed
    )
    if missing:
        raise RecipeError(
            f"task.augment.words: masked_lm, but {where.model} has no trained head of that kind ({len(missing)} "
            "weights are missing): name a masked language model in task.augment.model, or use words: neighbours"
        )
    return MaskedWords(model, data.tokenizer, near, spec.candidates)


def retrieval_of(
    context: Context, data: TaskData, teachers: Teachers, model: PreTrainedModel
) -> Callable[[Tensor, Mapping[str, Any]], Tensor] | None:
    """What becomes of the student's logits at test time; None where nothing is retrieved."""
    spec, task = data.task.retrieval, data.task
    if spec is None:
        return None
    stage = next(s for s in reversed(recipe_stages(context.recipe)) if kind_of(task, s) == task.kind)
    rows, _ = stage_rows(data, stage, task.kind, context.recipe.data.max_length)

    def batches() -> Iterator[dict[str, Any]]:
        collate = data.collator(task.kind)
        for first in range(0, len(rows), task.batch_rows):
            part = [rows[place] for place in range(first, min(len(rows), first + task.batch_rows))]
            yield _on(collate(part), context.device)

    return retrieval(context, spec, model, teachers.model(task.kind), batches(), task.kind)


def _on(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
