"""Intervals by the bootstrap over sequences: tokens of one sequence are not independent, sequences nearly are.

Shape legend: S sequences, R resamplings, M calibration bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmdistill.evaluation.results import Interval

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Resampling:
    """How often each resampling takes each sequence; shared by all models, so that differences are paired."""

    weights_RS: Floats
    confidence: float

    def ratio(self, sums_S: Floats, counts_S: Floats) -> Floats:
        """A mean over tokens (sum / count): first on the whole data, then on each resampling; (1 + R,)."""
        whole = sums_S.sum() / max(1.0, counts_S.sum())
        return np.concatenate([[whole], (self.weights_RS @ sums_S) / np.maximum(1.0, self.weights_RS @ counts_S)])

    def calibration_error(self, tokens_SM: Floats, confidence_SM: Floats, correct_SM: Floats) -> Floats:
        """Expected calibration error: sum over bins of |confidence - accuracy| weighted by their tokens; (1 + R,)."""
        weights = np.concatenate([np.ones((1, len(tokens_SM))), self.weights_RS])
        gap_RM = np.abs(weights @ confidence_SM - weights @ correct_SM)
        error_R: Floats = gap_RM.sum(1) / np.maximum(1.0, (weights @ tokens_SM).sum(1))
        return error_R

    def interval(self, values: Floats) -> Interval:
        """The estimate and its percentile interval, from what the methods above give."""
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(values[1:], [tail, 1 - tail])
        return Interval(value=float(values[0]), low=float(low), high=float(high))


def resampling(sequences: int, samples: int, confidence: float, seed: int) -> Resampling:
    """Draw `samples` resamplings of `sequences` sequences with replacement."""
    random = np.random.default_rng([seed, sequences, samples])
    weights_RS = random.multinomial(sequences, np.full(sequences, 1 / sequences), size=samples).astype(np.float64)
    return Resampling(weights_RS, confidence)


def verdict(difference: Interval, lower_is_better: bool) -> str:
    """Whom a paired difference (student minus other) favours: `student`, `other`, or `undecided`."""
    if difference.low <= 0 <= difference.high:
        return "undecided"
    return "student" if (difference.value < 0) == lower_is_better else "other"
