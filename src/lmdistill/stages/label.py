"""Asking the teacher once about the training text, and keeping what it says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lmdistill.accounting import forward_flops
from lmdistill.data import fingerprint
from lmdistill.io import hash_bytes
from lmdistill.models import load_model, output_head
from lmdistill.recipe import ModelSpec
from lmdistill.run_folder import fingerprint as fingerprint_of
from lmdistill.signals.answers import AnswersEngine
from lmdistill.signals.api_text import Vocabulary
from lmdistill.signals.codec import Array
from lmdistill.signals.engine import Engine
from lmdistill.signals.label import LabelResult, label
from lmdistill.signals.local import LocalEngine
from lmdistill.signals.sources import source_of, store_folder
from lmdistill.signals.store import TrainingSequence, source_key
from lmdistill.stages.context import Context
from lmdistill.teachers.token_bytes import TokenBytes
from lmdistill.training.stored import KEY


class DatasetSequences(Sequence[TrainingSequence]):
    """The sequences of a data set, each made when it is asked for."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset.with_format("numpy")

    def __len__(self) -> int:
        return len(self.dataset)

    @overload
    def __getitem__(self, place: int) -> TrainingSequence: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[TrainingSequence]: ...

    def __getitem__(self, place: int | slice) -> TrainingSequence | Sequence[TrainingSequence]:
        """One sequence, or several."""
        if isinstance(place, slice):
            return [self[index] for index in range(*place.indices(len(self)))]
        return TrainingSequence.from_columns(self.dataset[place])


def label_dataset(
    context: Context, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, name: str, student: Path | None
) -> tuple[Dataset, LabelResult]:
    """Fill the run's store with the signals of a data set; returns it with the column of their keys.

    `student` is the folder of the built student, for `head_expectation`.
    """
    spec = context.recipe.signals
    head_tables, head_name = _student_head(context, student) if spec.kind == "head_expectation" else (None, None)
    source = source_of(context.recipe, tokenizer, head_name)
    sequences = DatasetSequences(dataset)
    folder = store_folder(context.recipe)

    made: list[Engine] = []

    def engine() -> Engine:
        if not made:
            made.append(_engine(context, tokenizer, head_tables))
        return made[0]

    def fill() -> LabelResult:
        return label(
            sequences,
            source,
            spec,
            folder,
            engine=engine,
            head=(lambda: output_head(context.teacher, len(tokenizer))) if spec.kind == "hidden" else None,
            student=head_tables,
            progress=context.progress,
            stopped=lambda: context.stop.raised,
        )

    stage = f"label-{name}"
    key = fingerprint_of(source_key(source), fingerprint(dataset), str(folder.resolve()))
    try:
        if context.folder.is_done(stage, key):
            result = fill()  # says what is damaged, and mends it
        else:
            with context.stage(stage, key, f"the teacher speaks of {len(dataset)} sequences") as facts:
                with context.stop.patient():
                    result = fill()
                facts["tokens"] = result.tokens
                if result.tokens and spec.engine == "local":
                    flops = forward_flops(context.teacher, result.tokens, context.recipe.data.max_length)
                    facts["flops"] = facts["teacher_flops"] = flops
    finally:
        for used in made:
            used.close()
            if isinstance(used, AnswersEngine):
                context.note(used.tally.sentence())
    return dataset.add_column(KEY, result.keys), result


def _engine(context: Context, tokenizer: PreTrainedTokenizerBase, tables: dict[str, Array] | None) -> Engine:
    """Whoever the recipe lets speak."""
    spec, vocabulary_size = context.recipe.signals, len(tokenizer)
    if spec.engine == "answers":
        assert spec.answers is not None  # the recipe checks it
        known = TokenBytes(tokenizer)
        vocabulary = Vocabulary(known.pieces, known.by_bytes(), known.encoder.control_ids)
        return AnswersEngine(spec, Path(spec.answers).expanduser(), vocabulary)
    if spec.engine == "server":
        from lmdistill.signals.server import ServerEngine

        assert spec.base_url is not None  # the recipe checks it
        return ServerEngine(spec, spec.base_url, spec.served_model or context.recipe.teacher.model, vocabulary_size)
    if spec.engine == "ray":
        from lmdistill.signals.workers import RayEngine

        return RayEngine(
            spec, context.recipe.teacher, context.dtype_of(context.recipe.teacher), vocabulary_size, tables
        )
    return LocalEngine(context.teacher, vocabulary_size, spec, tables)


def _student_head(context: Context, student: Path | None) -> tuple[dict[str, Array], str]:
    """The rows of the student's head, and one name for them."""
    assert student is not None
    model = load_model(ModelSpec(model=str(student)), dtype=context.save_dtype, device=context.device)
    head = output_head(model)
    tables: dict[str, Array] = {"student_head": head.weight_VH.detach().float().cpu().numpy()}
    if head.bias_V is not None:
        tables["student_bias"] = head.bias_V.detach().float().cpu().numpy()
    return tables, hash_bytes(b"".join(np.ascontiguousarray(table).tobytes() for table in tables.values()))
