"""Measures against scikit-learn and scipy, on the data and on every resampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmdistill.evaluation.statistics import resampling
from lmdistill.tasks.metrics import Items, entities, measure, weights_of

sklearn = pytest.importorskip("sklearn.metrics")
scipy_stats = pytest.importorskip("scipy.stats")

CLASSES = ["a", "b", "c"]


def items(label: Any, value: Any) -> Items:
    return Items(np.arange(len(label)), len(label), np.asarray(label, float), np.asarray(value, float))


def macro(label: Any, value: Any) -> float:
    return float(sklearn.f1_score(label, value, average="macro", zero_division=0))


def matthews(label: Any, value: Any) -> float:
    if len(np.union1d(label, value)) == 1:  # scikit-learn warns of it, and says 0
        return 0.0
    return float(sklearn.matthews_corrcoef(label, value))


def second(label: Any, value: Any) -> float:
    return float(sklearn.f1_score(label, value, labels=[1], average="macro", zero_division=0))


THEIRS: dict[str, Callable[[Any, Any], float]] = {
    "accuracy": sklearn.accuracy_score,
    "macro_f1": macro,
    "f1": second,
    "matthews": matthews,
}


@pytest.mark.parametrize("metric", THEIRS)
@settings(max_examples=20, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=25), seed=st.integers(0, 99)
)
def test_measures_of_classes_are_those_of_scikit_learn(metric: str, pairs: list[tuple[int, int]], seed: int) -> None:
    label, value = (np.array(side) for side in zip(*pairs, strict=True))
    drawn = resampling(len(label), 5, 0.9, seed)
    found = measure(metric, items(label, value), weights_of(drawn), CLASSES)
    for place, weights in enumerate(weights_of(drawn)):
        count = weights.astype(int)
        wanted = THEIRS[metric](np.repeat(label, count), np.repeat(value, count))
        assert found[place] == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("metric", ["pearson", "spearman", "cosine_spearman"])
@settings(max_examples=20, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=3, max_size=20), seed=st.integers(0, 99)
)
def test_correlations_are_those_of_scipy(metric: str, pairs: list[tuple[int, int]], seed: int) -> None:
    label, value = (np.array(side, float) for side in zip(*pairs, strict=True))
    drawn = resampling(len(label), 5, 0.9, seed)
    found = measure(metric, items(label, value), weights_of(drawn), [])
    theirs = scipy_stats.pearsonr if metric == "pearson" else scipy_stats.spearmanr
    for place, weights in enumerate(weights_of(drawn)):
        x, y = (np.repeat(side, weights.astype(int)) for side in (label, value))
        wanted = 0.0 if np.ptp(x) == 0 or np.ptp(y) == 0 else float(theirs(x, y)[0])
        assert found[place] == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize(
    ("tags", "wanted"),
    [
        ("B-PER I-PER O B-LOC", {("PER", 0, 2), ("LOC", 3, 4)}),
        ("I-PER I-LOC O", {("PER", 0, 1), ("LOC", 1, 2)}),  # IOB1, and what begins without a beginning
        ("B-PER B-PER", {("PER", 0, 1), ("PER", 1, 2)}),
        ("B-PER I-LOC I-LOC", {("PER", 0, 1), ("LOC", 1, 3)}),
        ("S-PER B-LOC I-LOC E-LOC S-PER", {("PER", 0, 1), ("LOC", 1, 4), ("PER", 4, 5)}),
        ("B-PER E-PER I-PER", {("PER", 0, 2), ("PER", 2, 3)}),
        ("O O", set()),
        ("", set()),
    ],
)
def test_entities_of_tags(tags: str, wanted: set[tuple[str, int, int]]) -> None:
    assert entities(tags.split()) == wanted


def test_f1_of_entities_counts_whole_ones_alone() -> None:
    classes = ["O", "B-X", "I-X"]
    label = [1, 2, 0, 1, 0, 1]  # two rows of three words: X of two words, X; O X... by row
    value = [1, 2, 0, 1, 2, 1]
    found = Items(np.array([0, 0, 0, 1, 1, 1]), 2, np.array(label, float), np.array(value, float))
    # Row 0: one of one right. Row 1: true X at 0 and X at 2; said X at 0 to 1 and X at 2: one of two right.
    drawn = resampling(2, 3, 0.9, 0)
    values = measure("entity_f1", found, weights_of(drawn), classes)
    assert values[0] == pytest.approx(2 * 2 / (3 + 3))


def test_an_unknown_measure_is_refused() -> None:
    with pytest.raises(ValueError, match="no measure is named 'bleu'"):
        measure("bleu", items([0], [0]), np.ones((1, 1)), CLASSES)
