"""What a teacher behind an API will be asked: a few questions are really asked, a round is scaled from them.

The few go through the run's own ledger, so that the run does not ask and pay for them again. What is counted beyond
them is what `run --dry-run` counts (`lmdistill.stages.dry_run`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lmdistill.data import DataReport, Document
from lmdistill.errors import DataError, ServerLost, TeacherError
from lmdistill.generation.data_card import data_card
from lmdistill.generation.makers import ASKS_THE_STUDENT
from lmdistill.generation.types import Drop, Example, Seed
from lmdistill.planning.records import ApiPlan
from lmdistill.recipe import ApiSpec, DataGenerationSpec, Recipe, SourceSpec
from lmdistill.recipe.data import GENERATED
from lmdistill.stages.context import Context
from lmdistill.stages.dry_run import Ahead, depends_on_the_student, look_ahead, untrained
from lmdistill.stages.generate import Counting, rows_of_few
from lmdistill.stages.generated import SEEDS, document_of, generated_documents, write_round
from lmdistill.stages.seeds import read_seeds
from lmdistill.stages.student import Student
from lmdistill.stages.student_writer import StudentAtWork
from lmdistill.teachers import ApiTeacher
from lmdistill.teachers.api_types import Usage
from lmdistill.teachers.prices import dollars

ASK = 8
"""Requests that a calibration asks, about."""
_ENOUGH = 4
"""Answers from which on a plan expects others to be as long."""
_FROM_A_POOL = ("self_instruct", "alpaca", "topics")
_SHOWS_SEEDS = ("context", "in_context", "chains")
_AT_WORK_HERE = (*ASKS_THE_STUDENT, "contrastive")
"""Makers in which models of this machine write or read for each seed."""
_STAND_INS = 256
_PATIENCE_SECONDS = 10.0


@dataclass(frozen=True)
class Asking:
    """What a few questions brought, and what a round will take."""

    plan: ApiPlan
    seconds: float
    """Of a round; without the teacher's part where that is not known."""
    how: str
    folder: Path
    """Files of the round that a few questions brought."""
    times: float
    """Rows of a whole round for each of these."""
    stand_ins: Sequence[Example]
    """Rows of the seeds alone, where the teacher's are not known."""
    rows: float
    """Expected rows of a round where the teacher's are not known."""
    answered: bool
    """Whether the seeds have answers of their own."""
    unknown: list[str]

    def documents(self, source: SourceSpec, seed: int) -> tuple[list[Document], DataReport, float]:
        """The rows of a training source, and how many times as many the run will have."""
        try:
            documents, report = generated_documents(self.folder, source, seed)
            times = 1.0 if source.path == SEEDS else self.times
        except DataError:
            documents = [document_of(each, "seeds") for each in self.stand_ins]
            report = DataReport(sources=[source.path], documents=len(documents), rows_read=len(documents))
            times = self.rows / max(1, len(documents))
        wanted = len(documents) * times
        return documents, report, min(wanted, source.limit or wanted) / max(1, len(documents))


