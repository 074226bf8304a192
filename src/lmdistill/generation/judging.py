"""What a maker asks of verification: the final answer of a text, the verdict on it, and whether to go on asking.

A seed's answer may be a whole solution: what is compared is its final answer, where one is marked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from types import TracebackType
from typing import Self

from lmdistill.generation.comparison import Checked
from lmdistill.generation.final_answer import extract_answer
from lmdistill.generation.pass_rate import Decision, keep_sampling, pass_rate_curve
from lmdistill.generation.puzzles import puzzle_request
from lmdistill.generation.types import Seed, Verdict
from lmdistill.generation.verify import Verifier
from lmdistill.recipe import PassRateSpec, VerifySpec


class Judge:
    """Finds final answers and compares them with those of the seeds; a context manager, as it may own processes."""

    def __init__(self, spec: VerifySpec | None) -> None:
        """Raises MissingExtra where the comparison lacks its package."""
        self.spec = spec or VerifySpec()
        self._verifier = Verifier(self.spec)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._verifier.close()

    def final_answer(self, text: str) -> str | None:
        """The final answer of a text; where no mark stands before one, its last number if numbers are compared."""
        found = self.stated_answer(text)
        if found is None and self.spec.kind == "number" and self.spec.answer == "marked":
            found = extract_answer(text, self.spec.model_copy(update={"answer": "last_number"})).answer
        return found

    def stated_answer(self, text: str) -> str | None:
        """The final answer of a text where `generation.verify` says that it stands."""
        return self._verifier.answer(text)

    def verdict(self, seed: Seed, answer: str | None) -> Checked:
        """Whether an answer is that of the seed; unverifiable where one of both is missing or cannot be compared."""
        if answer is None:
            return Checked("unverifiable", None, "no final answer is found in it")
        if self.spec.answer == "marked" and puzzle_request(seed, answer) is not None:
            return self._verifier.verify_seed(f"The answer is {answer}", replace(seed, answer=self.right_answer(seed)))
        right = self.right_answer(seed)
        if right is None:
            return Checked("unverifiable", answer, "no right answer is known")
        return self._verifier.compare(answer, right)

    def right_answer(self, seed: Seed) -> str | None:
        """The answer that a seed is known to have."""
        if seed.answer is None:
            return None
        return extract_answer(seed.answer, self.spec).answer or seed.answer


class Spending:
    """The verdicts of each question so far, and whether further samples pay."""

    def __init__(self, seeds: Iterable[str], spec: PassRateSpec) -> None:
        self.spec = spec
        self.verdicts: dict[str, list[Verdict]] = {seed: [] for seed in seeds}

    def add(self, seed: str, verdict: Verdict) -> None:
        """One more answer to a question; one that failed counts as unverifiable."""
        self.verdicts[seed].append(verdict)

    def decide(self) -> Decision:
        """Whether one more sample of each question is worth it: not where the pass-rate curve is flat."""
        found = list(self.verdicts.values())
        if not any(verdict != "unverifiable" for one in found for verdict in one):
            return Decision(True, "nothing could be verified, so no curve says when to stop")
        return keep_sampling(pass_rate_curve(found), self.spec)
