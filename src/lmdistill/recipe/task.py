"""Tasks beyond the next token: what is predicted, of which columns, by which kind of student."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from lmdistill.recipe.base import Count, NonNegative, Positive, Section, Share
from lmdistill.recipe.models import ModelSpec

TaskKind = Literal[
    "sequence_classification", "sequence_regression", "token_classification", "sentence_embedding", "masked_lm"
]
TaskMetric = Literal["accuracy", "f1", "macro_f1", "matthews", "pearson", "spearman", "entity_f1", "cosine_spearman"]
METRICS_OF: dict[str, tuple[TaskMetric, ...]] = {
    "sequence_classification": ("accuracy", "macro_f1", "matthews"),
    "sequence_regression": ("pearson", "spearman"),
    "token_classification": ("entity_f1", "accuracy"),
    "sentence_embedding": ("cosine_spearman",),
    "masked_lm": ("accuracy",),
}
"""What is measured of each kind of task where the recipe does not say."""


class TaskTeacherSpec(Section):
    """How the teacher comes to know the task."""

    fine_tune: bool = True
    """Fine-tune `teacher` on the task, once, in a stage of its own; false where it was fine-tuned before."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Fields of `transformers.TrainingArguments` of that stage; those of `training` where a field is absent."""


class BiLstmSpec(Section):
    """A bidirectional LSTM in place of a transformer (DistilBiLSTM 1903.12136)."""

    embedding: Count | None = None
    """Width of the word embeddings; the teacher's where absent, which are then where they start."""
    hidden: Count = 150
    """Units in each direction."""
    layers: Count = 1
    """LSTM layers."""
    projection: Count = 200
    """Width of the ReLU layer between the LSTM's last states and the classes."""
    dropout: Share = 0.1
    """Dropout before the ReLU layer."""


class BottleneckSpec(Section):
    """A MobileBERT (2004.02984) as deep as the teacher, whose blocks read and write the teacher's width."""

    width: Count = 96
    """Width inside blocks; a multiple of the teacher's number of attention heads (published: 128 of 512)."""
    embedding: Count = 128
    """Width of the word embeddings; three neighbours are read side by side."""
    feed_forwards: Count = 4
    """Feed-forward networks in each block."""


class LogitsSpec(Section):
    """How the class logits of student and teacher are compared; weight, temperature and, for `divergence`, the kind are
    those of `objective.divergence`. Numbers (sequence_regression) are compared by their squared distance in any case.
    """

    kind: Literal["divergence", "soft_cross_entropy", "softmax_mse", "logits_mse"] = "divergence"
    """`objective.divergence` of the class probabilities; cross-entropy with the teacher's softened ones (TinyBERT);
    squared distance of the probabilities (MetaDistil as released); or of the logits (DistilBiLSTM)."""
    over_classes: bool | None = None
    """Take the mean over classes too, not their sum. Where absent, as published: true for soft_cross_entropy
    (TinyBERT's `.mean()`) and softmax_mse, false for logits_mse (the paper's norm)."""


class AugmentSpec(Section):
    """More rows from the training rows, labelled by the teacher (TinyBERT 1909.10351, algorithm 1).

    Published: candidates of words that are one word piece come from a masked-LM, of others from GloVe. No GloVe ships
    with anything here: the nearest word pieces by the teacher's own input embeddings stand in its place.
    """

    probability: Share = 0.4
    """Probability with which each word is replaced (p_t)."""
    copies: Count = 20
    """New rows from each row (N_a; published: 30 for small sets, 10 for MNLI, 20 else)."""
    candidates: Count = 15
    """Candidates for each word (K)."""
    words: Literal["neighbours", "masked_lm"] = "neighbours"
    """Where candidates come from: the nearest input embeddings for all words; or a masked language model for words of
    one piece and the neighbours for the others."""
    model: str | None = None
    """Folder or name of that masked language model; the teacher where absent, which must have such a head."""


class MixSpec(Section):
    """Mixed rows beside the rows (MixKD 2011.00593): input embeddings of two rows, weighted lambda and 1 - lambda."""

    alpha: Positive = 0.4
    """lambda is drawn from Beta(alpha, alpha)."""
    student_weight: NonNegative = 1.0
    """Weight of the cross-entropy with the mixed labels (alpha_SM)."""
    teacher_weight: NonNegative = 1.0
    """Weight of the distance to the teacher's logits on the mixed rows (alpha_TMKD), by `task.logits`."""


class FiltersSpec(Section):
    """Task-aware filters behind each compared layer (TED 2210.01351).

    First those of teacher and student learn the task, their models frozen; then the student learns while its filtered
    states are drawn to the teacher's.
    """

    width: Count | None = None
    """Width of what filters give; the teacher's where absent (published: 768, that of its teacher)."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Fields of `transformers.TrainingArguments` of the filters' own stages."""
    weight: NonNegative = 100.0
    """Weight of the mean squared distance of the filtered states (alpha_2; published by task: MNLI 7500, QQP 1000, QNLI
    and MRPC 100, STS-B and RTE 50, SST-2 20, CoLA 10)."""
    from_teacher: bool = True
    """The student's filters learn the task with the student's first weights frozen; false starts them afresh."""


