"""Several chains of thought in one context, all of which are learnt (AICD: Liu, 2024).

The student reads a question and learns its rationale, then, behind both, the next question and rationale, and so on:

    L = - sum_i log q(r_i, a_i | x_1, r_1, a_1, ..., x_i),

teacher-forced, so that what it learns of each chain is conditional on those before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lmdistill.generation.demonstrations import chooser
from lmdistill.generation.desk import Desk
from lmdistill.generation.rationales import Rationale, kept_rationales, written
from lmdistill.generation.types import Drop, Example, Seed


def make_chains(desk: Desk, seeds: Sequence[Seed]) -> Iterator[Example | Drop]:
    """Rationales that are kept, each behind those of other questions, as examples of the task `chains`."""
    kept: dict[str, list[Rationale]] = {}
    for found in kept_rationales(desk, seeds):
        if isinstance(found, Drop):
            yield found
        else:
            kept.setdefault(found.seed.id, []).append(found)
    spec = desk.spec.demonstrations
    answered = [seed for seed in seeds if seed.id in kept]
    if len(answered) < max(1, spec.count):
        reason = f"{len(answered)} questions have a rationale that is kept, fewer than the {spec.count} of one context"
        for each in (each for found in kept.values() for each in found):
            yield Drop(each.example(desk, *written(desk.spec.rationales.form, each)), by="chains", reason=reason)
        return
    # An answer of any kind makes a seed a candidate: what is shown of it is the teacher's rationale.
    shown = [Seed(seed.id, seed.prompt, seed.answer or "", seed.fields, seed.task) for seed in answered]
    choose = chooser(desk, shown, max(0, spec.count - 1))
    for seed in shown:
        for number, last in enumerate(kept[seed.id]):
            others = choose(seed, max(0, spec.count - 1), str(number))
            before = [desk.draws("chain", seed.id, number, other.id).choice(kept[other.id]) for other in others]
            yield _in_one_context(desk, [*before, last])


def _in_one_context(desk: Desk, chains: Sequence[Rationale]) -> Example:
    """One row of several rationales; its verdict is the last one's. `turns` are what the student reads and learns."""
    spec, last = desk.spec.demonstrations, chains[-1]
    turns = [list(written(desk.spec.rationales.form, each)) for each in chains]
    answers = [answer for each in chains for answer in each.answers]
    return Example(
        id=f"{last.seed.id}-{last.sample}-chains",
        prompt=turns[0][0],
        response=spec.separator.join("".join(turn) for turn in turns)[len(turns[0][0]) :],
        task="chains",
        seed=last.seed.id,
        answer=last.answer,
        verdict=last.verdict,
        fields={"turns": turns, "form": spec.form, "separator": spec.separator},
        provenance=desk.came_from(*answers),
    )
