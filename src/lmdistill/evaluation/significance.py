"""Is a difference real, and how small a one could have been seen: tests, corrections, power.

A comparison without a difference says nothing before one knows which difference it could have found; so every one is
printed beside the smallest that it detects with 80 % power.

Shape legend: R one estimate and its resamplings, M comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from lmdistill.evaluation.statistics import Floats

EXACT_UP_TO = 1000
"""Discordant items up to which McNemar's test counts exactly; beyond, the normal approximation has no visible error."""
POWER = 0.8
LEVEL = 0.05


def mcnemar(first_I: Sequence[bool], second_I: Sequence[bool]) -> float:
    """Two-sided p that two models are right equally often on the same items (McNemar 1947).

    Only items count that one alone got right. Under equality each is a fair coin: exact up to 1,000 of them, then the
    chi-squared approximation with continuity correction. 1 where there are none.
    """
    pairs = list(zip(first_I, second_I, strict=True))
    ahead = sum(bool(a) and not b for a, b in pairs)
    behind = sum(bool(b) and not a for a, b in pairs)
    count = ahead + behind
    if count == 0:
        return 1.0
    if count > EXACT_UP_TO:
        return math.erfc(max(0.0, abs(ahead - behind) - 1) / math.sqrt(2 * count))
    tail = sum(math.comb(count, k) for k in range(min(ahead, behind) + 1))
    return float(min(1.0, 2 * tail / 2**count))


def bootstrap_p(differences_R: Floats) -> float:
    """Two-sided p of a paired difference from its resamplings, moved so that they centre on 0.

    The share of resamplings that lie as far from the estimate as the estimate lies from 0, the estimate itself counted
    (Davison and Hinkley, "Bootstrap Methods", 4.2 and 4.4). Never below 1 / (resamplings + 1).
    """
    known = differences_R[1:][np.isfinite(differences_R[1:])]
    far = np.abs(known - differences_R[0]) >= abs(differences_R[0]) - 1e-12
    return float((1 + far.sum()) / (1 + len(known)))


def holm(p_M: Sequence[float]) -> list[float]:
    """p values such that the chance of any false finding among all M stays below the level (Holm 1979)."""
    order = np.argsort(p_M, kind="stable")
    adjusted, highest = [0.0] * len(p_M), 0.0
    for rank, place in enumerate(order.tolist()):
        highest = max(highest, min(1.0, (len(p_M) - rank) * p_M[place]))
        adjusted[place] = highest
    return adjusted


def benjamini_hochberg(p_M: Sequence[float]) -> list[float]:
    """p values such that the expected share of false ones among the findings stays below the level (1995)."""
    order = np.argsort(p_M, kind="stable")[::-1]
    adjusted, lowest = [0.0] * len(p_M), 1.0
    for rank, place in enumerate(order.tolist()):
        lowest = min(lowest, p_M[place] * len(p_M) / (len(p_M) - rank))
        adjusted[place] = lowest
    return adjusted


def smallest_detectable(standard_error: float, *, power: float = POWER, level: float = LEVEL) -> float:
    """The true difference that a two-sided test at `level` finds with probability `power`, in the measure's units.

    (z_{1 - level/2} + z_{power}) standard errors of the paired difference: 2.80 at 5 % and 80 %.
    """
    normal = NormalDist()
    return (normal.inv_cdf(1 - level / 2) + normal.inv_cdf(power)) * standard_error
