"""Two rationales of one question that lead to one answer, of which the student shall be sure alike.

MCC-KD (Chen et al., arXiv 2310.14747): several rationales of each question; near-duplicates by the Jaccard similarity
of their words are left out; two of them make a pair, and a term of the loss (`objective.consistency`) compares what the
student predicts at the answer's tokens. Rows are named `first` and `second`, so that `data.balance` can give each text
of a pair half of the cross-entropy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from lmdistill.generation.desk import Desk
from lmdistill.generation.judging import Judge
from lmdistill.generation.rationales import Rationale, kept_rationales
from lmdistill.generation.types import Drop, Example, Seed

TASKS = ("first", "second")


def make_rationale_pairs(desk: Desk, seeds: Sequence[Seed]) -> Iterator[Example | Drop]:
    """The rows of each pair; a rationale without a second one is a drop."""
    kept: dict[str, list[Rationale]] = {seed.id: [] for seed in seeds}
    for found in kept_rationales(desk, seeds):
        if isinstance(found, Drop):
            yield found
        else:
            kept[found.seed.id].append(found)
    with Judge(desk.spec.verify) as judge:
        for group in kept.values():
            yield from _pairs(desk, judge, group)


def _pairs(desk: Desk, judge: Judge, group: Sequence[Rationale]) -> Iterator[Example | Drop]:
    """Rationales of one question, two and two with the same answer, in their order."""
    waiting: list[Rationale] = []
    for found in group:
        partner = next((other for other in waiting if _agree(judge, other, found)), None)
        if partner is None:
            waiting.append(found)
            continue
        waiting.remove(partner)
        yield from pair(desk, partner, found)
    for alone in waiting:
        reason = "no second rationale of this question comes to the same answer"
        yield Drop(alone.example(desk, alone.seed.prompt, alone.text), by="pair", reason=reason)


def pair(desk: Desk, first: Rationale, second: Rationale) -> Iterator[Example]:
    """The two rows of a pair; the answer is written alike in both, so that its tokens are the same."""
    answer = first.answer or ""
    for rationale, task in zip((first, second), TASKS, strict=True):
        before = f"{rationale.text} So the answer is "
        row = rationale.example(desk, rationale.seed.prompt, f"{before}{answer}.", task)
        twin = f"{first.seed.id}-{first.sample}-{second.sample}"
        span = [len(before), len(before) + len(answer)]
        yield replace(row, answer=answer, fields={**row.fields, "twin": twin, "span": span})


def _agree(judge: Judge, one: Rationale, other: Rationale) -> bool:
    if one.answer is None or other.answer is None:
        return False
    return judge.same(one.answer, other.answer)
