"""Building the student, once, and loading what was built."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lmdistill.data import Collator, fingerprint, token_counts
from lmdistill.errors import ModelError
from lmdistill.io import write_bytes, write_json
from lmdistill.models import load_model, load_tokenizer, save_model
from lmdistill.recipe import ModelSpec, StudentSpec
from lmdistill.run_folder import fingerprint as fingerprint_of
from lmdistill.stages.context import Context
from lmdistill.students import build_student

STAGE = "student"


@dataclass(frozen=True)
class Student:
    """A built student on disk: its weights before training, its tokenizer and its map to the teacher's ids."""

    folder: Path
    tokenizer: PreTrainedTokenizerBase
    kept_ids: Tensor | None
    fingerprint: str

    def load(self, context: Context, dtype: torch.dtype) -> PreTrainedModel:
        """The weights before training."""
        return load_model(ModelSpec(model=str(self.folder)), dtype=dtype, device=context.device)


def tokenizer_for_calibration(context: Context) -> PreTrainedTokenizerBase:
    """The tokenizer before any trimming: the student's own, or the teacher's."""
    spec = context.recipe.student
    if spec.start == "pretrained" and spec.model is not None:
        return load_tokenizer(spec.model)
    return context.teacher_tokenizer()


def construct_student(context: Context, calibration: Dataset | None) -> tuple[Student, bool]:
    """Build the student and save it, or find it built. Returns it and whether the work was skipped.

    `calibration` is the text to look at where `needs_calibration`.
    """
    recipe = context.recipe
    spec = recipe.student
    key = fingerprint_of(
        spec.model_dump(mode="json", exclude={"lora"}),
        recipe.teacher.model_dump(mode="json"),
        fingerprint(calibration) if calibration is not None else None,
        recipe.seed,
    )
    folder = context.folder.file("student-initial")
    if context.folder.is_done(STAGE, key) and (folder / "config.json").is_file():
        return _found(folder, key), True
    with context.stage(STAGE, key, f"build it from {spec.start}") as facts:
        tokenizer = tokenizer_for_calibration(context)
        needs_teacher = spec.start == "teacher" or (spec.start == "config" and spec.model is None)
        built = build_student(
            spec,
            context.teacher if needs_teacher else None,
            recipe.teacher,
            tokenizer,
            _batches(calibration, spec.calibration_tokens) if calibration is not None else None,
            token_counts(calibration, len(tokenizer)) if calibration is not None and spec.vocabulary else None,
            context.progress,
            recipe.seed,
        )
        save_model(built.model, built.tokenizer, folder)
        if built.kept_ids is not None:
            write_bytes(folder / "kept_ids.safetensors", save({"kept_ids": built.kept_ids}))
        write_json(context.folder.file("student.json"), built.description)
        facts["parameters"] = sum(parameter.numel() for parameter in built.model.parameters())
        del built
        gc.collect()
    return _found(folder, key), False


def needs_calibration(spec: StudentSpec) -> bool:
    """Whether building the student looks at text."""
    by_activation = spec.depth is not None and spec.depth.importance not in ("uniform", "first", "last")
    return by_activation or spec.width is not None or spec.vocabulary is not None


def _found(folder: Path, key: str) -> Student:
    ids = folder / "kept_ids.safetensors"
    return Student(
        folder=folder,
        tokenizer=load_tokenizer(ModelSpec(model=str(folder))),
        kept_ids=load_file(ids)["kept_ids"] if ids.is_file() else None,
        fingerprint=key,
    )


def _batches(dataset: Dataset, tokens: int) -> list[dict[str, Tensor]]:
    """The first sequences of a data set, up to a number of tokens, as small batches."""
    rows: list[dict[str, Any]] = []
    count = 0
    for row in dataset:
        rows.append(row)
        count += len(row["input_ids"])
        if count >= tokens:
            break
    if not rows:
        raise ModelError("no text to measure importance on; data.train is empty")
    collate = Collator()
    batches = [collate(rows[first : first + 4]) for first in range(0, len(rows), 4)]
    return [{name: batch[name] for name in ("input_ids", "position_ids")} for batch in batches]
