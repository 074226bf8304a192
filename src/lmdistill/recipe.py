"""The typed recipe: everything a run does, in one YAML file.

A recipe is read with `load_recipe`, completed by its method's fragment (`lmdistill.methods`), overridden with
`--set a.b=c`, and written back resolved, so that a run folder says exactly what happened in it. Unknown keys are
refused with the nearest known name. The string under a field is its documentation: `docs/recipe.md` is generated
from it and nowhere else is a field described.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lmdistill.errors import RecipeError
from lmdistill.yamltext import read_yaml, write_yaml

Share = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]

_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,100}")


def names_a_folder(name: str) -> bool:
    """Whether a run may have this name."""
    return _NAME.fullmatch(name) is not None


class Section(BaseModel):
    """Base of every part of a recipe: unknown keys are errors, field docs are the strings under the fields."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False)


AnySection = TypeVar("AnySection", bound=Section)


class ModelSpec(Section):
    """Where a model and its tokenizer come from."""

    model: str
    """A folder, a Hugging Face name, or `package:NAME[/folder]` for files that an installed Python package ships."""
    gguf_file: str | None = None
    """Name of the GGUF file inside `model`, for models in that format."""
    revision: str | None = None
    """Commit of a Hugging Face model; pin it (40 hex digits) so that a run can be repeated."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the weights in memory; `auto` takes the one this processor is fast at for a teacher, and
    float32 master weights for a student."""
    attention: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] = "sdpa"
    """Attention implementation of transformers."""


class DepthSpec(Section):
    """Which decoder layers of the teacher the student keeps."""

    keep: Count
    """Number of layers to keep."""
    importance: Literal["uniform", "first", "last", "block_influence", "perplexity", "greedy_perplexity"] = (
        "block_influence"
    )
    """How layers are ranked: evenly spaced; the first or last ones; block influence (1 - cosine between a layer's
    input and output, ShortGPT 2403.03853); the rise of perplexity when one layer is left out (each measured alone), or
    measured again after every removal (`greedy_perplexity`)."""
    protect_first: Annotated[int, Field(ge=0)] = 1
    """This many first layers are never removed."""
    protect_last: Annotated[int, Field(ge=0)] = 1
    """This many last layers are never removed."""


class WidthSpec(Section):
    """How narrow the student's layers become; what stays is chosen by activation importance (Minitron 2407.14679)."""

    intermediate: Count | None = None
    """MLP neurons to keep in each layer."""
    heads: Count | None = None
    """Query heads to keep; with grouped-query attention whole groups go, so it must divide evenly into them."""
    hidden: Count | None = None
    """Hidden channels to keep, in the whole network."""


class VocabularySpec(Section):
    """Trim the vocabulary to the tokens that the training corpus uses."""

    minimum_count: Count = 1
    """Tokens that occur at least this often in the corpus stay; special tokens and single bytes always stay."""


class LoraSpec(Section):
    """Train low-rank adapters instead of all weights (LoRA 2106.09685); needs `lmdistill[lora]`."""

    rank: Count = 16
    """Rank of the adapters."""
    alpha: Positive = 32.0
    """Scale: the update is multiplied by alpha / rank."""
    dropout: Share = 0.0
    """Dropout on the adapters' input."""
    target_modules: list[str] | Literal["all-linear"] = "all-linear"
    """Names of the modules that get adapters."""
    merge: bool = True
    """Merge the adapters into the weights when the student is saved, so that it loads without peft."""


