"""Exporting from a run, or from a student alone: which texts and which teacher an export is held against."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from datasets import Dataset, load_from_disk
from safetensors.torch import load_file
from transformers import PreTrainedModel

from lmdistill.data import build_dataset, load_documents
from lmdistill.doctor import tokenizer_differences
from lmdistill.errors import LmdistillError, TokenizerMismatch
from lmdistill.evaluation.export_results import ExportRecord
from lmdistill.export.card import write_card
from lmdistill.export.make import export_student
from lmdistill.export.measure import Yardstick
from lmdistill.export.source import ExportSource
from lmdistill.models import load_model, load_tokenizer
from lmdistill.progress import Progress
from lmdistill.recipe import DataSpec, ExportSpec, ModelSpec, Recipe, SourceSpec, load_recipe, recipe_stages
from lmdistill.report import read_run, stated_licence, write_report

_HELD = "heldout-"


def export_from_run(
    source: ExportSource,
    spec: ExportSpec,
    *,
    output: Path | None = None,
    speed: bool = True,
    threads: int | None = None,
    progress: Progress | None = None,
) -> ExportRecord:
    """Export a run's student, measure it on the run's held-out texts, and write the card and the report anew."""
    assert source.run is not None
    by = yardstick_of_run(source.run, spec, progress)
    licence = stated_licence(read_run(source.run))
    record = export_student(
        source, spec, output=output, by=by, licence=licence, speed=speed, threads=threads, progress=progress
    )
    write_card(source.run)
    write_report(source.run)
    return record


def yardstick_of_run(folder: Path, spec: ExportSpec, progress: Progress | None = None) -> Yardstick:
    """A run's held-out texts as its student's tokenizer cut them, and its teacher where it can be compared with."""
    recipe = load_recipe(folder / "recipe.yaml")
    texts: dict[str, Dataset] = {}
    for name in recipe.data.evaluation:
        kept = folder / "data" / f"{_HELD}{name}"
        if kept.is_dir():
            texts[name] = load_from_disk(str(kept))
    ids = folder / "student-initial" / "kept_ids.safetensors"
    return Yardstick(
        texts=texts,
        teacher=_teacher(recipe, progress or Progress()) if texts else None,
        kept_ids=load_file(ids)["kept_ids"] if ids.is_file() else None,
        max_tokens=spec.max_tokens,
        samples=recipe.evaluation.bootstrap_samples,
        confidence=recipe.evaluation.confidence,
        seed=recipe.seed,
    )


def yardstick_of_data(
    source: ExportSource,
    data: Mapping[str, SourceSpec],
    teacher: ModelSpec | None,
    spec: ExportSpec,
    *,
    max_length: int = 512,
    seed: int = 0,
    progress: Progress | None = None,
) -> Yardstick:
    """Held-out text and a teacher as they are named on the command line. Raises DataError, ModelError."""
    progress = progress or Progress()
    tokenizer = load_tokenizer(ModelSpec(model=str(source.folder)))
    texts = {}
    for name, one in data.items():
        documents, report = load_documents(one, seed=seed, on_bad_rows="stop", progress=progress)
        settings = DataSpec(train=[one], max_length=max_length)
        texts[name] = build_dataset(documents, tokenizer, settings, seed=seed, report=report, progress=progress)
    model = None
    if teacher is not None:
        differences = tokenizer_differences(tokenizer, load_tokenizer(teacher))
        if differences:
            raise TokenizerMismatch(f"{teacher.model} cuts text differently from the student: {differences[0]}")
        model = load_model(teacher, dtype=torch.float32, device=torch.device("cpu"))
    return Yardstick(texts=texts, teacher=model, max_tokens=spec.max_tokens, seed=seed)


def _teacher(recipe: Recipe, progress: Progress) -> PreTrainedModel | None:
    """The run's teacher in float32; None, and a note, where it is not here or cuts text otherwise."""
    foreign = any(
        stage.objective is not None and stage.objective.cross_tokenizer is not None for stage in recipe_stages(recipe)
    )
    if recipe.teacher_is_remote or foreign:
        return None
    try:
        return load_model(recipe.teacher, dtype=torch.float32, device=torch.device("cpu"))
    except LmdistillError as error:
        progress.note(f"the export is compared with the student alone: the teacher cannot be had ({error})")
        return None
