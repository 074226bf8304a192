"""Answers and rationales as two tasks of one question, told apart by a prefix.

Distilling Step-by-Step (Hsieh et al., arXiv 2305.02301): `[label] x -> y` and `[rationale] x -> r`, so that a student
gives its answer without writing a rationale first. MT-CoT (Li et al., arXiv 2210.06726): the second text ends with the
answer too. The shares of the two in the loss are `data.balance`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lmdistill.generation.desk import Desk
from lmdistill.generation.judging import Judge
from lmdistill.generation.rationales import kept_rationales
from lmdistill.generation.types import Drop, Example, Seed


def make_multi_task(desk: Desk, seeds: Sequence[Seed]) -> Iterator[Example | Drop]:
    """A row of the task `rationale` for each that is kept, and one of `label` for each answer to a question."""
    spec = desk.spec.multi_task
    told: set[tuple[str, str]] = set()
    with Judge(desk.spec.verify) as judge:
        for found in kept_rationales(desk, seeds):
            if isinstance(found, Drop):
                yield found
                continue
            label = found.answer if spec.labels == "teacher" else judge.right_answer(found.seed)
            question, ending = found.seed.prompt, f" So the answer is {found.answer}." if spec.second_answers else ""
            row = found.example(desk, f"{spec.second} {question}", f"{found.text}{ending}")
            if label is None:
                yield Drop(row, by="label", reason=f"there is no label: {found.reason}")
                continue
            yield row
            if (found.seed.id, label) not in told:
                told.add((found.seed.id, label))
                yield found.example(desk, f"{spec.first} {question}", label, "label")
