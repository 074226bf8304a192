"""Every recipe that ships runs through the real pipeline, two steps a stage, on a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmdistill.evaluation.results import Evaluation
from lmdistill.io import read_json
from lmdistill.pipeline import run_recipe
from lmdistill.recipe import Recipe, load_recipe

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
SMALL = [
    "teacher.gguf_file=null",
    "training.max_steps=2",
    "training.per_device_train_batch_size=2",
    "data.max_length=64",
    "evaluation.max_tokens=128",
    "evaluation.bootstrap_samples=100",
    "evaluation.prompts=[Hello]",
    "evaluation.generation.max_new_tokens=2",
    "evaluation.speed={prompt_tokens: 8, new_tokens: 2, repeats: 1}",
    "machine.compile=false",
]


def small(recipe: Path, tiny: Path, text: Path, folder: Path) -> Recipe:
    """The recipe with a tiny teacher and a handful of texts; what it says about the method stays."""
    plain = load_recipe(recipe)
    overrides = [*SMALL, f"teacher.model={tiny}", f"runs={folder}", "name=run"]
    source = f"{{path: {text}, fields: {{text: text}}, part: train, heldout_share: 0.2}}"
    overrides += [f"data.train=[{source}]"]
    overrides += [f"data.evaluation={{held: {source.replace('part: train', 'part: heldout')}}}"]
    for number, stage in enumerate(plain.stages):
        if stage.train is not None:
            overrides.append(f"stages.{number}.train=[{source}]")
    student = plain.student
    if student.depth is not None:
        overrides += ["student.depth.keep=2", "student.calibration_tokens=64"]
    if student.layers is not None:
        overrides.append("student.layers=[0, 2]")
    if student.width is not None:
        overrides.append("student.width={intermediate: 32}")
    if student.start == "config":
        overrides.append("student.config={num_hidden_layers: 2}")
    overrides += ["trajectories.generation.max_new_tokens=4", "trajectories.max_prompts=8"]
    return load_recipe(recipe, overrides)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_runs(recipe: Path, tiny_llama_folder: Path, text_file: Path, tmp_path: Path) -> None:
    result = run_recipe(small(recipe, tiny_llama_folder, text_file, tmp_path))
    assert result.steps == 2 * max(1, len(load_recipe(recipe).stages))
    assert result.report.is_file()
    assert (result.folder / "student" / "model.safetensors").is_file()
    assert (result.folder / "student" / "README.md").is_file()
    evaluation = Evaluation.model_validate(read_json(result.folder / "evaluation.json"))
    assert evaluation.scores("student") is not None
    assert evaluation.scores("teacher") is not None


def test_a_finished_run_is_not_done_again(tiny_llama_folder: Path, text_file: Path, tmp_path: Path) -> None:
    recipe = small(RECIPES[0].parent / "forward_kl.yaml", tiny_llama_folder, text_file, tmp_path)
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
