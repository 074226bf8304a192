"""Which suites are run on the finished models, and how (`lmdistill.evaluation.suites`)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from lmdistill.recipe.api import ApiSpec
from lmdistill.recipe.base import Count, NonNegative, Section, Share
from lmdistill.recipe.models import ModelSpec

EditKind = Literal["character", "word", "sentence"]


class TasksSpec(Section):
    """Questions with options, by lm-eval: the likelihood of each option, none of them written."""

    sets: list[str] = Field(default=["boolq", "openbookqa", "piqa", "commonsenseqa"])
    """Names of sets (docs/evaluation.md lists them), or of files in `paths`."""
    limit: Count | None = None
    """Questions of each set, drawn with the recipe's seed; that of all suites where absent."""
    max_new_tokens: Count = 16
    """Longest answer, where a model behind an API takes part: it gives no likelihoods, and all models write the letter
    of an option."""
    hub: bool = False
    """Take lm-eval's own tasks of these names (any of its tasks) and their data from the Hugging Face hub. Needs a
    network; without it nothing is fetched."""
    batch_size: Count = 16
    """Options scored at a time."""


class JudgeSpec(Section):
    """A model that says which of two answers is better; each pair is shown in both orders."""

    model: ModelSpec | None = None
    """A model on this machine."""
    api: ApiSpec | None = None
    """A model behind an API; its answers are kept in its ledger."""
    limit: Count = 50
    """Prompts of each set that are judged."""
    max_new_tokens: Count = 16
    """Longest verdict."""

    @model_validator(mode="after")
    def _one_of_them(self) -> JudgeSpec:
        if (self.model is None) == (self.api is None):
            raise ValueError("a judge is one model: set model or api")
        return self


class InstructionSpec(Section):
    """Answers to instructions against reference answers, by the protocol of MiniLLM and its successors: ROUGE-L with
    stemming, the best reference, by length of the reference, at temperature 1 with five seeds."""

    sets: list[str] = Field(default_factory=list)
    """Names of files in `paths`; all of those where absent. Rows of Dolly, Self-Instruct, Vicuna, S-NI and UnNI are
    known."""
    limit: Count | None = None
    """Instructions of each set."""
    seeds: Annotated[int, Field(ge=1, le=100)] = 5
    """Answers of each model to each instruction, each with draws of its own that all models share."""
    temperature: NonNegative = 1.0
    """Sampling temperature; 0 decodes greedily, with one seed."""
    max_new_tokens: Count = 256
    """Longest answer in tokens."""
    batch_size: Count = 16
    """Instructions answered at a time."""
    judge: JudgeSpec | None = None
    """Who compares the student's first answers with each other model's; null leaves it out."""

    @model_validator(mode="after")
    def _greedy_is_one_text(self) -> InstructionSpec:
        if self.temperature == 0 and self.seeds > 1:
            raise ValueError(f"{self.seeds} greedy answers are the same text; raise temperature, or ask for 1 in seeds")
        return self


class ReasoningSpec(Section):
    """Written solutions whose final answer is checked."""

    sets: list[str] = Field(default=["asdiv", "gym:chain_sum"])
    """Names of sets, of files in `paths`, or `gym:NAME` for a task of reasoning-gym."""
    limit: Count | None = None
    """Problems of each set."""
    puzzles: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Settings of reasoning-gym's tasks by name, as in `generation.seeds.0.puzzles.config`."""
    template: str | None = None
    """What models read, with `{question}` in it; absent, the suite asks them to think step by step and to mark the
    answer. A student that was trained on bare questions is asked bare questions (`"{question}"`)."""
    samples: Annotated[int, Field(ge=1, le=256)] = 1
    """Solutions of each model to each problem; maj@k and pass@k are given for k = 1, 2, 4, ... up to it."""
    temperature: NonNegative = 0.0
    """Sampling temperature; 0 decodes greedily, with one sample."""
    max_new_tokens: Count = 256
    """Longest solution in tokens."""
    batch_size: Count = 16
    """Problems solved at a time."""
    faithfulness: bool = False
    """Measure leakage-adjusted simulatability on sets with options (docs/evaluation.md)."""
    simulator: Literal["teacher", "itself"] = "teacher"
    """Who guesses a model's answer from its explanation; `itself` where there is no teacher."""

    @model_validator(mode="after")
    def _greedy_is_one_text(self) -> ReasoningSpec:
        if self.temperature == 0 and self.samples > 1:
            raise ValueError(f"{self.samples} greedy solutions are the same text; raise temperature, or ask for 1")
        return self