def ask_few(
    recipe: Recipe, context: Context, student: Student | None, heldout: Mapping[str, Sequence[Document]], ask: int
) -> Asking:
    """Ask about `ask` questions and scale them; `context` is that of the calibration.

    Where the teacher cannot be reached or refuses, its time is not predicted, and what is asked is counted as far as
    the questions do not hang on its answers. Raises what a run would raise before it asks.
    """
    spec = context.recipe.generation
    assert spec is not None
    seeds = read_seeds(context)
    small, few, times = _few(spec, seeds, ask)
    small, by_words = untrained(small, context.folder.file(GENERATED) / "few")
    unknown = ["training the ranker of demonstrations"] if by_words else []
    worker = None
    if student is not None and spec.maker in ASKS_THE_STUDENT:
        worker = StudentAtWork(context, lambda: student.folder, spec.ask)
        unknown.append("how the student's answers change what is asked once it is trained")
    recipe.folder.mkdir(parents=True, exist_ok=True)
    api = None if spec.asks_nobody else recipe.api
    if api is None:
        started = time.monotonic()
        counting = Counting(None, context)
        kept, dropped = rows_of_few(context, small, counting, few, heldout, worker)
        here = time.monotonic() - started
        nobody = ApiPlan(requests=0, stored=0, calls=0, prompt_tokens=0, output_tokens=0, money=0.0)
        how = f"rows of {len(few):,} seeds took {here:.1f} s"
        return _asking(context, recipe, seeds, (kept, dropped), counting, times, nobody, here * times, how, unknown)
    with ApiTeacher(_quick(api), folder=recipe.folder, run=recipe.name, progress=context.progress) as teacher:
        counting, before, started = Counting(teacher, context), teacher.spent().calls, time.monotonic()
        kept, dropped, problem = _answers(context, small, counting, few, heldout, worker, ask)
        whole = time.monotonic() - started
        ahead = Ahead(None, 0, 0)
        if not depends_on_the_student(spec):
            ahead = look_ahead(context, teacher, seeds, enough=_ENOUGH)
        plan = _plan(teacher, api, counting, ahead, times, problem, depends_on_the_student(spec))
        plan = plan.model_copy(update={"asked": teacher.spent().calls - before, "limit": _limit(teacher, plan)})
        here = max(0.0, whole - teacher.watch.seconds())
    if problem:
        unknown.append(f"the teacher's time: {problem}")
    if problem and ahead.estimate is not None:
        unknown.append("questions that hang on the teacher's answers, and how long its rows are")
    replayed = api.recording is not None
    local = here * times if spec.maker in _AT_WORK_HERE else here
    seconds = whole * times if replayed else local + (plan.seconds or 0.0)
    how = f"{plan.calls:,} calls of {plan.call_seconds:.2f} s, {plan.at_a_time} at a time, {local:.1f} s here"
    if problem:
        how = "the teacher's time is not predicted"
    return _asking(context, recipe, seeds, (kept, dropped), counting, times, plan, seconds, how, unknown)


