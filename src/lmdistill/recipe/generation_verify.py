"""How the answers that a teacher writes are verified, how many are drawn, and questions whose answers are known."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from lmdistill.recipe.base import Count, NonNegative, Positive, Section, nearest

AnswerFormat = Literal[
    "marked", "hash", "phrase", "boxed", "arrow_end", "last_number", "option", "yes_no", "json", "program", "whole"
]
"""Where the final answer stands in a response."""

AnswerKind = Literal["number", "text", "option", "yes_no", "math"]
"""How two answers are compared."""


class VerifySpec(Section):
    """What the final answer of a response is, and when it is right.

    A verdict is `correct`, `incorrect` or `unverifiable`: what holds no answer, two answers, or one that cannot be
    compared is never called wrong.
    """

    answer: AnswerFormat = "marked"
    """Where the final answer stands: `hash` (`#### 72`), `phrase` (`The answer is 72.`, `Answer: 72`), `boxed`
    (`\\boxed{72}`), `arrow_end` (`--> 72 END`), `marked` (any of these four; they must agree), `last_number`, `option`
    (`(B)`, marked or by itself), `yes_no` (marked, or the first word), `json` (a field), `program` (what a program in
    the response prints or leaves in `answer`), `whole` (the whole response)."""
    kind: AnswerKind = "number"
    """How it is compared: `number` (exact, with units), `text` (without case, articles and punctuation), `option`
    (letters), `yes_no`, `math` (formulas, by math-verify in a process of its own)."""
    several: Literal["refuse", "last"] = "refuse"
    """What counts where a response marks different answers: none of them, or the last."""
    json_field: str = "answer"
    """Field of the final answer where `answer` is `json`; `a.b` is field b of the object in a."""
    relative_tolerance: NonNegative = 1e-6
    """How far a number may be off, as a share of the right one, where one of both has a decimal point or an
    exponent. Integers and fractions are compared exactly."""
    absolute_tolerance: NonNegative = 0.0
    """The same as a distance; the larger of both counts."""
    timeout_seconds: Positive = 5.0
    """Seconds that one comparison of formulas or one program may take; whatever takes longer is unverifiable."""
    memory_mb: Count = 1024
    """Memory of the process that compares formulas, in MiB."""
    program_memory_mb: Count = 64
    """Memory that a program may use, in MiB."""
    program_recursion: Count = 200
    """Calls within calls that a program may make."""

    @model_validator(mode="after")
    def _formats_agree(self) -> VerifySpec:
        fits = {"option": "option", "yes_no": "yes_no", "last_number": "number"}
        needed = fits.get(self.answer)
        if needed is not None and self.kind != needed:
            raise ValueError(f"answer: {self.answer} goes with kind: {needed}, and kind is {self.kind}")
        return self


class PassRateSpec(Section):
    """When no more samples are drawn for the same questions."""

    smallest_gain: NonNegative = 0.005
    """The share of all questions that one more sample a question must newly solve to be worth it."""
    window: Count = 4
    """How many samples a question the gain is measured over, which is the mean of that many last steps."""
    least_samples: Count = 2
    """Samples a question that are drawn in any case."""
    most_samples: Count = 64
    """Samples a question that are never exceeded."""

    @model_validator(mode="after")
    def _in_order(self) -> PassRateSpec:
        if self.least_samples > self.most_samples:
            raise ValueError(f"least_samples is {self.least_samples} and most_samples {self.most_samples}; swap them")
        return self


class PuzzleSpec(Section):
    """Puzzles and word problems that reasoning-gym makes without end, with the answer and a verifier of each."""

    names: list[str] = Field(default_factory=lambda: ["gsm_symbolic"], min_length=1)
    """Its data sets, such as `basic_arithmetic`, `gsm_symbolic`, `simple_equations`, `chain_sum`, `leg_counting`."""
    size: Count = 100
    """Puzzles of each data set."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Puzzles differ by it; give training and evaluation different ones."""
    config: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Settings by data set, as reasoning-gym names them: `{chain_sum: {max_terms: 3}}`."""

    @model_validator(mode="after")
    def _settings_fit(self) -> PuzzleSpec:
        for name, settings in self.config.items():
            if name not in self.names:
                raise ValueError(f"config speaks of {name!r}, which is not among names{nearest(name, self.names)}")
            if taken := {"seed", "size"} & set(settings):
                raise ValueError(f"config.{name} sets {', '.join(sorted(taken))}, which is set beside config for all")
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"names holds a data set twice: {', '.join(self.names)}")
        return self
