"""Socratic chain of thought: a question is taken apart into sub-questions, which are answered one by one.

Shridhar et al. (arXiv 2212.00193) train two small models, one that asks (x -> q_1 ... q_n) and one that answers
(x, q_1, a_1, ..., q_j -> a_j), or a unified one (x -> q_1 a_1 ... q_n a_n). The teacher answers in JSON, so that
questions and answers are told apart for certain.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lmdistill.generation.desk import Desk, asked, chat, failed, filled, sampling_of
from lmdistill.generation.judging import Judge
from lmdistill.generation.types import Drop, Example, Seed, Verdict
from lmdistill.generation.waves import in_waves
from lmdistill.teachers.api_types import Answer, Request

TEMPLATE = "Solve the problem by asking sub-questions and answering each with its sum written out.\n\nProblem: {prompt}"


@dataclass(frozen=True)
class Dialogue:
    """Sub-questions with their answers, and where they lead."""

    seed: Seed
    answer: Answer
    steps: tuple[tuple[str, str], ...]
    final: str
    verdict: Verdict
    reason: str

    def example(self, desk: Desk, prompt: str, response: str, task: str, number: int = 0) -> Example:
        """A row that is made of it."""
        return Example(
            id=f"{self.seed.id}-{self.answer.request.sample}-{task}-{number}",
            prompt=prompt,
            response=response,
            task=task,
            seed=self.seed.id,
            answer=self.final,
            verdict=self.verdict,
            provenance=desk.came_from(self.answer),
        )


def make_socratic(desk: Desk, seeds: Sequence[Seed]) -> Iterator[Example | Drop]:
    """Rows of the form that the recipe asks for."""
    with Judge(desk.spec.verify) as judge:

        def wave(wanted: Sequence[Seed], samples: range) -> Iterator[tuple[str, Verdict, Dialogue | Drop]]:
            pairs = [(seed, _request(desk, seed, sample)) for seed in wanted for sample in samples]
            for seed, _, answer in asked(desk, pairs):
                found = read_dialogue(seed, answer, judge) if answer.good else failed(seed, answer, desk, "unified")
                yield seed.id, ("unverifiable" if isinstance(found, Drop) else found.verdict), found

        for found in in_waves(desk, seeds, wave):
            if isinstance(found, Drop):
                yield found
            elif desk.spec.rationales.keep == "correct" and found.verdict == "incorrect":
                yield Drop(unified(desk, found), by="verdict", reason=found.reason)
            elif desk.spec.socratic.form == "unified":
                yield unified(desk, found)
            else:
                yield from two_models(desk, found)


def unified(desk: Desk, dialogue: Dialogue) -> Example:
    """One row: all sub-questions, each with its answer."""
    lines = [f"{question} {answer}" for question, answer in dialogue.steps]
    return dialogue.example(
        desk, dialogue.seed.prompt, "\n".join([*lines, f"The answer is {dialogue.final}."]), "unified"
    )


def two_models(desk: Desk, dialogue: Dialogue) -> Iterator[Example]:
    """What the decomposer learns (`question`), and a row for each step of the solver (`solution`)."""
    problem = dialogue.seed.prompt
    yield dialogue.example(desk, problem, "\n".join(question for question, _ in dialogue.steps), "question")
    for number, (question, answer) in enumerate(dialogue.steps):
        before = [f"{asked} {said}" for asked, said in dialogue.steps[:number]]
        ending = f" The answer is {dialogue.final}." if number == len(dialogue.steps) - 1 else ""
        yield dialogue.example(desk, "\n".join([problem, *before, question]), answer + ending, "solution", number)


def schema(most_steps: int) -> dict[str, Any]:
    """What the teacher's answer must look like."""
    text = {"type": "string", "minLength": 1}
    step = _object({"question": text, "answer": text})
    steps = {"type": "array", "items": step, "minItems": 1, "maxItems": most_steps}
    return _object({"steps": steps, "final": text})


def read_dialogue(seed: Seed, answer: Answer, judge: Judge) -> Dialogue:
    """The dialogue of an answer that keeps to the schema."""
    value = json.loads(answer.text or "{}")
    steps = tuple((step["question"].strip(), step["answer"].strip()) for step in value["steps"])
    final = judge.final_answer(f"The answer is {value['final'].strip()}") or value["final"].strip()
    checked = judge.verdict(seed, final)
    return Dialogue(seed, answer, steps, final, checked.verdict, checked.reason)


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _request(desk: Desk, seed: Seed, sample: int) -> Request:
    ask = desk.spec.ask
    text = filled(ask.template or TEMPLATE, prompt=seed.prompt)
    form = schema(desk.spec.socratic.most_steps)
    return Request(chat(ask, text), sampling_of(ask, desk.seed), sample=sample, schema=form, tag=seed.id)
