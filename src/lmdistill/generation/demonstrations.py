"""Demonstrations before a question: which, in what order, and how they are written.

Candidates are the seeds that have an answer, belong to the question's task and may be shown, never the question itself.
What is chosen depends on the recipe's seed and the question alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lmdistill.errors import DataError
from lmdistill.generation.desk import Desk, filled
from lmdistill.generation.retrieval.bm25 import Bm25
from lmdistill.generation.types import Seed
from lmdistill.recipe import DemonstrationSpec

Chooser = Callable[[Seed, int, str], list[Seed]]
"""The demonstrations of a question, so many, in the order in which they are written; the text tells draws apart."""
_Nearest = Callable[[Seed, int], list[Seed]]
"""The best demonstrations of a question, so many, the best first."""


@dataclass(frozen=True)
class Pool:
    """The seeds that may be shown, by task."""

    by_task: Mapping[str, Sequence[Seed]]

    @classmethod
    def of(cls, seeds: Sequence[Seed]) -> Pool:
        """Those of these seeds that may be shown and have an answer."""
        found: dict[str, list[Seed]] = {}
        for seed in seeds:
            if seed.answer is not None and seed.use != "asked":
                found.setdefault(seed.task, []).append(seed)
        return cls(found)

    def beside(self, seed: Seed) -> list[Seed]:
        """What may be shown before a question, in order."""
        return [other for other in self.by_task.get(seed.task, ()) if other.id != seed.id]

    def check(self, asked: Sequence[Seed], count: int) -> None:
        """Raises DataError where a question has fewer demonstrations than are wanted."""
        for seed in asked:
            held = len(self.by_task.get(seed.task, ())) - any(
                other.id == seed.id for other in self.by_task.get(seed.task, ())
            )
            if held < count:
                whose = f"task {seed.task!r} has" if seed.task else "the seeds have"
                raise DataError(
                    f"generation.demonstrations.count is {count}, but {whose} {held} rows that can be shown before "
                    f"{seed.prompt[:60]!r} (with an answer, use not `asked`): give more rows, or lower count"
                )


def questions_of(seeds: Sequence[Seed]) -> list[Seed]:
    """The seeds that are questions."""
    return [seed for seed in seeds if seed.use != "shown"]


def chooser(desk: Desk, seeds: Sequence[Seed], count: int) -> Chooser:
    """How demonstrations are chosen for the questions among these seeds.

    Raises DataError where a task has fewer than `count`, RecipeError where the teacher's weights are wanted and not
    here.
    """
    spec, pool, asked = desk.spec.demonstrations, Pool.of(seeds), questions_of(seeds)
    pool.check(asked, count)
    if spec.choose == "random" or count == 0:
        return lambda seed, wanted, draw: _drawn(desk, pool, seed, wanted, draw)
    nearest = _nearest(desk, spec, pool)
    return lambda seed, wanted, draw: _ordered(spec, nearest(seed, wanted), desk.draws("order", seed.id, draw))


def _nearest(desk: Desk, spec: DemonstrationSpec, pool: Pool) -> _Nearest:
    """What ranks demonstrations."""
    if spec.choose == "bm25":
        return nearest_by_words(pool)
    # Torch is imported only where an encoder is wanted.
    from lmdistill.generation.retrieval.dual_encoder import DualEncoder
    from lmdistill.generation.retrieval.nearest import nearest_by_vectors

    if spec.choose == "encoder":
        return nearest_by_vectors(pool, DualEncoder(spec.encoder, longest=spec.ranker.longest, normalise=True))
    from lmdistill.generation.retrieval.ranker import trained_ranker

    return nearest_by_vectors(pool, trained_ranker(desk, pool))


def nearest_by_words(pool: Pool) -> _Nearest:
    """Demonstrations by BM25 between their questions."""
    indices = {task: Bm25([seed.prompt for seed in held]) for task, held in pool.by_task.items()}

    def nearest(seed: Seed, count: int) -> list[Seed]:
        held = pool.by_task.get(seed.task, ())
        places = indices[seed.task].top(seed.prompt, count + 1) if held else []
        return [held[place] for place in places if held[place].id != seed.id][:count]

    return nearest


def _drawn(desk: Desk, pool: Pool, seed: Seed, count: int, draw: str) -> list[Seed]:
    return desk.draws("demonstrations", seed.id, draw).sample(pool.beside(seed), count)


def _ordered(spec: DemonstrationSpec, found: list[Seed], draws: random.Random) -> list[Seed]:
    """Demonstrations, given the best first, in the order in which they are written."""
    if spec.order == "random":
        draws.shuffle(found)
    return found[::-1] if spec.order == "best_last" else found


def demonstration(spec: DemonstrationSpec, prompt: str, answer: str) -> str:
    """One demonstration."""
    return filled(spec.template, prompt=prompt, answer=answer)


def question(spec: DemonstrationSpec, prompt: str) -> str:
    """A question as a demonstration begins: up to where its answer stands."""
    return filled(spec.template.removesuffix("{answer}"), prompt=prompt)


def in_one_text(spec: DemonstrationSpec, shown: Sequence[tuple[str, str]], prompt: str) -> str:
    """Demonstrations (question, answer) and then the question, as one text that its answer continues."""
    parts = [demonstration(spec, *each) for each in shown]
    return spec.separator.join([*parts, question(spec, prompt)])


def pairs_of(shown: Sequence[Seed]) -> list[tuple[str, str]]:
    """Questions and answers of demonstrations."""
    return [(seed.prompt, seed.answer or "") for seed in shown]
