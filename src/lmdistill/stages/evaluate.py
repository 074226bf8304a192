"""Scoring models that exist already: in folders, or behind an API."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lmdistill.data import build_dataset, load_documents
from lmdistill.doctor import tokenizer_differences
from lmdistill.errors import ModelError, TokenizerMismatch
from lmdistill.evaluation import Evaluation, Role, Subject, evaluate
from lmdistill.evaluation.api_speaker import ApiSpeaker
from lmdistill.evaluation.results import ModelScores
from lmdistill.evaluation.speakers import LocalSpeaker, Speaker
from lmdistill.evaluation.suites import Bench, check_suites, refuse_without_weights, run_suites
from lmdistill.evaluation.suites.judge import opened_judge
from lmdistill.models import fastest_dtype, load_model, load_tokenizer, pick_device
from lmdistill.progress import Progress
from lmdistill.recipe import ApiSpec, DataSpec, EvaluationSpec, ModelSpec, SourceSpec
from lmdistill.teachers.api import ApiTeacher

ROLES: tuple[Role, ...] = ("student", "sft", "none")
"""What models that are named stand for in the comparison, in their order."""
Named = ModelSpec | ApiSpec
"""A model as a command names it."""


@dataclass(frozen=True)
class _Loaded:
    """The models, loaded or connected."""

    speakers: list[Speaker]
    """The teacher first, where there is one."""
    subjects: list[Subject]
    """Those whose weights are here."""
    tokenizer: PreTrainedTokenizerBase | None
    """That of the first model whose weights are here."""


def evaluate_models(
    models: Sequence[Named],
    *,
    teacher: Named | None,
    data: dict[str, SourceSpec],
    spec: EvaluationSpec,
    max_length: int,
    seed: int,
    device: str,
    progress: Progress,
) -> Evaluation:
    """Score models that exist already, beside a teacher or not; nothing is written but the ledgers of APIs.

    The first model is the `student`; a second one takes the place of the `sft` baseline, a third that of `none`, under
    their own names. All must share one tokenizer, unless nothing but suites is asked for that compare text; suites that
    need weights or probabilities refuse models behind an API. Raises ModelError, DataError, MissingExtra.
    """
    if spec.suites is not None:
        check_suites(spec.suites)
    if not 1 <= len(models) <= len(ROLES):
        raise ModelError(f"{len(models)} models; between 1 and {len(ROLES)} can be compared at a time")
    named: list[tuple[Role, Named]] = [] if teacher is None else [("teacher", teacher)]
    named += list(zip(ROLES, models, strict=False))
    _check_remote(named, data, spec)
    started = time.monotonic()
    place = pick_device(device)
    dtype = fastest_dtype(place)
    share_tokens = bool(data) or spec.suites is None or spec.suites.fidelity is not None
    with tempfile.TemporaryDirectory() as folder, _loaded(named, dtype, place, Path(folder), progress) as loaded:
        if share_tokens:
            _same_tokenizers(named)
        texts = {}
        for name, source in data.items():
            documents, report = load_documents(source, seed=seed, on_bad_rows="stop", progress=progress)
            settings = DataSpec(train=[source], max_length=max_length)
            assert loaded.tokenizer is not None
            texts[name] = build_dataset(
                documents, loaded.tokenizer, settings, seed=seed, report=report, progress=progress
            )
        found = _scores(loaded, named, texts, spec, seed, progress)
        if spec.suites is not None:
            instruction = spec.suites.instruction
            judge = None if instruction is None else instruction.judge
            with opened_judge(judge, Path(folder), dtype, place, progress) as arbiter:
                bench = Bench(
                    speakers=loaded.speakers,
                    suites=spec.suites,
                    evaluation=spec,
                    seed=seed,
                    folder=Path(folder),
                    progress=progress,
                    texts=texts,
                    subjects=loaded.subjects if share_tokens else [],
                    vocabulary_size=0 if loaded.tokenizer is None else len(loaded.tokenizer),
                    tokenizer=loaded.tokenizer if share_tokens else None,
                    judge=arbiter,
                )
                found = found.model_copy(update={"suites": run_suites(bench)})
    return found.model_copy(update={"seconds": round(time.monotonic() - started, 3)})


def _check_remote(named: Sequence[tuple[Role, Named]], data: Mapping[str, SourceSpec], spec: EvaluationSpec) -> None:
    """Refuse what a model behind an API cannot be asked. Raises ModelError."""
    remote = [model.model for _, model in named if isinstance(model, ApiSpec)]
    if not remote:
        return
    if data:
        raise ModelError(
            f"{remote[0]} is behind an API, which gives text and no probabilities of a given text: held-out text "
            "(--data) needs the weights; ask it for suites that models write in (--suite instruction,reasoning,tasks)"
        )
    if spec.suites is not None:
        refuse_without_weights(spec.suites, remote, everyone=len(remote) == len(named))


@contextmanager
def _loaded(
    named: Sequence[tuple[Role, Named]], dtype: torch.dtype, place: torch.device, folder: Path, progress: Progress
) -> Iterator[_Loaded]:
    """The models for as long as the context is open. Raises what `load_model` and `ApiTeacher` raise."""
    speakers: list[Speaker] = []
    subjects: list[Subject] = []
    first: PreTrainedTokenizerBase | None = None
    with ExitStack() as owned:
        for number, (role, model) in enumerate(named):
            if isinstance(model, ApiSpec):
                kept = folder / f"api-{number}"
                kept.mkdir()
                asked = ApiTeacher(model, folder=kept, run="evaluate", progress=progress)
                speakers.append(ApiSpeaker(role, owned.enter_context(asked)))
                continue
            tokenizer = load_tokenizer(model)
            subject = Subject(role=role, label=model.model, model=load_model(model, dtype=dtype, device=place))
            subjects.append(subject)
            speakers.append(LocalSpeaker(role, subject.label, subject.model, tokenizer))
            if first is None or role == "student":
                first = tokenizer
        yield _Loaded(speakers, subjects, first)


def _scores(
    loaded: _Loaded,
    named: Sequence[tuple[Role, Named]],
    texts: Mapping[str, Dataset],
    spec: EvaluationSpec,
    seed: int,
    progress: Progress,
) -> Evaluation:
    """What is measured beside the suites; of a model behind an API, its name alone."""
    alone = spec if texts else spec.model_copy(update={"speed": None})
    if loaded.subjects:
        assert loaded.tokenizer is not None
        found = evaluate(
            loaded.subjects, loaded.tokenizer, texts, alone, training_counts_V=None, seed=seed, progress=progress
        )
    else:
        found = Evaluation(
            models=[],
            comparisons=[],
            heat=[],
            generations=[],
            confidence=spec.confidence,
            bootstrap_samples=spec.bootstrap_samples,
            seconds=0.0,
        )
    known = {model.role: model for model in found.models}
    models = [known.get(role) or ModelScores(role=role, label=model.model, texts={}) for role, model in named]
    return found.model_copy(update={"models": models})


def _same_tokenizers(named: Sequence[tuple[Role, Named]]) -> None:
    """Raises TokenizerMismatch where a model with weights cuts text otherwise than the first one."""
    here = [(role, model) for role, model in named if isinstance(model, ModelSpec)]
    here.sort(key=lambda each: each[0] == "teacher")
    if not here:
        return
    first = load_tokenizer(here[0][1])
    for _, model in here[1:]:
        differences = tokenizer_differences(first, load_tokenizer(model))
        if differences:
            raise TokenizerMismatch(f"{model.model} cuts text differently from the first model: {differences[0]}")