class BilevelSpec(Section):
    """The teacher learns to teach: it is moved so that a student's step towards it lowers the student's loss on a quiz
    (MetaDistil 2106.04570)."""

    teacher_learning_rate: Positive = 1e-5
    """Step size of the teacher."""
    quiz_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Share of the training rows that are quiz alone."""
    every: Count = 1
    """Student steps between two steps of the teacher."""


class ReaugSpec(Section):
    """What the teacher predicted for similar training rows is retrieved at test time (ReAugKD, Zhang et al. 2023)."""

    neighbours: Count = 10
    """Rows that are retrieved (k)."""
    temperature: Positive = 1.0
    """Softening of the similarities by which the rows are weighted."""
    relation_weight: NonNegative = 1.0
    """Weight of KL between the similarities teacher-teacher and student-teacher within a batch."""
    relation_temperature: Positive = 0.1
    """Softening of these similarities, and of those by which the teacher's projection learns (tau)."""
    relation_direction: Literal["student_teacher", "teacher_student"] = "student_teacher"
    """KL(student‖teacher) of the similarities, or the other way round."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Fields of `transformers.TrainingArguments` of the stage in which the teacher's projection learns."""
    share: Share = 0.5
    """What the retrieved prediction weighs beside the student's own at test time."""


class SelfSampledSpec(Section):
    """Training texts without data: a language model writes them from nothing, and the teacher of the task labels them.

    A causal model writes word after word from its start token (LLM-QAT 2305.17888); a masked one draws each position
    given all others, in passes that begin with masks alone (1902.04094).
    """

    rows: Count = 256
    """Texts."""
    length: Count = 24
    """Word pieces of a text, without special ones."""
    passes: Count = 3
    """Times that every position is drawn."""
    temperature: Positive = 1.0
    """Sampling temperature."""
    model: ModelSpec | None = None
    """Who writes: a causal or a masked language model; where absent the teacher, whose files must have a head for
    masked tokens."""


