"""Several answers to each question, asked in waves until a further one no longer pays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from lmdistill.generation.desk import Desk
from lmdistill.generation.pass_rate import Decision, keep_sampling, pass_rate_curve
from lmdistill.generation.types import Drop, Seed, Verdict
from lmdistill.recipe import PassRateSpec

Found = TypeVar("Found")
Wave = Callable[[Sequence[Seed], range], Iterator[tuple[str, Verdict, Found | Drop]]]
"""Answers to questions, those of some samples: the seed's name, the verdict, and what is handed on."""


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


def in_waves(
    desk: Desk, seeds: Sequence[Seed], wave: Wave[Found], enough: Callable[[Seed], bool] = lambda seed: False
) -> Iterator[Found | Drop]:
    """All that is asked for, wave by wave: `ask.samples` of each question at most, `rationales.wave` at a time.

    A question of which there is `enough` is asked no more; all end where the pass-rate curve is flat.
    """
    most, size = desk.spec.ask.samples, desk.spec.rationales.wave
    spending = Spending((seed.id for seed in seeds), desk.spec.pass_rate)
    wanted = list(seeds)
    for first in range(0, most, size):
        for name, verdict, found in wave(wanted, range(first, min(most, first + size))):
            spending.add(name, verdict)
            yield found
        wanted = [seed for seed in wanted if not enough(seed)]
        decision = spending.decide()
        if first + size < most and not decision.go_on:
            desk.progress.note(f"no further samples are asked for: {decision.reason}")
            return
