"""Who speaks in a training: the teacher that the recipe's `teaching` describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from lmdistill.errors import ModelError, RecipeError
from lmdistill.models import OutputHead, load_model, output_head
from lmdistill.recipe import CrossTokenizerTerm, ObjectiveSpec
from lmdistill.stages.context import Context
from lmdistill.stages.student import Student
from lmdistill.teachers import (
    AdapterOffTeacher,
    LocalTeacher,
    MixedTeachers,
    RoutedTeachers,
    SelfTeacher,
    ServedTeacher,
    Teacher,
)
from lmdistill.teachers.cross_objective import find_objective
from lmdistill.teachers.cross_tokenizer import CrossTokenizerTeacher
from lmdistill.teachers.served import ServedKind
from lmdistill.teachers.translate import Translator
from lmdistill.training.companions import Companion, KeptModule

MAIN = "main"
"""Name of the recipe's own teacher among several."""


def live_teacher(context: Context, objective: ObjectiveSpec, student: Student, model: PreTrainedModel) -> Teacher:
    """The teacher that is asked during training. `model` is the student in training.

    Raises RecipeError, ModelError where the recipe asks for what this student or machine cannot give.
    """
    spec = context.recipe.teaching
    vocabulary = len(student.tokenizer)
    kept = None if student.kept_ids is None else student.kept_ids.to(context.device)
    if spec.kind != "model" and kept is not None:
        raise RecipeError(f"teaching.kind: {spec.kind} needs the teacher's ids: student.vocabulary cannot be trimmed")
    if spec.kind == "server":
        assert spec.base_url is not None  # the recipe checks it
        name = spec.served_model or context.recipe.teacher.model
        kind: ServedKind = "token" if _needs_tokens_alone(objective) else "top_k"
        return ServedTeacher(spec.base_url, name, vocabulary, kind=kind, k=spec.k, requests=spec.requests)
    if spec.kind == "adapter_off":
        return AdapterOffTeacher(model, vocabulary)
    if spec.kind == "self":
        return SelfTeacher(model, vocabulary, weights=spec.self_weights, ema_rate=spec.ema_rate)
    if spec.kind == "model":
        return LocalTeacher(context.teacher, vocabulary, kept)
    teachers = _several(context, vocabulary)
    if spec.kind == "routed":
        return RoutedTeachers(teachers)
    weights = [spec.weights.get(name, 0.0 if spec.weights else 1.0) for name in teachers]
    return MixedTeachers(
        list(teachers.values()),
        weights,
        gating=spec.gating,
        gating_temperature=spec.gating_temperature,
        compiled=context.recipe.machine.compile,
    )


def start_of(student: PreTrainedModel, vocabulary_size: int) -> Teacher:
    """The student as it is now, kept: what preferences are compared with."""
    return SelfTeacher(student, vocabulary_size, weights="fixed")


class AlignedTeacher:
    """The recipe's teacher, which cuts text otherwise than the student, as a distance of the objective."""

    def __init__(
        self,
        context: Context,
        spec: CrossTokenizerTerm,
        student: Student,
        model: PreTrainedModel,
        mixed: bool,
    ) -> None:
        """Raises ValueError for parameters that the kind does not have, ModelError for tokenizers that do not fit."""
        objective = find_objective(spec.kind, spec.parameters)
        translator = Translator(
            student.tokenizer, context.teacher_tokenizer(), max_length=context_length(context.teacher.config)
        )
        self.teacher = CrossTokenizerTeacher(
            context.teacher,
            translator,
            objective,
            student_width=int(model.config.get_text_config().hidden_size),
            compiled=context.recipe.machine.compile,
        )
        self.compute_dtype = torch.bfloat16 if mixed else None
        self.embeddings: Any = model.get_input_embeddings()

    @property
    def projectors(self) -> nn.Module | None:
        """What is trained beside the student."""
        return self.teacher.projectors

    @property
    def companions(self) -> list[Companion]:
        """What belongs in the student's checkpoints."""
        return [] if self.projectors is None else [KeptModule(self.projectors, "projectors")]

    def __call__(
        self, hidden_BLH: Tensor, head: OutputHead, batch: Mapping[str, Any], num_items: Tensor | float | None
    ) -> tuple[Tensor, Tensor]:
        """See `lmdistill.training.objective.Aligned`."""
        return self.teacher.aligned_loss(
            hidden_BLH,
            head,
            batch,
            num_items=num_items,
            student_embeddings_VH=self.embeddings.weight,
            compute_dtype=self.compute_dtype,
        )


def context_length(config: PreTrainedConfig) -> int | None:
    """The most tokens that a model reads; None where its configuration does not say."""
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if found is None else int(found)


def _several(context: Context, vocabulary: int) -> dict[str, LocalTeacher]:
    """All teachers by name, the recipe's own first. Raises ModelError for one of another vocabulary."""
    found = {MAIN: LocalTeacher(context.teacher, vocabulary)}
    for name, spec in context.recipe.teaching.models.items():
        model = load_model(spec, dtype=context.dtype_of(spec), device=context.device)
        rows = output_head(model).weight_VH.shape[0]
        if rows < vocabulary:
            raise ModelError(f"teaching.models.{name}: its vocabulary has {rows} ids, the student's {vocabulary}")
        found[name] = LocalTeacher(model, vocabulary)
    return found


def _needs_tokens_alone(objective: ObjectiveSpec) -> bool:
    """Whether the text's own tokens are all that is asked about."""
    terms = (objective.divergence, objective.student_divergence)
    return all(term is None or term.weight == 0 for term in terms) and objective.policy.weight > 0
