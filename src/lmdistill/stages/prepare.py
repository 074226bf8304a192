"""Reading, encoding and packing the data of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, load_from_disk
from transformers import PreTrainedTokenizerBase

from lmdistill.accounting import forward_flops
from lmdistill.data import (
    DataReport,
    Document,
    EncodedRow,
    RowEncoder,
    build_dataset,
    build_from_rows,
    contamination,
    fingerprint,
    load_documents,
    merge_reports,
    prompt_dataset,
    prompt_rows,
    prompts_of,
)
from lmdistill.errors import DataError
from lmdistill.io import hash_file, hash_json, write_folder, write_json
from lmdistill.models import tokenizer_fingerprint
from lmdistill.packages import resolve_path
from lmdistill.recipe import DataSpec, GenerationSpec, Recipe, SourceSpec, StageSpec, recipe_stages
from lmdistill.run_folder import fingerprint as fingerprint_of
from lmdistill.stages.context import Context
from lmdistill.trajectories.teacher import Written, write_answers


@dataclass
class Sources:
    """The documents of a run, read once."""

    train: dict[str, list[Document]] = field(default_factory=dict)
    """By the fingerprint of their sources."""
    heldout: dict[str, list[Document]] = field(default_factory=dict)
    reports: dict[str, DataReport] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    """Fingerprint of each source, by its description: files are hashed once."""

    def key(self, source: SourceSpec) -> str:
        """Name of a source and, for a local file, of its content."""
        description = source.model_dump_json()
        if description not in self.keys:
            path = Path(resolve_path(source.path))
            self.keys[description] = fingerprint_of(description, hash_file(path) if path.is_file() else None)
        return self.keys[description]


def read_sources(context: Context) -> Sources:
    """Read every source. Raises DataError before a model is loaded where one gives nothing."""
    recipe = context.recipe
    found = Sources()
    for stage in recipe_stages(recipe):
        for source in stage.train or []:
            if source.is_generated:
                continue
            key = found.key(source)
            if key not in found.train:
                found.train[key], found.reports[key] = _read(context, source)
    for name, source in recipe.data.evaluation.items():
        found.heldout[name], found.reports[name] = _read(context, source)
    return found


def encode(
    context: Context, documents: list[Document], tokenizer: PreTrainedTokenizerBase, name: str, report: DataReport
) -> Dataset:
    """Encode and pack documents, kept in the run's folder under `data/<name>`."""
    folder = context.folder.file("data") / name
    settings = _settings(context.recipe)
    key = fingerprint_of(
        [document.id for document in documents],
        settings.model_dump(mode="json", exclude={"train", "evaluation"}),
        tokenizer_fingerprint(tokenizer),
        context.recipe.seed,
    )
    record = context.folder.record(f"data-{name}")
    if record is not None and record["fingerprint"] == key and folder.is_dir():
        for field_name, value in record["report"].items():
            setattr(report, field_name, value)
        return load_from_disk(str(folder))
    dataset = build_dataset(
        documents, tokenizer, settings, seed=context.recipe.seed, report=report, progress=context.progress
    )
    if context.recipe.generation is not None and name.startswith("train-") and report.truncated + report.dropped:
        context.warn(
            f"{name}: {report.truncated + report.dropped} of {len(documents)} rows are longer than data.max_length = "
            f"{settings.max_length} tokens (the longest has {report.longest}): {report.truncated} lost the beginning "
            f"of what stands before the answer, {report.dropped} are left out. Raise data.max_length, or make rows "
            "shorter"
        )
    _keep(dataset, folder)
    context.folder.finish(f"data-{name}", key, report=report.model_dump(mode="json"))
    return dataset


def _settings(recipe: Recipe) -> DataSpec:
    """How rows are encoded, with the factors of the losses of a maker's own tasks."""
    factors = None if recipe.generation is None else recipe.generation.task_factors
    return recipe.data if factors is None else recipe.data.model_copy(update={"balance": factors})


def stage_documents(
    sources: Sources, stage: StageSpec, written: Callable[[SourceSpec], tuple[list[Document], DataReport]]
) -> tuple[list[Document], DataReport]:
    """The documents of one training stage and their report; `written` gives what the run's teacher wrote."""
    documents: list[Document] = []
    reports = []
    for source in stage.train or []:
        if source.is_generated:
            made, report = written(source)
            documents += made
            reports.append(report)
            continue
        key = sources.key(source)
        documents += sources.train[key]
        reports.append(sources.reports[key])
    if not documents:
        raise DataError(f"stage {stage.name}: its sources hold no rows; see stages.{stage.name}.train")
    return documents, merge_reports(reports)


def teacher_dataset(
    context: Context,
    documents: list[Document],
    tokenizer: PreTrainedTokenizerBase,
    stage: StageSpec,
    report: DataReport,
) -> Dataset:
    """Text that the teacher writes from the documents' prompts, encoded and packed."""
    assert stage.trajectories is not None
    spec = stage.trajectories.generation
    prompts = prompts_of(documents, tokenizer, spec)[: stage.trajectories.max_prompts]
    kept = _fitting(context, [len(prompt) for prompt in prompts], stage)
    written, origin = _teacher_answers(context, [prompts[place] for place in kept], tokenizer, stage, spec)
    # An answer that the length limit cut is trained on as far as it goes: it holds no false end.
    rows = [_encoded(item, f"{origin}:{number}") for number, item in enumerate(written, start=1) if item.answer_ids]
    return build_from_rows(rows, context.recipe.data, report=report)


