"""What a run would ask its teacher and what that would cost, before anything is asked.

A maker is carried as far as the ledger's answers reach. The first questions that have no answer yet are counted and not
asked; what would follow them depends on their answers, and the recipe's limits are its bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lmdistill.errors import RecipeError
from lmdistill.generation.desk import Desk
from lmdistill.generation.makers import ASKS_THE_STUDENT, MAKERS
from lmdistill.stages.context import Context
from lmdistill.stages.generated import earlier_examples
from lmdistill.stages.seeds import read_seeds
from lmdistill.teachers import ApiTeacher
from lmdistill.teachers.api_estimate import Estimate
from lmdistill.teachers.api_types import Answer, Request


@dataclass(frozen=True)
class DryRun:
    """What a round of making data would take."""

    round: int
    seeds: int
    estimate: Estimate | None
    """Of the first questions that have no answer yet; None where all are there, or the student is asked first."""
    ends: bool
    """Whether nothing further is asked behind these."""
    sentence: str
    """All of it in words."""


class _Unanswered(Exception):
    """The first questions without an answer."""

    def __init__(self, estimate: Estimate) -> None:
        super().__init__()
        self.estimate = estimate


@dataclass(frozen=True)
class _Ledgered:
    """Answers from the ledger alone."""

    teacher: ApiTeacher

    def answer(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """The answers, where all of them are in the ledger; else what they would cost is raised."""
        wanted = list(requests)
        found = self.teacher.estimate(wanted)
        if found.calls:
            raise _Unanswered(found)
        yield from self.teacher.answer(wanted)


def estimate_data(context: Context, number: int = 1) -> DryRun:
    """What a round would ask. Raises RecipeError where the recipe makes no data."""
    recipe = context.recipe
    if recipe.generation is None or recipe.api is None:
        raise RecipeError("this recipe asks no teacher behind an API (generation, api): a run of it pays nobody")
    seeds = read_seeds(context)
    spec = recipe.generation
    if spec.maker in ASKS_THE_STUDENT and spec.maker != "adversarial":
        text = f"{len(seeds):,} seeds; what is asked depends on what the student answers: {limits_of(context)}"
        return DryRun(number, len(seeds), None, False, text)
    with ApiTeacher(recipe.api, folder=context.folder.path, run=recipe.name, progress=context.progress) as teacher:
        desk = Desk(
            spec,
            _Ledgered(teacher),
            seed=recipe.seed,
            round=number,
            earlier=earlier_examples(context, number),
        )
        try:
            made = sum(1 for _ in MAKERS[spec.maker](desk, seeds))
        except _Unanswered as first:
            text = f"{len(seeds):,} seeds; the next questions: {first.estimate.sentence()}. "
            text += f"Behind them: {limits_of(context)}"
            return DryRun(number, len(seeds), first.estimate, False, text)
    return DryRun(number, len(seeds), None, True, f"{len(seeds):,} seeds: all answers are there, for {made:,} rows")


def limits_of(context: Context) -> str:
    """The recipe's limits in words."""
    assert context.recipe.api is not None
    limits = context.recipe.api.limits
    named = {
        "calls": limits.calls,
        "tokens": limits.tokens,
        "US dollars": limits.money,
        "minutes": limits.minutes,
    }
    given = [f"{value:,} {name}" for name, value in named.items() if value is not None]
    return f"at most {', '.join(given)} in all (api.limits)" if given else "no limit is set (api.limits)"
