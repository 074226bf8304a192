"""What an evaluation found, as typed records: `evaluation.json` is their dump, the report is drawn from them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lmdistill.evaluation.records import Interval as Interval
from lmdistill.evaluation.records import Record as Record
from lmdistill.evaluation.records import Role as Role
from lmdistill.evaluation.suite_results import SuiteResult
from lmdistill.evaluation.task_results import EncoderEfficiency, TaskScores, TaskSummary


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
    by_frequency: list[FrequencyBand] = Field(default_factory=list)


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


class LengthBucket(Record):
    """ROUGE-L of the answers whose reference has a certain length."""

    label: str
    """Length of the reference in words."""
    answers: int
    rouge: Interval


class ExposurePoint(Record):
    """Exposure bias up to one length (`lmdistill.evaluation.exposure`)."""

    length: int
    """Steps of generation."""
    answers: int
    """Answers of the model that are that long."""
    regret: float
    """R(l): KL(teacher‖model) accumulated along the model's own prefixes, in nats."""
    expected: float
    """l eps(l): the same along the teacher's prefixes."""
    excess: Interval
    """ExAccErr(l) = (R(l) - l eps(l)) / (l eps(l)), in per cent."""


class ResponseScores(Record):
    """What one model writes by itself to the prompts of one held-out text; intervals are over prompts.

    Of the teacher, the columns that compare with the teacher say what two independent answers of its own come to: the
    ceiling of ROUGE-L, the floor of coverage and likelihood.
    """

    prompts: int
    answers: int
    tokens: int
    """Tokens of all answers, end tokens included."""
    rouge_teacher: Interval | None
    """ROUGE-L (F1) against the nearest of the teacher's answers; absent where there is no teacher."""
    rouge_reference: Interval | None
    """ROUGE-L (F1) against the data set's own continuation; absent where it has none."""
    by_teacher_length: list[LengthBucket] = Field(default_factory=list)
    """`rouge_teacher` by the length of the teacher's first answer; lengths of fewer than five prompts are left out."""
    by_reference_length: list[LengthBucket] = Field(default_factory=list)
    """`rouge_reference` by the length of the data set's answer, likewise."""
    length: Interval
    """Mean number of tokens without the end token."""
    unfinished: Interval
    """Share of answers that the length limit cut."""
    repetition: Interval
    """Share of an answer's 4-grams of tokens that stood in it before (seq-rep-4, Welleck et al., 1908.04319)."""
    distinct: dict[str, float]
    """Different n-grams of tokens by n-grams written, over all answers ("1", "2", "4"). It falls as more is written.
    Without an interval, because resampling repeats texts."""
    own_nll: Interval
    """Minus its own log-probability of what it wrote, nats a token: an estimate of its entropy."""
    coverage: Interval | None
    """Minus its log-probability of what the teacher wrote, nats a token (coverage loss, f-DISTILL 2307.15190)."""
    likelihood: Interval | None
    """Minus the teacher's log-probability of what it wrote, nats a token (likelihood loss, ibidem)."""
    forward_kl_own: Interval | None = None
    """KL(teacher‖model) a token where the model wrote the prefix."""
    forward_kl_teacher: Interval | None = None
    """KL(teacher‖model) a token where the teacher wrote the prefix."""
    reverse_kl_own: Interval | None = None
    """KL(model‖teacher) a token where the model wrote the prefix: what on-policy reverse KL minimises."""
    excess_error: Interval | None = None
    """ExAccErr in per cent at `excess_length`, the longest length that all models reach. Relative to the model's own
    error along the teacher's text: no ranking by itself."""
    excess_length: int | None = None
    exposure: list[ExposurePoint] = Field(default_factory=list)


class ModelScores(Record):
    """Everything measured of one model."""

    role: Role
    label: str
    texts: dict[str, TextScores]
    responses: dict[str, ResponseScores] = Field(default_factory=dict)
    """By held-out text; empty where the recipe did not ask for answers."""
    efficiency: Efficiency | None = None
    task: dict[str, TaskScores] = Field(default_factory=dict)
    """By held-out set, where the recipe has a task; `texts` is empty then."""
    encoder: EncoderEfficiency | None = None
    """Size and speed, where the recipe has a task."""


TextMetric = Literal["agreement", "forward_kl", "reverse_kl", "log_perplexity", "calibration_error"]
ResponseMetric = Literal[
    "rouge_teacher",
    "rouge_reference",
    "coverage",
    "likelihood",
    "forward_kl_own",
    "forward_kl_teacher",
    "reverse_kl_own",
    "excess_error",
    "own_nll",
    "length",
    "unfinished",
    "repetition",
]
"""Fields of `ResponseScores` that are compared."""


class Comparison(Record):
    """Paired difference of the student and another model on one text (student minus other)."""

    other: Role
    text: str
    metric: TextMetric | ResponseMetric
    difference: Interval
    better: Literal["student", "other", "undecided", "neither"]
    """Undecided where the interval contains 0; neither where the measure has no better side, as the length has none."""


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
    text: str | None = None
    """The held-out text of the prompt; absent where the recipe gave it."""
    reference: str | None = None
    """The data set's own continuation, where there is one."""


class Evaluation(Record):
    """The whole evaluation of a run."""

    models: list[ModelScores]
    comparisons: list[Comparison]
    heat: list[TokenHeat]
    generations: list[Generation]
    responses: list[Generation] = Field(default_factory=list)
    """Some of the answers to held-out prompts."""
    suites: list[SuiteResult] = Field(default_factory=list)
    """What the recipe's suites found (`evaluation.suites`)."""
    task: TaskSummary | None = None
    """Where the recipe has a task: what it is, and the student against the others."""
    confidence: float
    bootstrap_samples: int
    seconds: float

    def scores(self, role: Role) -> ModelScores | None:
        """The model with this role, if it was evaluated."""
        return next((model for model in self.models if model.role == role), None)