def prompts_dataset(
    context: Context,
    documents: list[Document],
    tokenizer: PreTrainedTokenizerBase,
    stage: StageSpec,
    report: DataReport,
) -> Dataset:
    """The documents as prompts with their answers, for texts that are written during training.

    Where the teacher's answers are wanted too, it writes them now.
    """
    assert stage.trajectories is not None
    spec = stage.trajectories.generation
    recipe = context.recipe
    rows = prompt_rows(
        documents[: stage.trajectories.max_prompts],
        tokenizer,
        spec,
        add_eos=recipe.data.add_eos,
        context=recipe.teaching.context,
        teacher=teacher_encoder(context),
    )
    lengths = [max(len(row.prompt_ids), len(row.context_ids)) for row in rows]
    rows = [rows[place] for place in _fitting(context, lengths, stage)]
    if stage.trajectories.teacher_writes:
        once = spec.model_copy(update={"samples_per_prompt": 1})
        written, _ = _teacher_answers(context, [row.prompt_ids for row in rows], tokenizer, stage, once)
        answers = {tuple(item.prompt_ids): item.answer_ids for item in written}
        rows = [replace(row, teacher_answer_ids=answers[tuple(row.prompt_ids)]) for row in rows]
    dataset = prompt_dataset(rows)
    report.max_length, report.sequences = recipe.data.max_length, len(rows)
    report.tokens = sum(len(row.prompt_ids) + len(row.answer_ids) for row in rows)
    report.trained_tokens = sum(len(row.answer_ids) for row in rows)
    report.fingerprint = fingerprint(dataset)
    return dataset


def teacher_encoder(context: Context) -> RowEncoder | None:
    """What encodes conversations as the teacher reads them, where that is not as the student does."""
    if context.recipe.teaching.template == "student":
        return None
    return RowEncoder(context.teacher_tokenizer(), add_eos=context.recipe.data.add_eos)


def _fitting(context: Context, lengths: list[int], stage: StageSpec) -> list[int]:
    """Places of the prompts that leave room for an answer. Raises DataError where there is none."""
    assert stage.trajectories is not None
    new = stage.trajectories.generation.max_new_tokens
    room = context.recipe.data.max_length - new
    kept = [place for place, length in enumerate(lengths) if 0 < length <= room]
    if not kept:
        raise DataError(
            f"stage {stage.name}: none of {len(lengths)} prompts leaves room for {new} new tokens in "
            f"data.max_length = {context.recipe.data.max_length}; raise it or lower generation.max_new_tokens"
        )
    if len(kept) < len(lengths):
        context.warn(f"stage {stage.name}: {len(lengths) - len(kept)} of {len(lengths)} prompts are too long: left out")
    return kept


def _teacher_answers(
    context: Context,
    prompts: list[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    stage: StageSpec,
    spec: GenerationSpec,
) -> tuple[list[Written], str]:
    """What the teacher writes after each prompt, and the name of the file that keeps it."""
    key = fingerprint_of(
        prompts, spec.model_dump(mode="json"), context.recipe.teacher.model_dump(mode="json"), context.recipe.seed
    )
    name = f"generate-{stage.name}"
    file = context.folder.file("trajectories") / f"{stage.name}-{key[:12]}.jsonl"
    seed, progress = context.recipe.seed, context.progress

    def write() -> list[Written]:
        return write_answers(lambda: context.teacher, tokenizer, prompts, spec, file=file, seed=seed, progress=progress)

    if context.folder.is_done(name, key):
        written = write()
    else:
        with context.stage(name, key, f"the teacher answers {len(prompts)} prompts") as facts:
            written = write()
            facts["tokens"] = sum(len(item.answer_ids) for item in written)
            facts["unfinished"] = sum(not item.finished for item in written)
            read = sum(len(item.prompt_ids) + len(item.answer_ids) for item in written) * spec.num_beams
            facts["flops"] = facts["teacher_flops"] = forward_flops(
                context.teacher, read, context.recipe.data.max_length
            )
    return written, file.name


def _encoded(item: Written, origin: str) -> EncodedRow:
    """A prompt and the teacher's answer as one row; the answer alone is trained."""
    ids = item.prompt_ids + item.answer_ids
    trained_L = np.arange(len(ids)) >= len(item.prompt_ids)
    return EncodedRow(
        ids_L=np.array(ids, dtype=np.int32),
        trained_L=trained_L,
        row_id=hash_json(ids)[:16],
        origin=origin,
        lead=0,
        last_answer=len(item.prompt_ids),
    )


def write_data_report(
    context: Context, train: Mapping[str, DataReport], heldout: Mapping[str, DataReport], sources: Sources
) -> None:
    """data.json: counts, and what the training text shares with the held-out ones."""
    trained_on = [document for documents in sources.train.values() for document in documents]
    value: dict[str, Any] = {
        "train": {name: report.model_dump(mode="json") for name, report in train.items()},
        "evaluation": {name: report.model_dump(mode="json") for name, report in heldout.items()},
        "contamination": {
            name: contamination(trained_on, documents).model_dump(mode="json")
            for name, documents in sources.heldout.items()
        },
    }
    write_json(context.folder.file("data.json"), value)
    for name, found in value["contamination"].items():
        if found["exact"]:
            context.warn(
                f"held-out {name}: {found['exact']} of {found['heldout_documents']} rows stand in the training text "
                "too, so its scores flatter; take them out, or split one source with part: train and part: heldout"
            )


def _read(context: Context, source: SourceSpec) -> tuple[list[Document], DataReport]:
    return load_documents(
        source,
        seed=context.recipe.seed,
        on_bad_rows=context.recipe.data.on_bad_rows,
        progress=context.progress,
    )


def _keep(dataset: Dataset, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with write_folder(folder) as temporary:
        dataset.save_to_disk(str(temporary))
