"""Reflection-tuning: the teacher improves instructions and answers, and the student's own difficulty selects.

Li et al., "Selective Reflection-Tuning", arXiv 2402.10110, section 3. With PPL the student's perplexity:

    IFD(x, y)   = PPL(y | x) / PPL(y)      how much the instruction fails to help with the answer: hard, but not noise
    r-IFD(x, y) = PPL(x | y') / PPL(x)     how well the instruction can be guessed back from the answer

An instruction is renewed where the renewed pair has the higher IFD; an answer where its r-IFD is lower. y' asks, after
the answer, what was asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lmdistill.generation.desk import Desk
from lmdistill.generation.fence import FENCE_NOTE, fence
from lmdistill.generation.instructions import json_of, question
from lmdistill.generation.types import Drop, Example, Seed, make_id
from lmdistill.teachers.api_types import Answer

_TEXT: dict[str, Any] = {"type": "string"}
_PAIR: dict[str, Any] = {
    "type": "object",
    "properties": {"instruction": _TEXT, "answer": _TEXT},
    "required": ["instruction", "answer"],
    "additionalProperties": False,
}
_ON_INSTRUCTION = (
    "Below are an instruction and its answer. Say to yourself what the instruction lacks: how complex it is, how much "
    "it asks to know, whether it is clear. Then write a better instruction and its answer. {note}\n\n{x}\n\n{y}"
)
_ON_RESPONSE = (
    "Below are an instruction and its answer. Say to yourself what the answer lacks: help, relevance, accuracy, "
    "detail. Then write a better answer, alone. {note}\n\n{x}\n\n{y}"
)
_BACK = "{y}\n\nBelow is what was asked for:"


@dataclass(frozen=True)
class _Pair:
    """An instruction with its answer, and what the teacher's answers brought to it."""

    seed: Seed
    x: str
    y: str
    answers: tuple[Answer, ...]
    renewed: tuple[str, ...] = ()


def make_reflected(desk: Desk, seeds: Sequence[Seed]) -> Iterator[Example | Drop]:
    """The seeds' pairs, renewed where the student's difficulty says so; seeds need an answer of their own."""
    pairs = []
    for seed in seeds:
        if seed.answer is None:
            example = Example(id=seed.id, prompt=seed.prompt, response="", seed=seed.id)
            yield Drop(example, by="seed", reason="it has no answer to reflect on")
        else:
            pairs.append(_Pair(seed, seed.prompt, seed.answer, ()))
    for what in desk.spec.reflect.improve:
        found = _renew_instructions(desk, pairs) if what == "instruction" else _renew_responses(desk, pairs)
        pairs = []
        for item in found:
            if isinstance(item, Drop):
                yield item
            else:
                pairs.append(item)
    scores = ifd(desk, [(pair.x, pair.y) for pair in pairs])
    for pair, score in zip(pairs, scores, strict=True):
        yield Example(
            id=make_id(pair.x, pair.y),
            prompt=pair.x,
            response=pair.y,
            seed=pair.seed.id,
            fields={"renewed": list(pair.renewed), "ifd": round(score, 4)},
            provenance=desk.came_from(*pair.answers),
        )


def ifd(desk: Desk, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Instruction-following difficulty of pairs: PPL(y|x) / PPL(y) by the student."""
    behind = desk.difficulty(list(pairs))
    alone = desk.difficulty([("", y) for _, y in pairs])
    return [math.exp(given - without) for given, without in zip(behind, alone, strict=True)]


def reversed_ifd(desk: Desk, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Reversed difficulty of pairs: PPL(x|y') / PPL(x) by the student."""
    return ifd(desk, [(_BACK.format(y=y), x) for x, y in pairs])


def _renew_instructions(desk: Desk, pairs: Sequence[_Pair]) -> Iterator[_Pair | Drop]:
    """Each pair, or the teacher's new one where its IFD is higher."""
    requests = [
        question(
            desk,
            _ON_INSTRUCTION.format(note=FENCE_NOTE, x=fence(pair.x, "instruction"), y=fence(pair.y, "answer")),
            pair.seed.id,
            schema=_PAIR,
        )
        for pair in pairs
    ]
    proposals: list[_Pair | None] = []
    drops: list[Drop] = []
    for pair, answer in zip(pairs, desk.ask(requests), strict=True):
        new = json_of(answer) if answer.good else {}
        x, y = str(new.get("instruction", "")).strip(), str(new.get("answer", "")).strip()
        if x and y:
            proposals.append(_Pair(pair.seed, x, y, (*pair.answers, answer), (*pair.renewed, "instruction")))
        else:
            drops.append(_drop(desk, pair, answer, answer.error or "the new pair is not whole"))
            proposals.append(None)
    yield from drops
    yield from _selected(pairs, proposals, lambda texts: ifd(desk, texts))


def _renew_responses(desk: Desk, pairs: Sequence[_Pair]) -> Iterator[_Pair | Drop]:
    """Each pair, or with the teacher's new answer where its reversed IFD is lower."""
    requests = [
        question(
            desk,
            _ON_RESPONSE.format(note=FENCE_NOTE, x=fence(pair.x, "instruction"), y=fence(pair.y, "answer")),
            pair.seed.id,
        )
        for pair in pairs
    ]
    proposals: list[_Pair | None] = []
    drops: list[Drop] = []
    for pair, answer in zip(pairs, desk.ask(requests), strict=True):
        y = (answer.text or "").strip()
        if answer.good and y:
            new = replace(pair, y=y, answers=(*pair.answers, answer), renewed=(*pair.renewed, "response"))
            proposals.append(new)
        else:
            drops.append(_drop(desk, pair, answer, answer.error or "an empty answer"))
            proposals.append(None)
    yield from drops
    yield from _selected(pairs, proposals, lambda texts: [-score for score in reversed_ifd(desk, texts)])


def _selected(
    pairs: Sequence[_Pair],
    proposals: Sequence[_Pair | None],
    score: Callable[[Sequence[tuple[str, str]]], list[float]],
) -> Iterator[_Pair]:
    """Each pair, or what is proposed in its place where that has the higher score."""
    there = [place for place, proposal in enumerate(proposals) if proposal is not None]
    before = score([(pairs[place].x, pairs[place].y) for place in there])
    after = score([(each.x, each.y) for each in proposals if each is not None])
    better = {place for place, old, new in zip(there, before, after, strict=True) if new > old}
    for place, (pair, proposal) in enumerate(zip(pairs, proposals, strict=True)):
        yield proposal if proposal is not None and place in better else pair


def _drop(desk: Desk, pair: _Pair, answer: Answer, reason: str) -> Drop:
    """A reflection that came to nothing; the pair itself stays as it was."""
    example = Example(
        id=make_id(answer.key, "reflection"),
        prompt=pair.x,
        response=answer.text or answer.raw or "",
        task="reflection",
        seed=pair.seed.id,
        provenance=desk.came_from(answer),
    )
    return Drop(example, by="answer", reason=reason)
