"""Intervals by the bootstrap over sequences: tokens of one sequence are not independent, sequences nearly are.

Where items come in clusters (questions about one passage, edits of one sentence), whole clusters are resampled; where
models answered with several seeds, seeds are resampled too, crossed with the items (`Draws`). The tests on top of these
are in `lmdistill.evaluation.significance`.

Shape legend: S sequences, R resamplings, M calibration bins; of `Draws`: I items, K seeds, R one estimate and its
resamplings.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
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


@dataclass(frozen=True)
class Draws:
    """How often each resampling takes each item and each seed; the first row takes everything once.

    Shared by all models that answered the same items, so that differences are paired.
    """

    items_RI: Floats
    seeds_RK: Floats
    confidence: float
    clusters: int
    """Independent groups of items."""

    def ratio(self, sums_KI: Floats, counts_KI: Floats) -> Floats:
        """A mean: summed values by summed counts, over the items and seeds of each resampling; (R,). NaN for 0 / 0.

        What was measured with one seed alone, (1, I), is resampled by items only.
        """
        seeds_RK = self.seeds_RK if len(sums_KI) > 1 else np.ones((len(self.items_RI), 1))
        above_R = (self.items_RI @ sums_KI.T * seeds_RK).sum(1)
        below_R = (self.items_RI @ counts_KI.T * seeds_RK).sum(1)
        found_R: Floats = np.where(below_R > 0, above_R / np.where(below_R > 0, below_R, 1.0), np.nan)
        return found_R

    def interval(self, values_R: Floats) -> Interval:
        """The estimate and its percentile interval; resamplings without a value (0 / 0) are left out."""
        known = values_R[1:][np.isfinite(values_R[1:])]
        if not len(known):
            return Interval(value=float(values_R[0]), low=float("nan"), high=float("nan"))
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(known, [tail, 1 - tail])
        return Interval(value=float(values_R[0]), low=float(low), high=float(high))


def draws(clusters_I: Sequence[Hashable], seeds: int, samples: int, confidence: float, seed: int) -> Draws:
    """Draw `samples` resamplings of clusters, all items of one with it, and of `seeds` seeds, with replacement.

    `clusters_I` names the cluster of each item. One seed is no sample of seeds: it is always taken.
    """
    number = {name: place for place, name in enumerate(dict.fromkeys(clusters_I))}
    cluster_I = np.array([number[name] for name in clusters_I], dtype=np.int64)
    random = np.random.default_rng([seed, len(number), samples])
    count = len(number)
    weights = random.multinomial(count, np.full(count, 1 / count), size=samples).astype(np.float64)
    items_RI = np.concatenate([np.ones((1, len(cluster_I))), weights[:, cluster_I]])
    drawn = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=samples).astype(np.float64)
    return Draws(items_RI, np.concatenate([np.ones((1, seeds)), drawn]), confidence, count)


def clustered_standard_error(values_I: Floats, clusters_I: Sequence[Hashable]) -> float:
    """Standard error of a mean over items of which those in one cluster may depend on each other.

    The sandwich estimate with the factor G / (G - 1) for G clusters (Miller, "Adding Error Bars to Evals", 2411.00640,
    section 2.2): with clusters of one item it is the ordinary s / sqrt(n). NaN for a single cluster.
    """
    number = {name: place for place, name in enumerate(dict.fromkeys(clusters_I))}
    index = np.array([number[name] for name in clusters_I], dtype=np.int64)
    groups = len(number)
    if groups < 2:
        return float("nan")
    within_G = np.bincount(index, weights=values_I - values_I.mean(), minlength=groups)
    return float(np.sqrt(groups / (groups - 1) * (within_G**2).sum()) / len(values_I))


def between_seeds(values_K: Sequence[float]) -> float | None:
    """Standard deviation of a measure from seed to seed (K - 1 in the denominator); None for one seed."""
    return float(np.std(values_K, ddof=1)) if len(values_K) > 1 else None
