"""From answers and their scores to figures with intervals over prompts, and to paired comparisons.

Shape legend: S prompts, A answers, R one estimate and its resamplings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmdistill.evaluation.exposure import ENOUGH, Exposure, step_errors
from lmdistill.evaluation.fidelity import TokenScores
from lmdistill.evaluation.results import Interval, LengthBucket, ResponseMetric, ResponseScores
from lmdistill.evaluation.statistics import Floats, Resampling

LOWER_IS_BETTER: dict[ResponseMetric, bool | None] = {
    "rouge_teacher": False,
    "rouge_reference": False,
    "coverage": True,
    "likelihood": True,
    "forward_kl_own": True,
    "forward_kl_teacher": True,
    "reverse_kl_own": True,
    "excess_error": None,
    "own_nll": None,
    "length": None,
    "unfinished": None,
    "repetition": None,
}
"""None: more is neither better nor worse. Of lengths and the like, how the teacher writes is the measure; of excess
error, see `lmdistill.evaluation.exposure`."""

BUCKETS: tuple[tuple[str, int, float], ...] = (
    ("0-5", 0, 5),
    ("6-10", 6, 10),
    ("11-30", 11, 30),
    ("31-100", 31, 100),
    ("101+", 101, float("inf")),
)
"""Lengths of references in words. The first two, and all others together, are MiniLLM's."""
_REPEATED = 4
_DISTINCT = (1, 2, 4)


@dataclass(frozen=True)
class Rouge:
    """ROUGE-L of every answer against one kind of reference, and how long that reference is."""

    scores_A: Floats
    words_A: NDArray[np.int64]


@dataclass(frozen=True)
class Judged:
    """One model's answers to the prompts of one text, with all that was said of them token by token."""

    ids: Sequence[Sequence[int]]
    """Tokens of each answer, without the end token."""
    prompt_A: NDArray[np.int64]
    """Number of each answer's prompt, which is also the row order of the scores."""
    finished: Sequence[bool]
    own: TokenScores
    """The model on its own answers."""
    teacher: TokenScores | None
    """The teacher on them."""
    on_teacher: TokenScores | None
    """The model on the teacher's answers."""
    teacher_prompt_A: NDArray[np.int64]
    """Number of each of the teacher's answers' prompt."""
    rouge_teacher: Rouge | None
    rouge_reference: Rouge | None


