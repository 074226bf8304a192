"""What more samples a question bring, and when to stop paying for them. Pure mathematics, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmdistill.generation.types import Verdict
from lmdistill.generation.votes import pass_at_k
from lmdistill.recipe.generation_verify import PassRateSpec


@dataclass(frozen=True)
class PassRateCurve:
    """The share of questions with at least one right answer, by samples a question."""

    solved: tuple[float, ...]
    """For 1, 2, ... samples a question, averaged over every choice of that many of those drawn."""
    questions: int
    """How many questions there are."""
    unknown: int = 0
    """Questions with no right answer so far and at least one that could not be verified: the curve may be too low by
    as many."""

    def gain(self, window: int) -> float:
        """The share of questions that each of the last `window` samples a question newly solved, on average.

        With a window of 1 it is the Good-Turing estimate of what has not been seen: the share of questions that are
        right exactly once, by the samples a question. The next sample's gain is expected to be no larger.
        """
        last = len(self.solved)
        steps = min(window, last)
        before = self.solved[last - steps - 1] if last > steps else 0.0
        return (self.solved[-1] - before) / steps if steps else 0.0


@dataclass(frozen=True)
class Decision:
    """Whether more samples are drawn."""

    go_on: bool
    reason: str
    """In words, with the numbers."""


def pass_rate_curve(verdicts: Sequence[Sequence[Verdict]]) -> PassRateCurve:
    """The curve of the verdicts of each question's samples, as far as every question has samples.

    Every point is unbiased in each question (pass@k of arXiv 2107.03374), so the order of the samples does not matter.
    Unverifiable samples count as not right. Give every question as many samples: where some got fewer, the curve ends
    with them.
    """
    longest = min((len(one) for one in verdicts), default=0)
    counts = [(len(one), sum(verdict == "correct" for verdict in one)) for one in verdicts]
    solved = tuple(sum(pass_at_k(n, right, k) for n, right in counts) / len(counts) for k in range(1, longest + 1))
    unknown = sum("correct" not in one and "unverifiable" in one for one in verdicts)
    return PassRateCurve(solved, len(verdicts), unknown)


def keep_sampling(curve: PassRateCurve, spec: PassRateSpec) -> Decision:
    """Whether one more sample a question is worth it: spending stops where the curve flattens."""
    drawn = len(curve.solved)
    if not curve.questions:
        return Decision(False, "there are no questions")
    if drawn >= spec.most_samples:
        return Decision(False, f"{drawn} samples a question are the most that most_samples allows")
    if drawn < spec.least_samples:
        return Decision(True, f"{drawn} samples a question are fewer than least_samples, {spec.least_samples}")
    if curve.solved[-1] >= 1.0:
        return Decision(False, f"every question is solved after {drawn} samples")
    if drawn < spec.window:
        return Decision(True, f"{drawn} samples a question are fewer than the window of {spec.window}")
    gain = curve.gain(spec.window)
    said = f"the last {spec.window} of {drawn} samples a question newly solved {gain:.2%} of the questions each"
    if gain < spec.smallest_gain:
        flat = f"the curve is flat at {curve.solved[-1]:.1%}"
        return Decision(False, f"{said}, less than {spec.smallest_gain:.2%}: {flat}")
    return Decision(True, f"{said}, no less than {spec.smallest_gain:.2%}")


def unsolved_questions(verdicts: Sequence[Sequence[Verdict]], wanted: int = 1) -> list[int]:
    """Places of the questions that have fewer than `wanted` right answers so far: where the next samples are spent."""
    return [place for place, one in enumerate(verdicts) if sum(verdict == "correct" for verdict in one) < wanted]