class StudentSpec(Section):
    """Where the student starts; all parts combine."""

    start: Literal["teacher", "pretrained", "config"] = "teacher"
    """Cut from the teacher's weights, a pretrained model of its own, or fresh weights from a configuration."""
    model: ModelSpec | None = None
    """The pretrained model (`start: pretrained`), or the model whose configuration is the template (`start: config`;
    the teacher's where this is absent)."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Configuration values that differ from the template, for `start: config` (for example `num_hidden_layers: 6`)."""
    layers: list[Annotated[int, Field(ge=0)]] | None = None
    """Keep exactly these layers, counted from 0."""
    depth: DepthSpec | None = None
    """Prune layers by importance."""
    width: WidthSpec | None = None
    """Prune neurons, heads and channels by importance."""
    vocabulary: VocabularySpec | None = None
    """Trim the vocabulary."""
    lora: LoraSpec | None = None
    """Train adapters only."""
    freeze_head: bool = False
    """Do not train the output head (nor the embedding where it is tied to it)."""
    calibration_tokens: Count = 16384
    """Tokens of training text on which importance is measured."""
    save_dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16"
    """Number format in which the finished student is saved; it is trained in float32 in any case."""

    @model_validator(mode="after")
    def _check(self) -> StudentSpec:
        if self.start == "pretrained" and self.model is None:
            raise ValueError("start: pretrained needs student.model; name a folder or a Hugging Face model")
        if self.start == "teacher" and self.model is not None:
            raise ValueError("start: teacher cuts the student from the teacher; remove student.model or set start")
        if self.layers is not None and self.depth is not None:
            raise ValueError(
                "student.layers and student.depth both choose layers; keep one of them "
                "(depth: null takes away what a method brought)"
            )
        if self.config and self.start != "config":
            raise ValueError(f"student.config is only used with start: config, not start: {self.start}")
        return self


class FieldNames(Section):
    """Names of the columns in a source."""

    text: str = "text"
    """Column of plain text."""
    prompt: str = "prompt"
    """Column of the prompt."""
    response: str = "response"
    """Column of the response, on which the loss is taken."""
    messages: str = "messages"
    """Column with a list of chat messages, each with `role` and `content`."""


class SourceSpec(Section):
    """One source of data: JSONL, Parquet or text files, or a data set folder or name of `datasets`."""

    path: str
    """A file, a folder, a Hugging Face data set, or `package:NAME/path` for a file that an installed package ships."""
    format: Literal["auto", "text", "prompt_response", "messages"] = "auto"
    """What a row holds; `auto` looks at the columns of the first row."""
    fields: FieldNames = Field(default_factory=FieldNames)
    """Names of the columns."""
    subset: str | None = None
    """Configuration of a Hugging Face data set."""
    split: str = "train"
    """Split of a Hugging Face data set."""
    unique: bool = True
    """Drop rows whose content was seen before in this source."""
    part: Literal["all", "train", "heldout"] = "all"
    """Take all rows, or one side of a split by the hash of the content: equal texts always fall on the same side, so
    that `train` and `heldout` never share one."""
    heldout_share: Share = 0.02
    """Share of rows on the held-out side."""
    limit: Count | None = None
    """At most this many rows, taken after splitting, in an order shuffled by the seed."""