class ResponseTally:
    """One model on one text, summed by prompt, with the bootstrap's values of every measure."""

    def __init__(self, judged: Judged, draws: Resampling) -> None:
        self.judged, self.draws = judged, draws
        self.prompts = draws.weights_RS.shape[1]
        self.values: dict[str, Floats] = {
            "length": self._by_answer(np.array([len(ids) for ids in judged.ids])),
            "unfinished": self._by_answer(~np.array(judged.finished, dtype=bool)),
            "repetition": self._repetition(),
            "own_nll": self._by_token(judged.own, "nll", judged.prompt_A),
        }
        for name, rouge in (("rouge_teacher", judged.rouge_teacher), ("rouge_reference", judged.rouge_reference)):
            if rouge is not None:
                self.values[name] = self._by_answer(rouge.scores_A)
        if judged.teacher is not None:
            self.values["likelihood"] = self._by_token(judged.teacher, "nll", judged.prompt_A)
        if judged.on_teacher is not None:
            self.values["coverage"] = self._by_token(judged.on_teacher, "nll", judged.teacher_prompt_A)
        self.exposure = self._divergences()

    def set_length(self, length: int) -> None:
        """Take ExAccErr at this length, which all models reach, for the comparison."""
        if self.exposure is not None and 0 < length <= self.exposure.reach:
            self.values["excess_error"] = self.exposure.excess(length)

    def interval(self, name: str) -> Interval | None:
        """A measure with its interval; None where it was not measured."""
        return self.draws.interval(self.values[name]) if name in self.values else None

    def scores(self, length: int) -> ResponseScores:
        """Everything that is reported of the model on this text; `length` is that of `set_length`."""
        judged, exposure = self.judged, self.exposure
        certain = {name: self.draws.interval(self.values[name]) for name in ("length", "unfinished", "repetition")}
        optional = [name for name in LOWER_IS_BETTER if name not in (*certain, "own_nll")]
        return ResponseScores(
            prompts=self.prompts,
            answers=len(judged.ids),
            tokens=len(judged.own.target),
            by_teacher_length=self._by_length(judged.rouge_teacher),
            by_reference_length=self._by_length(judged.rouge_reference),
            distinct={str(n): _distinct(judged.ids, n) for n in _DISTINCT},
            own_nll=self.draws.interval(self.values["own_nll"]),
            excess_length=length if "excess_error" in self.values else None,
            exposure=exposure.points() if exposure is not None and exposure.reach else [],
            **certain,
            **{name: self.interval(name) for name in optional},
        )

    def _divergences(self) -> Exposure | None:
        """Divergences from the teacher on both kinds of prefix; None for the teacher itself and without one."""
        judged = self.judged
        if judged.on_teacher is None or not judged.own.agrees:
            return None
        self.values["forward_kl_own"] = self._by_token(judged.own, "forward_kl", judged.prompt_A)
        self.values["reverse_kl_own"] = self._by_token(judged.own, "reverse_kl", judged.prompt_A)
        on_teacher, teacher_A = judged.on_teacher, judged.teacher_prompt_A
        self.values["forward_kl_teacher"] = self._by_token(on_teacher, "forward_kl", teacher_A)
        own = step_errors(judged.own, judged.prompt_A, self.prompts)
        return Exposure(own, step_errors(on_teacher, teacher_A, self.prompts), self.draws)

    def _by_token(self, scores: TokenScores, column: str, prompt_A: NDArray[np.int64]) -> Floats:
        """A mean over tokens, (R,)."""
        prompt_N = prompt_A[np.asarray(scores.sequence, dtype=np.int64)]
        return self.draws.ratio(self._sums(prompt_N, scores.array(column)), self._sums(prompt_N))

    def _by_answer(self, values_A: NDArray[np.generic], counted_A: NDArray[np.bool_] | None = None) -> Floats:
        """A mean over answers, (R,); over those that are counted."""
        counted_A = np.ones(len(values_A), dtype=bool) if counted_A is None else counted_A
        prompt_A = self.judged.prompt_A[counted_A]
        return self.draws.ratio(self._sums(prompt_A, values_A[counted_A].astype(np.float64)), self._sums(prompt_A))

    def _sums(self, prompt: NDArray[np.int64], weights: Floats | None = None) -> Floats:
        return np.bincount(prompt, weights=weights, minlength=self.prompts).astype(np.float64)

    def _repetition(self) -> Floats:
        """Answers that are too short to hold an n-gram say nothing."""
        shares_A = np.array([_repetition(ids, _REPEATED) for ids in self.judged.ids])
        return self._by_answer(np.nan_to_num(shares_A), ~np.isnan(shares_A))

    def _by_length(self, rouge: Rouge | None) -> list[LengthBucket]:
        """Buckets with fewer prompts than an interval needs are left out."""
        found = []
        for label, low, high in BUCKETS if rouge is not None else ():
            assert rouge is not None
            inside_A = (rouge.words_A >= low) & (rouge.words_A <= high)
            if len(set(self.judged.prompt_A[inside_A].tolist())) >= ENOUGH:
                interval = self.draws.interval(self._by_answer(rouge.scores_A, inside_A))
                found.append(LengthBucket(label=label, answers=int(inside_A.sum()), rouge=interval))
        return found


def _ngrams(ids: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]


def _repetition(ids: Sequence[int], n: int) -> float:
    grams = _ngrams(ids, n)
    return 1 - len(set(grams)) / len(grams) if grams else float("nan")


def _distinct(answers: Sequence[Sequence[int]], n: int) -> float:
    grams = [gram for ids in answers for gram in _ngrams(ids, n)]
    return len(set(grams)) / len(grams) if grams else 0.0
