"""A plan of a run whose teacher is behind an API: what is asked and costs, and what it says where nobody answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from echo_server import EchoServer
from http_server import serving
from lmdistill.errors import RecipeError
from lmdistill.io import read_json
from lmdistill.pipeline import run_recipe
from lmdistill.planning import make_plan, write_plan
from lmdistill.planning.asking import Asking, ask_few
from lmdistill.planning.calibrate import small_recipe
from lmdistill.progress import Progress
from lmdistill.recipe import Recipe, SourceSpec, resolve_recipe
from lmdistill.run_folder import RunFolder
from lmdistill.stages.context import Context
from lmdistill.training.callbacks import StopFlag
from small import small

ROOT = Path(__file__).parents[2]
PRICES = {"echo": {"prompt": 1.0, "output": 2.0}}


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMDISTILL_API_KEY", "key-for-the-echo-server")


def recipe_for(url: str, folder: Path, model: Path, text: Path, **api: Any) -> Recipe:
    """Twenty-four questions to a server; all have answers of their own."""
    path = folder / "seeds.jsonl"
    rows = [{"prompt": f"What colour has the boat on lake number {n}?", "answer": f"colour {n}"} for n in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return resolve_recipe(
        {
            "name": "run",
            "runs": str(folder),
            "teacher": {"base_url": url, "model": "echo"},
            "api": {"requests": 4, "prices": PRICES, **api},
            "student": {"start": "pretrained", "model": {"model": str(model)}},
            "generation": {"seeds": [{"path": str(path)}]},
            "objective": {"divergence": {"weight": 0.0}, "cross_entropy": {"weight": 1.0}},
            "data": {
                "train": [{"path": "generated"}],
                "evaluation": {"held": {"path": str(text), "limit": 12, "fields": {"text": "text"}}},
                "max_length": 128,
            },
            "training": {"num_train_epochs": 1, "per_device_train_batch_size": 2},
            "evaluation": {"speed": None, "baselines": ["none", "sft"], "max_tokens": 64, "bootstrap_samples": 100},
            "machine": {"compile": False},
            "accounting": {"price_per_hour": 1.0},
        }
    )


def test_a_few_questions_tell_the_rest_and_are_not_asked_again(
    tmp_path: Path, tiny_llama_folder: Path, text_file: Path
) -> None:
    with serving(EchoServer(delay=0.05)) as echo:
        recipe = recipe_for(echo.url, tmp_path, tiny_llama_folder, text_file, limits={"calls": 30})
        plan = make_plan(recipe, ask=8)
        assert echo.calls == 8
        write_plan(plan, recipe.folder)
        run_recipe(recipe)
        assert echo.calls == 24
    found = plan.api
    assert found is not None
    assert (found.requests, found.stored, found.calls, found.asked) == (24, 8, 16, 8)
    assert found.seconds is not None
    assert found.seconds == pytest.approx(16 * found.call_seconds / 4)
    assert found.call_seconds >= 0.05
    assert found.money == pytest.approx((found.prompt_tokens + 2 * found.output_tokens) / 1e6)
    assert plan.money == pytest.approx(plan.seconds / 3600 + found.money)
    assert found.limit == ""
    accounting = read_json(recipe.folder / "accounting.json")
    assert accounting["api"]["calls"] == 24
    assert found.prompt_tokens + found.output_tokens == pytest.approx(accounting["api"]["tokens"] * 16 / 24, rel=0.05)
    assert sorted(stage.name for stage in plan.stages) == sorted(stage["name"] for stage in accounting["stages"])
    trained = {stage["name"]: stage["tokens"] for stage in accounting["stages"]}
    planned = {stage.name: stage.tokens for stage in plan.stages}
    assert planned["distil"] == pytest.approx(trained["distil"], rel=0.1)
    assert planned["sft"] == pytest.approx(trained["sft"], rel=0.3)
    assert "calls of the API" in (recipe.folder / "report.html").read_text(encoding="utf-8")


def asking_of(recipe: Recipe, ask: int) -> Asking:
    """What is asked, without the steps of training that a whole plan takes."""
    folder = RunFolder(recipe.folder.with_name("calibration"))
    folder.path.mkdir(exist_ok=True)
    context = Context(
        recipe=small_recipe(recipe, recipe.runs), folder=folder, progress=Progress(), stop=StopFlag()
    )  # fmt: skip
    return ask_few(recipe, context, None, {}, ask)


def test_limits_and_rates_of_the_recipe_are_in_the_plan(
    tmp_path: Path, tiny_llama_folder: Path, text_file: Path
) -> None:
    with serving(EchoServer()) as echo:
        recipe = recipe_for(
            echo.url, tmp_path, tiny_llama_folder, text_file, limits={"calls": 20}, requests_per_minute=6000
        )
        plan = asking_of(recipe, 4).plan
    assert plan.seconds is not None
    assert plan.seconds >= plan.calls * 60 / 6000
    assert plan.limit == "api.limits.calls = 20, and 24 are needed"


@pytest.mark.parametrize(("ask", "why"), [(0, "--ask 0"), (4, "gave no answer")])
def test_a_teacher_that_does_not_answer_is_counted_and_not_timed(
    ask: int, why: str, tmp_path: Path, tiny_llama_folder: Path, text_file: Path
) -> None:
    recipe = recipe_for(
        "http://127.0.0.1:9/v1", tmp_path, tiny_llama_folder, text_file,
        retries={"patience_seconds": 0.2, "first_wait_seconds": 0.05},
    )  # fmt: skip
    found = asking_of(recipe, ask)
    assert found.plan.seconds is None
    assert (found.plan.requests, found.plan.calls) == (24, 24)
    assert found.plan.money is not None
    assert found.plan.money > 0
    assert why in found.plan.problem
    assert any(said.startswith("the teacher's time") for said in found.unknown)
    assert "not predicted" in found.how
    documents, _, times = found.documents(SourceSpec(path="generated"), 0)
    assert len(documents) * times == 24  # the seeds' own answers stand in for the rows that nobody wrote


def test_other_token_counts_need_the_teachers_weights(tmp_path: Path, tiny_llama_folder: Path, text_file: Path) -> None:
    recipe = recipe_for("http://127.0.0.1:9/v1", tmp_path, tiny_llama_folder, text_file)
    with pytest.raises(RecipeError, match="--tokens"):
        make_plan(recipe, tokens=1e9)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(each, marks=pytest.mark.slow)
        for each in ("step_by_step", "socratic", "llama_gpt4", "alpaca", "multitask_ict", "llm_r")
    ],
)
def test_makers_that_ask_in_waves_are_planned_from_a_few_seeds(
    name: str, tiny_llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    recipe = small(ROOT / "recipes" / f"{name}.yaml", tiny_llama_folder, text_file, tmp_path)
    plan = make_plan(recipe, ask=4)
    run_recipe(recipe)
    accounting = read_json(recipe.folder / "accounting.json")
    assert sorted(stage.name for stage in plan.stages) == sorted(stage["name"] for stage in accounting["stages"])
    planned = next(stage for stage in plan.stages if stage.name == "generate-round-1")
    happened = next(stage for stage in accounting["stages"] if stage["name"] == "generate-round-1")
    if plan.api is not None and plan.api.calls:
        # What the plan asked itself is in the ledger; the stage counts it with the rest.
        asked = planned.tokens * plan.api.requests / max(1, plan.api.calls)
        assert asked == pytest.approx(happened["tokens"], rel=0.6)