class TaskSpec(Section):
    """What is predicted, in place of the next token."""

    kind: TaskKind = "sequence_classification"
    """A class of a text or of a pair of texts; a number of it; a class of each word; an embedding of a text; or masked
    tokens."""
    text: str = "text"
    """Column of the text; for token_classification a column of words (a list, or text cut at white space)."""
    text_pair: str | None = None
    """Column of the second text of a pair."""
    label: str | None = "label"
    """Column of the label: a class, a number, or a list of classes, one a word. For sentence_embedding the similarity
    of text and text_pair, used in evaluation alone. null where rows have none."""
    label_pattern: str | None = None
    """A regular expression that finds the class within the label's column: its first group, or all that it matches.
    `^([A-D])\\.` makes the class B of the answer `B. 9 lines`. For classes of whole texts."""
    labels: list[str] | None = None
    """All classes in the order of their numbers; where absent, those of the training rows, sorted."""
    metrics: list[TaskMetric] | None = None
    """What is measured; the first is the one that the verdict names. By the kind of task where absent."""
    teacher: TaskTeacherSpec = Field(default_factory=TaskTeacherSpec)
    """How the teacher comes to know the task."""
    student_from: Literal["pretrained", "fine_tuned"] = "pretrained"
    """Whose layers a student that is cut from the teacher starts from: the teacher's before or after fine-tuning."""
    bilstm: BiLstmSpec | None = None
    """Take a bidirectional LSTM as the student; `student` is then not looked at."""
    bottleneck: BottleneckSpec | None = None
    """Take a MobileBERT as the student; `student` is then not looked at."""
    logits: LogitsSpec = Field(default_factory=LogitsSpec)
    """How class logits are compared."""
    masking: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    """Share of tokens that are masked for masked_lm (80 % become the mask, 10 % any token, 10 % stay)."""
    augment: AugmentSpec | None = None
    """Rows made from the training rows; the teacher labels them, so they count in what compares with it alone."""
    mix: MixSpec | None = None
    """Mixed rows."""
    filters: FiltersSpec | None = None
    """Task-aware filters."""
    bilevel: BilevelSpec | None = None
    """A teacher that learns to teach."""
    retrieval: ReaugSpec | None = None
    """Retrieval at test time."""
    self_sampled: SelfSampledSpec | None = None
    """Train the student on texts that a language model writes; `data.train` then serves the teacher's fine-tuning and
    the baseline alone."""
    batch_rows: Count = 64
    """Rows scored at a time in evaluation."""

    @property
    def all_metrics(self) -> tuple[TaskMetric, ...]:
        """What is measured."""
        return tuple(self.metrics) if self.metrics else METRICS_OF[self.kind]

    @property
    def has_classes(self) -> bool:
        """Whether a prediction is one of the recipe's classes."""
        return self.kind in ("sequence_classification", "token_classification")

    @field_validator("labels")
    @classmethod
    def _labels(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and len(set(value)) < max(2, len(value)):
            raise ValueError(f"{len(value)} labels of which {len(set(value))} differ; name at least 2 different ones")
        return value

    @field_validator("label_pattern")
    @classmethod
    def _pattern(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"{value!r} is no regular expression: {error}") from error
        return value

    @model_validator(mode="after")
    def _check(self) -> TaskSpec:
        if self.label is None and self.kind in (
            "sequence_classification",
            "sequence_regression",
            "token_classification",
        ):
            raise ValueError(f"kind: {self.kind} needs task.label, the column of the labels")
        if self.label_pattern is not None and self.kind != "sequence_classification":
            raise ValueError(f"kind: {self.kind} has no class in a text; remove task.label_pattern")
        if self.labels is not None and not self.has_classes:
            raise ValueError(f"kind: {self.kind} has no classes; remove task.labels")
        known = _METRICS_FOR[self.kind]
        for metric in self.metrics or ():
            if metric not in known:
                raise ValueError(f"{metric} is no measure of {self.kind}; these are: {', '.join(known)}")
        if self.kind == "token_classification" and self.text_pair is not None:
            raise ValueError("token_classification labels the words of one text; remove task.text_pair")
        extras = {
            name: getattr(self, name) for name in ("augment", "mix", "filters", "bilevel", "retrieval", "self_sampled")
        }
        for name, given in extras.items():
            if given is not None and self.kind != "sequence_classification":
                raise ValueError(f"task.{name} is for sequence_classification, not {self.kind}; remove it")
        if self.bilstm is not None and self.bottleneck is not None:
            raise ValueError("task.bilstm and task.bottleneck are two students; name one")
        if self.bilstm is not None and self.kind != "sequence_classification":
            raise ValueError(f"task.bilstm is for sequence_classification, not {self.kind}; remove it")
        return self


_METRICS_FOR: dict[str, tuple[TaskMetric, ...]] = {
    "sequence_classification": ("accuracy", "f1", "macro_f1", "matthews"),
    "sequence_regression": ("pearson", "spearman"),
    "token_classification": ("entity_f1", "accuracy", "macro_f1"),
    "sentence_embedding": ("cosine_spearman",),
    "masked_lm": ("accuracy",),
}


def check_task(recipe: Any, stages: list[Any]) -> None:
    """Refuse what a recipe with a task, or a stage of one, cannot mean; `stages` are complete. Raises ValueError."""
    task: TaskSpec | None = recipe.task
    if task is None:
        wrong = next((stage for stage in stages if stage.task is not None), None)
        if wrong is not None:
            raise ValueError(f"stage {wrong.name} has task: {wrong.task}, but the recipe has no task; add one")
        return
    student = recipe.student
    for name, given in (
        ("signals.kind", recipe.signals.kind != "live"),
        ("teaching.kind", recipe.teaching.kind != "model"),
        ("trajectories.source", recipe.trajectories.source != "dataset"),
        ("generation", recipe.generation is not None),
        ("student.vocabulary", student.vocabulary is not None),
        ("student.width", student.width is not None),
        ("student.lora", student.lora is not None),
        ("data.difference", recipe.data.difference is not None),
        ("evaluation.suites", recipe.evaluation.suites is not None),
        ("evaluation.responses", recipe.evaluation.responses is not None),
    ):
        if given:
            raise ValueError(f"{name} is for causal language models: leave it away where the recipe has a task")
    cut = task.bilstm is None and task.bottleneck is None and student.start == "teacher"
    if cut and student.depth is not None and student.depth.importance not in ("uniform", "first", "last"):
        raise ValueError(
            f"student.depth.importance: {student.depth.importance} is measured on causal language models; use uniform, "
            "first or last, or name student.layers"
        )
    for stage in stages:
        _check_objective(stage, task)


def _check_objective(stage: Any, task: TaskSpec) -> None:
    objective = stage.objective
    for name, given in (
        ("hidden_cosine", objective.hidden_cosine.weight > 0),
        ("policy", objective.policy.weight > 0),
        ("preference", objective.preference.weight > 0),
        ("student_divergence", objective.student_divergence is not None),
        ("cross_tokenizer", objective.cross_tokenizer is not None),
        ("tokens", objective.tokens.by != "all"),
    ):
        if given:
            fix = "use a hint (kind: hidden_cosine)" if name == "hidden_cosine" else "remove it"
            raise ValueError(f"stage {stage.name}: objective.{name} is for causal language models: {fix}")
    if task.self_sampled is not None and stage.task is None and objective.cross_entropy.weight > 0:
        raise ValueError(
            f"stage {stage.name}: texts that a model writes have no labels: set objective.cross_entropy.weight to 0"
        )
    if task.bilstm is not None and objective.hints:
        raise ValueError(f"stage {stage.name}: hints compare layers of transformers, which an LSTM has none of")
    if task.bilstm is not None and stage.task == "masked_lm":
        raise ValueError(f"stage {stage.name}: an LSTM student has no masked_lm head")
