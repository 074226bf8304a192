"""Data that the teacher behind the API writes for a run: seeds in, examples and drops out, round by round.

Nothing is kept in between but the ledger: a killed stage starts again and asks for nothing twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lmdistill.data import Document
from lmdistill.errors import DataError, RecipeError
from lmdistill.generation.data_card import Costs, data_card
from lmdistill.generation.desk import Desk
from lmdistill.generation.filters import apply_filters
from lmdistill.generation.makers import ASKS_THE_STUDENT, MAKERS
from lmdistill.generation.types import Drop, Example, Seed, Verdict
from lmdistill.generation.verify import Verifier
from lmdistill.io import hash_file
from lmdistill.packages import resolve_path
from lmdistill.recipe import ApiSpec, DataGenerationSpec, Recipe
from lmdistill.recipe.data import GENERATED
from lmdistill.run_folder import fingerprint as fingerprint_of
from lmdistill.stages.context import Context
from lmdistill.stages.contrast_writer import contrast_writer
from lmdistill.stages.generated import earlier_examples, write_preferences, write_round
from lmdistill.stages.seeds import read_seeds
from lmdistill.stages.student_writer import StudentAtWork, teacher_scorer
from lmdistill.teachers import ApiTeacher
from lmdistill.teachers.api_types import Answer

_NAMES_THE_TEACHER = {"model", "serve", "base_url", "revision", "template", "recording"}


def round_of(recipe: Recipe, stage_name: str) -> int:
    """The round whose data a training stage learns from."""
    prefix, _, number = stage_name.rpartition("-")
    rounds = 1 if recipe.generation is None else recipe.generation.rounds
    return int(number) if rounds > 1 and prefix == "round" and number.isdecimal() else 1


@dataclass(frozen=True)
class Made:
    """What a round brought."""

    folder: Path
    skipped: bool
    """Whether it was there already."""


def make_data(
    context: Context,
    number: int,
    student: Callable[[], tuple[StudentAtWork, str]] | None = None,
    heldout: Mapping[str, Sequence[Document]] | None = None,
) -> Made:
    """Let the teacher write the data of a round, counted from 1.

    `heldout` are the held-out texts by name: what occurs in them is left out. `student` gives the student as it now is
    and the fingerprint of its weights, for makers that ask it. Raises RecipeError, DataError (no seeds, or nothing left
    to train on) and what the teacher raises.
    """
    recipe = context.recipe
    spec = recipe.generation
    if spec is None or (recipe.api is None and not spec.asks_nobody):
        raise RecipeError(f"a training source is {GENERATED!r}, but the recipe lacks generation or api: add both")
    api = None if spec.asks_nobody else recipe.api
    author = recipe.teacher.model if api is None else api.model
    worker, weights = student() if student is not None and spec.maker in ASKS_THE_STUDENT else (None, "")
    seeds = read_seeds(context)
    name, folder = f"generate-round-{number}", context.folder.file(GENERATED) / f"round-{number}"
    key = _fingerprint(recipe, api, seeds, heldout or {}, weights, number)
    if context.folder.is_done(name, key) and (folder / "examples.jsonl").is_file():
        return Made(folder, skipped=True)
    started = time.monotonic()
    with (
        context.stage(name, key, f"{author} writes: {spec.maker}, {len(seeds):,} seeds") as facts,
        ExitStack() as owned,
    ):
        teacher = None
        if api is not None:
            teacher = owned.enter_context(
                ApiTeacher(api, folder=context.folder.path, run=recipe.name, progress=context.progress)
            )
        counting = Counting(teacher, context)
        desk = _desk(context, spec, counting, worker, number, key, folder)
        kept, dropped = _rows(desk, seeds, heldout or {})
        if spec.preferences is not None:
            write_preferences(folder, kept, dropped, spec.preferences, recipe.seed)
        costs = counting.costs((time.monotonic() - started) / 60)
        card = data_card(kept, dropped, costs, name=recipe.name, teachers=[author], seed=recipe.seed)
        write_round(folder, kept, dropped, seeds, card)
        facts |= {
            "kept": len(kept),
            "dropped": len(dropped),
            "calls": 0 if teacher is None else teacher.spent().calls,
            "tokens": costs.tokens,
            "money": costs.money,
        }
    if not kept:
        raise DataError(_nothing_kept(folder, dropped))
    return Made(folder, skipped=False)


def rows_of_few(
    context: Context,
    spec: DataGenerationSpec,
    counting: Counting,
    seeds: Sequence[Seed],
    heldout: Mapping[str, Sequence[Document]],
    worker: StudentAtWork | None = None,
) -> tuple[list[Example], list[Drop]]:
    """What a round makes of a few seeds, kept and dropped: for a plan. Nothing is written but the ledger's answers."""
    folder = context.folder.file(GENERATED) / "few"
    return _rows(_desk(context, spec, counting, worker, 1, "plan", folder), seeds, heldout)


def _fingerprint(
    recipe: Recipe,
    api: ApiSpec | None,
    seeds: Sequence[Seed],
    heldout: Mapping[str, Sequence[Document]],
    weights: str,
    number: int,
) -> str:
    """A name of everything that a round depends on."""
    assert recipe.generation is not None
    return fingerprint_of(
        recipe.generation.model_dump(mode="json"),
        None if api is None else api.model_dump(mode="json", include=_NAMES_THE_TEACHER),
        [(seed.id, seed.answer, seed.task, seed.use) for seed in seeds],
        _further_inputs(recipe),
        {held: [document.id for document in documents] for held, documents in heldout.items()},
        weights,
        recipe.seed,
        number,
    )


