"""Instruction, input and output in one pass (Alpaca), and new instructions about given topics (LaMini).

Stanford Alpaca (Taori et al. 2023) shows three seed tasks and asks for a list of whole tasks in one answer, which saves
Self-Instruct's further steps and its distinction of classifications. LaMini-LM (Wu et al., arXiv 2304.14402, section
2.1) asks for instructions alone, by example and by example with topics, and has them answered one by one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from lmdistill.errors import RecipeError
from lmdistill.generation.desk import Desk
from lmdistill.generation.instructions import (
    Found,
    Instruction,
    InstructionPool,
    Wanted,
    answered,
    dropped,
    examples_for,
    instructions_of,
    json_of,
    question,
    unusable,
)
from lmdistill.generation.types import Drop, Example, Seed, make_id

_TEXT: dict[str, Any] = {"type": "string"}
_SHOWN_TASKS = 3


def make_alpaca(desk: Desk, seeds: Sequence[Seed]) -> Iterator[Example | Drop]:
    """New tasks with input and output, several from one answer."""
    spec = desk.spec.instructions
    pool, wanted = InstructionPool(spec, instructions_of(seeds)), Wanted(spec)
    schema = _list_of({"instruction": _TEXT, "input": _TEXT, "output": _TEXT}, spec.per_request)
    for size in wanted.waves():
        draws = desk.draws("alpaca", wanted.asked)
        texts = [
            _whole_tasks(draws.sample(list(seeds), min(_SHOWN_TASKS, len(seeds))), spec.per_request)
            for _ in range(size)
        ]
        first = wanted.asked - size
        requests = [question(desk, text, f"tasks-{first + n}", schema=schema) for n, text in enumerate(texts)]
        for answer in desk.ask(requests):
            if not answer.good:
                yield unusable(desk, answer, "no tasks in the answer")
                continue
            for entry in json_of(answer)["tasks"]:
                instruction = Instruction(entry["instruction"].strip(), _input(entry["input"]))
                found = Found(instruction, answer, entry["output"].strip())
                against = pool.against(instruction.text)
                if against is None and not found.output:
                    against = ("it has no output", None)
                if against is not None:
                    yield dropped(desk, found, "instruction", *against)
                    continue
                pool.add(instruction.text)
                wanted.kept += 1
                yield Example(
                    id=make_id(instruction.prompt),
                    prompt=instruction.prompt,
                    response=found.output,
                    fields={"instruction": instruction.text, "input": instruction.input},
                    provenance=desk.came_from(answer),
                )
                if wanted.kept == spec.wanted:
                    return


def make_topics(desk: Desk, seeds: Sequence[Seed]) -> Iterator[Example | Drop]:
    """New instructions about topics, each answered by the teacher. Raises RecipeError where no topic is named."""
    spec = desk.spec.instructions
    if not spec.topics:
        raise RecipeError("generation.maker: topics needs topics: set generation.instructions.topics")
    pool, wanted, made = InstructionPool(spec, instructions_of(seeds)), Wanted(spec), list[str]()
    schema = {
        "type": "object",
        "properties": {"instructions": _array(_TEXT, spec.per_request)},
        "required": ["instructions"],
        "additionalProperties": False,
    }
    for size in wanted.waves():
        draws = desk.draws("topics", wanted.asked)
        chosen = [draws.sample(spec.topics, min(spec.topics_per_request, len(spec.topics))) for _ in range(size)]
        texts = [
            _about(topics, examples_for(spec, instructions_of(seeds), made, draws)[:_SHOWN_TASKS], spec.per_request)
            for topics in chosen
        ]
        first = wanted.asked - size
        requests = [question(desk, text, f"topics-{first + n}", schema=schema) for n, text in enumerate(texts)]
        fresh: list[Found] = []
        for topics, answer in zip(chosen, desk.ask(requests), strict=True):
            if not answer.good:
                yield unusable(desk, answer, "no instructions in the answer")
                continue
            for text in json_of(answer)["instructions"]:
                found = Found(Instruction(" ".join(text.split())), answer, facts={"topics": topics})
                against = pool.against(found.instruction.text)
                if against is not None:
                    yield dropped(desk, found, "instruction", *against)
                elif wanted.kept + len(fresh) < spec.wanted:
                    pool.add(found.instruction.text)
                    fresh.append(found)
        for item in answered(desk, fresh):
            if isinstance(item, Example):
                wanted.kept += 1
                made.append(item.prompt)
            yield item


def _whole_tasks(shown: Sequence[Seed], more: int) -> str:
    """A request for whole tasks after the example of some."""
    examples = [
        {
            "instruction": str(seed.fields.get("instruction") or seed.prompt),
            "input": str(seed.fields.get("input") or ""),
            "output": seed.answer or "",
        }
        for seed in shown
    ]
    return (
        f"Think up {more} new tasks for an assistant that reads and writes text. Vary the verbs, the subjects and the "
        "kind of task: questions, rewriting, explaining, lists, sums, letters. A task has an instruction of one or two "
        "sentences, an input where the instruction needs one (else an empty text), and an output that does what is "
        f"asked. These are examples; make others.\n\n{json.dumps({'tasks': examples}, ensure_ascii=False, indent=1)}"
    )


def _about(topics: Sequence[str], shown: Sequence[str], more: int) -> str:
    """A request for instructions about topics."""
    lines = "\n".join(f"- {text}" for text in shown)
    return (
        f"These are instructions that people give to an assistant:\n{lines}\n\nWrite {more} other instructions, as "
        f"different from one another as you can, about: {', '.join(topics)}."
    )


def _list_of(properties: dict[str, Any], count: int) -> dict[str, Any]:
    entry = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {
        "type": "object",
        "properties": {"tasks": _array(entry, count)},
        "required": ["tasks"],
        "additionalProperties": False,
    }


def _array(items: dict[str, Any], most: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1, "maxItems": most}


def _input(text: str) -> str:
    """The input, where it is one."""
    stripped = text.strip()
    return "" if stripped.casefold().strip("<>.") in ("none", "n/a", "noinput", "no input", "empty") else stripped
