"""Build a student as its specification says; every part combines with every other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from lmdistill.errors import ModelError, RecipeError
from lmdistill.models import count_parameters, load_config, load_model
from lmdistill.progress import Progress
from lmdistill.recipe import ModelSpec, StudentSpec
from lmdistill.students.families import decoder_layers
from lmdistill.students.plan import starting_config
from lmdistill.students.prune import Batch, choose_layers, with_layers
from lmdistill.students.vocabulary import trim_vocabulary
from lmdistill.students.width import narrow


@dataclass
class BuiltStudent:
    """A student before training."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    kept_layers: list[int] | None
    """Layers of the model that it was cut from, counted from 0."""
    kept_ids: Tensor | None
    """Old id of each new one, where the vocabulary was trimmed."""
    description: dict[str, Any] = field(default_factory=dict)
    """What was done, as plain values, for the report."""


def build_student(
    spec: StudentSpec,
    teacher: PreTrainedModel | None,
    teacher_spec: ModelSpec,
    tokenizer: PreTrainedTokenizerBase,
    calibration: Sequence[Batch] | None,
    corpus_counts_V: Tensor | None,
    progress: Progress,
    seed: int,
) -> BuiltStudent:
    """The student of a recipe, its weights in the format of what it was cut from.

    Depth is cut first, since width is judged on what remains; the vocabulary last. Raises RecipeError, ModelError.
    """
    model = _start(spec, teacher, teacher_spec, seed)
    before = count_parameters(teacher if teacher is not None else model)
    description: dict[str, Any] = {"start": spec.start, "parameters_before": before}
    kept = None
    if spec.layers is not None or spec.depth is not None:
        model, kept, found = _cut_depth(spec, model, calibration, progress)
        description |= found
    if spec.width is not None:
        model, narrowed = narrow(model, spec.width, _needed(calibration, "width"), progress)
        description["width"] = narrowed
    kept_ids = None
    if spec.vocabulary is not None:
        if corpus_counts_V is None:
            raise RecipeError("student.vocabulary needs a corpus; data.train is empty")
        old = len(tokenizer)
        model, tokenizer, kept_ids = trim_vocabulary(model, tokenizer, corpus_counts_V, spec.vocabulary.minimum_count)
        description["vocabulary"] = {"before": old, "after": len(kept_ids)}
    description["parameters_after"] = count_parameters(model)
    return BuiltStudent(model, tokenizer, kept, kept_ids, description)


def _start(spec: StudentSpec, teacher: PreTrainedModel | None, teacher_spec: ModelSpec, seed: int) -> PreTrainedModel:
    if spec.start == "teacher":
        if teacher is None:
            raise ModelError("student.start: teacher, but no teacher was given")
        return teacher
    if spec.start == "pretrained":
        assert spec.model is not None  # the recipe checks it
        return load_model(spec.model, dtype=torch.float32, device=torch.device("cpu"))
    config = starting_config(spec, teacher.config if teacher is not None else load_config(teacher_spec))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    assert isinstance(model, PreTrainedModel)
    model.train(False)
    return model


def _cut_depth(
    spec: StudentSpec, model: PreTrainedModel, calibration: Sequence[Batch] | None, progress: Progress
) -> tuple[PreTrainedModel, list[int], dict[str, Any]]:
    depth = len(decoder_layers(model))
    if spec.layers is not None:
        kept = sorted(spec.layers)
        return with_layers(model, kept), kept, {"layers_before": depth, "kept_layers": kept}
    assert spec.depth is not None
    by_position = spec.depth.importance in ("uniform", "first", "last")
    batches = () if by_position else _needed(calibration, "depth")
    ranking = choose_layers(model, spec.depth, batches, progress)
    found = {
        "layers_before": depth,
        "kept_layers": ranking.kept,
        "importance": spec.depth.importance,
        "layer_importance": {str(index): score for index, score in sorted(ranking.scores.items())},
        "removal_order": ranking.order,
    }
    return with_layers(model, ranking.kept), ranking.kept, found


def _needed(calibration: Sequence[Batch] | None, part: str) -> Sequence[Batch]:
    if not calibration:
        raise RecipeError(f"student.{part} is judged on calibration text, but there is none; see data.train")
    return calibration
