"""Tests and intervals against scipy, brute force and simulated coverage."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmdistill.evaluation.significance import (
    EXACT_UP_TO,
    benjamini_hochberg,
    bootstrap_p,
    holm,
    mcnemar,
    smallest_detectable,
)
from lmdistill.evaluation.statistics import between_seeds, clustered_standard_error, draws

stats = pytest.importorskip("scipy.stats")


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
def test_mcnemar_is_the_exact_binomial_test_of_the_discordant_items(pairs: list[tuple[bool, bool]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    ahead, behind = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    expected = stats.binomtest(ahead, ahead + behind).pvalue if ahead + behind else 1.0
    assert mcnemar(first, second) == pytest.approx(expected)
    assert mcnemar(second, first) == pytest.approx(expected)


def test_many_discordant_items_are_approximated_closely() -> None:
    ahead, behind = EXACT_UP_TO // 2 + 60, EXACT_UP_TO // 2
    first = [True] * ahead + [False] * behind
    expected = stats.binomtest(ahead, ahead + behind).pvalue
    assert mcnemar(first, [not right for right in first]) == pytest.approx(expected, rel=0.01)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_and_benjamini_hochberg_by_their_definitions(p_values: list[float]) -> None:
    count = len(p_values)
    ordered = sorted(p_values)
    for p, adjusted in zip(p_values, holm(p_values), strict=True):
        # The closed testing principle: the largest Bonferroni p of all sets of hypotheses that contain this one.
        sets = [chosen for size in range(1, count + 1) for chosen in itertools.combinations(p_values, size)]
        of_sets = [min(1.0, min(chosen) * len(chosen)) for chosen in sets if p in chosen]
        assert adjusted == pytest.approx(max(of_sets))
    for p, adjusted in zip(p_values, benjamini_hochberg(p_values), strict=True):
        above = [ordered[k] * count / (k + 1) for k in range(count) if ordered[k] >= p]
        assert adjusted == pytest.approx(min(1.0, *above))
    assert benjamini_hochberg(p_values) == pytest.approx(list(stats.false_discovery_control(p_values)))


def test_errors_by_cluster_are_the_ordinary_ones_where_each_item_stands_alone() -> None:
    values = np.random.default_rng(0).normal(size=50)
    expected = stats.sem(values)
    assert clustered_standard_error(values, range(50)) == pytest.approx(expected)
    doubled = np.repeat(values, 3)
    assert clustered_standard_error(doubled, np.repeat(np.arange(50), 3).tolist()) == pytest.approx(expected)
    assert math.isnan(clustered_standard_error(values, [0] * 50))


def test_a_resampling_counts_items_seeds_and_clusters_as_a_loop_does() -> None:
    random = np.random.default_rng(1)
    clusters = [0, 0, 1, 2, 2, 2, 3]
    found = draws(clusters, seeds=3, samples=40, confidence=0.9, seed=5)
    sums, counts = random.normal(size=(3, 7)), random.integers(0, 4, size=(3, 7)).astype(float)
    values = found.ratio(sums, counts)
    for row in range(41):
        above = below = 0.0
        for seed, item in itertools.product(range(3), range(7)):
            weight = found.items_RI[row, item] * found.seeds_RK[row, seed]
            above, below = above + weight * sums[seed, item], below + weight * counts[seed, item]
        assert values[row] == pytest.approx(above / below) if below else math.isnan(values[row])
    assert found.clusters == 4
    assert (found.items_RI[0] == 1).all()
    assert (found.items_RI[:, 0] == found.items_RI[:, 1]).all()
    assert (found.seeds_RK.sum(1) == 3).all()
    assert (draws([1, 2], 1, 10, 0.9, 0).seeds_RK == 1).all()


def coverage(clustered: bool, seeds: int) -> float:
    """How often an interval for the mean holds the true one, of items in pairs and seeds with effects of their own."""
    random, hits, trials = np.random.default_rng(3), 0, 150
    for trial in range(trials):
        effect_I = np.repeat(random.normal(size=40), 3) if clustered else random.normal(size=60)
        effect_K = random.normal(size=seeds) * (0.3 if seeds > 1 else 0)
        values = effect_I + effect_K[:, None] + 0.3 * random.normal(size=(seeds, len(effect_I)))
        names = np.repeat(np.arange(40), 3).tolist() if clustered else range(60)
        found = draws(names, seeds, 200, 0.9, trial)
        interval = found.interval(found.ratio(values, np.ones_like(values)))
        hits += interval.low <= 0 <= interval.high
    return hits / trials


def test_intervals_cover_as_often_as_they_say() -> None:
    assert 0.83 < coverage(clustered=False, seeds=1) < 0.96
    assert 0.83 < coverage(clustered=True, seeds=1) < 0.96
    assert 0.83 < coverage(clustered=False, seeds=8) < 0.97


def test_p_of_the_bootstrap_is_even_where_there_is_no_difference_and_small_where_there_is() -> None:
    random, small = np.random.default_rng(7), 0
    for trial in range(200):
        values = random.normal(size=(1, 50))
        found = draws(range(50), 1, 200, 0.95, trial)
        small += bootstrap_p(found.ratio(values, np.ones_like(values))) < 0.1
    assert 8 <= small <= 36  # 20 expected; the binomial's 0.1 % on either side
    shifted = random.normal(size=(1, 50)) + 2
    assert bootstrap_p(draws(range(50), 1, 200, 0.95, 0).ratio(shifted, np.ones_like(shifted))) == pytest.approx(
        1 / 201
    )


def test_the_smallest_detectable_difference_is_found_four_times_in_five() -> None:
    random, count, found = np.random.default_rng(11), 400, 0
    difference = smallest_detectable(1 / math.sqrt(count))
    assert difference * math.sqrt(count) == pytest.approx(2.8016, abs=1e-4)
    for _ in range(400):
        found += abs(stats.ttest_1samp(random.normal(size=count) + difference, 0).statistic) > 1.96
    assert 0.74 < found / 400 < 0.86


def test_the_spread_from_seed_to_seed() -> None:
    assert between_seeds([0.5]) is None
    assert between_seeds([0.0, 1.0]) == pytest.approx(math.sqrt(0.5))