class DifferenceSpec(Section):
    """Difference sampling (MiniPLM, 2410.17215): train on what the teacher finds likely and a small model does not."""

    reference: ModelSpec
    """The small model; it must have the teacher's tokenizer."""
    keep: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Share of the documents that stay: those with the largest difference of log-probabilities a token."""


class DataSpec(Section):
    """What the student reads in training and in evaluation."""

    train: list[SourceSpec] = Field(min_length=1)
    """Training sources, concatenated."""
    evaluation: dict[str, SourceSpec] = Field(default_factory=dict)
    """Held-out sources by name; each is scored and reported apart."""
    max_length: Annotated[int, Field(ge=2)] = 512
    """Longest sequence in tokens."""
    truncation: Literal["split", "drop", "left", "right", "error"] = "split"
    """What happens to a longer row: plain text is split into several rows (prompt/response and chat rows, which cannot
    be, are cut at the left of the prompt); or it is dropped, cut at the left, cut at the right, or refused. Counted in
    the report either way."""
    packing: bool = True
    """Put several rows into one sequence; attention never crosses from one to another."""
    add_eos: bool = True
    """End each row with the end-of-text token and train on it."""
    on_bad_rows: Literal["stop", "skip"] = "stop"
    """What an unreadable row does: stop the run with its file, line and reason, or be skipped and counted."""
    shuffle: bool = True
    """Shuffle the rows once, by the seed, before packing."""
    difference: DifferenceSpec | None = None
    """Choose the training documents by how much more the teacher makes of them than a reference model."""

    @field_validator("evaluation")
    @classmethod
    def _names(cls, value: dict[str, SourceSpec]) -> dict[str, SourceSpec]:
        for name in value:
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} cannot name a held-out set; use 1 to 100 of A-Z a-z 0-9 . _ -")
        return value


DIVERGENCE_PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "forward_kl": (),
    "reverse_kl": (),
    "jsd": ("teacher_weight",),
    "skew_forward_kl": ("alpha",),
    "skew_reverse_kl": ("alpha",),
    "total_variation": (),
    "alpha_beta": ("alpha", "beta"),
    "adaptive_kl": ("mu",),
    "taid": ("start", "end", "alpha", "momentum"),
}
"""Parameters of each divergence of `lmdistill.objectives`, named here too so that reading a recipe needs no torch."""


class DivergenceTerm(Section):
    """Distance between the teacher's and the student's next-token distributions."""

    kind: Literal[
        "forward_kl",
        "reverse_kl",
        "jsd",
        "skew_forward_kl",
        "skew_reverse_kl",
        "total_variation",
        "alpha_beta",
        "adaptive_kl",
        "taid",
    ] = "forward_kl"
    """Name of the divergence; `lmdistill.objectives.DIVERGENCES` defines each."""
    weight: NonNegative = 1.0
    """Factor of this term in the loss; 0 leaves the teacher out."""
    parameters: dict[str, float] = Field(default_factory=dict)
    """The divergence's own parameters (`teacher_weight` of jsd, `alpha` of the skew divergences, `alpha` and `beta` of
    alpha_beta, `mu` of adaptive_kl, `start` and others of taid)."""
    temperature: Positive = 1.0
    """Both distributions are softened by this temperature."""
    temperature_squared: bool = False
    """Multiply by temperature², which keeps the gradient's size at high temperature (Hinton 1503.02531)."""

    @model_validator(mode="after")
    def _check(self) -> DivergenceTerm:
        known = DIVERGENCE_PARAMETERS[self.kind]
        for name in self.parameters:
            if name not in known:
                advice = nearest(name, known) if known else ", which takes none; remove it"
                raise ValueError(f"{name!r} is not a parameter of {self.kind}{advice}")
        return self


class CrossEntropyTerm(Section):
    """Cross-entropy with the text itself (the hard labels)."""

    weight: NonNegative = 0.0
    """Factor of this term in the loss."""


class HiddenCosineTerm(Section):
    """1 - cosine between the last hidden states of teacher and student (DistilBERT 1910.01108); equal widths only."""

    weight: NonNegative = 0.0
    """Factor of this term in the loss."""


class TokenWeightSpec(Section):
    """Which of the trained tokens count in the loss; the others are not even projected."""

    by: Literal["all", "student_entropy", "divergence", "position"] = "all"
    """`all`; those where the student is least certain (`student_entropy`, SE-KD 2602.01395); those where it differs
    most from the teacher (`divergence`); or the first ones of each row (`position`)."""
    keep: Annotated[float, Field(gt=0.0, le=1.0)] = 0.3
    """Share of the trained tokens that count; their weights make up for the others, so that the loss keeps its
    scale."""


