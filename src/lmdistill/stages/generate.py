"""Data that the teacher behind the API writes for a run: seeds in, examples and drops out, round by round.

    generated/<round>/examples.jsonl   what is trained on
                      drops.jsonl      what was left out, with the reason
                      data_card.md     counts, diversity, cost of an example, terms of the teacher (and data_card.json)
                      seeds.jsonl      the seeds that have an answer of their own, for the baseline without the teacher

A training source `generated` is these examples; `generated:TASK` those of one task; `generated:seeds` the seeds' own
answers. Nothing is kept in between but the ledger: a killed stage starts again and asks for nothing twice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lmdistill.data import DataReport, Document
from lmdistill.data.load import is_heldout, read_rows, shuffled
from lmdistill.errors import DataError, RecipeError
from lmdistill.generation.data_card import Costs, DataCard, data_card, data_card_json
from lmdistill.generation.data_card_markdown import data_card_markdown
from lmdistill.generation.desk import Desk, filled
from lmdistill.generation.filters import apply_filters
from lmdistill.generation.makers import ASKS_THE_STUDENT, MAKERS
from lmdistill.generation.preferences import mine_pairs
from lmdistill.generation.puzzles import make_puzzles
from lmdistill.generation.types import Drop, Example, Seed, Verdict, make_id
from lmdistill.generation.verify import Verifier
from lmdistill.io import hash_file, write_json, write_lines, write_text
from lmdistill.packages import resolve_path
from lmdistill.recipe import PreferenceSpec, Recipe, SeedSpec, SourceSpec
from lmdistill.recipe.data import GENERATED
from lmdistill.run_folder import fingerprint as fingerprint_of
from lmdistill.stages.context import Context
from lmdistill.stages.contrast_writer import contrast_writer
from lmdistill.stages.student_writer import StudentAtWork, teacher_scorer
from lmdistill.teachers import ApiTeacher
from lmdistill.teachers.api_types import Answer

_NAMES_THE_TEACHER = {"model", "serve", "base_url", "revision", "template", "recording"}
SEEDS = f"{GENERATED}:seeds"
"""Path of the seeds with their own answers."""


def seeds_with_answers(folder: Path) -> bool:
    """Whether any seed of a round has an answer of its own."""
    return (folder / "seeds.jsonl").stat().st_size > 0


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
    key = fingerprint_of(
        spec.model_dump(mode="json"),
        None if api is None else api.model_dump(mode="json", include=_NAMES_THE_TEACHER),
        [(seed.id, seed.answer, seed.task, seed.use) for seed in seeds],
        _further_inputs(recipe),
        {held: [document.id for document in documents] for held, documents in (heldout or {}).items()},
        weights,
        recipe.seed,
        number,
    )
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
        counting = _Counting(teacher, context)
        desk = Desk(
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
        verifier = owned.enter_context(Verifier(spec.verify)) if spec.verify is not None else None
        if verifier is not None:
            desk.checker = lambda response, seed: _verdict(verifier, response, seed)
        rows = _verified(MAKERS[spec.maker](desk, seeds), verifier, {seed.id: seed for seed in seeds})
        pool = [example.prompt for example in desk.earlier]
        kept, dropped = _collect(apply_filters(rows, spec.filters, _comparable(heldout or {}), pool))
        if spec.preferences is not None:
            _write_preferences(folder, kept, dropped, spec.preferences, recipe.seed)
        costs = counting.costs((time.monotonic() - started) / 60)
        card = data_card(kept, dropped, costs, name=recipe.name, teachers=[author], seed=recipe.seed)
        _write(folder, kept, dropped, seeds, card)
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


def read_seeds(context: Context) -> list[Seed]:
    """The seeds of a run, in their order, no two with one question. Raises DataError where there are none."""
    spec = context.recipe.generation
    assert spec is not None
    found: dict[str, Seed] = {}
    for place, source in enumerate(spec.seeds):
        for seed in _seeds_of(context, source, place):
            found.setdefault(seed.id, seed)
    if spec.seeds and not found:
        raise DataError("generation.seeds: no row in any of them; see the paths, and part and limit")
    return list(found.values())


def _seeds_of(context: Context, spec: SeedSpec, place: int) -> list[Seed]:
    """The seeds of one source."""
    if spec.puzzles is not None:
        return make_puzzles(spec.puzzles)[: spec.limit]
    assert spec.path is not None
    source = SourceSpec(path=spec.path, split=spec.split, subset=spec.subset)
    seeds = []
    for row in read_rows(source, context.progress):
        if row.row is None:
            raise DataError(f"{row.origin}: {row.problem}. Repair this row of generation.seeds.{place}")
        prompt = _column(row.row, spec.prompt, row.origin, f"generation.seeds.{place}.prompt")
        if not prompt.strip():
            continue
        answer = None
        if spec.answer is not None and ("{" in spec.answer or spec.answer in row.row):
            answer = _column(row.row, spec.answer, row.origin, f"generation.seeds.{place}.answer").strip() or None
            answer = spec.answer_words.get(answer, answer) if answer is not None else None
        seeds.append(Seed(make_id(prompt), prompt, answer, row.row, spec.task, spec.use))
    # With its answer, as a held-out source of the same file has it: then both draw one line between the rows.
    documents = [Document(prompt=seed.prompt, response=seed.answer, origin=seed.id) for seed in seeds]
    if spec.part != "all":
        heldout = spec.part == "heldout"
        documents = [document for document in documents if is_heldout(document, spec.heldout_share) == heldout]
    documents = shuffled(documents, context.recipe.seed, "seeds")[: spec.limit]
    by_id = {seed.id: seed for seed in seeds}
    return [by_id[document.origin] for document in documents]


def _column(row: dict[str, Any], wanted: str, origin: str, place: str) -> str:
    """A column's text, or a template filled with columns. Raises DataError for a column that is not there."""
    names = [wanted] if "{" not in wanted else [name for name in row if f"{{{name}}}" in wanted]
    missing = next((name for name in names if name not in row), None)
    if missing is not None or not names:
        raise DataError(f"{origin}: no column for {place}: {wanted!r}; the row has {', '.join(map(str, row))}")
    if "{" not in wanted:
        return str(row[wanted])
    return filled(wanted, **{name: str(row[name]) for name in names})


