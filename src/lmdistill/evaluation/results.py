"""What an evaluation found, as typed records: `evaluation.json` is their dump, the report is drawn from them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Role = Literal["teacher", "student", "none", "sft"]
"""`none` is the student before training, `sft` the same student trained on the same text without the teacher."""


class Record(BaseModel):
    """Base of the result records: NaN and infinities survive JSON, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings", use_attribute_docstrings=True)


class Interval(Record):
    """An estimate with its bootstrap interval."""

    value: float
    low: float
    high: float


class CalibrationBin(Record):
    """One bin of the reliability diagram."""

    confidence: float
    accuracy: float
    tokens: int


class FrequencyBand(Record):
    """Fidelity on tokens of one frequency band (how often the target token occurs in the training text)."""

    label: str
    tokens: int
    agreement: float
    forward_kl: float


class TextScores(Record):
    """One model on one held-out text."""

    tokens: int
    bytes: int
    sequences: int
    perplexity: Interval
    bits_per_byte: Interval
    accuracy: Interval
    """Share of tokens that the model's top choice gets right."""
    calibration_error: Interval
    """Expected calibration error of the top choice's probability."""
    calibration: list[CalibrationBin]
    agreement: Interval | None = None
    """Share of tokens whose top choice is the teacher's; absent for the teacher itself."""
    forward_kl: Interval | None = None
    """KL(teacher‖student) in nats a token."""
    reverse_kl: Interval | None = None
    """KL(student‖teacher) in nats a token."""
    by_frequency: list[FrequencyBand] = []


class Efficiency(Record):
    """Size and speed of one model on this machine."""

    parameters: int
    embedding_parameters: int
    """Parameters of the input embedding (and of the head, where it is not the same matrix)."""
    bytes: int
    """Size of the weights as saved."""
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    peak_memory_bytes: int
    """Peak resident memory of a fresh process that loads the model and generates."""
    dtype: str


class ModelScores(Record):
    """Everything measured of one model."""

    role: Role
    label: str
    texts: dict[str, TextScores]
    efficiency: Efficiency | None = None


class Comparison(Record):
    """Paired difference of the student and another model on one text (student minus other)."""

    other: Role
    text: str
    metric: Literal["agreement", "forward_kl", "reverse_kl", "log_perplexity", "calibration_error"]
    difference: Interval
    better: Literal["student", "other", "undecided"]
    """Undecided where the interval contains 0."""


class TokenHeat(Record):
    """One text whose tokens carry the divergence that remains between teacher and student."""

    text: str
    """Name of the held-out set."""
    tokens: list[str]
    forward_kl: list[float]
    """KL(teacher‖student) at the position that predicts each token; NaN for the first."""
    teacher_top: list[str]
    student_top: list[str]


class Generation(Record):
    """One prompt and what every model answers to it."""

    prompt: str
    answers: dict[Role, str]


class Evaluation(Record):
    """The whole evaluation of a run."""

    models: list[ModelScores]
    comparisons: list[Comparison]
    heat: list[TokenHeat]
    generations: list[Generation]
    confidence: float
    bootstrap_samples: int
    seconds: float

    def scores(self, role: Role) -> ModelScores | None:
        """The model with this role, if it was evaluated."""
        return next((model for model in self.models if model.role == role), None)
