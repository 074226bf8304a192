"""What is compared inside the models, beside their output: hints, and the schedules that go with them.

A layer is named by its number: 0 are the embeddings, n what the n-th block returns (attention and projections: those of
the n-th block), -1 the last block. `final` is what the final norm returns. Anything else is the path of a module, whose
output is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from lmdistill.recipe.base import Count, NonNegative, Positive, Section, Share, nearest

HINT_PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "hidden_mse": ("reduction",),
    "hidden_cosine": (),
    "hidden_normalised_mse": ("reduction",),
    "hidden_residual_mse": ("reduction",),
    "embedding_mse": ("reduction",),
    "attention_scores_mse": ("reduction", "heads"),
    "attention_mse": ("heads",),
    "attention_kl": ("heads",),
    "value_relation": ("relation_heads", "causal"),
    "query_relation": ("relation_heads", "causal"),
    "key_relation": ("relation_heads", "causal"),
    "gram": (),
    "fsp": (),
    "similarity": (),
    "cka": ("rows",),
    "rkd_distance": ("rows",),
    "rkd_angle": ("rows",),
    "contrastive": ("temperature", "rows"),
    "layer_logits": ("temperature",),
    "attribution": ("top", "steps"),
}
"""Parameters of each hint of `lmdistill.objectives.hints`, named here too so that reading a recipe needs no torch."""

HintKind = Literal[
    "hidden_mse",
    "hidden_cosine",
    "hidden_normalised_mse",
    "hidden_residual_mse",
    "embedding_mse",
    "attention_scores_mse",
    "attention_mse",
    "attention_kl",
    "value_relation",
    "query_relation",
    "key_relation",
    "gram",
    "fsp",
    "similarity",
    "cka",
    "rkd_distance",
    "rkd_angle",
    "contrastive",
    "layer_logits",
    "attribution",
]
Layers = list[int] | str


class ProjectorSpec(Section):
    """A learnt map from the student's width to the teacher's; it is trained with the student and never part of it."""

    kind: Literal["linear", "orthogonal", "low_rank", "mlp"] = "linear"
    """A matrix; one with orthonormal rows or columns; one of low rank; or two matrices with GELU between them."""
    rank: Count | None = None
    """Rank of `low_rank`; a quarter of the smaller width where absent."""
    width: Count | None = None
    """Inner width of `mlp`; the larger of both widths where absent."""
    bias: bool = True
    """Add a bias (not `orthogonal`)."""
    shared: bool = False
    """One projector for all pairs of layers, as in TinyBERT's code; else one for each."""
    learning_rate: Positive | None = None
    """Step size of its parameters; the student's where absent."""


class LayerFiltersSpec(Section):
    """Linear filters behind the compared layers of both causal models (TED 2210.01351): with the models frozen they
    learn the next token first, in stages of their own; the student's go on with it, the teacher's are frozen."""

    training: dict[str, Any] = Field(default_factory=dict)
    """Fields of `transformers.TrainingArguments` of the filters' own stages; those of the hint's stage where absent."""


class HintSpec(Section):
    """One distance between activations of teacher and student, taken at one or several pairs of layers."""

    kind: HintKind = "hidden_mse"
    """Name of the distance; `lmdistill.objectives.hints.HINTS` defines each."""
    teacher: Layers | None = None
    """The teacher's layers: numbers, `final`, or the path of a module; chosen by `map` where absent."""
    student: Layers | None = None
    """The student's layers: numbers, `final`, or the path of a module; all its layers where absent."""
    map: Literal["uniform", "last", "skip", "cka"] = "uniform"
    """How the teacher's layers are chosen where they are not named: evenly spaced with the last among them (TinyBERT's
    m * N / M); its last ones in order (PKD-Last); evenly spaced without the last (PKD-Skip); or, for each of the
    student's layers in order, the most similar one by CKA on a calibration batch."""
    weight: NonNegative = 1.0
    """Factor of this hint in the loss; that of the mean over its pairs of layers, or of their sum (`over_layers`)."""
    over_layers: Literal["mean", "sum"] = "mean"
    """What becomes of the distances of several pairs of layers."""
    weight_schedule: Literal["constant", "linear", "loss_magnitude", "gradient_magnitude"] = "constant"
    """Constant; from `weight` to `weight_end` over training; such that the hint is `weight` times as large as the rest
    of the objective (Minitron's dynamic alpha); or such that its gradient on the layer below all hints is `weight`
    times as long as that of the rest (after GradNorm, 1711.02257)."""
    weight_end: NonNegative | None = None
    """Weight at the end of training (`linear`)."""
    measure_every: Count = 10
    """Optimiser steps between two measurements of gradients (`gradient_magnitude`); each costs a backward pass more."""
    positions: Literal["trained", "all", "first"] = "trained"
    """Positions that count: those whose next token is trained (or label, for an encoder), all but padding, or the first
    one of each row ([CLS])."""
    only_current: bool = False
    """With `unfreeze.mode: one`, compare only the layer that is being trained (MobileBERT)."""
    projector: ProjectorSpec | None = None
    """Learnt map between both models' widths; needed where the distance compares vectors of different widths."""
    filters: LayerFiltersSpec | None = None
    """Compare what task-aware filters make of hidden states (TED), in place of a projector."""
    parameters: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """The distance's own parameters; see docs/hints.md."""

    @model_validator(mode="after")
    def _check(self) -> HintSpec:
        known = HINT_PARAMETERS[self.kind]
        for name in self.parameters:
            if name not in known:
                advice = nearest(name, known) if known else ", which takes none; remove it"
                raise ValueError(f"{name!r} is not a parameter of {self.kind}{advice}")
        if self.weight_schedule == "linear" and self.weight_end is None:
            raise ValueError("weight_schedule: linear needs weight_end, the weight at the end of training")
        if self.weight_schedule != "linear" and self.weight_end is not None:
            raise ValueError(f"weight_end is used with weight_schedule: linear, not {self.weight_schedule}; remove it")
        teacher, student = self.teacher, self.student
        if isinstance(teacher, list) and isinstance(student, list) and len(teacher) != len(student):
            raise ValueError(f"{len(teacher)} layers of the teacher but {len(student)} of the student; pair them")
        if isinstance(teacher, list) and student is None:
            raise ValueError(f"teacher: {teacher} needs as many layers under student")
        if isinstance(student, str) and teacher is None:
            raise ValueError(f"student: {student} is a module; name the teacher's beside it")
        self._check_filters()
        return self

    def _check_filters(self) -> None:
        if self.filters is None:
            return
        if not self.kind.startswith("hidden_"):
            raise ValueError(f"filters are behind hidden states: use kind: hidden_mse, not {self.kind}")
        if self.projector is not None:
            raise ValueError("filters bring both models to one width: take projector away")
        if self.map == "cka":
            raise ValueError("filters learn before similar layers are looked for: use another map, or name the layers")
        layers = [*self.student, *(self.teacher or [])] if isinstance(self.student, list) else []
        if isinstance(self.student, str) or isinstance(self.teacher, str) or 0 in layers:
            raise ValueError("filters are behind blocks: name layers by their numbers, from 1")


