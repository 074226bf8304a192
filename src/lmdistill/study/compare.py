"""Methods against the baseline: paired over seeds, corrected for their number, with what they could have seen.

What is random is the seed: the order of the data, the draws, the teacher's text. The held-out items are the same for
all cells, so a difference holds for these items; how far an item's luck carries is in each cell's own interval.

Shape legend: K seeds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from lmdistill.evaluation.significance import LEVEL, POWER, holm
from lmdistill.study.results import CellResult, Measure
from lmdistill.study.spec import StudySpec

DEFAULT_MAIN = ("agreement", "forward_kl")


@dataclass(frozen=True)
class Contrast:
    """A method minus the baseline in one measure, student and budget, over the seeds that both have."""

    measure: Measure
    method: str
    student: str
    budget: str
    seeds: int
    difference: float
    """Mean over seeds."""
    half: float
    """Half-width of the 95 % t-interval; NaN for one seed."""
    p: float
    """Two-sided, paired t-test over seeds; NaN for one seed, or where all differ alike."""
    p_adjusted: float | None
    """Holm's correction over all main comparisons of the study; None for a measure that is not a main one."""
    detectable: float
    """Smallest true difference found with 80 % power at a two-sided 5 %; NaN for one seed."""

    @property
    def verdict(self) -> str:
        """`better`, `worse`, `not told apart`; empty where no verdict is asked for or none can be."""
        if self.p_adjusted is None or self.measure.lower_is_better is None:
            return ""
        if not self.p_adjusted < LEVEL:
            return "not told apart"
        return "better" if (self.difference < 0) == self.measure.lower_is_better else "worse"


Place = tuple[str, str]
"""Student and budget."""


def places_of(results: Sequence[CellResult]) -> list[Place]:
    """The students and budgets that there are, in order."""
    return list(dict.fromkeys((found.cell.student, found.cell.budget) for found in results))


def measures_of(results: Sequence[CellResult]) -> list[Measure]:
    """All measures that some cell has, in order."""
    found: dict[str, Measure] = {}
    for result in results:
        for key, measure in result.measures.items():
            if key in result.values:
                found.setdefault(key, measure)
    return list(found.values())


def is_main(spec: StudySpec, measure: Measure) -> bool:
    """Whether verdicts are about this measure."""
    wanted = spec.main or DEFAULT_MAIN
    return measure.key in wanted or measure.name in wanted


def contrasts(spec: StudySpec, results: Sequence[CellResult]) -> list[Contrast]:
    """Every method against the baseline, in every measure."""
    found: list[Contrast] = []
    for measure in measures_of(results):
        for place in places_of(results):
            by_method = {method: seeds_of(results, place, method, measure.key) for method in spec.methods}
            base = by_method[spec.reference]
            for method, own in by_method.items():
                pairs = [own[seed] - base[seed] for seed in spec.seeds if seed in own and seed in base]
                if method != spec.reference and pairs:
                    found.append(_contrast(measure, method, place, pairs))
    tested = [place for place, each in enumerate(found) if is_main(spec, each.measure) and not math.isnan(each.p)]
    corrected = dict(zip(tested, holm([found[place].p for place in tested]), strict=True))
    return [
        each if place not in corrected else replace(each, p_adjusted=corrected[place])
        for place, each in enumerate(found)
    ]


def seeds_of(results: Sequence[CellResult], place: Place, method: str, key: str) -> dict[int, float]:
    """A method's values of a measure, by seed."""
    return {
        found.cell.seed: found.values[key].value
        for found in results
        if (found.cell.student, found.cell.budget) == place and found.cell.method == method and key in found.values
    }


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of the 95 % t-interval over seeds; NaN for one of them, or where all are the same.

    Coarse measures of few items come out alike by chance: that says nothing about how far others would lie.
    """
    mean = statistics.fmean(values)
    if len(values) < 2 or _all_alike(values):
        return mean, math.nan
    return mean, t_quantile(1 - LEVEL / 2, len(values) - 1) * standard_error(values)


def standard_error(values: Sequence[float]) -> float:
    """Standard error of a mean over seeds."""
    return statistics.stdev(values) / math.sqrt(len(values))


def _all_alike(values: Sequence[float]) -> bool:
    """Whether the values differ by no more than rounding."""
    return max(values) - min(values) <= 1e-12 * max(1.0, *map(abs, values))


def _contrast(measure: Measure, method: str, place: Place, pairs_K: Sequence[float]) -> Contrast:
    mean, half = spread(pairs_K)
    p = detectable = math.nan
    if not math.isnan(half):
        freedom, error = len(pairs_K) - 1, standard_error(pairs_K)
        p = 2 * (1 - t_cdf(abs(mean) / error, freedom))
        # With few seeds the error itself is uncertain: quantiles of t, where a normal distribution's would flatter.
        detectable = (t_quantile(1 - LEVEL / 2, freedom) + t_quantile(POWER, freedom)) * error
    return Contrast(measure, method, *place, len(pairs_K), mean, half, p, None, detectable)


def t_cdf(value: float, freedom: int) -> float:
    """Student's distribution function for whole degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(value / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    if freedom % 2:
        term, total = cosine, cosine if freedom > 1 else 0.0
        for step in range(3, freedom - 1, 2):
            term *= cosine**2 * (step - 1) / step
            total += term
        area = 2 / math.pi * (angle + (sine * total if freedom > 1 else 0.0))
    else:
        term = total = 1.0
        for step in range(2, freedom - 1, 2):
            term *= cosine**2 * (step - 1) / step
            total += term
        area = sine * total
    return 0.5 + area / 2


def t_quantile(share: float, freedom: int) -> float:
    """Inverse of `t_cdf`, by halving."""
    return _inverse(lambda value: t_cdf(value, freedom), share)


def _inverse(function: Callable[[float], float], share: float) -> float:
    low, high = -1.0, 1.0
    while function(low) > share:
        low *= 2
    while function(high) < share:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < share else (low, middle)
    return (low + high) / 2


def totals_by_method(spec: StudySpec, results: Sequence[CellResult], place: Place) -> dict[str, Mapping[str, float]]:
    """What each method's cells did and took, means over seeds."""
    found: dict[str, Mapping[str, float]] = {}
    for method in spec.methods:
        own = [
            result.work
            for result in results
            if (result.cell.student, result.cell.budget) == place and result.cell.method == method
        ]
        if own:
            found[method] = {name: statistics.fmean(work[name] for work in own) for name in own[0]}
    return found
