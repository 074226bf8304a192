"""From numbers of items to a measure: a mean, a macro F1, a calibration error, a difference of two texts.

Shape legend: I items, K seeds, R one estimate and its resamplings, C classes, M bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmdistill.evaluation.statistics import Draws, Floats


@dataclass(frozen=True)
class Mean:
    """Summed values by summed counts: a mean over items, or over what is in them (tokens, attacked items)."""

    sums_KI: Floats
    counts_KI: Floats

    @classmethod
    def of(cls, values: Sequence[float] | Sequence[bool] | Floats, counts: Floats | None = None) -> Mean:
        """A mean of one seed (I,) or of several (K, I); `counts` are 1 where absent."""
        sums = np.atleast_2d(np.asarray(values, dtype=np.float64))
        return cls(sums, np.ones_like(sums) if counts is None else np.atleast_2d(np.asarray(counts, dtype=np.float64)))

    def values(self, draws: Draws) -> Floats:
        """The mean, (R,)."""
        return draws.ratio(self.sums_KI, self.counts_KI)

    @property
    def seeds(self) -> int:
        """K."""
        return len(self.sums_KI)

    def of_seed(self, number: int) -> float:
        """The mean of one seed."""
        count = self.counts_KI[number].sum()
        return float(self.sums_KI[number].sum() / count) if count else float("nan")

    @property
    def outcomes(self) -> list[bool] | None:
        """Where every item is 0 or 1 and counts once."""
        if len(self.sums_KI) > 1 or (self.counts_KI != 1).any() or not np.isin(self.sums_KI, (0.0, 1.0)).all():
            return None
        return [bool(value) for value in self.sums_KI[0]]


@dataclass(frozen=True)
class OneSeed:
    """What columns of one seed share."""

    @property
    def seeds(self) -> int:
        """1."""
        return 1

    @property
    def outcomes(self) -> list[bool] | None:
        """None: the measure is no mean of right and wrong."""
        return None

    def of_seed(self, number: int) -> float:
        """Not asked for: there is one seed."""
        raise IndexError(number)


@dataclass(frozen=True)
class MacroF1(OneSeed):
    """The mean of the classes' F1, every class alike; classes are those that occur among the gold labels."""

    gold_I: NDArray[np.int64]
    predicted_I: NDArray[np.int64]
    """-1: no answer, which is wrong."""

    def values(self, draws: Draws) -> Floats:
        """Macro F1, (R,); a class that a resampling lacks, in gold and answers, does not count there."""
        classes_C = np.unique(self.gold_I)
        gold_IC = (self.gold_I[:, None] == classes_C).astype(np.float64)
        said_IC = (self.predicted_I[:, None] == classes_C).astype(np.float64)
        both_RC, in_gold_RC, said_RC = (draws.items_RI @ table for table in (gold_IC * said_IC, gold_IC, said_IC))
        below_RC = in_gold_RC + said_RC
        f1_RC = np.where(below_RC > 0, 2 * both_RC / np.where(below_RC > 0, below_RC, 1.0), np.nan)
        with np.errstate(invalid="ignore"):
            found_R: Floats = np.nanmean(f1_RC, axis=1)
        return found_R


@dataclass(frozen=True)
class CalibrationError(OneSeed):
    """Expected calibration error: mean over items of |confidence - accuracy| of their bins of equal width."""

    confidence_I: Floats
    correct_I: Floats
    bins: int

    def values(self, draws: Draws) -> Floats:
        """The error, (R,)."""
        bin_I = np.minimum((self.confidence_I * self.bins).astype(np.int64), self.bins - 1)
        in_bin_IM = (bin_I[:, None] == np.arange(self.bins)).astype(np.float64)
        gap_RM = np.abs(draws.items_RI @ (in_bin_IM * (self.confidence_I - self.correct_I)[:, None]))
        found_R: Floats = gap_RM.sum(1) / draws.items_RI.sum(1)
        return found_R


@dataclass(frozen=True)
class Gap(OneSeed):
    """The mean over some items minus the mean over the others."""

    sums_I: Floats
    counts_I: Floats
    is_first_I: NDArray[np.bool_]

    def values(self, draws: Draws) -> Floats:
        """The difference, (R,)."""
        first = Mean.of(self.sums_I * self.is_first_I, self.counts_I * self.is_first_I)
        second = Mean.of(self.sums_I * ~self.is_first_I, self.counts_I * ~self.is_first_I)
        return first.values(draws) - second.values(draws)


@dataclass(frozen=True)
class Constant(OneSeed):
    """A figure that is no sample: a size, a memory peak."""

    value: float

    def values(self, draws: Draws) -> Floats:
        """The same for every resampling, (R,)."""
        found_R: Floats = np.full(len(draws.items_RI), self.value)
        return found_R
