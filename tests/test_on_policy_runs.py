"""Whole runs in which the student writes: what they leave behind, and that a stop costs nothing but time."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from lmdistill.cli import app
from lmdistill.errors import Interrupted
from lmdistill.io import read_json
from lmdistill.pipeline import run_recipe
from lmdistill.recipe import Recipe, load_recipe
from lmdistill.trajectories.journal import read
from lmdistill.trajectories.window import Trajectories
from small import small_overrides

RECIPE = Path(__file__).parent.parent / "recipes" / "forward_kl.yaml"
SAMPLED = ["trajectories.generation.max_new_tokens=6", "trajectories.max_prompts=24"]
ON_POLICY = {
    "replay": [
        "trajectories.source=mixture",
        "trajectories.mixture.replay={start: 0.7, capacity: 8}",
        "trajectories.rollouts={reuse: 2, max_staleness: 3, kept_share: 1.0}",
        "trajectories.length={effective: true, shortest: 2}",
        "objective.policy={weight: 1.0, kind: minillm, clip: 0.2}",
        "objective.student_divergence={kind: reverse_kl}",
    ],
    "self": [
        "trajectories.source=student",
        "teaching={kind: self, context: '{context} {prompt}', self_weights: ema, ema_rate: 0.5}",
    ],
    "discriminator": [
        "trajectories.source=mixture",
        "trajectories.mixture={paired: true, teacher: {start: 1.0}}",
        "objective.divergence.weight=0",
        "objective.policy={weight: 1.0, kind: discriminator, samples_per_prompt: 3, discriminator_warmup: 1}",
    ],
    "preference": [
        "trajectories.source=mixture",
        "trajectories.mixture={paired: true}",
        "objective.divergence.weight=0",
        "objective.preference={weight: 1.0, kind: dpo}",
    ],
}


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "questions.jsonl"
    rows = [
        {"prompt": f"What is {n} + {n}?", "response": f"It is {2 * n}.", "hint": f"{n} twice is {2 * n}."}
        for n in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def recipe(case: str, tiny: Path, text: Path, questions: Path, folder: Path, *more: str) -> Recipe:
    source = f"[{{path: {questions}, fields: {{context: hint}}}}]"
    overrides = [
        *small_overrides(RECIPE, tiny, text),
        *SAMPLED,
        *ON_POLICY[case],
        f"data.train={source}",
        "training.max_steps=6",
        "training.save_steps=2",
        "training.logging_steps=1",
        "training.gradient_accumulation_steps=2",
        "training.learning_rate=0.01",
        "evaluation.baselines=[none]",
        "evaluation.prompts=[]",
        "trajectories.rollouts.kept_share=1.0",
        f"runs={folder}",
        "name=run",
        *more,
    ]
    return load_recipe(RECIPE, overrides)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "run" / "student" / "model.safetensors")


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "run" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for line in lines if (event := json.loads(line))["kind"] == kind]


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal comes while the texts of that step are written."""
    real = Trajectories.window

    def window(self: Trajectories, *args: Any, **kwargs: Any) -> Any:
        if kwargs["step"] == step:
            signal.raise_signal(signal.SIGTERM)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Trajectories, "window", window)


class Crash(Exception):
    """What nobody expects."""


def crash_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The texts of that step are written, and then the run breaks off."""
    real = Trajectories.window

    def window(self: Trajectories, *args: Any, **kwargs: Any) -> Any:
        made = real(self, *args, **kwargs)
        if kwargs["step"] == step:
            raise Crash
        return made

    monkeypatch.setattr(Trajectories, "window", window)


@pytest.mark.parametrize(
    "case",
    [
        "replay",
        pytest.param("self", marks=pytest.mark.slow),
        pytest.param("discriminator", marks=pytest.mark.slow),
        pytest.param("preference", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_was_stopped_ends_with_the_same_weights(
    case: str,
    tiny_llama_folder: Path,
    text_file: Path,
    questions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = (tiny_llama_folder, text_file, questions)
    whole = run_recipe(recipe(case, *given, tmp_path / "whole"))
    assert whole.steps == 6
    with monkeypatch.context() as patched:
        # step 3 of a window of two: the texts are in use when the checkpoint is written
        stop_at(2, patched)
        with pytest.raises(Interrupted):
            run_recipe(recipe(case, *given, tmp_path / "stopped"))
    with monkeypatch.context() as patched:
        crash_after(4, patched)  # step 5 is written down, and then once more: the checkpoint is that of step 4
        with pytest.raises(Crash):
            run_recipe(recipe(case, *given, tmp_path / "stopped"))
    assert run_recipe(recipe(case, *given, tmp_path / "stopped")).steps == 6
    assert list(read(tmp_path / "stopped" / "run")) == list(read(tmp_path / "whole" / "run"))
    left, right = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    start = load_file(tmp_path / "whole" / "run" / "student-initial" / "model.safetensors")
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert any(not torch.equal(left[name].float(), start[name].float()) for name in left)


def test_a_run_says_what_the_student_wrote(
    tiny_llama_folder: Path, text_file: Path, questions: Path, tmp_path: Path
) -> None:
    more = ["trajectories.rollouts.kept_share=1.0", "objective.student_divergence=null", "objective.policy.weight=0"]
    run_recipe(recipe("replay", tiny_llama_folder, text_file, questions, tmp_path, *more))
    told = events(tmp_path, "rollouts")
    assert told
    assert all(event["tokens"] >= event["texts"] > 0 for event in told)
    record = read_json(tmp_path / "run" / "stages" / "distil.json")
    assert record["written_tokens"] == sum(event["tokens"] for event in told)
    texts = list(read(tmp_path / "run"))
    assert sum(entry.tokens for entry in texts) == record["written_tokens"]
    assert {entry.stage for entry in texts} == {"distil"}
    assert all(entry.prompt.strip().endswith("assistant") for entry in texts)
    shown = CliRunner().invoke(app, ["rollouts", str(tmp_path / "run"), "--last", "2"])
    assert shown.exit_code == 0, shown.output
    assert shown.output.count("prompt ") == 2


def test_a_budget_of_time_ends_training(
    tiny_llama_folder: Path, text_file: Path, questions: Path, tmp_path: Path
) -> None:
    more = ["budget.minutes=0.00001", "training.max_steps=500"]
    result = run_recipe(recipe("self", tiny_llama_folder, text_file, questions, tmp_path, *more))
    assert result.steps == 1
    assert result.report.is_file()
