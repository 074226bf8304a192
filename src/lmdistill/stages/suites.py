"""Running the recipe's suites on what a run made; each is a stage of its own, so that none is run twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lmdistill.data import fingerprint
from lmdistill.data.documents import Document
from lmdistill.evaluation import Evaluation, Role, Subject
from lmdistill.evaluation.speakers import LocalSpeaker, Speaker
from lmdistill.evaluation.suite_results import SuiteResult
from lmdistill.evaluation.suites import Bench, run_suite
from lmdistill.evaluation.suites.judge import opened_judge
from lmdistill.io import read_json, write_json
from lmdistill.models import load_model, load_tokenizer
from lmdistill.recipe import ModelSpec
from lmdistill.run_folder import fingerprint as fingerprint_of
from lmdistill.stages.context import Context
from lmdistill.stages.student import Student
from lmdistill.stages.train import Trained
from lmdistill.stages.verdict import LABELS

STAGE = "suite-"


def run_all(
    context: Context,
    evaluation: Evaluation,
    student: Student,
    results: Mapping[Role, Trained],
    texts: Mapping[str, Dataset],
    train: Dataset,
    documents: Sequence[Document],
) -> tuple[Evaluation, dict[str, bool]]:
    """The evaluation with every suite that the recipe names, and of each whether it was there already.

    What a suite found is written before the next one begins. Raises what `run_suite` raises.
    """
    suites = context.recipe.evaluation.suites
    if suites is None:
        return evaluation.model_copy(update={"suites": []}), {}
    shared = fingerprint_of(
        {role: result.fingerprint for role, result in results.items()},
        {name: fingerprint(dataset) for name, dataset in texts.items()},
        context.recipe.teacher.model_dump(mode="json"),
        context.recipe.evaluation.model_dump(mode="json", include={"bootstrap_samples", "confidence"}),
        suites.model_dump(mode="json", include={"limit", "paths", "prompt", "correction", "overlap"}),
        context.recipe.seed,
    )
    keys = {name: fingerprint_of(shared, options.model_dump(mode="json")) for name, options in suites.chosen.items()}
    known = {name: _known(context, name, key) for name, key in keys.items()}
    there = {f"{STAGE}{name}": result is not None for name, result in known.items()}
    if not all(there.values()):
        known = _run(context, keys, known, student, results, texts, train, documents)
    found = [result for result in known.values() if result is not None]
    whole = evaluation.model_copy(update={"suites": found})
    write_json(context.folder.file("evaluation.json"), whole.model_dump(mode="json"))
    return whole, there


def _known(context: Context, name: str, key: str) -> SuiteResult | None:
    file = _file(context, name)
    if not context.folder.is_done(f"{STAGE}{name}", key) or not file.is_file():
        return None
    return SuiteResult.model_validate(read_json(file))


def _file(context: Context, name: str) -> Path:
    return context.folder.file("suites") / f"{name}.json"


def _run(
    context: Context,
    keys: Mapping[str, str],
    known: Mapping[str, SuiteResult | None],
    student: Student,
    results: Mapping[Role, Trained],
    texts: Mapping[str, Dataset],
    train: Dataset,
    documents: Sequence[Document],
) -> dict[str, SuiteResult | None]:
    """The suites that are not known yet, on models that are loaded once."""
    recipe = context.recipe
    suites = recipe.evaluation.suites
    assert suites is not None
    spec = None if suites.instruction is None else suites.instruction.judge
    subjects = _subjects(context, student, results)
    tokens = [subject for subject in subjects if subject.role != "teacher" or not context.is_foreign]
    found = dict(known)
    with opened_judge(spec, context.folder.path, context.fast_dtype, context.device, context.progress) as judge:
        bench = Bench(
            speakers=[_speaker(context, subject, student.tokenizer) for subject in subjects],
            suites=suites,
            evaluation=recipe.evaluation,
            seed=recipe.seed,
            folder=context.folder.path,
            progress=context.progress,
            texts=texts,
            train=train if "labels" in train.column_names else None,
            train_documents=documents,
            subjects=tokens,
            vocabulary_size=len(student.tokenizer),
            tokenizer=student.tokenizer,
            judge=judge,
        )
        for name, key in keys.items():
            if found[name] is not None:
                continue
            with context.stage(f"{STAGE}{name}", key, "on every model") as facts:
                result = run_suite(name, bench)  # type: ignore[arg-type]
                write_json(_file(context, name), result.model_dump(mode="json"))
                facts["sets"] = len(result.sets)
            found[name] = result
    return found


def _subjects(context: Context, student: Student, results: Mapping[Role, Trained]) -> list[Subject]:
    found = [] if context.is_elsewhere else [Subject("teacher", LABELS["teacher"], context.teacher)]
    for role, result in results.items():
        spec = ModelSpec(model=str(result.folder))
        model = load_model(spec, dtype=context.fast_dtype, device=context.device)
        found.append(Subject(role, LABELS[role], model, student.kept_ids))
    return found


def _speaker(context: Context, subject: Subject, tokenizer: PreTrainedTokenizerBase) -> Speaker:
    own = load_tokenizer(context.recipe.teacher) if subject.role == "teacher" else tokenizer
    return LocalSpeaker(subject.role, subject.label, subject.model, own)
