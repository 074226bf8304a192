"""Exposure bias: how much a model's error grows because it reads its own words instead of its teacher's.

ExAccErr of Arora et al. ("Why Exposure Bias Matters", 2204.01171) with the teacher p for the oracle, as MiniLLM has it
(2306.08543, figure on exposure bias and the appendix behind it), for a student q and a length l:

    R(l)     = sum over t <= l of E[KL(p‖q) at step t]   prefixes written by the student: regret
    l eps(l) = sum over t <= l of E[KL(p‖q) at step t]   prefixes written by the teacher: what any prefix costs
    ExAccErr(l) = (R(l) - l eps(l)) / (l eps(l)) * 100 %

The divergence of a step is the exact one over the whole vocabulary, at temperature 1 whatever the answers were drawn
at. The mean at step t is over the answers of all prompts that are still being written there. The released codes differ
in it: kushalarora/quantifying_exposure_bias averages the accumulated errors of the answers that reach t, and
microsoft/LMOps (minillm/evaluate_exposure_bias.py) averages over the answers of a prompt that reach t, then over all
prompts. There a prompt whose answers have all ended adds 0, so that a student that stops early scores well for
stopping; we do not follow it there. Two more differences from MiniLLM's code: the first step, whose prefix is the
prompt for both, counts, as in the formula; and so does the step that decides to end.

The figure is relative, and no ranking by itself. A model that errs much along its teacher's text has much to divide by;
and where it writes text at which its teacher is at a loss too, both distributions are flat, their divergence is small,
and ExAccErr falls below 0 (a pruned SmolLM2 before any training: -30 % at 48 tokens). Read it beside R(l) itself, which
is `forward_kl_own` a token, and beside the teacher's opinion of what was written, `likelihood`.

Shape legend: S prompts, L steps, R one estimate and its resamplings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmdistill.evaluation.fidelity import TokenScores
from lmdistill.evaluation.results import ExposurePoint
from lmdistill.evaluation.statistics import Floats, Resampling

ENOUGH = 5
"""Prompts that a mean must have: of fewer, more than one resampling in a hundred could take none at all."""
_ENOUGH_SHARE = 0.1
_POINTS = 24


@dataclass(frozen=True)
class StepErrors:
    """KL(teacher‖model) in nats by prompt and step, summed over the answers that reach it."""

    sums_SL: Floats
    counts_SL: Floats

    def answers_at(self, step: int) -> int:
        """How many answers reach a step, from 1."""
        return int(self.counts_SL[:, step - 1].sum())

    @property
    def reach(self) -> int:
        """The last step that answers to a tenth of the prompts, and to at least five, reach."""
        prompts_L = (self.counts_SL > 0).sum(0)
        enough = max(_ENOUGH_SHARE * prompts_L[0], min(ENOUGH, prompts_L[0]))
        return int((prompts_L >= enough).sum())


def step_errors(scores: TokenScores, prompt_of: NDArray[np.int64], prompts: int) -> StepErrors:
    """Errors of a model on answers, each a row of the scored data set; `prompt_of` names the prompt of each row."""
    row = np.asarray(scores.sequence, dtype=np.int64)
    step = np.arange(len(row)) - np.searchsorted(row, row)  # rows come in order, their tokens too
    length = int(step.max()) + 1
    place = prompt_of[row] * length + step

    def table(weights: NDArray[np.float64] | None) -> Floats:
        flat = np.bincount(place, weights=weights, minlength=prompts * length)
        return flat.astype(np.float64).reshape(prompts, length)

    return StepErrors(table(scores.array("forward_kl")), table(None))


class Exposure:
    """One model's accumulated error on its own prefixes and on its teacher's."""

    def __init__(self, own: StepErrors, oracle: StepErrors, draws: Resampling) -> None:
        self.own, self.oracle, self.draws = own, oracle, draws
        self.regret_RL = _accumulated(own, draws)
        """R(l), first on all prompts, then on each resampling."""
        self.expected_RL = _accumulated(oracle, draws)
        """l eps(l), likewise."""

    @property
    def reach(self) -> int:
        """The longest length that can be spoken of; 0 where the model makes no error on its teacher's prefixes."""
        reach = min(self.own.reach, self.oracle.reach)
        return reach if self.expected_RL[0, reach - 1] > 0 else 0

    def excess(self, length: int) -> Floats:
        """ExAccErr at a length in per cent, (R,)."""
        regret_R, expected_R = self.regret_RL[:, length - 1], self.expected_RL[:, length - 1]
        return 100 * (regret_R - expected_R) / np.maximum(expected_R, np.finfo(np.float64).tiny)

    def points(self) -> list[ExposurePoint]:
        """The curve at up to 24 lengths from 1 to the last."""
        lengths = np.unique(np.linspace(1, self.reach, num=min(_POINTS, self.reach)).round().astype(int))
        return [self._point(int(length)) for length in lengths if self.expected_RL[0, length - 1] > 0]

    def _point(self, length: int) -> ExposurePoint:
        return ExposurePoint(
            length=length,
            answers=self.own.answers_at(length),
            regret=float(self.regret_RL[0, length - 1]),
            expected=float(self.expected_RL[0, length - 1]),
            excess=self.draws.interval(self.excess(length)),
        )


def _accumulated(errors: StepErrors, draws: Resampling) -> Floats:
    steps = zip(errors.sums_SL.T, errors.counts_SL.T, strict=True)
    return np.stack([draws.ratio(sums_S, counts_S) for sums_S, counts_S in steps], axis=1).cumsum(1)
