"""What a maker asks of verification: the final answer of a text, and the verdict on it.

A seed's answer may be a whole solution: what is compared is its final answer, where one is marked.
"""

from __future__ import annotations

from dataclasses import replace
from types import TracebackType
from typing import Self

from lmdistill.generation.comparison import Checked
from lmdistill.generation.final_answer import extract_answer
from lmdistill.generation.puzzles import puzzle_request
from lmdistill.generation.types import Seed
from lmdistill.generation.verify import Verifier
from lmdistill.recipe import VerifySpec


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

    def check(self, response: str, seed: Seed) -> Checked:
        """The verdict on a whole response, whose final answer is found, or computed, first."""
        return self._verifier.verify(response, self.right_answer(seed))

    def same(self, one: str, other: str) -> bool:
        """Whether two answers are one."""
        return self._verifier.compare(one, other).verdict == "correct"

    def right_answer(self, seed: Seed) -> str | None:
        """The answer that a seed is known to have."""
        if seed.answer is None:
            return None
        marked = self.spec.model_copy(update={"answer": "marked"})
        return extract_answer(seed.answer, marked).answer or seed.answer
