"""What a maker asks of verification: the final answer of a text, the verdict on it, and whether to go on asking.

A seed's answer may be a whole solution: what is compared is its final answer, where one is marked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from lmdistill.generation.comparison import compare_answers
from lmdistill.generation.final_answer import extract_answer
from lmdistill.generation.pass_rate import Decision, keep_sampling, pass_rate_curve
from lmdistill.generation.types import Seed, Verdict
from lmdistill.recipe import PassRateSpec, VerifySpec


def final_answer(text: str, spec: VerifySpec) -> str | None:
    """The final answer of a text; where no mark stands before one, its last number if numbers are what is compared."""
    found = extract_answer(text, spec).answer
    if found is None and spec.kind == "number" and spec.answer == "marked":
        found = extract_answer(text, spec.model_copy(update={"answer": "last_number"})).answer
    return found


def right_answer(seed: Seed, spec: VerifySpec) -> str | None:
    """The answer that a seed is known to have."""
    if seed.answer is None:
        return None
    return extract_answer(seed.answer, spec).answer or seed.answer


def judge(seed: Seed, answer: str | None, spec: VerifySpec) -> Verdict:
    """Whether an answer is that of the seed; unverifiable where one of both is missing or cannot be compared."""
    right = right_answer(seed, spec)
    if right is None or answer is None:
        return "unverifiable"
    return compare_answers(answer, right, spec).verdict


@dataclass
class Spending:
    """The verdicts of each question so far, and whether further samples pay."""

    seeds: Iterable[str]
    spec: PassRateSpec
    verdicts: dict[str, list[Verdict]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.verdicts = {seed: [] for seed in self.seeds}

    def add(self, seed: str, verdict: Verdict) -> None:
        """One more answer to a question; one that failed counts as unverifiable."""
        self.verdicts[seed].append(verdict)

    def decide(self) -> Decision:
        """Whether one more sample of each question is worth it: not where the pass-rate curve is flat."""
        found = list(self.verdicts.values())
        if not any(verdict != "unverifiable" for one in found for verdict in one):
            return Decision(True, "nothing could be verified, so no curve says when to stop")
        return keep_sampling(pass_rate_curve(found), self.spec)
