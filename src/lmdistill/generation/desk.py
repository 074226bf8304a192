"""What a maker of data works with: the teacher to ask, the checks, the student where it takes part, and the records.

A maker is a function of a desk and seeds that yields examples and drops. It keeps nothing by itself: the same questions
bring the same answers from the ledger, so a maker that was killed is started again and goes through what it has without
a call. Its order must not depend on anything but its inputs.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from lmdistill.errors import RecipeError
from lmdistill.generation.types import Drop, Example, Provenance, Seed, Verdict
from lmdistill.progress import Progress
from lmdistill.recipe import AskSpec, DataGenerationSpec
from lmdistill.teachers.api_types import PROMPT, Answer, Message, Request, Sampling


class Asker(Protocol):
    """Whoever answers requests in their order; `lmdistill.teachers.ApiTeacher` does."""

    def answer(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """The answers, in the order of the requests."""


Student = Callable[[Sequence[str]], list[str]]
"""What the student as it now is answers to prompts."""
Scorer = Callable[[Sequence[tuple[str, str]]], list[float]]
"""Mean negative log-probability, in nats a token, that the student gives to each response behind its prompt; an empty
prompt is none: the response stands alone."""
Contraster = Callable[[Sequence[tuple[str, str]]], list[str]]
"""What the teacher's own weights write that fits the first prompt of each pair more than the second."""
Checker = Callable[[str, Seed], tuple[Verdict, str]]
"""Whether a response answers a seed, and why one thinks so."""