def _desk(
    context: Context,
    spec: DataGenerationSpec,
    counting: Counting,
    worker: StudentAtWork | None,
    number: int,
    key: str,
    folder: Path,
) -> Desk:
    """What a maker works with in this run."""
    recipe, teacher = context.recipe, counting.teacher
    return Desk(
        spec,
        counting,
        seed=recipe.seed,
        round=number,
        earlier=earlier_examples(context, number),
        recipe=f"{recipe.name} {key[:12]}",
        progress=context.progress,
        writer=worker.answer if worker is not None else None,
        scorer=worker.difficulty if worker is not None else None,
        stamp=(lambda keys: "") if teacher is None else teacher.ledger.time_of,
        contraster=None if recipe.teacher_is_remote else contrast_writer(context, spec.contrastive),
        likelihood=None if recipe.teacher_is_remote else teacher_scorer(context),
        folder=folder,
    )


def _rows(
    desk: Desk, seeds: Sequence[Seed], heldout: Mapping[str, Sequence[Document]]
) -> tuple[list[Example], list[Drop]]:
    """What the maker makes, verified and filtered: kept, and dropped."""
    spec = desk.spec
    kept: list[Example] = []
    dropped: list[Drop] = []
    with ExitStack() as owned:
        verifier = owned.enter_context(Verifier(spec.verify)) if spec.verify is not None else None
        if verifier is not None:
            desk.checker = lambda response, seed: _verdict(verifier, response, seed)
        rows = _verified(MAKERS[spec.maker](desk, seeds), verifier, {seed.id: seed for seed in seeds})
        pool = [example.prompt for example in desk.earlier]
        for each in apply_filters(rows, spec.filters, _comparable(heldout), pool):
            dropped.append(each) if isinstance(each, Drop) else kept.append(each)
    return kept, dropped


def _further_inputs(recipe: Recipe) -> list[str | None]:
    """What a maker in context depends on besides: the plain text beside, and the teacher whose weights rank."""
    spec = recipe.generation
    assert spec is not None
    texts = spec.in_context.texts if spec.maker == "in_context" else None
    path = None if texts is None else Path(resolve_path(texts))
    ranked = spec.maker in ("context", "in_context", "chains") and spec.demonstrations.choose == "ranked"
    return [
        hash_file(path) if path is not None and path.is_file() else None,
        recipe.teacher.model_dump_json() if ranked else None,
    ]


def _verified(
    found: Iterator[Example | Drop], verifier: Verifier | None, seeds: Mapping[str, Seed]
) -> Iterator[Example | Drop]:
    """Rows with the verdict on their response, where the maker gave none and the seed's answer is known."""
    for each in found:
        seed = seeds.get(each.seed) if isinstance(each, Example) else None
        if isinstance(each, Example) and each.verdict is None and verifier is not None and seed is not None:
            checked = verifier.verify_seed(each.response, seed)
            each = replace(each, verdict=checked.verdict, answer=checked.answer)
        yield each


def _verdict(verifier: Verifier, response: str, seed: Seed) -> tuple[Verdict, str]:
    checked = verifier.verify_seed(response, seed)
    return checked.verdict, checked.reason


def _comparable(heldout: Mapping[str, Sequence[Document]]) -> dict[str, list[str | tuple[str, str]]]:
    """Held-out texts as the check for contamination takes them."""
    return {
        name: [
            (document.prompt, document.response)
            if document.prompt is not None and document.response is not None
            else document.plain
            for document in documents
        ]
        for name, documents in heldout.items()
    }


def _nothing_kept(folder: Path, dropped: Sequence[Drop]) -> str:
    first = dropped[0].reason if dropped else "the maker made nothing of the seeds"
    return (
        f"nothing is left to train on: {len(dropped)} dropped, the first for: {first}. All of them are in "
        f"{folder / 'drops.jsonl'}; the answers are in the ledger, so a changed recipe reads them again at no cost"
    )


@dataclass
class Counting:
    """Asks the teacher, and counts and shows how many answers have come."""

    teacher: ApiTeacher | None
    context: Context
    answers: int = 0
    seconds: float = 0.0
    """Of all calls that brought them, one after the other."""
    prompt: int = 0
    cached: int = 0
    reasoning: int = 0
    output: int = 0
    money: float = 0.0
    priced: bool = True

    def answer(self, requests: Any) -> Iterator[Any]:
        """The teacher's answers, counted. Raises RecipeError where the recipe has no teacher to ask."""
        if self.teacher is None:
            raise RecipeError("this maker asks no teacher, so it cannot ask one")
        with self.context.progress.task("answers", unit="answers") as task:
            for answer in self.teacher.answer(requests):
                task.advance()
                self._count(answer)
                yield answer

    def _count(self, answer: Answer) -> None:
        usage = answer.usage
        self.answers += 1
        self.seconds += answer.seconds
        self.prompt += usage.prompt
        self.cached += usage.cached
        self.reasoning += usage.reasoning
        self.output += usage.output
        self.priced = self.priced and usage.money is not None
        self.money += usage.money or 0.0

    def costs(self, minutes: float) -> Costs:
        """What all answers took, those of an earlier start included."""
        return Costs(
            money=self.money if self.priced else None,
            calls=self.answers,
            prompt_tokens=self.prompt,
            cached_tokens=self.cached,
            reasoning_tokens=self.reasoning,
            output_tokens=self.output,
            minutes=minutes,
        )
