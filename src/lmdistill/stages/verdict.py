"""Evaluating what a run made, beside its teacher and its baselines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from datasets import Dataset
from torch import Tensor

from lmdistill.data import fingerprint, token_counts
from lmdistill.evaluation import Evaluation, Role, Subject, evaluate
from lmdistill.io import read_json, write_json
from lmdistill.models import load_model
from lmdistill.recipe import ModelSpec
from lmdistill.run_folder import fingerprint as fingerprint_of
from lmdistill.stages.context import Context
from lmdistill.stages.student import Student
from lmdistill.stages.train import Trained

STAGE = "evaluate"
LABELS: Mapping[Role, str] = {
    "teacher": "teacher",
    "student": "student",
    "none": "student, not trained",
    "sft": "student, fine-tuned without the teacher",
}


def judge(
    context: Context,
    student: Student,
    results: Mapping[Role, Trained],
    texts: Mapping[str, Dataset],
    train: Dataset,
    foreign: Mapping[str, Dataset] | None = None,
) -> tuple[Evaluation, bool]:
    """Score the teacher and every result on the held-out texts.

    `foreign` are the texts in the teacher's own tokens, where they are others than the student's: the models can then
    be compared by bits a byte, not token by token. Returns the evaluation and whether it was there already.
    """
    recipe = context.recipe
    key = fingerprint_of(
        {role: result.fingerprint for role, result in results.items()},
        {name: fingerprint(dataset) for name, dataset in texts.items()},
        recipe.evaluation.model_dump(mode="json", exclude={"suites"}),  # stages of their own
        recipe.teacher.model_dump(mode="json"),
        recipe.seed,
    )
    file = context.folder.file("evaluation.json")
    if context.folder.is_done(STAGE, key) and file.is_file():
        return Evaluation.model_validate(read_json(file)), True
    with context.stage(STAGE, key, "against the teacher and the baselines") as facts:
        teacher = None if context.is_elsewhere else Subject(role="teacher", label="teacher", model=context.teacher)
        subjects = [teacher] if teacher is not None and foreign is None else []
        for role, result in results.items():
            subjects.append(_subject(context, role, result.folder, student.kept_ids))
        evaluation = evaluate(
            subjects,
            student.tokenizer,
            dict(texts),
            recipe.evaluation,
            training_counts_V=token_counts(train, len(student.tokenizer)),
            seed=recipe.seed,
            progress=context.progress,
        )
        if teacher is not None and foreign is not None:
            evaluation = _with_foreign(context, evaluation, teacher, foreign)
        write_json(file, evaluation.model_dump(mode="json"))
        facts["tokens"] = sum(scores.tokens for model in evaluation.models for scores in model.texts.values())
    return evaluation, False


def _with_foreign(
    context: Context, evaluation: Evaluation, teacher: Subject, texts: Mapping[str, Dataset]
) -> Evaluation:
    """The evaluation with the scores of a teacher that cuts text otherwise, on the same texts."""
    alone = context.recipe.evaluation.model_copy(update={"heatmap_texts": 0, "responses": None})
    found = evaluate(
        [teacher],
        context.teacher_tokenizer(),
        dict(texts),
        alone,
        training_counts_V=None,
        seed=context.recipe.seed,
        progress=context.progress,
    )
    return evaluation.model_copy(
        update={
            "models": [*found.models, *evaluation.models],
            "generations": [*found.generations, *evaluation.generations],
            "seconds": round(evaluation.seconds + found.seconds, 3),
        }
    )


def _subject(context: Context, role: Role, folder: Path, kept_ids: Tensor | None) -> Subject:
    model = load_model(ModelSpec(model=str(folder)), dtype=context.fast_dtype, device=context.device)
    return Subject(role=role, label=LABELS[role], model=model, kept_ids=kept_ids)
