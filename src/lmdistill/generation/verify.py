"""Verification: is the final answer of a response the right one? Correct, incorrect or unverifiable.

What holds no answer, two answers, or one that cannot be compared with certainty, and whatever hangs, is unverifiable:
a verdict of `incorrect` is always a statement about the answer. Torch is not imported here.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from lmdistill.errors import MissingExtra
from lmdistill.generation.child_process import ChildGone, ChildProcess
from lmdistill.generation.comparison import Checked, compare_answers, normalise_text, shown
from lmdistill.generation.final_answer import extract_answer, extract_gold
from lmdistill.generation.numbers import format_number, parse_quantity
from lmdistill.generation.programs import ProgramRunner
from lmdistill.generation.puzzles import CHILD, puzzle_request
from lmdistill.generation.types import Seed
from lmdistill.generation.votes import Vote, vote
from lmdistill.recipe.generation_verify import VerifySpec

__all__ = ["Checked", "Verifier", "verify"]

_LONGEST_ANSWER = 5_000


def verify(response: str, gold: str | None, spec: VerifySpec) -> Checked:
    """The verdict on one response; for many, a `Verifier` keeps its processes.

    Raises MissingExtra where `kind: math` or `answer: program` lacks its package.
    """
    with Verifier(spec) as verifier:
        return verifier.verify(response, gold)


class Verifier:
    """Verifies responses by one spec, and owns the processes that this takes; they start when first needed.

    Several threads may use it; formulas and puzzles are compared one at a time. Raises MissingExtra, at once, where
    `kind: math` lacks math-verify or `answer: program` lacks pydantic-monty.
    """

    def __init__(self, spec: VerifySpec) -> None:
        if spec.kind == "math" and importlib.util.find_spec("math_verify") is None:
            raise MissingExtra("comparing formulas needs math-verify: pip install 'lmdistill[generate]'")
        self.spec = spec
        self._child = ChildProcess(CHILD, spec.memory_mb)
        self._turn = threading.Lock()
        self._programs = ProgramRunner(spec) if spec.answer == "program" else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes. The verifier may be used again, which starts them again."""
        with self._turn:
            self._child.close()
        if self._programs is not None:
            self._programs.close()

    def verify(self, response: str, gold: str | None) -> Checked:
        """The verdict on a response, given the right answer or a solution that marks it.

        Without one it is unverifiable, with its final answer.
        """
        found = self._final(response)
        if found.answer is None:
            return found
        if gold is None or not gold.strip():
            return Checked("unverifiable", found.answer, "no right answer is known")
        return self.compare(found.answer, extract_gold(gold, self.spec))

    def verify_seed(self, response: str, seed: Seed) -> Checked:
        """The verdict on a response to a seed: by the puzzle's own verifier where it is one, else by its answer.

        A verifier that gives a part of the points says that the answer is incorrect: only 1.0 is correct.
        """
        found = self._final(response)
        if found.answer is None:
            return found
        request = puzzle_request(seed, found.answer)
        return self.verify(response, seed.answer) if request is None else self._score(found.answer, request, seed)

    def answer(self, response: str) -> str | None:
        """The final answer of a response, for votes; None where there is none."""
        return self._final(response).answer

    def compare(self, answer: str, gold: str) -> Checked:
        """The verdict on a final answer."""
        checked = compare_answers(answer, gold, self.spec)
        if self.spec.kind != "math" or checked.verdict == "correct":
            return checked
        longest = max(len(answer), len(gold))
        if longest > _LONGEST_ANSWER:
            return Checked("unverifiable", answer, f"{longest} characters are no formula")
        said = self._ask({"do": "compare", "answer": answer, "gold": gold})
        if said.get("same") is None:
            why = said.get("error", f"{shown(answer)} or {shown(gold)} is not read as a formula")
            return Checked("unverifiable", answer, str(why))
        if said["same"]:
            return Checked("correct", answer, f"{shown(answer)} equals {shown(gold)} by math-verify")
        return Checked("incorrect", answer, f"{shown(answer)} is not {shown(gold)} by math-verify")

    def vote(self, responses: Sequence[str], weights: Sequence[float] | None = None) -> Vote:
        """What the samples of one question agree on (self-consistency), compared as answers are."""
        answers = [self.answer(response) for response in responses]
        return vote(answers, self._same, weights)

    def verify_by_vote(
        self, responses: Sequence[str], least_agreement: float = 0.5, weights: Sequence[float] | None = None
    ) -> list[Checked]:
        """Verdicts where no right answer is known: who is with the majority is correct, who answers otherwise is not.

        All are unverifiable where there is a tie, or where the majority has less than `least_agreement` of the votes.
        """
        answers = [self._final(response) for response in responses]
        decided = vote([found.answer for found in answers], self._same, weights)
        if decided.answer is None or decided.agreement < least_agreement:
            why = f"{decided.reason} ({decided.agreement:.0%}, {least_agreement:.0%} are needed)"
            return [Checked("unverifiable", found.answer, why) for found in answers]
        return [
            found if found.answer is None else self._against(found.answer, place, decided)
            for place, found in enumerate(answers)
        ]

    def _same(self, one: str, other: str) -> bool:
        return self.compare(one, other).verdict == "correct"

    def _against(self, answer: str, place: int, decided: Vote) -> Checked:
        assert decided.answer is not None
        if place in decided.members:
            return Checked("correct", answer, f"{shown(answer)}: {decided.reason} ({decided.agreement:.0%})")
        return self.compare(answer, decided.answer)

    def _final(self, response: str) -> Checked:
        """The final answer with the verdict that stands where no right answer is asked for."""
        found = extract_answer(response, self.spec)
        if found.answer is None or self._programs is None:
            return Checked("unverifiable", found.answer, found.reason)
        ran = self._programs.run(found.answer)
        if ran.ending == "crashed":
            return Checked("incorrect", None, ran.reason)
        return Checked("unverifiable", ran.answer, ran.reason)

    def _score(self, answer: str, request: dict[str, Any], seed: Seed) -> Checked:
        forms = [answer, *_plain_forms(answer)]
        said: dict[str, Any] = {}
        best = 0.0
        for form in forms:
            said = self._ask({**request, "answer": form})
            if "score" not in said:
                break
            best = max(best, float(said["score"]))
            if best == 1.0:
                return Checked("correct", answer, f"{shown(answer)} has all points of the puzzle's verifier")
        if "score" in said:
            return Checked("incorrect", answer, f"{shown(answer)} has {best:g} of 1 point of the puzzle's verifier")
        if seed.answer is not None and normalise_text(answer) == normalise_text(seed.answer):
            return Checked("correct", answer, f"{shown(answer)} is written like the right answer")
        why = "the puzzle's verifier would run the answer as a program" if "refused" in said else said["error"]
        return Checked("unverifiable", answer, str(why))

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The child's answer; where none came, an error in words."""
        with self._turn:
            try:
                return self._child.ask(request, self.spec.timeout_seconds)
            except ChildGone as error:
                return {"error": str(error)}


def _plain_forms(answer: str) -> list[str]:
    """A number as verifiers that compare texts expect it: `1,234.00` and `$1234` are `1234`. Fractions stay."""
    read = parse_quantity(answer)
    if read is None or "/" in answer or "frac" in answer:
        return []
    plain = format_number(read.value)
    return [plain] if plain != answer else []