class RobustnessSpec(Section):
    """Accuracy under edits that keep the label (attack success rate), and on texts from elsewhere (macro F1)."""

    sets: list[str] = Field(default=["sentiment", "boolq"])
    """Sets whose texts are edited, or files in `paths`."""
    unseen: list[str] = Field(default=["diagnosis"])
    """Out-of-distribution sets, or files in `paths`."""
    limit: Count | None = None
    """Texts of each set."""
    longest_words: Count = 150
    """Texts with more words are left out: each is read once for every edit."""
    edits: list[EditKind] = Field(default=["character", "word", "sentence"])
    """Kinds of edits."""
    attempts: Annotated[int, Field(ge=1, le=32)] = 2
    """Edited texts of each kind; an attack succeeds when one of them turns a right answer into a wrong one."""
    share: Share = 0.15
    """Share of the words that a character or word edit touches."""
    similarity: Share = 0.8
    """Least cosine between an edited text and its original by all-MiniLM, where that package is installed."""
    answer: Literal["likelihood", "written"] = "likelihood"
    """How a label is chosen: the likeliest one, or the last one named in a written answer (chain of thought)."""
    max_new_tokens: Count = 96
    """Longest written answer."""
    batch_size: Count = 16
    """Texts read at a time."""


class FidelitySpec(Section):
    """How like the teacher on held-out text, and how much of it is left where the text was not trained on."""

    limit: Count | None = None
    """Sequences of each text."""
    prompts: Annotated[int, Field(ge=0)] = 16
    """Held-out prompts of each text that all models answer, for exposure bias, coverage and likelihood loss; 0 leaves
    them out. `evaluation.responses` asks for more of them."""
    prompt_tokens: Count = 16
    """For plain text, the length of the beginning that is continued."""
    new_tokens: Count = 32
    """Longest answer in tokens."""
    batch_size: Count = 8
    """Sequences scored at a time."""


class CalibrationSpec(Section):
    """Whether a model is right as often as it is sure, over the options of questions."""

    sets: list[str] = Field(default=["boolq", "sentiment"])
    """Names of sets with options, or of files in `paths`."""
    limit: Count | None = None
    """Questions of each set."""
    bins: Annotated[int, Field(ge=2)] = 10
    """Bins of the expected calibration error."""
    batch_size: Count = 16
    """Options scored at a time."""


class EfficiencySpec(Section):
    """Speed, memory, and what the student is worth as the draft of speculative decoding."""

    prompt_tokens: Count = 128
    """Length of the prompt of the speed measurement."""
    new_tokens: Count = 32
    """Tokens decoded one by one."""
    repeats: Count = 3
    """Measurements; latency percentiles are over the tokens of all of them."""
    memory: bool = True
    """Measure the peak memory of a fresh process."""
    draft_prompts: Annotated[int, Field(ge=0)] = 8
    """Held-out beginnings that the teacher continues to measure acceptance; 0 leaves it out."""
    draft_tokens: Count = 32
    """Tokens that the teacher writes to each."""
    block: Annotated[int, Field(ge=1, le=64)] = 4
    """Tokens that the draft proposes at a time."""


class SuitesSpec(Section):
    """Suites that are run on teacher, student and baselines; one is run where it is named, with its defaults where
    nothing stands beside its name. `[tasks, efficiency]` is short for two of them with their defaults."""

    tasks: TasksSpec | None = None
    """Questions with options (lm-eval)."""
    instruction: InstructionSpec | None = None
    """Answers to instructions (ROUGE-L, judge)."""
    reasoning: ReasoningSpec | None = None
    """Checked solutions (pass@k, maj@k, faithfulness)."""
    robustness: RobustnessSpec | None = None
    """Edited and foreign texts (attack success rate, macro F1)."""
    fidelity: FidelitySpec | None = None
    """Agreement with the teacher and divergence from it."""
    calibration: CalibrationSpec | None = None
    """Calibration error and Brier score."""
    efficiency: EfficiencySpec | None = None
    """Speed, memory, acceptance as a draft."""
    limit: Count | None = 100
    """Items of each set, where a suite does not say; null takes all."""
    paths: dict[str, str] = Field(default_factory=dict)
    """Files by the name that suites call them by; a file goes before a set of the same name that packages ship."""
    prompt: Literal["auto", "chat", "plain"] = "auto"
    """How instructions are put to models that write: in each model's own chat template, or as plain text. `auto` takes
    the template where all models share one, plain text where none has one, and refuses anything else."""
    correction: Literal["holm", "benjamini_hochberg", "none"] = "holm"
    """Correction of the p values of a suite's main comparisons: `holm` bounds the chance of any false finding,
    `benjamini_hochberg` the share of false ones."""
    overlap: bool = True
    """Look for the sets' items in the training text."""

    @model_validator(mode="before")
    @classmethod
    def _names_alone(cls, value: Any) -> Any:
        """A list of names, or a name without options, means the defaults."""
        if isinstance(value, list):
            value = {name: {} for name in value if isinstance(name, str)} if all(map(_is_text, value)) else value
        if not isinstance(value, dict):
            return value
        suites = set(cls.model_fields) - {"limit", "paths", "prompt", "correction", "overlap"}
        return {name: {} if options is True and name in suites else options for name, options in value.items()}

    @property
    def chosen(self) -> dict[str, Section]:
        """The suites that are run, with their options, in the order of the fields."""
        found = {name: getattr(self, name) for name in SuitesSpec.model_fields}
        return {name: options for name, options in found.items() if isinstance(options, Section)}


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
