"""Every recipe that ships runs through the real pipeline, two steps a stage, on a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lmdistill.evaluation.results import Evaluation
from lmdistill.io import read_json
from lmdistill.pipeline import run_recipe
from lmdistill.recipe import Recipe, load_recipe, recipe_stages
from small import REAL, real_overrides, small

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))


OF_EACH_FAMILY = (
    *("sft", "forward_kl", "rs_kd", "seqkd", "gkd", "minillm", "distillm2", "speculative_kd", "gad", "dpkd", "sdft"),
    *("multi_teacher", "gold", "offline_top_k", "distilbert", "minitron", "pretrained_distillation", "demo"),
    *("fine_tune_cot", "self_instruct", "step_by_step", "mcc_kd", "meta_ict", "tinybert", "minilmv2", "distilbilstm"),
)
"""Recipes that `make test` runs: one or more of each way through the pipeline. `make test-recipes` runs the others."""


def marked(path: Path) -> Any:
    marks = [] if path.stem in OF_EACH_FAMILY else [pytest.mark.recipes]
    return pytest.param(path, id=path.stem, marks=marks)


@pytest.mark.parametrize("recipe", [marked(path) for path in RECIPES if path.stem not in REAL])
def test_recipe_runs(recipe: Path, tiny_llama_folder: Path, text_file: Path, tmp_path: Path) -> None:
    check(recipe, small(recipe, tiny_llama_folder, text_file, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [path for path in RECIPES if path.stem in REAL], ids=lambda path: path.stem)
def test_recipe_runs_with_a_real_student(recipe: Path, smollm2_gguf: Path, tmp_path: Path) -> None:
    check(recipe, load_recipe(recipe, [*real_overrides(recipe.stem), f"runs={tmp_path}", "name=run"]))


def check(recipe: Path, shrunk: Recipe) -> None:
    result = run_recipe(shrunk)
    assert result.steps == 2 * len(recipe_stages(load_recipe(recipe)))
    assert result.report.is_file()
    assert (result.folder / "student" / "model.safetensors").is_file()
    assert (result.folder / "student" / "README.md").is_file()
    evaluation = Evaluation.model_validate(read_json(result.folder / "evaluation.json"))
    assert evaluation.scores("student") is not None
    assert evaluation.scores("teacher") is not None


def test_a_finished_run_is_not_done_again(tiny_llama_folder: Path, text_file: Path, tmp_path: Path) -> None:
    recipe = small(RECIPES[0].parent / "forward_kl.yaml", tiny_llama_folder, text_file, tmp_path, speed=True)
    first = run_recipe(recipe)
    weights = first.folder / "student" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    evaluated = (first.folder / "evaluation.json").stat().st_mtime_ns
    second = run_recipe(recipe)
    assert second.steps == first.steps
    assert weights.stat().st_mtime_ns == before
    assert (first.folder / "evaluation.json").stat().st_mtime_ns == evaluated
    costs = read_json(first.folder / "accounting.json")["stages"]
    assert all(stage["skipped"] for stage in costs)
