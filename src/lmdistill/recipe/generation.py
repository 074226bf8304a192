"""Black-box data: what the teacher behind the API is asked to write, and what of it the student learns from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lmdistill.recipe.base import Count, NonNegative, Section, Share
from lmdistill.recipe.data import SourceSpec
from lmdistill.recipe.generation_demonstrations import DemonstrationSpec, InContextSpec
from lmdistill.recipe.generation_filters import FilterSpec
from lmdistill.recipe.generation_instructions import (
    AdversarialSpec,
    EntitiesSpec,
    EvolveSpec,
    InstructionsSpec,
    RefineSpec,
    ReflectSpec,
)
from lmdistill.recipe.generation_preferences import PreferenceSpec
from lmdistill.recipe.generation_rationales import (
    ContrastSpec,
    MultiTaskSpec,
    ProgramSpec,
    RationaleSpec,
    RetrievalSpec,
    SocraticSpec,
    TriplesSpec,
)
from lmdistill.recipe.generation_verify import PassRateSpec, PuzzleSpec, VerifySpec

MakerName = Literal[
    "answers",
    "rationales",
    "multi_task",
    "socratic",
    "programs",
    "rationale_pairs",
    "contrastive",
    "retrieved",
    "triples",
    "context",
    "in_context",
    "chains",
    "self_instruct",
    "alpaca",
    "topics",
    "evolve",
    "adversarial",
    "entities",
    "refine",
    "reflect",
]
"""How data is made; each is a module of `lmdistill.generation`."""


class SeedSpec(Section):
    """Where generation starts: rows with a question or an instruction, and the right answer where it is known."""

    path: str | None = None
    """A file, folder or data set, as in `data.train`."""
    puzzles: PuzzleSpec | None = None
    """Puzzles and word problems of reasoning-gym, in place of a file: their verifiers check the answers."""
    prompt: str = "prompt"
    """Column of the question, or a template with columns in braces: `{passage}\\n\\nQuestion: {question}?`."""
    answer: str | None = "answer"
    """Column of the right answer, or a template; rows without it can be made, but not verified. Null where there is
    none."""
    split: str = "train"
    """Split of a Hugging Face data set."""
    subset: str | None = None
    """Configuration of a Hugging Face data set."""
    part: Literal["all", "train", "heldout"] = "all"
    """Take all rows, or one side of a split by the hash of the question."""
    heldout_share: Share = 0.1
    """Share of rows on the held-out side."""
    limit: Count | None = None
    """At most this many rows, in an order shuffled by the seed."""
    task: str = ""
    """Name of the task that the rows belong to: demonstrations come from a question's own task."""
    use: Literal["both", "asked", "shown"] = "both"
    """What rows are for, where there are demonstrations: questions, demonstrations, or either."""
    answer_words: dict[str, str] = Field(default_factory=dict)
    """Other words for answers: `{"0": negative, "1": positive}`; an answer that is not named stays as it is."""

    @model_validator(mode="after")
    def _whence(self) -> SeedSpec:
        if (self.path is None) == (self.puzzles is None):
            raise ValueError("seeds come from one place: set path, or puzzles")
        if self.puzzles is not None and self.part != "all":
            raise ValueError("puzzles are not split: give training and evaluation different puzzles.seed")
        return self


class AskSpec(Section):
    """How the teacher is asked."""

    max_tokens: Count = 256
    """Most tokens of an answer."""
    temperature: NonNegative = 0.7
    """Sampling temperature; 0 takes the likeliest."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Nucleus sampling."""
    samples: Count = 1
    """Independent answers to each question."""
    stop: list[str] = Field(default_factory=list)
    """Texts at which an answer ends."""
    endpoint: Literal["chat", "completions"] = "chat"
    """`chat` sends messages, to which a server applies the model's template; `completions` sends one text to be
    continued, for models that were not trained to follow instructions."""
    system: str | None = None
    """System message of every request."""
    template: str | None = None
    """What the teacher reads, with `{prompt}` where the question stands; the maker's own where absent."""
    demonstrations: list[tuple[str, str]] = Field(default_factory=list)
    """Questions and answers that the teacher is shown before its own question."""