class UnfreezeSpec(Section):
    """Which of the student's layers are trained when; all of them from the start where this is absent."""

    order: Literal["top_down", "bottom_up"] = "top_down"
    """Which layer comes first: the last one (XtremeDistil 2004.05686) or the first one (MobileBERT 2004.02984)."""
    mode: Literal["accumulate", "one"] = "accumulate"
    """Layers stay trained once it was their turn, or only one is trained at a time."""
    until: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of training that the layers' turns take; all layers are trained afterwards."""
    embeddings: Literal["with_first", "always", "never"] = "with_first"
    """When embeddings are trained: with the first layer, from the start, or not at all."""
    head: bool = True
    """Train what lies behind the last layer (final norm, output head) from the start; else with the last layer."""


class PruneWhileSpec(Section):
    """Neurons, heads and channels go while the student learns (HomoDistil 2302.09632); at the end the student is cut to
    size."""

    intermediate: Count | None = None
    """MLP neurons of each layer that are left at the end; all of them where absent."""
    heads: Count | None = None
    """Attention heads of each layer that are left; with grouped-query attention whole groups go. A BERT's heads fill
    its width, so that `hidden` goes with them; GPT-2's too."""
    hidden: Count | None = None
    """Channels of the hidden width that are left, in the whole network."""
    start: Share = 0.0
    """Share of training at which pruning begins."""
    end: Share = 0.7
    """Share of training at which no more than these are left; numbers fall on a cubic curve (1710.01878)."""
    every: Count = 10
    """Optimiser steps between two rounds of pruning."""
    average: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.85
    """Decay of the moving average of scores |w * dL/dw|."""

    @model_validator(mode="after")
    def _check(self) -> PruneWhileSpec:
        if self.intermediate is None and self.heads is None and self.hidden is None:
            raise ValueError("pruning takes nothing away: set intermediate, heads or hidden to what is to be left")
        if self.start >= self.end:
            raise ValueError(f"pruning from {self.start} to {self.end} of training: start must lie before end")
        return self


_PAIRS_OF_POSITIONS = ("attention", "query", "key", "value", "gram", "fsp", "similarity")


def check_hints(recipe: Any, stages: list[Any]) -> None:
    """Refuse hints that nobody can give, and schedules without a meaning; `stages` are complete. Raises ValueError."""
    for stage in stages:
        hints: list[HintSpec] = stage.objective.hints
        if hints:
            _check_teacher_of_hints(recipe, hints)
        filtered = [hint for hint in hints if hint.filters is not None]
        if filtered and recipe.task is not None:
            raise ValueError("objective.hints: filters of a recipe with a task learn its classes: set task.filters")
        if len(filtered) > 1:
            raise ValueError(f"objective.hints: {len(filtered)} hints with filters; one can name all layers")
        if any(hint.only_current for hint in hints) and (stage.unfreeze is None or stage.unfreeze.mode != "one"):
            raise ValueError("only_current compares the block that is being trained: set unfreeze.mode: one")
        for name, given in (("unfreeze", stage.unfreeze), ("pruning", stage.pruning)):
            if given is not None and recipe.student.lora is not None:
                raise ValueError(f"{name} switches or cuts the student's own weights: leave student.lora away")


def _check_teacher_of_hints(recipe: Any, hints: list[HintSpec]) -> None:
    if recipe.signals.kind != "live":
        raise ValueError(
            "objective.hints compare what is inside the teacher while it reads, which a store does not keep: use "
            "signals.kind: live"
        )
    if recipe.teacher_is_remote:
        raise ValueError(
            f"objective.hints: the teacher {recipe.teacher.model} is behind an API, which shows nothing of its inside: "
            "name its weights in teacher"
        )
    if recipe.teaching.kind != "model":
        raise ValueError(
            f"objective.hints look inside one teacher in this process, which teaching.kind: {recipe.teaching.kind} is "
            "not: use teaching.kind: model"
        )
    pairwise = next((hint.kind for hint in hints if hint.kind.startswith(_PAIRS_OF_POSITIONS)), None)
    if pairwise is not None and (recipe.teaching.context is not None or recipe.teaching.template == "teacher"):
        raise ValueError(
            f"objective.hints: {pairwise} compares pairs of positions, which a teacher that reads a text of its own "
            "does not share: use hints on hidden states"
        )
