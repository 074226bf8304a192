"""Make an export, measure it again, and write both down."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lmdistill.errors import CorruptFile, ModelError
from lmdistill.evaluation.export_results import ExportRecord
from lmdistill.export.gguf_file import need_gguf, read_gguf, write_gguf
from lmdistill.export.int8 import load_int8, save_int8
from lmdistill.export.llamacpp_check import can_check, check_with_llamacpp
from lmdistill.export.measure import Yardstick, decoding_speed, measure_texts, prompts_of
from lmdistill.export.source import ADAPTER, ExportSource, load_student
from lmdistill.io import read_json, write_json
from lmdistill.models import fastest_dtype, load_model, load_tokenizer, model_fingerprint, save_model
from lmdistill.progress import Progress
from lmdistill.recipe import ExportSpec, ModelSpec

RESULTS = "export.json"
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
_CPU = torch.device("cpu")
_PROMPTS, _PROMPT_TOKENS, _NEW_TOKENS = 4, 24, 24


@dataclass
class _Made:
    """An export on disk, and the same weights in float32 as this process reads them back."""

    notes: list[str]
    weights: PreTrainedModel
    fast: PreTrainedModel | None = None
    """As transformers would run it; None where another program does."""
    written: list[Path] = field(default_factory=list)


def export_student(
    source: ExportSource,
    spec: ExportSpec,
    *,
    output: Path | None = None,
    by: Yardstick | None = None,
    licence: str = "",
    speed: bool = True,
    threads: int | None = None,
    progress: Progress | None = None,
) -> ExportRecord:
    """Export a student, measure what the export kept, and add it to `export.json` beside it or in its run.

    `by` says on which text and beside which teacher; without it fidelity is not measured, and the record says so by an
    empty `texts`. A file or folder that stood there before stays where the export fails. Raises ModelError,
    MissingExtra, StorageError.
    """
    progress = progress or Progress()
    target = output or source.exports / (f"{spec.name}.gguf" if spec.format == "gguf" else spec.name)
    if target.resolve() in (source.folder.resolve(), *source.folder.resolve().parents):
        raise ModelError(f"{target}: the export would replace the student itself or a folder around it; choose another")
    if spec.format != "gguf" and target.is_dir() and any(target.iterdir()) and not _is_ours(target):
        raise ModelError(f"{target}: a folder that holds something else; name one that is new, or an older export")
    if target.is_dir() and spec.format == "gguf":
        raise ModelError(f"{target}: a folder; a GGUF export is one file: --output NAME.gguf")
    if spec.format == "gguf":
        need_gguf()
    tokenizer = load_tokenizer(ModelSpec(model=str(source.folder)))
    student = load_student(source, torch.float32, _CPU)
    started = time.monotonic()
    with progress.stage(f"export {spec.name}", str(target)):
        made = _make(source, spec, student, tokenizer, target, licence)
    seconds = time.monotonic() - started
    record = ExportRecord(
        name=spec.name,
        format=spec.format,
        quantization=spec.kept_as,
        path=_shown(target, source),
        bytes=_weight_bytes(target),
        student_bytes=source.weight_bytes,
        student=student_key(source),
        seconds=round(seconds, 3),
        notes=made.notes,
    )
    with progress.stage("measure", "what the export kept"):
        by = by or Yardstick()
        by.vocabulary_size = len(tokenizer)
        record.texts = measure_texts(student, made.weights, by)
        _speak(record, spec, student, made, tokenizer, by, target, speed, threads)
    add_record(results_file(source), record)
    return record


def student_key(source: ExportSource) -> str:
    """A name of the student's weights: an export of others is stale."""
    return model_fingerprint(ModelSpec(model=str(source.folder)))


def results_file(source: ExportSource) -> Path:
    """Where what exports kept is written down."""
    return (source.run or source.exports) / RESULTS


def read_records(file: Path) -> list[ExportRecord]:
    """The exports of a student; none where nothing was exported. Raises CorruptFile."""
    if not file.is_file():
        return []
    value = read_json(file)
    try:
        return [ExportRecord.model_validate(found) for found in value["exports"]]
    except (TypeError, KeyError, ValueError) as error:
        raise CorruptFile(f"{file}: not what an export writes; delete it and export again") from error