class ObjectiveSpec(Section):
    """What is minimised: a weighted sum of terms, each a mean over the trained tokens."""

    divergence: DivergenceTerm = Field(default_factory=DivergenceTerm)
    """Divergence from the teacher."""
    cross_entropy: CrossEntropyTerm = Field(default_factory=CrossEntropyTerm)
    """Cross-entropy with the text."""
    hidden_cosine: HiddenCosineTerm = Field(default_factory=HiddenCosineTerm)
    """Direction of the last hidden state."""
    tokens: TokenWeightSpec = Field(default_factory=TokenWeightSpec)
    """Which tokens count."""

    @model_validator(mode="after")
    def _check(self) -> ObjectiveSpec:
        if self.tokens.by == "divergence" and self.divergence.weight == 0:
            raise ValueError("tokens.by: divergence compares with a teacher: give divergence a weight above 0")
        if self.divergence.weight == 0 and self.cross_entropy.weight == 0 and self.hidden_cosine.weight == 0:
            raise ValueError(
                "all terms have weight 0; give divergence, cross_entropy or hidden_cosine a weight above 0"
            )
        return self

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares with the teacher."""
        return self.divergence.weight > 0 or self.hidden_cosine.weight > 0


SignalKind = Literal["live", "top_k", "top_p", "sampled", "top_and_sampled", "hidden", "head_expectation", "token"]


class SignalSpec(Section):
    """What is kept of the teacher's distribution on disk, so that it is asked once for many trainings."""

    kind: SignalKind = "live"
    """`live`: nothing is stored, the teacher runs beside the student. `top_k`: its k likeliest tokens and the mass of
    the rest. `top_p`: as many as hold the probability p, at most k. `sampled`: draws with counts (RS-KD 2503.16870),
    unbiased. `top_and_sampled`: the likeliest and draws from the rest, unbiased. `hidden`: the last hidden state in few
    directions, for the whole vocabulary. `head_expectation`: the mean row of the student's frozen head. `token`: the
    log-probability of the text's own token."""
    store: str | None = None
    """Folder of the store; `signals` in the run's folder where absent. Several runs may share one."""
    k: Annotated[int, Field(ge=1, le=4096)] = 128
    """Most tokens kept at a position (`top_k`, `top_p`)."""
    p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.99
    """Probability that the kept tokens hold (`top_p`)."""
    samples: Annotated[int, Field(ge=1, le=4096)] = 50
    """Draws at a position (`sampled`, `top_and_sampled`)."""
    proposal_temperature: Positive = 1.0
    """Draws come from the teacher's distribution to the power of 1 / this; other than 1 they are weighted, and the
    estimate is consistent but no longer unbiased (`sampled`)."""
    exact: Annotated[int, Field(ge=1, le=4096)] = 8
    """Tokens kept exactly (`top_and_sampled`)."""
    rank: Annotated[int, Field(ge=1)] = 128
    """Directions of the hidden state that are kept (`hidden`)."""
    resolution: Annotated[float, Field(gt=1e-5, le=0.5)] = 0.008
    """Step in which probabilities are kept; what rounds to none of it joins the tail. Half of it takes about half as
    many bytes again and halves the error."""
    tail: Literal["bucket", "renormalise", "drop"] = "bucket"
    """What becomes of the probability that is not kept (`top_k`, `top_p`); see `lmdistill.signals.TopKSignal`."""
    temperature: Positive = 1.0
    """Temperature of the stored distribution; the objective must use the same."""
    calibration_tokens: Annotated[int, Field(ge=256)] = 16384
    """Tokens of the text on which the codec learns its tables, before anything is stored."""
    shard_rows: Annotated[int, Field(ge=1, le=65536)] = 256
    """Sequences in one file of the store: as much as a kill can cost."""
    batch_tokens: Annotated[int, Field(ge=1)] = 2048
    """Tokens that the teacher reads at a time."""
    engine: Literal["local", "server", "ray"] = "local"
    """Who lets the teacher speak: this process, a server that returns prompt log-probabilities (vLLM's, through its
    OpenAI-compatible API; kinds `top_k`, `top_p` and `token`), or workers of Ray."""
    base_url: str | None = None
    """Address of the server (`engine: server`), for example http://127.0.0.1:8000/v1."""
    served_model: str | None = None
    """The teacher's name on the server; `teacher.model` where absent."""
    requests: Count = 8
    """Requests that wait for the server at a time."""
    workers: Count = 2
    """Worker processes (`engine: ray`)."""

    def meaning(self) -> dict[str, Any]:
        """The fields on which the stored signals depend; the others say how they are made and where they lie."""
        used: dict[str, set[str]] = {
            "top_k": {"k", "resolution", "tail"},
            "top_p": {"k", "p", "resolution", "tail"},
            "sampled": {"samples", "proposal_temperature", "resolution"},
            "top_and_sampled": {"exact", "samples", "resolution"},
            "hidden": {"rank"},
        }
        return self.model_dump(mode="json", include={"kind", "temperature", *used.get(self.kind, set())})


