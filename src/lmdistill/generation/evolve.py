"""Evol-Instruct: instructions are rewritten, again and again, into harder and into rarer ones.

Xu et al., "WizardLM", arXiv 2304.12244, section 3. In depth: a constraint more, a deeper question, concrete in place of
general, more steps of reasoning, a more complicated input. In breadth: a new instruction of the same field. What fails
is eliminated (section 3.2), and its parent stays for the next generation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lmdistill.generation.desk import Desk
from lmdistill.generation.fence import FENCE_NOTE, fence
from lmdistill.generation.instructions import Found, Instruction, answered, dropped, question, unusable
from lmdistill.generation.types import Drop, Example, Seed

_DEPTH = {
    "constraint": "Add one more constraint or requirement to it.",
    "deepen": "Ask for more depth, or for a wider view of what it asks about.",
    "concretize": "Put something specific in the place of what is general in it.",
    "reasoning": "Change it so that it cannot be done without several steps of explicit reasoning.",
    "complicate": "Give it an input that is more complicated, such as a table, a formula, code or a record of data.",
}
_REWRITE = (
    "Rewrite the instruction below so that it is somewhat harder for a language model, while a person can still "
    "understand it and answer it. {how} Use 10 to 20 words more, not twice as many. Write the new instruction alone."
    "\n\n{note}\n\n{text}"
)
_BREADTH = (
    "Read the instruction below and write a brand new one of the same field that is rarer, about as long and about as "
    "hard. Write the new instruction alone.\n\n{note}\n\n{text}"
)
_EQUAL = (
    "Do these two instructions ask for the same: the same constraints and requirements, the same depth and breadth? "
    "{note}\n\n{first}\n\n{second}\n\nAnswer 'equal' or 'different'."
)
_COPIED = (
    "rewrite the instruction",
    "new instruction",
    "given instruction",
    "rewritten",
    "#instruction",
    "begin instruction",
)
_PLAIN = re.compile(
    r"(?:a|an|and|are|as|at|be|but|by|for|from|i|in|is|it|no|not|of|on|or|so|that|the|this|to|was|we|yes|you)"
)


@dataclass(frozen=True)
class _Parent:
    """An instruction that the next generation starts from, and how it came about."""

    text: str
    seed: str
    history: tuple[str, ...] = ()


def make_evolved(desk: Desk, seeds: Sequence[Seed]) -> Iterator[Example | Drop]:
    """Every instruction that survived, with the teacher's answer; the seeds' own are not among them."""
    spec = desk.spec.evolve
    parents = [_Parent(seed.prompt, seed.id) for seed in seeds]
    for generation in range(1, spec.generations + 1):
        draws = desk.draws("evolve", generation)
        chosen = [draws.choice(spec.operations) for _ in parents]
        requests = [
            question(desk, _request(parent.text, operation), f"evolve-{generation}-{place}")
            for place, (parent, operation) in enumerate(zip(parents, chosen, strict=True))
        ]
        fresh: list[tuple[int, Found]] = []
        for place, answer in enumerate(desk.ask(requests)):
            text = (answer.text or "").strip()
            if not answer.good or not text:
                yield unusable(desk, answer, "no instruction in the answer")
                continue
            facts = {"operations": [*parents[place].history, chosen[place]], "generation": generation}
            fresh.append((place, Found(Instruction(text), answer, facts=facts)))
        for place, item in _eliminate(desk, parents, fresh):
            if isinstance(item, Example):
                parent = parents[place]
                parents[place] = _Parent(item.prompt, parent.seed, (*parent.history, chosen[place]))
            yield item


def _request(text: str, operation: str) -> str:
    inner = fence(text, "instruction")
    if operation == "breadth":
        return _BREADTH.format(note=FENCE_NOTE, text=inner)
    return _REWRITE.format(how=_DEPTH[operation], note=FENCE_NOTE, text=inner)


def _eliminate(
    desk: Desk, parents: Sequence[_Parent], fresh: Sequence[tuple[int, Found]]
) -> Iterator[tuple[int, Example | Drop]]:
    """What is left of a generation, with the answers; each with the place of its parent."""
    good: list[tuple[int, Found]] = []
    for place, found in fresh:
        copied = next((words for words in _COPIED if words in found.instruction.text.casefold()), None)
        if copied is not None:
            yield place, dropped(desk, found, "evolution", f"it copies words of the request: {copied!r}")
        else:
            good.append((place, found))
    compared = [
        question(
            desk,
            _EQUAL.format(
                note=FENCE_NOTE,
                first=fence(parents[place].text, "first"),
                second=fence(found.instruction.text, "second"),
            ),
            "equal",
        )
        for place, found in good
    ]
    gained: list[tuple[int, Found]] = []
    for (place, found), answer in zip(good, desk.ask(compared), strict=True):
        if answer.good and (answer.text or "").strip().casefold().startswith("equal"):
            yield place, dropped(desk, found, "evolution", "it asks for the same as the instruction before it")
        else:
            gained.append((place, found))
    for (place, _), item in zip(gained, answered(desk, [found for _, found in gained]), strict=True):
        if isinstance(item, Example):
            reason = _failing(item.response, desk.spec.evolve.short_refusal_words)
            if reason is not None:
                yield place, Drop(item, by="evolution", reason=reason)
                continue
            item = Example(**{**vars(item), "seed": parents[place].seed})
        yield place, item


def _failing(response: str, short: int) -> str | None:
    """Why an answer shows that its instruction went wrong (section 3.2)."""
    words = re.findall(r"\w+", response.casefold())
    if "sorry" in words and len(words) < short:
        return f"the answer says sorry in {len(words)} words, fewer than {short}"
    if all(_PLAIN.fullmatch(word) for word in words):
        return "the answer holds nothing but punctuation and stop words"
    return None