def _collect(found: Iterator[Example | Drop]) -> tuple[list[Example], list[Drop]]:
    kept, dropped = [], []
    for each in found:
        if isinstance(each, Drop):
            dropped.append(each)
        else:
            kept.append(each)
    return kept, dropped


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


def _write_preferences(
    folder: Path, kept: Sequence[Example], dropped: Sequence[Drop], spec: PreferenceSpec, seed: int
) -> None:
    """Pairs of all whole answers, those that verification left out among them: they are the worse ones."""
    answers = [*kept, *(drop.example for drop in dropped if drop.by == "verdict")]
    pairs = [found for found in mine_pairs(answers, spec, seed) if isinstance(found, Example)]
    write_lines(folder / "preferences.jsonl", (json.dumps(pair.row(), ensure_ascii=False) for pair in pairs))


def _write(
    folder: Path, kept: Sequence[Example], dropped: Sequence[Drop], seeds: Sequence[Seed], card: DataCard
) -> None:
    """Write a round's files, the examples last: they say that the others are whole."""
    write_json(folder / "data_card.json", data_card_json(card))
    write_text(folder / "data_card.md", data_card_markdown(card))
    known = [
        Example(id=seed.id, prompt=seed.prompt, response=seed.answer, task="seeds", seed=seed.id, answer=seed.answer)
        for seed in seeds
        if seed.answer is not None
    ]
    for name, rows in (("drops", dropped), ("seeds", known), ("examples", kept)):
        write_lines(folder / f"{name}.jsonl", (json.dumps(row.row(), ensure_ascii=False) for row in rows))