class DataGenerationSpec(Section):
    """Data that the teacher behind `api` writes before training; `data.train: [{path: generated}]` trains on it.

    Answers are paid for once: they lie in the ledger, and the same recipe reads them again.
    """

    maker: MakerName = "answers"
    """What is made. Instructions: `answers` to the seeds' questions; `self_instruct`, `alpaca` and `topics`, new
    instructions; `evolve`, harder ones; `adversarial`, ones on which the student falls behind; `entities`, of passages;
    `refine`, the student's own attempts mended; `reflect`, answers improved and selected. Chain of thought:
    `rationales` before the answer; `multi_task`, answers and rationales as two tasks; `socratic`, sub-questions;
    `programs` that compute the answer; `rationale_pairs`, two of each question; `contrastive`, true to the answer that
    they argue for; `retrieved`, behind passages; `triples` of an event and what follows."""
    seeds: list[SeedSpec] = Field(default_factory=list)
    """Where it starts."""
    ask: AskSpec = Field(default_factory=AskSpec)
    """How the teacher is asked."""
    pass_rate: PassRateSpec = Field(default_factory=PassRateSpec)
    """When makers that ask for several answers to each question (`ask.samples` at most) stop before they have them."""
    verify: VerifySpec | None = None
    """How final answers are checked against the seeds' own; nothing is checked where absent, unless the maker does."""
    filters: FilterSpec = Field(default_factory=FilterSpec)
    """What rows must pass before the student learns from them."""
    preferences: PreferenceSpec | None = None
    """Make pairs of a better and a worse answer of all that was written, for DPO and its kin
    (`generated/round-1/preferences.jsonl`)."""
    instructions: InstructionsSpec = Field(default_factory=InstructionsSpec)
    """Options of `self_instruct`, `alpaca` and `topics`."""
    evolve: EvolveSpec = Field(default_factory=EvolveSpec)
    """Options of `evolve`."""
    adversarial: AdversarialSpec = Field(default_factory=AdversarialSpec)
    """Options of `adversarial`."""
    entities: EntitiesSpec = Field(default_factory=EntitiesSpec)
    """Options of `entities`."""
    refine: RefineSpec = Field(default_factory=RefineSpec)
    """Options of `refine`."""
    reflect: ReflectSpec = Field(default_factory=ReflectSpec)
    """Options of `reflect`."""
    rationales: RationaleSpec = Field(default_factory=RationaleSpec)
    """Options of `rationales`, and of the makers that begin with them."""
    multi_task: MultiTaskSpec = Field(default_factory=MultiTaskSpec)
    """Options of `multi_task`."""
    socratic: SocraticSpec = Field(default_factory=SocraticSpec)
    """Options of `socratic`."""
    programs: ProgramSpec = Field(default_factory=ProgramSpec)
    """Options of `programs`."""
    contrastive: ContrastSpec = Field(default_factory=ContrastSpec)
    """Options of `contrastive`."""
    retrieved: RetrievalSpec = Field(default_factory=RetrievalSpec)
    """Options of `retrieved`."""
    triples: TriplesSpec = Field(default_factory=TriplesSpec)
    """Options of `triples`."""
    demonstrations: DemonstrationSpec = Field(default_factory=DemonstrationSpec)
    """What stands before a question, for `context`, `in_context` and `chains`."""
    in_context: InContextSpec = Field(default_factory=InContextSpec)
    """Options of `in_context`."""
    rounds: Count = 1
    """Times that data is made and trained on, one training stage each (`round-1`, `round-2`, ...), for makers that look
    at the student in between."""

    @property
    def asks_nobody(self) -> bool:
        """Whether rows are made of the seeds alone, so that no API is needed."""
        return self.maker == "in_context"

    @property
    def task_factors(self) -> dict[str, float] | None:
        """Factors of the mean losses of the tasks that the rows belong to; None where all tokens count alike."""
        if self.maker != "in_context" or self.in_context.beta == 0:
            return None
        return {"label": 1.0, "text": self.in_context.beta}

    def check_tasks(self, evaluation: Mapping[str, SourceSpec]) -> None:
        """Refuse Meta-ICT on a task that it is evaluated on. Raises ValueError."""
        if self.maker != "in_context" or self.in_context.setting != "meta":
            return
        names = {*evaluation, *self.in_context.evaluated_tasks}
        paths = {source.path: name for name, source in evaluation.items()}
        for place, seeds in enumerate(self.seeds):
            if not seeds.task:
                raise ValueError(f"generation.seeds.{place}: in_context.setting: meta needs the name of its task")
            found = seeds.task if seeds.task in names else paths.get(seeds.path or "")
            if found is not None:
                raise ValueError(
                    f"generation.seeds.{place}: the task {seeds.task!r} is trained on and evaluated ({found!r}); with "
                    "in_context.setting: meta they must differ: leave it out of the seeds, or set multitask"
                )
