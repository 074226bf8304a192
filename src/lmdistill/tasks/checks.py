"""What the doctor looks at where a recipe has a task; nothing is trained and no weights are loaded."""

from __future__ import annotations

from itertools import islice

import torch
from transformers import PreTrainedConfig

from lmdistill.data.documents import BadRow, EmptyRow
from lmdistill.data.load import read_rows
from lmdistill.errors import DataError, ModelError
from lmdistill.models import load_config, load_tokenizer, quiet_transformers
from lmdistill.progress import Progress
from lmdistill.recipe import Recipe, recipe_stages
from lmdistill.tasks.models import AUTO
from lmdistill.tasks.rows import to_example
from lmdistill.tasks.students import kept_layers

FIRST_ROWS = 20


def check_models(recipe: Recipe) -> list[str]:
    """What teacher and student are, in a line each. Raises ModelError, RecipeError."""
    assert recipe.task is not None
    teacher = load_config(recipe.teacher)
    whole = parameters_of(teacher, recipe.task.kind)
    lines = [f"{recipe.teacher.model}: {teacher.model_type}, {whole / 1e6:.1f} M parameters"]
    if recipe.task.bilstm is not None:
        return [*lines, "a bidirectional LSTM"]
    if recipe.task.bottleneck is not None:
        return [*lines, f"a MobileBERT of {teacher.num_hidden_layers} layers"]
    spec = recipe.student
    config = load_config(spec.model) if spec.model is not None else teacher
    if spec.start == "teacher":
        kept = kept_layers(spec, config.num_hidden_layers)
        count = config.num_hidden_layers if kept is None else len(kept)
        return [*lines, f"{count} of the teacher's {config.num_hidden_layers} layers"]
    if spec.start == "pretrained" and spec.model is not None:
        own, theirs = load_tokenizer(spec.model), load_tokenizer(recipe.teacher)
        if own.get_vocab() != theirs.get_vocab():
            raise ModelError(
                f"the student's tokenizer has {len(own)} tokens and the teacher's {len(theirs)}, and they are not the "
                "same: both models must read the same ids; take a student of the teacher's family"
            )
    return [*lines, f"{parameters_of(config, recipe.task.kind) / 1e6:.1f} M parameters"]


def parameters_of(config: PreTrainedConfig, kind: str) -> int:
    """Number of parameters of a model of this task; nothing is allocated. Raises ModelError for other architectures."""
    try:
        with torch.device("meta"), quiet_transformers():
            model = AUTO[kind].from_config(config)  # type: ignore[index]
    except ValueError as error:
        raise ModelError(
            f"a {config.model_type!r} model cannot be used for {kind} ({str(error).splitlines()[0][:120]})"
        ) from error
    return sum(parameter.numel() for parameter in model.parameters())


def check_rows(recipe: Recipe) -> int:
    """Read the first rows of all sources and count these. Raises DataError for one that cannot be used."""
    task = recipe.task
    assert task is not None
    pairs = [(source, stage.task or task.kind) for stage in recipe_stages(recipe) for source in stage.train or []]
    pairs += [(source, task.kind) for source in recipe.data.evaluation.values()]
    for source, kind in pairs:
        good, first = 0, ""
        for row in islice(read_rows(source, Progress()), FIRST_ROWS):
            try:
                if row.row is None:
                    raise BadRow(row.problem)
                to_example(row.row, task, kind, row.origin)
                good += 1
            except EmptyRow:
                continue
            except BadRow as problem:
                first = first or f"{row.origin}: {problem}"
        if first and (not good or recipe.data.on_bad_rows == "stop"):
            raise DataError(first)
    return len(pairs)


def check_length(recipe: Recipe) -> None:
    """Refuse texts that are longer than a model reads. Raises ModelError with both numbers."""
    room = getattr(load_config(recipe.teacher), "max_position_embeddings", None)
    if room is not None and recipe.data.max_length > room:
        raise ModelError(f"data.max_length = {recipe.data.max_length}, but the teacher reads at most {room} tokens")