class GenerationSpec(Section):
    """How text is sampled."""

    max_new_tokens: Count = 128
    """Longest answer in tokens."""
    temperature: NonNegative = 1.0
    """Sampling temperature; 0 decodes greedily."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Nucleus: sample from the smallest set of tokens with this probability."""
    num_beams: Count = 1
    """Beams; above 1 the most likely sequence is searched for (SeqKD as published uses 5)."""
    samples_per_prompt: Count = 1
    """Answers to each prompt."""
    batch_size: Count = 8
    """Prompts answered at a time."""
    prompt_tokens: Count = 32
    """For plain text, the length of the beginning that the teacher continues."""

    @model_validator(mode="after")
    def _check(self) -> GenerationSpec:
        if self.temperature == 0 and self.samples_per_prompt > 1 and self.num_beams == 1:
            raise ValueError(
                f"{self.samples_per_prompt} greedy samples of one prompt are the same text; "
                "raise temperature above 0 or ask for 1"
            )
        return self


class AnswerSpec(GenerationSpec):
    """How models answer the prompts of the report: greedily and briefly where the recipe does not say."""

    max_new_tokens: Count = 48
    """Longest answer in tokens."""
    temperature: NonNegative = 0.0
    """Sampling temperature; 0 decodes greedily."""


class TrajectoriesSpec(Section):
    """Whose text is trained on."""

    source: Literal["dataset", "teacher"] = "dataset"
    """The data set's own text, or text that the teacher writes from its prompts (sequence-level KD, 1606.07947)."""
    generation: GenerationSpec = Field(default_factory=GenerationSpec)
    """How the teacher writes (`source: teacher`)."""
    max_prompts: Count | None = None
    """Use at most this many prompts."""


# What the pipeline calls its own stages and records in a run folder.
_OWN_STAGES = re.compile(r"(doctor|student|evaluate|report|none|sft)|(data|generate|save|label|select|none|sft)-.*")


class StageSpec(Section):
    """One stage of training; what is absent is taken from the recipe's top level."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,40}$")]
    """Name of the stage, used in the run folder."""
    objective: ObjectiveSpec | None = None
    """Objective of this stage."""
    trajectories: TrajectoriesSpec | None = None
    """Whose text this stage trains on."""
    train: list[SourceSpec] | None = None
    """Training sources of this stage."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Fields of `transformers.TrainingArguments` that differ in this stage."""

    @field_validator("name")
    @classmethod
    def _free(cls, value: str) -> str:
        if _OWN_STAGES.fullmatch(value):
            raise ValueError(
                f"{value!r} is what lmdistill calls something of its own in the run folder; choose another"
            )
        return value


class SpeedSpec(Section):
    """How speed is measured."""

    prompt_tokens: Count = 256
    """Length of the prompt of the prefill measurement."""
    new_tokens: Count = 32
    """Tokens decoded one by one."""
    repeats: Count = 3
    """Measurements; the median is reported."""


class EvaluationSpec(Section):
    """What is measured at the end, and against what."""

    baselines: list[Literal["none", "sft"]] = ["none", "sft"]
    """The answers to 'was it worth it': the student before training (`none`), and the same student trained on the same
    text for the same tokens without the teacher (`sft`)."""
    max_tokens: Count = 20000
    """Tokens of each held-out set that are scored."""
    bootstrap_samples: Annotated[int, Field(ge=100)] = 1000
    """Resamplings for the intervals; whole sequences are resampled."""
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    """Coverage of the intervals."""
    calibration_bins: Annotated[int, Field(ge=2)] = 15
    """Bins of the expected calibration error."""
    heatmap_texts: Annotated[int, Field(ge=0)] = 4
    """Texts whose tokens are shown coloured by the divergence that remains."""
    prompts: list[str] = Field(default_factory=list)
    """Prompts that all models answer side by side in the report."""
    generation: AnswerSpec = Field(default_factory=AnswerSpec)
    """How they answer."""
    speed: SpeedSpec | None = Field(default_factory=SpeedSpec)
    """How speed and memory are measured; null leaves the measurement out."""
    batch_size: Count = 8
    """Sequences scored at a time."""


