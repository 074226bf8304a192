"""Measures of a task on the data and on each bootstrap resampling of its rows. Checked against scikit-learn in tests.

Shape legend: S rows, N items (rows, or labelled words of all rows), R one estimate and its resamplings, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmdistill.evaluation.statistics import Resampling

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Items:
    """What one model predicted of all rows, and what is right."""

    row_N: Ints
    """The row of each item, from 0 to S - 1, ascending."""
    rows: int
    label_N: Floats
    """Number of the right class, or the right number."""
    value_N: Floats
    """Number of the likeliest class, or the predicted number."""


def weights_of(resampling: Resampling) -> Floats:
    """How often each row counts: once in the estimate itself, then as each resampling draws it; (R, S)."""
    rows = resampling.weights_RS.shape[1]
    return np.concatenate([np.ones((1, rows)), resampling.weights_RS])


def measure(metric: str, items: Items, weights_RS: Floats, classes: Sequence[str]) -> Floats:
    """A measure on the data and on each resampling, (R,). Raises ValueError for an unknown one."""
    if metric == "accuracy":
        right_N = (items.label_N == items.value_N).astype(np.float64)
        return _ratio(weights_RS @ _by_row(right_N, items), weights_RS @ _by_row(np.ones_like(right_N), items))
    if metric in ("pearson", "spearman", "cosine_spearman"):
        return correlations(items.value_N, items.label_N, weights_RS, ranks=metric != "pearson")
    if metric == "entity_f1":
        counts_S3 = entity_counts(items, classes)
        right, said, true = (weights_RS @ counts_S3[:, place] for place in range(3))
        return _ratio(2 * right, said + true)
    confusion_RCC = confusions(items, weights_RS, len(classes))
    if metric == "f1":
        return f1_of(confusion_RCC)[:, 1]
    if metric == "macro_f1":
        return macro_f1(confusion_RCC)
    if metric == "matthews":
        return matthews(confusion_RCC)
    raise ValueError(f"no measure is named {metric!r}")


def confusions(items: Items, weights_RS: Floats, classes: int) -> Floats:
    """How often each class (first) was taken for each (second), (R, C, C)."""
    cell_N = items.label_N.astype(np.int64) * classes + items.value_N.astype(np.int64)
    counts_SX = np.zeros((items.rows, classes * classes))
    np.add.at(counts_SX, (items.row_N, cell_N), 1.0)
    return (weights_RS @ counts_SX).reshape(-1, classes, classes)


def f1_of(confusion_RCC: Floats) -> Floats:
    """F1 of each class, (R, C): 2 TP / (2 TP + FP + FN), 0 where a class occurs nowhere."""
    right_RC = np.diagonal(confusion_RCC, axis1=1, axis2=2)
    return _ratio(2 * right_RC, confusion_RCC.sum(1) + confusion_RCC.sum(2))


def macro_f1(confusion_RCC: Floats) -> Floats:
    """The mean of F1 over the classes that occur in labels or predictions, (R,)."""
    occurs_RC = (confusion_RCC.sum(1) + confusion_RCC.sum(2)) > 0
    return _ratio((f1_of(confusion_RCC) * occurs_RC).sum(1), occurs_RC.sum(1).astype(np.float64))


def matthews(confusion_RCC: Floats) -> Floats:
    """Matthews' correlation for any number of classes (Gorodkin 2004), (R,); 0 where it is undefined."""
    true_RC, said_RC = confusion_RCC.sum(2), confusion_RCC.sum(1)
    total_R = confusion_RCC.sum((1, 2))
    right_R = np.trace(confusion_RCC, axis1=1, axis2=2)
    above_R = right_R * total_R - (true_RC * said_RC).sum(1)
    below_R = np.sqrt((total_R**2 - (said_RC**2).sum(1)) * (total_R**2 - (true_RC**2).sum(1)))
    return _ratio(above_R, below_R)


def correlations(first_N: Floats, second_N: Floats, weights_RN: Floats, *, ranks: bool) -> Floats:
    """Pearson's correlation of two lists of numbers, or Spearman's, (R,); 0 where one of them is constant.

    Ranks are taken within each resampling, since a row that is drawn twice is a tie with itself.
    """
    found = np.empty(len(weights_RN))
    for place, weights_N in enumerate(weights_RN):
        x_N, y_N = first_N, second_N
        if ranks:
            x_N, y_N = _weighted_ranks(x_N, weights_N), _weighted_ranks(y_N, weights_N)
        total = weights_N.sum()
        x_N, y_N = x_N - (weights_N * x_N).sum() / total, y_N - (weights_N * y_N).sum() / total
        below = np.sqrt((weights_N * x_N**2).sum() * (weights_N * y_N**2).sum())
        found[place] = (weights_N * x_N * y_N).sum() / below if below > 0 else 0.0
    return found


def _weighted_ranks(values_N: Floats, weights_N: Floats) -> Floats:
    """Mean ranks of values of which each occurs `weights_N` times."""
    _, inverse_N = np.unique(values_N, return_inverse=True)
    count_U = np.bincount(inverse_N, weights=weights_N)
    before_U = np.cumsum(count_U) - count_U
    ranks_N: Floats = (before_U + (count_U + 1) / 2)[inverse_N]
    return ranks_N


def entity_counts(items: Items, classes: Sequence[str]) -> Floats:
    """For each row the entities that are right, those that were said, and those that are there, (S, 3)."""
    counts_S3 = np.zeros((items.rows, 3))
    starts = np.searchsorted(items.row_N, np.arange(items.rows + 1))
    for row in range(items.rows):
        part = slice(int(starts[row]), int(starts[row + 1]))
        said = entities([classes[int(number)] for number in items.value_N[part]])
        true = entities([classes[int(number)] for number in items.label_N[part]])
        counts_S3[row] = len(said & true), len(said), len(true)
    return counts_S3


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """The entities of a sentence as (type, first word, word behind the last), of tags IO, IOB1, IOB2 or BIOES.

    As conlleval and seqeval count by default: a new entity begins at B- and S-, where the type changes, where a tag
    follows one that ended (E-, S-, O), and an I- without a beginning begins one too. Tags without a dash are outside.
    """
    found: set[tuple[str, int, int]] = set()
    start, kind, last = 0, "", "O"
    for place, tag in enumerate([*tags, "O"]):
        mark, _, name = tag.partition("-")
        inside = bool(name)
        begins = inside and (mark in "BS" or name != kind or last in ("O", "E", "S"))
        if kind and (begins or not inside):
            found.add((kind, start, place))
            kind = ""
        if begins:
            start, kind = place, name
        last = mark if inside else "O"
    return found


def _by_row(values_N: Floats, items: Items) -> Floats:
    """Sums over the items of each row, (S,)."""
    return np.bincount(items.row_N, weights=values_N, minlength=items.rows).astype(np.float64)


def _ratio(above: Floats, below: Floats) -> Floats:
    found: Floats = np.where(below > 0, above / np.where(below > 0, below, 1.0), 0.0)
    return found


by_row = _by_row
