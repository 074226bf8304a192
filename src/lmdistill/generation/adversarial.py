"""Lion: the student imitates, a referee finds where it falls behind, the teacher writes more of what is hard for it.

Jiang et al., arXiv 2305.12870, section 3. Round 1 imitates: the teacher answers the seeds. Each later round
discriminates: teacher and student answer the instructions of the pool, a referee (the teacher's model) scores both in
both orders, and an instruction is hard where the mean difference is at least the margin. Then it generates: new
instructions, as many hard as easy ones, each unlike all others (ROUGE-L at most 0.7), which the teacher answers and the
student is trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lmdistill.generation.answers import make_answers
from lmdistill.generation.desk import Desk
from lmdistill.generation.fence import FENCE_NOTE, fence
from lmdistill.generation.instructions import (
    Found,
    Instruction,
    InstructionPool,
    answered,
    dropped,
    json_of,
    question,
    unusable,
)
from lmdistill.generation.types import Drop, Example, Seed

_SCORE = {"type": "integer", "minimum": 1, "maximum": 10}
_SCORES: dict[str, Any] = {
    "type": "object",
    "properties": {"first": _SCORE, "second": _SCORE},
    "required": ["first", "second"],
    "additionalProperties": False,
}
_REFEREE = (
    "Two assistants answered the same instruction. Judge how helpful, relevant, accurate and detailed each answer is, "
    "and give each a score from 1 (worst) to 10 (best). {note}\n\n{instruction}\n\n{first}\n\n{second}"
)
_NEW = {
    "hard": (
        "Write one brand new instruction of the same domain and the same kind of task as the one below, about as hard. "
        "{note} Write the new instruction alone.\n\n{text}"
    ),
    "easy": (
        "Write one brand new instruction of the same domain as the one below, about something that is asked for more "
        "rarely. {note} Write the new instruction alone.\n\n{text}"
    ),
}


@dataclass(frozen=True)
class Judged:
    """An instruction of the pool, and by how much the teacher's answer was scored above the student's."""

    example: Example
    gap: float | None
    """None where the referee's scores could not be read: neither hard nor easy."""


def make_adversarial(desk: Desk, seeds: Sequence[Seed]) -> Iterator[Example | Drop]:
    """The examples of one round; `desk.earlier` is the pool that earlier rounds left."""
    if desk.round == 1 or not desk.earlier:
        yield from make_answers(desk, seeds)
        return
    judged, spoiled = judge(desk)
    yield from spoiled
    margin = desk.spec.adversarial.margin
    hard = [each.example for each in judged if each.gap is not None and each.gap >= margin]
    easy = [each.example for each in judged if each.gap is not None and each.gap < margin]
    desk.progress.note(
        f"round {desk.round}: of {len(judged)} instructions {len(hard)} are hard and {len(easy)} easy for the student; "
        f"{len(spoiled)} could not be judged"
    )
    pool = InstructionPool(
        desk.spec.instructions, [each.prompt for each in desk.earlier], novelty=desk.spec.adversarial.novelty
    )
    for kind, parents in (("hard", hard), ("easy", easy)):
        yield from _new(desk, kind, parents, pool)


def judge(desk: Desk) -> tuple[list[Judged], list[Drop]]:
    """Let the referee score teacher and student on the pool, in both orders; what could not be judged is a drop."""
    pool = desk.draws("judged").sample(list(desk.earlier), min(len(desk.earlier), desk.spec.adversarial.judged))
    answers = desk.student([example.prompt for example in pool])
    requests = []
    for example, own in zip(pool, answers, strict=True):
        texts = (fence(example.response, "answer one"), fence(own, "answer two"))
        for first, second in (texts, texts[::-1]):
            text = _REFEREE.format(
                note=FENCE_NOTE, instruction=fence(example.prompt, "instruction"), first=first, second=second
            )
            requests.append(question(desk, text, example.id, schema=_SCORES))
    found = list(desk.ask(requests))
    judged, spoiled = [], []
    for place, example in enumerate(pool):
        there, back = found[2 * place : 2 * place + 2]
        bad = next((answer for answer in (there, back) if not answer.good), None)
        if bad is not None:
            spoiled.append(unusable(desk, bad, "no scores in the referee's answer"))
            judged.append(Judged(example, None))
            continue
        one, two = json_of(there), json_of(back)
        gap = (one["first"] + two["second"]) / 2 - (one["second"] + two["first"]) / 2
        judged.append(Judged(example, gap))
    return judged, spoiled


def _new(desk: Desk, kind: str, parents: Sequence[Example], pool: InstructionPool) -> Iterator[Example | Drop]:
    """New instructions of one kind with the teacher's answers: at most `new_per_kind`."""
    wanted = desk.spec.adversarial.new_per_kind
    if not parents:
        return
    draws = desk.draws("new", kind)
    chosen = [draws.choice(list(parents)) for _ in range(2 * wanted)]
    requests = [
        question(
            desk, _NEW[kind].format(note=FENCE_NOTE, text=fence(parent.prompt, "instruction")), f"{kind}-{n}", sample=n
        )
        for n, parent in enumerate(chosen)
    ]
    fresh: list[Found] = []
    for parent, answer in zip(chosen, desk.ask(requests), strict=True):
        text = (answer.text or "").strip()
        if not answer.good or not text:
            yield unusable(desk, answer, "no instruction in the answer")
            continue
        found = Found(Instruction(text), answer, facts={"kind": kind, "parent": parent.id})
        against = pool.against(text)
        if against is not None:
            yield dropped(desk, found, "instruction", *against)
        elif len(fresh) == wanted:
            yield dropped(desk, found, "instruction", f"there are {wanted} new {kind} ones already")
        else:
            pool.add(text)
            fresh.append(found)
    yield from answered(desk, fresh)
