"""A plan of a run that trains an encoder on a task: every stage of it, near what it then does."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmdistill.errors import RecipeError
from lmdistill.io import read_json
from lmdistill.pipeline import run_recipe
from lmdistill.planning import find_hardware, make_plan
from lmdistill.planning.make import Elsewhere
from lmdistill.recipe import load_recipe
from small import small_overrides

ROOT = Path(__file__).parents[2]
LONGER = ["training.max_steps=6", "task.teacher.training={max_steps: 5}"]


@pytest.mark.parametrize(
    "name", ["pkd", *(pytest.param(each, marks=pytest.mark.slow) for each in ("tinybert", "xtremedistil", "ted"))]
)
def test_a_task_is_planned_stage_by_stage(name: str, tiny_llama_folder: Path, text_file: Path, tmp_path: Path) -> None:
    path = ROOT / "recipes" / f"{name}.yaml"
    overrides = [*small_overrides(path, tiny_llama_folder, text_file), *LONGER, f"runs={tmp_path}", "name=run"]
    recipe = load_recipe(path, [*overrides, "evaluation.baselines=[none, sft]"])
    plan = make_plan(recipe, elsewhere=Elsewhere(find_hardware("a100")))
    assert not recipe.folder.exists()
    run_recipe(recipe)
    accounting = read_json(recipe.folder / "accounting.json")
    planned = {stage.name: stage for stage in plan.stages}
    assert list(planned) == [stage["name"] for stage in accounting["stages"]]
    for stage in accounting["stages"]:
        found = planned[stage["name"]]
        assert found.seconds > 0
        if stage["flops"]:
            assert found.tokens == pytest.approx(stage["tokens"], rel=0.25)
            assert found.flops == pytest.approx(stage["flops"], rel=0.25)
        record = read_json(recipe.folder / "stages" / f"{stage['name']}.json")
        assert found.steps == record.get("steps", 0)
    assert plan.disk_bytes == pytest.approx(accounting["disk_bytes"], rel=0.5)
    assert plan.hardware is not None
    with pytest.raises(RecipeError, match="leave it away"):
        make_plan(recipe, tokens=1e9)
