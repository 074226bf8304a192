"""A retriever that learns which demonstrations help a teacher (LLM-R, Wang et al., arXiv 2307.07164).

For some questions, candidates are found; the teacher's weights say how likely the right answer is behind each; a reward
model learns that order; a dual encoder, which does not see the answer, learns the reward model's scores,

    L = KL(softmax(reward) || softmax(cosine / temperature)) + contrast * InfoNCE.

    generated/round-1/ranker/retriever/      the dual encoder
                             reward/         the reward model
                             ranker.json     losses, and how likely the answers are behind the first choice of each
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from lmdistill.errors import DataError
from lmdistill.generation.demonstrations import Pool, in_one_text, nearest_by_words
from lmdistill.generation.desk import Desk
from lmdistill.generation.retrieval.dual_encoder import DualEncoder, Ranked, train_dual_encoder
from lmdistill.generation.retrieval.nearest import nearest_by_vectors, shown_text
from lmdistill.generation.retrieval.reward_model import RewardModel, train_reward_model
from lmdistill.generation.types import Seed
from lmdistill.io import write_json


@dataclass(frozen=True)
class Judged:
    """A question, the candidates for it, and the mean log-probability of its answer behind each."""

    seed: Seed
    candidates: tuple[Seed, ...]
    rewards: tuple[float, ...]

    def ranked(self, query: str) -> Ranked:
        """The candidates as texts."""
        return Ranked(query, tuple(shown_text(seed) for seed in self.candidates), self.rewards)


def trained_ranker(desk: Desk, pool: Pool) -> DualEncoder:
    """A retriever for the pool's tasks, kept in the desk's folder. Raises DataError where there are too few seeds."""
    options = desk.spec.demonstrations.ranker
    retriever = DualEncoder(options.encoder, longest=options.longest, normalise=True)
    reward = RewardModel(options.encoder, longest=options.longest, seed=desk.seed)
    nearest: Callable[[Seed, int], list[Seed]] = nearest_by_words(pool)
    facts: list[dict[str, Any]] = []
    for iteration in range(options.iterations):
        judged = judge_candidates(desk, pool, nearest, iteration)
        with desk.progress.task("the ranker learns", total=2 * options.steps, unit="steps") as task:
            common: dict[str, Any] = {
                "steps": options.steps,
                "learning_rate": options.learning_rate,
                "batch_size": options.batch_size,
                "seed": desk.seed + iteration,
                "told": lambda step, loss: task.advance(),
            }
            known = [each.ranked(shown_text(each.seed)) for each in judged]
            rewarded = train_reward_model(reward, known, positives=options.positives, **common)
            lessons = [
                replace(each.ranked(each.seed.prompt), scores=tuple(reward.judge(one.query, one.candidates)))
                for each, one in zip(judged, known, strict=True)
            ]
            distilled = train_dual_encoder(
                retriever, lessons, tau2=options.temperature, contrast=options.contrast, **common
            )
        nearest = nearest_by_vectors(pool, retriever)
        facts.append(
            {"questions": len(judged), "reward_losses": rewarded, "retriever_losses": distilled}
            | _first_choices(judged, lessons, retriever)
        )
    if desk.folder is not None:
        folder = desk.folder / "ranker"
        retriever.save(folder / "retriever")
        reward.save(folder / "reward")
        write_json(folder / "ranker.json", {"iterations": facts})
    return retriever


def judge_candidates(
    desk: Desk, pool: Pool, nearest: Callable[[Seed, int], list[Seed]], iteration: int = 0
) -> list[Judged]:
    """What the teacher makes of the candidates of some questions. Raises DataError where none has enough of them."""
    spec = desk.spec.demonstrations
    options = spec.ranker
    known = [seed for held in pool.by_task.values() for seed in held if len(held) > options.positives + 1]
    if not known:
        raise DataError(
            f"generation.demonstrations.ranker: no task has more than {options.positives + 1} rows that can be shown, "
            "so that none is worse than another; give more seeds with answers, or lower positives"
        )
    draws = desk.draws("ranker", iteration)
    questions = draws.sample(known, min(options.questions, len(known)))
    candidates = {seed.id: nearest(seed, options.candidates) for seed in questions}
    asked = [(seed, shown) for seed in questions for shown in candidates[seed.id]]
    pairs = [
        (in_one_text(spec, [(shown.prompt, shown.answer or "")], seed.prompt), seed.answer or "")
        for seed, shown in asked
    ]
    surprises = iter(desk.surprise(pairs))
    return [
        Judged(seed, tuple(candidates[seed.id]), tuple(-next(surprises) for _ in candidates[seed.id]))
        for seed in questions
    ]


def _first_choices(judged: Sequence[Judged], lessons: Sequence[Ranked], retriever: DualEncoder) -> dict[str, float]:
    """Mean log-probability of the right answers behind the first choice of each, on the questions learnt from."""
    by_retriever = [
        each.rewards[_largest(retriever.similarities(lesson.query, lesson.candidates))]
        for each, lesson in zip(judged, lessons, strict=True)
    ]
    by_reward = [each.rewards[_largest(lesson.scores)] for each, lesson in zip(judged, lessons, strict=True)]
    return {
        "first_candidate": fmean(each.rewards[0] for each in judged),
        "mean_candidate": fmean(fmean(each.rewards) for each in judged),
        "best_candidate": fmean(max(each.rewards) for each in judged),
        "reward_model": fmean(by_reward),
        "retriever": fmean(by_retriever),
    }


def _largest(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda place: values[place])
