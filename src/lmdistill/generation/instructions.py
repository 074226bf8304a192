"""What makers of instructions share: the pool that a new instruction must differ from, and how requests are written.

The wording of prompts is ours; the published one was written for other models.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lmdistill.generation.checks.likeness import NoveltyCheck
from lmdistill.generation.desk import Desk, chat, sampling_of
from lmdistill.generation.types import Drop, Example, Seed, make_id
from lmdistill.recipe import InstructionsSpec
from lmdistill.recipe.generation_filters import NoveltyFilter
from lmdistill.teachers.api_types import Answer, Request

_NUMBERED = re.compile(r"(?:^|\n)\s*(?:task\s*)?\d+\s*[.:)]\s*", re.IGNORECASE)
_FIRST_CHARACTER = re.compile(r"[^\W_]|[\"'(¿¡]")


@dataclass(frozen=True)
class Instruction:
    """An instruction with its input, where it has one."""

    text: str
    input: str = ""

    @property
    def prompt(self) -> str:
        """What a model reads."""
        return f"{self.text}\n\n{self.input}" if self.input else self.text


class InstructionPool:
    """Instructions that there are already, and whether a new one may join them (Self-Instruct 2212.10560, section 2.2).

    The same rules hold for every maker: number of words, no word for what a text model lacks, ROUGE-L to all others.
    """

    def __init__(self, spec: InstructionsSpec, known: Iterable[str], *, novelty: float | None = None) -> None:
        self.spec = spec
        self.texts = list(known)
        threshold = spec.novelty if novelty is None else novelty
        self._novelty = NoveltyCheck(NoveltyFilter(threshold=threshold, side="prompt"), self.texts)
        self._forbidden = {word.casefold() for word in spec.forbidden}

    def against(self, text: str) -> tuple[str, str | None] | None:
        """Why a text may not join, and the name of what it is too like; None where it may."""
        words = text.split()
        low, high = self.spec.words
        if not low <= len(words) <= high:
            return f"an instruction of {len(words)} words, not {low} to {high}", None
        if _FIRST_CHARACTER.match(text) is None:
            return f"it begins with {text[0]!r}", None
        found = sorted({word.strip(".,;:!?\"'()").casefold() for word in words} & self._forbidden)
        if found:
            return f"it asks for what a text model cannot do: {found[0]!r}", None
        finding = self._novelty.look(self._example(text))
        return None if finding is None else (finding.reason, finding.matched)

    def add(self, text: str) -> None:
        """Later texts are compared with this one."""
        self.texts.append(text)
        self._novelty.keep(self._example(text))

    @staticmethod
    def _example(text: str) -> Example:
        return Example(id=make_id(text), prompt=text, response="")


@dataclass
class Wanted:
    """How much of a maker's work is done."""

    spec: InstructionsSpec
    kept: int = 0
    asked: int = 0

    def waves(self) -> Iterator[int]:
        """Numbers of requests to ask together, until there is enough or all requests are spent."""
        while self.kept < self.spec.wanted and self.asked < self.spec.requests:
            size = min(self.spec.wave, self.spec.requests - self.asked)
            self.asked += size
            yield size


@dataclass(frozen=True)
class Found:
    """A new instruction, and the answer of the teacher that brought it."""

    instruction: Instruction
    answer: Answer
    output: str = ""
    """The teacher's answer to it, where it came along."""
    facts: Mapping[str, Any] = field(default_factory=dict)


def examples_for(spec: InstructionsSpec, seeds: Sequence[str], made: Sequence[str], draws: random.Random) -> list[str]:
    """Instructions that a request shows: of people and of the model, mixed; fewer where there are fewer."""
    from_model = draws.sample(list(made), min(spec.model_examples, len(made)))
    from_people = draws.sample(
        list(seeds), min(spec.human_examples + spec.model_examples - len(from_model), len(seeds))
    )
    shown = from_model + from_people
    draws.shuffle(shown)
    return shown


def question(
    desk: Desk,
    text: str,
    tag: str,
    *,
    sample: int = 0,
    schema: Mapping[str, Any] | None = None,
    stop: tuple[str, ...] = (),
) -> Request:
    """A request with the recipe's sampling; `stop` ends the answer beside what the recipe names."""
    sampling = sampling_of(desk.spec.ask, desk.seed)
    sampling = replace(sampling, stop=(*sampling.stop, *stop))
    return Request(chat(desk.spec.ask, text), sampling, sample=sample, schema=schema, tag=tag)


def numbered(text: str) -> list[str]:
    """The entries of a numbered list (`3. ...`, `Task 3: ...`), in order; nothing where there is no number."""
    parts = _NUMBERED.split(text)
    return [" ".join(part.split()) for part in parts[1:] if part.strip()]


def json_of(answer: Answer) -> Any:
    """The JSON of an answer that was asked for with a schema, which has been checked already."""
    return json.loads(answer.text or "null")


def dropped(desk: Desk, found: Found, by: str, reason: str, matched: str | None = None) -> Drop:
    """The record of an instruction that was not taken."""
    text = found.instruction.prompt
    example = Example(
        id=make_id(found.answer.key, text),
        prompt=text,
        response=found.output,
        task="instruction",
        provenance=desk.came_from(found.answer),
    )
    return Drop(example, by=by, reason=reason, matched=matched)


def unusable(desk: Desk, answer: Answer, what: str) -> Drop:
    """The record of an answer that brought nothing: none came, or it could not be read."""
    example = Example(
        id=make_id(answer.key),
        prompt=answer.request.messages[-1].content,
        response=answer.text or answer.raw or "",
        task="instruction",
        provenance=desk.came_from(answer),
    )
    return Drop(example, by="answer", reason=answer.error or what)


def answered(desk: Desk, found: Sequence[Found]) -> Iterator[Example | Drop]:
    """The teacher's answers to new instructions, in order."""
    requests = [question(desk, each.instruction.prompt, make_id(each.instruction.prompt)) for each in found]
    for each, answer in zip(found, desk.ask(requests), strict=True):
        example = Example(
            id=make_id(each.instruction.prompt),
            prompt=each.instruction.prompt,
            response=(answer.text or answer.raw or "").strip(),
            fields=each.facts,
            provenance=desk.came_from(each.answer, answer),
        )
        if answer.good and example.response:
            yield example
        else:
            yield Drop(example, by="answer", reason=answer.error or "an empty answer")


def instructions_of(seeds: Sequence[Seed]) -> list[str]:
    """The instructions of seeds, without their inputs: the column `instruction` where there is one."""
    return [str(seed.fields.get("instruction") or seed.prompt) for seed in seeds]
