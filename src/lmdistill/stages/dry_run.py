"""What a run would ask its teacher and what that would cost, before anything is asked.

A maker is carried as far as the ledger's answers reach. The first questions that have no answer yet are counted and not
asked; what would follow them depends on their answers, and the recipe's limits are its bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmdistill.errors import RecipeError
from lmdistill.generation.desk import Desk
from lmdistill.generation.makers import ASKS_THE_STUDENT, MAKERS
from lmdistill.generation.types import Seed
from lmdistill.recipe import DataGenerationSpec
from lmdistill.recipe.data import GENERATED
from lmdistill.stages.context import Context
from lmdistill.stages.generated import earlier_examples
from lmdistill.stages.seeds import read_seeds
from lmdistill.teachers import ApiTeacher
from lmdistill.teachers.api_estimate import ENOUGH_ANSWERS, Estimate
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


@dataclass
class _Ledgered:
    """Answers from the ledger alone."""

    teacher: ApiTeacher
    enough: int
    answered: int = 0

    def answer(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """The answers, where all of them are in the ledger; else what they would cost is raised."""
        wanted = list(requests)
        found = self.teacher.estimate(wanted, self.enough)
        if found.calls:
            raise _Unanswered(found)
        self.answered += len(wanted)
        yield from self.teacher.answer(wanted)


@dataclass(frozen=True)
class Ahead:
    """How far the ledger's answers carry a round, and what comes then."""

    estimate: Estimate | None
    """Of the first questions that have no answer yet; None where all are there."""
    answered: int
    """Requests before these, all of them in the ledger."""
    rows: int
    """Made of all answers, where they are there."""


def estimate_data(context: Context, number: int = 1) -> DryRun:
    """What a round would ask. Raises RecipeError where the recipe makes no data."""
    recipe = context.recipe
    if recipe.generation is None or recipe.api is None:
        raise RecipeError("this recipe asks no teacher behind an API (generation, api): a run of it pays nobody")
    seeds = read_seeds(context)
    if depends_on_the_student(recipe.generation):
        text = f"{len(seeds):,} seeds; what is asked depends on what the student answers: {limits_of(context)}"
        return DryRun(number, len(seeds), None, False, text)
    with ApiTeacher(recipe.api, folder=context.folder.path, run=recipe.name, progress=context.progress) as teacher:
        ahead = look_ahead(context, teacher, seeds, number)
    _, shown = untrained(recipe.generation, _round(context, number))
    if ahead.estimate is None:
        text = f"{len(seeds):,} seeds: all answers are there, for {ahead.rows:,} rows"
        return DryRun(number, len(seeds), None, True, text)
    text = f"{len(seeds):,} seeds; the next questions{shown}: {ahead.estimate.sentence()}. "
    text += f"Behind them: {limits_of(context)}"
    return DryRun(number, len(seeds), ahead.estimate, False, text)


def depends_on_the_student(spec: DataGenerationSpec) -> bool:
    """Whether the first questions hold what the student wrote."""
    return spec.maker in ASKS_THE_STUDENT and spec.maker != "adversarial"


def look_ahead(
    context: Context, teacher: ApiTeacher, seeds: Sequence[Seed], number: int = 1, *, enough: int = ENOUGH_ANSWERS
) -> Ahead:
    """Carry a round as far as the ledger's answers reach; nothing is asked. `enough` as for `Estimate`."""
    recipe = context.recipe
    assert recipe.generation is not None
    spec, _ = untrained(recipe.generation, _round(context, number))
    ledgered = _Ledgered(teacher, enough)
    desk = Desk(spec, ledgered, seed=recipe.seed, round=number, earlier=earlier_examples(context, number))
    try:
        made = sum(1 for _ in MAKERS[spec.maker](desk, seeds))
    except _Unanswered as first:
        return Ahead(first.estimate, ledgered.answered, 0)
    return Ahead(None, ledgered.answered, made)


def untrained(spec: DataGenerationSpec, round_folder: Path) -> tuple[DataGenerationSpec, str]:
    """A round in which no ranker is trained, and in words what takes its place: the one that an earlier start trained,
    else BM25, behind which there are as many questions."""
    if spec.maker not in ("context", "in_context", "chains") or spec.demonstrations.choose != "ranked":
        return spec, ""
    kept = round_folder / "ranker" / "retriever"
    there = (kept / "config.json").is_file()
    change = {"choose": "encoder", "encoder": str(kept)} if there else {"choose": "bm25"}
    said = "" if there else ", with demonstrations by BM25 since the ranker is not trained yet"
    return spec.model_copy(update={"demonstrations": spec.demonstrations.model_copy(update=change)}), said


def _round(context: Context, number: int) -> Path:
    return context.folder.file(GENERATED) / f"round-{number}"


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