@dataclass
class Desk:
    """One round of making data."""

    spec: DataGenerationSpec
    teacher: Asker
    seed: int = 0
    round: int = 1
    """Counted from 1."""
    earlier: Sequence[Example] = ()
    """What earlier rounds made and kept."""
    recipe: str = ""
    """Name of the recipe, for provenance."""
    progress: Progress = field(default_factory=Progress)
    writer: Student | None = None
    """The student, where the maker lets it write."""
    scorer: Scorer | None = None
    """How hard the student finds texts, where the maker wants to know."""
    contraster: Contraster | None = None
    """The teacher's weights on this machine, where the maker decodes with them."""
    likelihood: Scorer | None = None
    """How unlikely the teacher's weights on this machine find texts, where the maker wants to know."""
    folder: Path | None = None
    """Where the round's files lie; a maker may put a model of its own there."""
    checker: Checker | None = None
    """How responses are verified (`generation.verify`)."""
    stamp: Callable[[Sequence[str]], str] = lambda keys: ""
    """When the answers under some keys were stored."""

    def draws(self, *purpose: object) -> random.Random:
        """Random numbers that depend on the recipe's seed, the round and the purpose alone."""
        return random.Random(repr((self.seed, self.round, *purpose)))

    def ask(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """Ask the teacher; answers come in the order of the requests, failed ones with their error.

        Requests are read ahead: where a question depends on earlier answers, ask in rounds.
        """
        return self.teacher.answer(requests)

    def student(self, prompts: Sequence[str]) -> list[str]:
        """What the student answers. Raises RecipeError where the maker works without one."""
        if self.writer is None:
            raise RecipeError(f"generation.maker: {self.spec.maker} asks the student, but there is none in this run")
        return self.writer(prompts)

    def difficulty(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """The student's mean negative log-probability of responses. Raises RecipeError where there is no student."""
        if self.scorer is None:
            raise RecipeError(
                f"generation.maker: {self.spec.maker} measures the student, but there is none in this run"
            )
        return self.scorer(pairs)

    def surprise(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """The mean negative log-probability that the teacher's weights give to each response behind its prompt.

        Raises RecipeError where they are not on this machine.
        """
        if self.likelihood is None:
            raise RecipeError(
                f"generation.maker: {self.spec.maker} asks how likely the teacher finds answers, but its weights "
                "are not on this machine: name them (teacher: {model: ...}), or set demonstrations.choose: bm25"
            )
        return self.likelihood(pairs)

    def contrast(self, prompts: Sequence[tuple[str, str]]) -> list[str]:
        """Texts by contrastive decoding. Raises RecipeError where the teacher's weights are not on this machine."""
        if self.contraster is None:
            raise RecipeError(
                f"generation.maker: {self.spec.maker} needs the teacher's weights on this machine. With serve: "
                "llamacpp they are; beside another server teacher can name them (teacher: {model: ...}, api: {...})"
            )
        return self.contraster(prompts)

    def check(self, response: str, seed: Seed) -> tuple[Verdict, str]:
        """Whether a response is right: correct, incorrect or unverifiable, and why."""
        return ("unverifiable", "nothing checks it") if self.checker is None else self.checker(response, seed)

    def came_from(self, *answers: Answer) -> Provenance:
        """Where an example made of these answers comes from."""
        keys = tuple(answer.key for answer in answers)
        models = [answer.model for answer in answers if answer.model]
        return Provenance(
            teacher=models[-1] if models else "", requests=keys, time=self.stamp(keys), recipe=self.recipe
        )


Maker = Callable[[Desk, Sequence[Seed]], Iterator[Example | Drop]]
"""Makes examples of seeds; what it leaves out is a drop with its reason."""


def sampling_of(spec: AskSpec, seed: int) -> Sampling:
    """How an answer is drawn."""
    return Sampling(
        max_tokens=spec.max_tokens, temperature=spec.temperature, top_p=spec.top_p, stop=tuple(spec.stop), seed=seed
    )


def chat(spec: AskSpec, text: str) -> tuple[Message, ...]:
    """The turns of one question: system message, demonstrations, the text; or all of it as one text to be continued."""
    if spec.endpoint == "completions":
        parts = [spec.system] if spec.system else []
        parts += [f"{question}\n{answer}" for question, answer in spec.demonstrations]
        return (Message(PROMPT, "\n\n".join([*parts, text])),)
    turns = [] if spec.system is None else [Message("system", spec.system)]
    for question, answer in spec.demonstrations:
        turns += [Message("user", question), Message("assistant", answer)]
    return (*turns, Message("user", text))


def filled(template: str, **values: str) -> str:
    """A template with its `{names}` replaced, once and in one pass: what a value holds is never replaced again."""
    parts, rest = [], template
    while rest:
        found = min(((rest.find(f"{{{name}}}"), name) for name in values if f"{{{name}}}" in rest), default=(-1, ""))
        at, name = found
        if at < 0:
            break
        parts += [rest[:at], values[name]]
        rest = rest[at + len(name) + 2 :]
    return "".join([*parts, rest])


def requests_of(desk: Desk, seeds: Iterable[Seed], template: str) -> Iterator[tuple[Seed, Request]]:
    """A request for each sample of each seed, in order."""
    ask = desk.spec.ask
    sampling = sampling_of(ask, desk.seed)
    for seed in seeds:
        text = filled(ask.template or template, prompt=seed.prompt, answer=seed.answer or "")
        for sample in range(ask.samples):
            yield seed, Request(chat(ask, text), sampling, sample=sample, tag=seed.id)


def asked(desk: Desk, pairs: Iterable[tuple[Seed, Request]]) -> Iterator[tuple[Seed, Request, Answer]]:
    """Each request with its answer, in order, read ahead as far as the teacher does."""
    waiting: deque[tuple[Seed, Request]] = deque()

    def outgoing() -> Iterator[Request]:
        for seed, request in pairs:
            waiting.append((seed, request))
            yield request

    for answer in desk.ask(outgoing()):
        seed, request = waiting.popleft()
        yield seed, request, answer


def failed(seed: Seed, answer: Answer, desk: Desk, task: str = "answer") -> Drop:
    """The record of a question that got no usable answer."""
    example = Example(
        id=f"{seed.id}-{answer.request.sample}",
        prompt=seed.prompt,
        response=answer.raw or answer.text or "",
        task=task,
        seed=seed.id,
        provenance=desk.came_from(answer),
    )
    return Drop(example, by="answer", reason=answer.error or f"the answer is not whole ({answer.finish})")