def _few(spec: DataGenerationSpec, seeds: Sequence[Seed], ask: int) -> tuple[DataGenerationSpec, list[Seed], float]:
    """A round with few questions, its seeds, and how many times as much the whole round is."""
    if spec.maker in _FROM_A_POOL:
        options = spec.instructions
        few = min(options.wanted, max(1, ask))
        change = {"wanted": few, "requests": min(options.requests, max(1, ask))}
        return (
            spec.model_copy(update={"instructions": options.model_copy(update=change)}),
            list(seeds),
            options.wanted / few,
        )
    questions = [seed for seed in seeds if seed.use != "shown"]
    count = min(len(questions), max(2, -(-ask // spec.ask.samples)))
    every = max(1, len(questions) // max(1, count))
    chosen = questions[::every][:count]
    times = len(questions) / max(1, len(chosen))
    if spec.maker in _SHOWS_SEEDS:  # the others stay demonstrations
        names = {seed.id for seed in chosen}
        return spec, [seed if seed.id in names else replace(seed, use="shown") for seed in seeds], times
    lion = spec.adversarial
    less = {
        "new_per_kind": max(1, round(lion.new_per_kind / times)),
        "judged": max(1, round(lion.judged / times)),
    }
    return spec.model_copy(update={"adversarial": lion.model_copy(update=less)}), chosen, times


def _quick(api: ApiSpec) -> ApiSpec:
    """As the run asks, with as many at a time as are worked on, and without its patience."""
    patience = min(_PATIENCE_SECONDS, api.retries.patience_seconds)
    longest = min(patience / 4, api.retries.longest_wait_seconds)
    change = {"attempts": 2, "bad_answers": 0, "patience_seconds": patience, "longest_wait_seconds": longest}
    retries = api.retries.model_copy(update=change)
    return api.model_copy(update={"requests": _at_a_time(api), "retries": retries})


def _at_a_time(api: ApiSpec) -> int:
    """Calls that the server works on side by side; another's server is taken to do what the recipe asks."""
    return min(api.requests, api.llamacpp.parallel) if api.serve is not None else api.requests


def _answers(
    context: Context,
    spec: DataGenerationSpec,
    counting: Counting,
    few: Sequence[Seed],
    heldout: Mapping[str, Sequence[Document]],
    worker: StudentAtWork | None,
    ask: int,
) -> tuple[list[Example], list[Drop], str]:
    """What the teacher makes of the few, and why nothing came of it."""
    if ask < 1:
        return [], [], "it was not asked (--ask 0)"
    try:
        kept, dropped = rows_of_few(context, spec, counting, few, heldout, worker)
    except (TeacherError, ServerLost) as error:
        return [], [], str(error)
    failed = [drop for drop in dropped if drop.by == "answer"]
    if counting.answers and len(failed) >= counting.answers:
        return [], [], f"none of {counting.answers} answers could be used, the first for: {failed[0].reason}"
    return kept, dropped, ""


def _plan(
    teacher: ApiTeacher, api: ApiSpec, counting: Counting, ahead: Ahead, times: float, problem: str, by_student: bool
) -> ApiPlan:
    """Requests, tokens, money and time of a round."""
    first, answers = ahead.estimate, max(1, counting.answers)
    reached = not problem and counting.answers > 0
    known = ahead.answered + (first.requests if first is not None else 0)
    stored = ahead.answered + (first.stored if first is not None else 0)
    requests = known
    # Where the next questions are not known, a round has so many as the few say; where all is answered, it has them.
    if reached and (first is not None or by_student):
        requests = max(known, round(counting.answers * times))
    calls = max(first.calls if first is not None else 0, requests - stored)
    beyond = calls - (first.calls if first is not None else 0)
    used = Usage(
        prompt=round((first.prompt_tokens if first else 0) + beyond * counting.prompt / answers),
        output=round((first.output_tokens if first else 0) + beyond * counting.output / answers),
    )
    price = teacher.reader.price
    at_a_time, mean = min(_at_a_time(api), max(1, calls)), counting.seconds / answers
    seconds = calls * mean / at_a_time if reached else None
    if api.requests_per_minute is not None:
        seconds = max(seconds or 0.0, calls * 60 / api.requests_per_minute)
    return ApiPlan(
        requests=requests,
        stored=stored,
        calls=calls,
        prompt_tokens=used.prompt,
        output_tokens=used.output,
        money=None if price is None else dollars(price.of(used)),
        seconds=seconds,
        call_seconds=mean if reached else 0.0,
        at_a_time=at_a_time,
        problem=problem,
    )


def _limit(teacher: ApiTeacher, plan: ApiPlan) -> str:
    """Which of the recipe's limits will end the asking; empty where none does. What was used counts."""
    limits, used = teacher.spec.limits, teacher.spent()
    wanted = (
        ("calls", limits.calls, used.calls + plan.calls),
        ("tokens", limits.tokens, used.tokens + plan.prompt_tokens + plan.output_tokens),
        ("money", limits.money, dollars(used.money) + (plan.money or 0.0)),
        ("minutes", limits.minutes, (used.seconds + (plan.seconds or 0.0)) / 60),
    )
    over = [
        f"api.limits.{name} = {cap:,g}, and {need:,.4g} are needed" for name, cap, need in wanted if cap and need > cap
    ]
    return "; ".join(over)


def _asking(
    context: Context,
    recipe: Recipe,
    seeds: Sequence[Seed],
    rows: tuple[list[Example], list[Drop]],
    counting: Counting,
    times: float,
    plan: ApiPlan,
    seconds: float,
    how: str,
    unknown: list[str],
) -> Asking:
    """The few rows on disk, where training sources find them, and what is scaled from them."""
    kept, dropped = rows
    folder = context.folder.file(GENERATED) / "round-1"
    author = recipe.teacher.model if recipe.api is None else recipe.api.model
    card = data_card(kept, dropped, counting.costs(0.0), name=recipe.name, teachers=[author], seed=recipe.seed)
    write_round(folder, kept, dropped, seeds, card)
    questions = [seed for seed in seeds if seed.use != "shown"]
    tasks = list(recipe.data.balance or {}) or ["answer"]
    stand_ins = [
        Example(id=seed.id, prompt=seed.prompt, response=seed.answer or seed.prompt, seed=seed.id, task=task)
        for seed in questions[:_STAND_INS]
        for task in tasks
    ]
    if not kept and not plan.problem:
        unknown.append("rows of the teacher: none of the few passed; the seeds' own answers stand in for them")
    spec = context.recipe.generation
    assert spec is not None
    return Asking(
        plan=plan,
        seconds=seconds,
        how=how,
        folder=folder,
        times=times,
        stand_ins=stand_ins,
        rows=float(len(questions) * spec.ask.samples * len(tasks)),
        answered=any(seed.answer is not None for seed in seeds),
        unknown=unknown,
    )