def add_record(file: Path, record: ExportRecord) -> None:
    """Put an export among the others, in the place of an older one of its name and of those of other weights."""
    kept = [old for old in read_records(file) if old.name != record.name and old.student == record.student]
    write_json(file, {"exports": [found.model_dump(mode="json") for found in [*kept, record]]})


def drop_stale(source: ExportSource) -> None:
    """Take exports of other weights than the student's present ones out of the results."""
    file, key = results_file(source), student_key(source)
    found = read_records(file)
    if any(record.student != key for record in found):
        write_json(file, {"exports": [r.model_dump(mode="json") for r in found if r.student == key]})


def _make(
    source: ExportSource,
    spec: ExportSpec,
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    target: Path,
    licence: str,
) -> _Made:
    fast = fastest_dtype(_CPU)
    if spec.format == "gguf":
        notes = write_gguf(
            student, tokenizer, target, spec.kept_as, (source.run or source.folder).resolve().name, licence
        )
        if getattr(student.config, "sliding_window", None) and student.config.model_type == "mistral":
            notes.append("its context is that of its sliding window, which llama.cpp would not see")
        return _Made(notes, read_gguf(target, student.config))
    if spec.format == "int8":
        save_int8(_copied(source, None), tokenizer, target)
        return _Made([], load_int8(target), load_int8(target, dtype=fast))
    save_model(_copied(source, DTYPES[spec.kept_as]), tokenizer, target)
    here = ModelSpec(model=str(target))
    return _Made([], load_model(here, dtype=torch.float32, device=_CPU), load_model(here, dtype=fast, device=_CPU))


def _copied(source: ExportSource, dtype: torch.dtype | None) -> PreTrainedModel:
    """The student in a number format; in its own where none is named."""
    if dtype is None:
        stated = None if (source.folder / ADAPTER).is_file() else _own_dtype(source)
        dtype = stated or torch.bfloat16
    return load_student(source, dtype, _CPU)


def _own_dtype(source: ExportSource) -> torch.dtype | None:
    from lmdistill.models import load_config

    found = getattr(load_config(ModelSpec(model=str(source.folder))), "dtype", None)
    return found if isinstance(found, torch.dtype) else None


def _speak(
    record: ExportRecord,
    spec: ExportSpec,
    student: PreTrainedModel,
    made: _Made,
    tokenizer: PreTrainedTokenizerBase,
    by: Yardstick,
    target: Path,
    speed: bool,
    threads: int | None,
) -> None:
    """Let the export write: llama.cpp where it is one of its files, transformers otherwise."""
    if spec.format == "gguf" and can_check():
        prompts = prompts_of(by, _PROMPTS, _PROMPT_TOKENS) or _own_prompts(tokenizer)
        record.llamacpp, rate = check_with_llamacpp(target, made.weights, tokenizer, prompts, _NEW_TOKENS, threads)
        record.tokens_per_second = rate if speed else None
        record.speed_by = f"llama.cpp (xllamacpp {record.llamacpp.version})"
    elif spec.format == "gguf":
        record.notes.append("not tried in llama.cpp: xllamacpp is not installed (pip install 'lmdistill[llamacpp]')")
    if not speed:
        return
    if made.fast is not None:
        record.tokens_per_second = decoding_speed(made.fast)
        record.speed_by = f"transformers, {str(made.fast.dtype).removeprefix('torch.')}"
    plain: Any = student  # transformers wraps `to` in a way that types cannot follow
    record.student_tokens_per_second = decoding_speed(plain.to(fastest_dtype(_CPU)))


def _own_prompts(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return [tokenizer(text)["input_ids"] for text in ("The capital of France is", "Once upon a time there was")]


def _is_ours(folder: Path) -> bool:
    names = {path.name for path in folder.iterdir()}
    return "int8.json" in names or {"config.json", "model.safetensors"} <= names


def _shown(target: Path, source: ExportSource) -> str:
    """A path inside the run by its place there."""
    if source.run is not None and target.resolve().is_relative_to(source.run.resolve()):
        return target.resolve().relative_to(source.run.resolve()).as_posix()
    return str(target)


def _weight_bytes(target: Path) -> int:
    files: Sequence[Path] = [target] if target.is_file() else list(target.glob("*.safetensors"))
    return sum(file.stat().st_size for file in files)