class MachineSpec(Section):
    """What the run uses of the machine."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`, ..."""
    threads: Count | None = None
    """Processor threads; all cores where absent."""
    compile: bool = True
    """Compile the row-wise part of the loss with torch.compile (falls back to eager where no compiler is)."""
    memory_limit_gib: Positive | None = None
    """Refuse a run whose memory estimate is above this; the machine's free memory where absent."""


class Recipe(Section):
    """A whole run."""

    name: str = "run"
    """Name of the run and of its folder under `runs`."""
    method: str | None = None
    """A published method (`lmdistill methods`) whose settings are the defaults of this recipe."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of every draw."""
    runs: str = "runs"
    """Folder in which run folders are made."""
    teacher: ModelSpec
    """The teacher."""
    student: StudentSpec = Field(default_factory=StudentSpec)
    """Where the student starts."""
    data: DataSpec
    """Training and held-out data."""
    trajectories: TrajectoriesSpec = Field(default_factory=TrajectoriesSpec)
    """Whose text is trained on."""
    signals: SignalSpec = Field(default_factory=SignalSpec)
    """What is kept of the teacher on disk; by default nothing, and the teacher is asked live."""
    objective: ObjectiveSpec = Field(default_factory=ObjectiveSpec)
    """What is minimised."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Any field of `transformers.TrainingArguments`: learning_rate, max_steps, per_device_train_batch_size, ..."""
    stages: list[StageSpec] = Field(default_factory=list)
    """Stages of training, in order; one stage named `distil` where absent."""
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec)
    """What is measured."""
    machine: MachineSpec = Field(default_factory=MachineSpec)
    """What the run uses of the machine."""

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError(f"{value!r} cannot name a folder; use 1 to 100 of A-Z a-z 0-9 . _ -")
        return value

    @model_validator(mode="after")
    def _stages(self) -> Recipe:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"two stages have one name among {names}; give each its own")
        return self

    @model_validator(mode="after")
    def _signals(self) -> Recipe:
        if self.signals.kind != "live":
            for stage in recipe_stages(self):
                if stage.objective is not None and stage.objective.needs_teacher:
                    _check_signals(self.signals, stage.objective, self.student)
        return self

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.runs) / self.name


def _check_signals(signals: SignalSpec, objective: ObjectiveSpec, student: StudentSpec) -> None:
    """Refuse what a stored signal cannot give. Raises ValueError."""
    kind, divergence = signals.kind, objective.divergence
    allowed = {
        "sampled": ("forward_kl",),
        "top_and_sampled": ("forward_kl",),
        "head_expectation": ("forward_kl",),
        "token": ("forward_kl", "reverse_kl"),
    }.get(kind)
    if allowed is not None and divergence.kind not in allowed:
        raise ValueError(
            f"signals.kind: {kind} can estimate {' and '.join(allowed)} only, not {divergence.kind}; choose top_k, "
            "top_p or hidden, or change objective.divergence.kind"
        )
    if objective.hidden_cosine.weight > 0:
        raise ValueError("objective.hidden_cosine needs the teacher's own hidden states: use signals.kind: live")
    # A hidden state gives any temperature; what was summed up at one temperature stays there.
    if kind != "hidden" and divergence.temperature != signals.temperature:
        raise ValueError(
            f"objective.divergence.temperature = {divergence.temperature} but signals.temperature = "
            f"{signals.temperature}: the stored distribution must have the objective's temperature"
        )
    if signals.engine == "server" and kind not in ("top_k", "top_p", "token"):
        raise ValueError(
            f"a server gives log-probabilities of a few tokens, of which signals.kind: {kind} cannot be made; use "
            "top_k, top_p or token, or engine: local"
        )
    if signals.engine == "server" and signals.base_url is None:
        raise ValueError("signals.engine: server needs signals.base_url, for example http://127.0.0.1:8000/v1")
    if signals.engine == "server" and signals.temperature != 1:
        raise ValueError("a server's log-probabilities are those at temperature 1: set signals.temperature: 1")
    if student.vocabulary is not None:
        raise ValueError("a store keeps the teacher's ids: student.vocabulary cannot be trimmed with signals on disk")
    if kind == "head_expectation" and not student.freeze_head:
        raise ValueError("signals.kind: head_expectation refers to a head that stays: set student.freeze_head: true")


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a YAML recipe, lay it over its method's defaults, apply `a.b=c` overrides and check the whole.

    Raises RecipeError with the place, the reason and the nearest known name.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML recipe") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text (byte {error.start}); is it a YAML recipe?") from error
    return parse_recipe(text, overrides, source=str(path))


