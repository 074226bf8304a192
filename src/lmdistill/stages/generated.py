"""The files of a round of generated data: written once, read as text to train on.

    generated/<round>/
        examples.jsonl             what is trained on
        drops.jsonl                what was left out, with the reason
        preferences.jsonl          pairs of a better and a worse answer, where the recipe wants them
        preferences_drops.jsonl    answers that made no pair, with the reason
        data_card.md, .json        counts, diversity, cost of an example, terms of the teacher
        seeds.jsonl                the seeds that have an answer of their own, for the baseline without the teacher

A training source `generated` is these examples; `generated:TASK` those of one task; `generated:seeds` the seeds' own
answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lmdistill.data import DataReport, Document
from lmdistill.data.load import shuffled
from lmdistill.errors import DataError
from lmdistill.generation.data_card import DataCard, data_card_json
from lmdistill.generation.data_card_markdown import data_card_markdown
from lmdistill.generation.export import json_line
from lmdistill.generation.exporting import examples_of
from lmdistill.generation.preferences import mine_pairs
from lmdistill.generation.types import Drop, Example, Seed, make_id
from lmdistill.io import write_json, write_lines, write_text
from lmdistill.recipe import PreferenceSpec, SourceSpec
from lmdistill.recipe.data import GENERATED
from lmdistill.stages.context import Context

SEEDS = f"{GENERATED}:seeds"
"""Path of the seeds with their own answers."""


def seeds_with_answers(folder: Path) -> bool:
    """Whether any seed of a round has an answer of its own."""
    return (folder / "seeds.jsonl").stat().st_size > 0


def earlier_examples(context: Context, number: int) -> list[Example]:
    """What the rounds before one made."""
    files = [context.folder.file(GENERATED) / f"round-{before}" / "examples.jsonl" for before in range(1, number)]
    return [example for file in files for example in examples_of(file)]


def generated_documents(folder: Path, source: SourceSpec, seed: int) -> tuple[list[Document], DataReport]:
    """What a source takes of a round's examples. Raises DataError where that is nothing."""
    task = source.path.partition(":")[2]
    file = folder / ("seeds.jsonl" if task == "seeds" else "examples.jsonl")
    examples = [example for example in examples_of(file) if task in ("", "seeds", example.task)]
    report = DataReport(sources=[source.path], rows_read=len(examples))
    documents = [document_of(each, f"{file.name}:{place}") for place, each in enumerate(examples, start=1)]
    if source.unique:
        first = {document.normal_id: document for document in reversed(documents)}
        documents = [document for document in documents if first[document.normal_id] is document]
        report.duplicates = len(examples) - len(documents)
    if source.limit is not None:
        kept = shuffled(documents, seed, "limit")[: source.limit]
        report.beyond_limit, documents = len(documents) - len(kept), kept
    report.documents = len(documents)
    if not documents:
        tasks = sorted({example.task for example in examples_of(folder / "examples.jsonl")})
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


def write_preferences(
    folder: Path, kept: Sequence[Example], dropped: Sequence[Drop], spec: PreferenceSpec, seed: int
) -> None:
    """Pairs of all whole answers, those that verification left out among them: they are the worse ones."""
    answers = [*kept, *(drop.example for drop in dropped if drop.by == "verdict")]
    found = list(mine_pairs(answers, spec, seed))
    pairs = [each for each in found if isinstance(each, Example)]
    lone = [each for each in found if isinstance(each, Drop)]
    write_lines(folder / "preferences.jsonl", (json_line(pair.row()) for pair in pairs))
    write_lines(folder / "preferences_drops.jsonl", (json_line(each.row()) for each in lone))


def write_round(
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
        write_lines(folder / f"{name}.jsonl", (json_line(row.row()) for row in rows))