def _nothing_kept(folder: Path, dropped: Sequence[Drop]) -> str:
    first = dropped[0].reason if dropped else "the maker made nothing of the seeds"
    return (
        f"nothing is left to train on: {len(dropped)} dropped, the first for: {first}. All of them are in "
        f"{folder / 'drops.jsonl'}; the answers are in the ledger, so a changed recipe reads them again at no cost"
    )


def read_examples(file: Path) -> list[Example]:
    """The examples of a file that a round wrote."""
    return [Example.of(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def earlier_examples(context: Context, number: int) -> list[Example]:
    """What the rounds before one made."""
    files = [context.folder.file(GENERATED) / f"round-{before}" / "examples.jsonl" for before in range(1, number)]
    return [example for file in files for example in read_examples(file)]


def generated_documents(folder: Path, source: SourceSpec, seed: int) -> tuple[list[Document], DataReport]:
    """What a source takes of a round's examples. Raises DataError where that is nothing."""
    task = source.path.partition(":")[2]
    file = folder / ("seeds.jsonl" if task == "seeds" else "examples.jsonl")
    examples = [example for example in read_examples(file) if task in ("", "seeds", example.task)]
    report = DataReport(sources=[source.path], rows_read=len(examples))
    documents = [
        document_of(each, f"{file.name}:{place}")
        for place, each in enumerate(examples, start=1)
    ]
    if source.unique:
        first = {document.normal_id: document for document in reversed(documents)}
        documents = [document for document in documents if first[document.normal_id] is document]
        report.duplicates = len(examples) - len(documents)
    if source.limit is not None:
        kept = shuffled(documents, seed, "limit")[: source.limit]
        report.beyond_limit, documents = len(documents) - len(kept), kept
    report.documents = len(documents)
    if not documents:
        tasks = sorted({example.task for example in read_examples(folder / "examples.jsonl")})
        raise DataError(f"{source.path}: no such row was made; there are rows of {', '.join(tasks) or 'no task'}")
    return documents, report


def document_of(example: Example, origin: str) -> Document:
    """An example as a row to train on; without a prompt it is plain text. What a method needs besides stands in its
    fields: `given` characters of the response that are read and not learnt, the `twin` that it makes a pair with, the
    `span` that both share, the `turns` (question, answer) that it is made of."""
    if not example.prompt:
        return Document(text=example.response, origin=origin, task=example.task)
    if example.fields.get("turns"):
        return turns_document(example, origin)
    task = "" if example.task == "seeds" else example.task
    given, twin = int(example.fields.get("given", 0)), str(example.fields.get("twin", ""))
    first, end = example.fields.get("span") or (0, 0)
    marks = (task, given, twin, first, end)
    return Document(
        prompt=example.prompt,
        response=example.response,
        origin=origin,
        # A row is encoded again where its marks change, so that its name depends on them.
        id=make_id(example.prompt, example.response, *marks),
        task=task,
        given=given,
        twin=twin,
        span=(first, end) if end else None,
    )


def turns_document(example: Example, origin: str) -> Document:
    """Several questions and answers in one context, all answers learnt: a conversation, or one text."""
    turns = example.fields["turns"]
    if example.fields.get("form") == "turns":
        messages = [
            {"role": role, "content": text.strip()}
            for turn in turns
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        return Document(messages=messages, origin=origin, task=example.task)
    response, separator = "", str(example.fields.get("separator", "\n\n"))
    learnt: list[tuple[int, int]] = []
    for number, (question, answer) in enumerate(turns):
        response += "" if number == 0 else f"{separator}{question}"
        learnt.append((len(response), len(response) + len(answer)))
        response += answer
    return Document(
        prompt=turns[0][0],
        response=response,
        origin=origin,
        id=make_id(turns[0][0], response, *learnt),
        task=example.task,
        learnt=tuple(learnt),
    )


@dataclass
class _Counting:
    """Shows how many answers have come."""

    teacher: ApiTeacher | None
    context: Context
    answers: int = 0
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
