"""Makers that put demonstrations before a question.

`context`: the teacher behind the API reads instructions and demonstrations, the student learns its answers without
them: context distillation (Askell et al., arXiv 2112.00861; Snell et al., arXiv 2209.15189) from text alone.

`in_context`: the student reads demonstrations and learns the seeds' own answers behind them: in-context learning
distillation (Huang et al., arXiv 2212.10670). Soft labels are the recipe's divergence, from a teacher in this process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lmdistill.data.documents import Document
from lmdistill.data.load import read_rows, shuffled
from lmdistill.errors import DataError
from lmdistill.generation.demonstrations import chooser, in_one_text, pairs_of, questions_of
from lmdistill.generation.desk import Desk, asked, chat, failed, filled, sampling_of
from lmdistill.generation.types import Drop, Example, Seed, make_id
from lmdistill.recipe import SourceSpec
from lmdistill.teachers.api_types import Request


def make_context(desk: Desk, seeds: Sequence[Seed]) -> Iterator[Example | Drop]:
    """The teacher's answers behind demonstrations, as examples of the task `answer` without them."""
    shown = _shown(desk, seeds)
    for seed, request, answer in asked(desk, _requests(desk, seeds, shown)):
        if not answer.good or answer.text is None or not answer.text.strip():
            yield failed(seed, answer, desk)
            continue
        yield Example(
            id=f"{seed.id}-{request.sample}",
            prompt=seed.prompt,
            response=answer.text.strip(),
            seed=seed.id,
            answer=seed.answer,
            fields={"shown": [other.id for other in shown[seed.id]]},
            provenance=desk.came_from(answer),
        )


def _shown(desk: Desk, seeds: Sequence[Seed]) -> dict[str, list[Seed]]:
    """The demonstrations of each question."""
    count = desk.spec.demonstrations.count
    choose = chooser(desk, seeds, count)
    return {seed.id: choose(seed, count, "") for seed in questions_of(seeds)}


def _requests(desk: Desk, seeds: Sequence[Seed], shown: dict[str, list[Seed]]) -> Iterator[tuple[Seed, Request]]:
    """A request for each sample of each question: system message, the recipe's demonstrations, the chosen ones."""
    ask, spec = desk.spec.ask, desk.spec.demonstrations
    sampling = sampling_of(ask, desk.seed)
    for seed in questions_of(seeds):
        text = filled(ask.template or "{prompt}", prompt=seed.prompt)
        pairs = pairs_of(shown[seed.id])
        if spec.form == "turns" and ask.endpoint == "chat":
            told = [(filled(ask.template or "{prompt}", prompt=one), answer) for one, answer in pairs]
            turns = chat(ask.model_copy(update={"demonstrations": [*ask.demonstrations, *told]}), text)
        else:
            turns = chat(ask, in_one_text(spec, pairs, text) if pairs else text)
        for sample in range(ask.samples):
            yield seed, Request(turns, sampling, sample=sample, tag=seed.id)


def make_in_context(desk: Desk, seeds: Sequence[Seed]) -> Iterator[Example | Drop]:
    """The seeds' answers behind demonstrations of their task (task `label`), and plain text (task `text`)."""
    spec = desk.spec.demonstrations
    choose = chooser(desk, seeds, spec.count)
    for seed in questions_of(seeds):
        for draw in range(desk.spec.in_context.draws):
            found = choose(seed, spec.count, str(draw))
            example = Example(
                id=f"{seed.id}-{draw}",
                prompt=in_one_text(spec, pairs_of(found), seed.prompt),
                response=seed.answer or "",
                task="label",
                seed=seed.id,
                answer=seed.answer,
                verdict=None if seed.answer is None else "correct",
                fields={"of": seed.task, "shown": [other.id for other in found]},
                provenance=desk.came_from(),
            )
            yield example if seed.answer else Drop(example, by="answer", reason="the seed has no answer to be learnt")
    if desk.spec.in_context.beta > 0:
        yield from _texts(desk)


def _texts(desk: Desk) -> Iterator[Example]:
    """Plain text for the language modelling term. Raises DataError where there is none."""
    spec = desk.spec.in_context
    assert spec.texts is not None
    found: dict[str, str] = {}
    for row in read_rows(SourceSpec(path=spec.texts), desk.progress):
        text = None if row.row is None else row.row.get(spec.text_column)
        if not isinstance(text, str):
            why = row.problem or f"no text in the column {spec.text_column!r}"
            raise DataError(f"{row.origin}: {why}; see generation.in_context.texts and text_column")
        if text.strip():
            found.setdefault(make_id(text), text)
    if not found:
        raise DataError(f"generation.in_context.texts: {spec.texts} holds no text")
    documents = [Document(text=text, origin=name) for name, text in found.items()]
    for document in shuffled(documents, desk.seed, "texts")[: spec.text_limit]:
        yield Example(id=document.origin, prompt="", response=document.text or "", task="text")