def parse_recipe(text: str, overrides: Sequence[str] = (), source: str = "recipe") -> Recipe:
    """`load_recipe` for YAML text."""
    try:
        values = read_yaml(text)
    except ValueError as error:
        raise RecipeError(f"{source}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        got = "nothing" if values is None else f"a {type(values).__name__}"
        raise RecipeError(f"{source}: a recipe is a mapping of fields, but this holds {got}; see lmdistill new --help")
    return resolve_recipe(values, overrides, source=source)


def resolve_recipe(values: Mapping[str, Any], overrides: Sequence[str] = (), source: str = "recipe") -> Recipe:
    """Complete plain values with their method's fragment, apply `a.b=c` overrides, and check. Raises RecipeError."""
    changes = [_parse_override(override) for override in overrides]
    # The method comes first: an override may address what its fragment brings, such as stages.0.
    chosen = [change.value for change in changes if change.path == ["method"]]
    complete = _with_fragment({**values, "method": chosen[-1]} if chosen else values, source)
    recipe = _validated(Recipe, complete, changes, source)
    _check_training_fields(recipe, source)
    return recipe


def resolve_section(section: type[AnySection], overrides: Sequence[str], source: str) -> AnySection:
    """One section at its defaults, with `a.b=c` overrides. Raises RecipeError."""
    return _validated(section, {}, [_parse_override(override) for override in overrides], source)


def _validated(
    section: type[AnySection], values: Mapping[str, Any], changes: Sequence[_Override], source: str
) -> AnySection:
    for change in changes:
        values = _with_value(values, change.path, change)
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise RecipeError(_explain(error, section, source)) from error


def _with_fragment(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The values laid over the fragment of their method, where they name one."""
    from lmdistill.methods import find_method  # methods describe recipes in plain values: no cycle at import time

    name = values.get("method")
    if not isinstance(name, str):
        return dict(values)
    try:
        return merge(find_method(name).fragment, values)
    except RecipeError as error:
        raise RecipeError(f"{source}: {error}") from error


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `over` upon `base`: mappings are merged key by key, everything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML; reading it again gives an equal recipe."""
    return write_yaml(recipe.model_dump(mode="json"))


def recipe_stages(recipe: Recipe) -> list[StageSpec]:
    """The training stages with everything filled in from the top level; one named `distil` where none are given."""
    stages = recipe.stages or [StageSpec(name="distil")]
    return [
        StageSpec(
            name=stage.name,
            objective=stage.objective or recipe.objective,
            trajectories=stage.trajectories or recipe.trajectories,
            train=stage.train or recipe.data.train,
            training=merge(recipe.training, stage.training),
        )
        for stage in stages
    ]


@dataclass(frozen=True)
class _Override:
    """One `a.b=c`."""

    text: str
    path: list[str]
    value: Any


def _parse_override(text: str) -> _Override:
    """Take `a.b=c` apart; the value is YAML."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise RecipeError(f"--set {text!r}: write it as field=value, for example --set training.max_steps=100")
    try:
        return _Override(text, path.strip().split("."), read_yaml(value))
    except ValueError as error:
        raise RecipeError(f"--set {text!r}: the value is not valid YAML: {error}") from error


def _with_value(node: Any, path: list[str], change: _Override) -> Any:
    """A copy of `node` in which the entry at `path` has the new value; list items are addressed by their number."""
    key, rest = path[0], path[1:]
    if isinstance(node, list):
        if not (key.isascii() and key.isdigit()) or int(key) >= len(node):
            held = f"has the items 0 to {len(node) - 1}" if node else "is empty"
            raise RecipeError(f"--set {change.text!r}: {key!r} is not an item of that list, which {held}")
        items = list(node)
        items[int(key)] = _with_value(items[int(key)], rest, change) if rest else change.value
        return items
    if node is not None and not isinstance(node, Mapping):
        raise RecipeError(f"--set {change.text!r}: {key!r} lies inside {node!r}, which has no fields")
    fields = dict(node or {})
    fields[key] = _with_value(fields.get(key), rest, change) if rest else change.value
    return fields


def _explain(error: ValidationError, section: type[Section], source: str) -> str:
    """All problems of a recipe, one a line, each with its place and, for an unknown key, the nearest known one."""
    lines = []
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = _fields_at(section, problem["loc"][:-1])
            lines.append(f"{place}: unknown field{nearest(str(problem['loc'][-1]), known)}")
        elif problem["type"] == "missing":
            lines.append(f"{place}: missing; add it")
        else:
            got = problem.get("input")
            shown = f" (got {got!r})" if isinstance(got, str | int | float | bool) or got is None else ""
            lines.append(f"{place or 'recipe'}: {problem['msg'].removeprefix('Value error, ')}{shown}")
    return f"{source}: " + "\n  ".join(lines) if len(lines) == 1 else f"{source}:\n  " + "\n  ".join(lines)


def nearest(name: str, known: Sequence[str]) -> str:
    """`; did you mean 'x'?`, or the known names where none is near."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known here: {', '.join(known)}" if known else ""


def _fields_at(model: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """Names of the fields that exist at a place inside a section."""
    current: type[BaseModel] | None = model
    for part in place:
        if current is None:
            return []
        field = current.model_fields.get(str(part))
        if field is not None:
            current = section_of(field.annotation)
        # a list index or a mapping key stays within the section that the list or mapping holds
    return list(current.model_fields) if current else []


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section class inside an annotation such as `list[SourceSpec] | None`, if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = section_of(inner)
        if found is not None:
            return found
    return None


# The Trainer owns these: lmdistill sets them from other fields of the recipe or depends on their value.
_RESERVED_TRAINING = {
    "output_dir": "runs and name",
    "seed": "seed",
    "data_seed": "seed",
    "remove_unused_columns": "nothing: it is always false",
    "use_cpu": "machine.device",
    "resume_from_checkpoint": "nothing: a run resumes by itself",
    "torch_compile": "machine.compile",
}


def _check_training_fields(recipe: Recipe, source: str) -> None:
    """Refuse names that `transformers.TrainingArguments` does not have, and those that the recipe sets elsewhere."""
    places = [("training", recipe.training)]
    places += [(f"stages.{index}.training", stage.training) for index, stage in enumerate(recipe.stages)]
    if not any(fields for _, fields in places):
        return
    known = training_fields()
    for place, fields in places:
        for name in fields:
            if name in _RESERVED_TRAINING:
                raise RecipeError(f"{source}: {place}.{name} is set by {_RESERVED_TRAINING[name]}; remove it")
            if name not in known:
                raise RecipeError(f"{source}: {place}.{name}: unknown field of TrainingArguments{nearest(name, known)}")


def training_fields() -> list[str]:
    """Names of the fields of `transformers.TrainingArguments`."""
    from dataclasses import fields

    from transformers import TrainingArguments  # seconds to import: only when a recipe has training fields

    return [field.name for field in fields(TrainingArguments)]
