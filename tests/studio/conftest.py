"""Two real tiny runs: one trained from stored signals, one on data that a recorded teacher wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="session")
def runs(tiny_llama_folder: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs `offline` (signals) and `written` (generated data)."""
    from lmdistill.pipeline import run_recipe
    from lmdistill.recipe import load_recipe
    from small import small_overrides

    folder = tmp_path_factory.mktemp("studio") / "runs"
    for name, recipe in (("offline", RECIPES / "offline_top_k.yaml"), ("written", RECIPES / "llama_gpt4.yaml")):
        overrides = small_overrides(recipe, tiny_llama_folder, text_file)
        run_recipe(load_recipe(recipe, [*overrides, "training.logging_steps=1", f"runs={folder}", f"name={name}"]))
    return folder
