"""UniversalNER: the teacher names the entities of varied passages, the student answers one type at a time.

Zhou et al., arXiv 2308.03279, section 3: diversity comes from the inputs. Types are free text. Each type of a passage
becomes one question; questions for types that the passage does not hold are drawn by how often a type occurs
(frequency-based negative sampling), with the empty list as their answer.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lmdistill.generation.desk import Desk
from lmdistill.generation.fence import FENCE_NOTE, fence
from lmdistill.generation.instructions import json_of, question
from lmdistill.generation.types import Drop, Example, Seed, make_id
from lmdistill.teachers.api_types import Answer

_TEXT: dict[str, Any] = {"type": "string"}
_ENTITY = {
    "type": "object",
    "properties": {"entity": _TEXT, "type": _TEXT},
    "required": ["entity", "type"],
    "additionalProperties": False,
}
_ENTITIES: dict[str, Any] = {
    "type": "object",
    "properties": {"entities": {"type": "array", "items": _ENTITY, "maxItems": 12}},
    "required": ["entities"],
    "additionalProperties": False,
}
_ASK = (
    "Find the entities in the passage and say of what type each is. Copy an entity as it stands there. {note}\n\n{text}"
)


@dataclass(frozen=True)
class Passage:
    """A passage and its entities by type, in the order in which the teacher named them."""

    seed: Seed
    answer: Answer
    entities: dict[str, list[str]]


def make_entities(desk: Desk, seeds: Sequence[Seed]) -> Iterator[Example | Drop]:
    """One example for each type of each passage, and as many negative ones as the recipe says."""
    requests = [
        question(desk, _ASK.format(note=FENCE_NOTE, text=fence(seed.prompt, "passage")), seed.id, schema=_ENTITIES)
        for seed in seeds
    ]
    passages: list[Passage] = []
    for seed, answer in zip(seeds, desk.ask(requests), strict=True):
        if not answer.good:
            whole = _example(desk, seed, answer, "", [])
            yield Drop(whole, by="answer", reason=answer.error or "no entities in the answer")
            continue
        entities: dict[str, list[str]] = {}
        for found in json_of(answer)["entities"]:
            kind, text = " ".join(found["type"].casefold().split()), found["entity"].strip()
            if not kind or not text or text not in seed.prompt:
                reason = f"the passage does not hold {text!r}" if text else "an entity without text"
                yield Drop(_example(desk, seed, answer, kind, [text]), by="entity", reason=reason)
            elif text not in entities.setdefault(kind, []):
                entities[kind].append(text)
        passages.append(Passage(seed, answer, entities))
    counts = Counter(kind for passage in passages for kind in passage.entities)
    for passage in passages:
        yield from _rows(desk, passage, counts)


def _rows(desk: Desk, passage: Passage, counts: Counter[str]) -> Iterator[Example]:
    """The questions of one passage."""
    spec = desk.spec.entities
    for kind in list(passage.entities)[: spec.most_types]:
        yield _example(desk, passage.seed, passage.answer, kind, passage.entities[kind])
    others = sorted(kind for kind in counts if kind not in passage.entities)
    draws = desk.draws("negatives", passage.seed.id)
    for _ in range(min(spec.negatives, len(others))):
        kind = draws.choices(others, weights=[counts[other] for other in others])[0]
        others.remove(kind)
        yield _example(desk, passage.seed, passage.answer, kind, [])


def _example(desk: Desk, seed: Seed, answer: Answer, kind: str, found: Sequence[str]) -> Example:
    return Example(
        id=make_id(seed.id, kind, *found),
        prompt=f"Text: {seed.prompt}\n\nWhat describes {kind} in the text?",
        response=json.dumps(list(found), ensure_ascii=False),
        task="entities",
        seed=seed.id,
        fields={"type": kind, "negative": not found},
        provenance=desk.came_from(answer),
    )
