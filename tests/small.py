"""Overrides that make any recipe small: what it says about the method stays, the models and texts shrink."""

from __future__ import annotations

from pathlib import Path

from lmdistill.recipe import Recipe, load_recipe

SMALL = [
    "teacher.gguf_file=null",
    "training.max_steps=2",
    "training.per_device_train_batch_size=2",
    "data.max_length=64",
    "evaluation.max_tokens=128",
    "evaluation.bootstrap_samples=100",
    "evaluation.prompts=[Hello]",
    "evaluation.generation.max_new_tokens=2",
    "machine.compile=false",
]

SPEED = "evaluation.speed={prompt_tokens: 8, new_tokens: 2, repeats: 1}"


def small_overrides(recipe: Path, tiny: Path, text: Path, speed: bool = False) -> list[str]:
    """A tiny teacher, a handful of texts, two steps a stage; `speed` says whether speed and memory are measured."""
    plain = load_recipe(recipe)
    overrides = [*SMALL, SPEED if speed else "evaluation.speed=null", f"teacher.model={tiny}"]
    source = f"{{path: {text}, fields: {{text: text}}, part: train, heldout_share: 0.2}}"
    overrides += [f"data.train=[{source}]"]
    overrides += [f"data.evaluation={{held: {source.replace('part: train', 'part: heldout')}}}"]
    for number, stage in enumerate(plain.stages):
        if stage.train is not None:
            overrides.append(f"stages.{number}.train=[{source}]")
    if plain.data.difference is not None:
        overrides.append(f"data.difference.reference.model={tiny}")
    student = plain.student
    if student.depth is not None:
        overrides += ["student.depth.keep=2", "student.calibration_tokens=64"]
    if student.layers is not None:
        overrides.append("student.layers=[0, 2]")
    if student.width is not None:
        overrides.append("student.width={intermediate: 32}")
    if student.start == "config":
        overrides.append("student.config={num_hidden_layers: 2}")
    return [*overrides, "trajectories.generation.max_new_tokens=4", "trajectories.max_prompts=8"]


def small(recipe: Path, tiny: Path, text: Path, folder: Path, speed: bool = False) -> Recipe:
    """The small recipe, to be run below `folder`."""
    return load_recipe(recipe, [*small_overrides(recipe, tiny, text, speed), f"runs={folder}", "name=run"])
