"""A plan counts what the run does, says what it does not know, and is near what then happens."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from lmdistill.data import Collator
from lmdistill.errors import RecipeError
from lmdistill.io import read_json
from lmdistill.models import load_model, output_head
from lmdistill.pipeline import run_recipe
from lmdistill.planning import (
    DistillationLaw,
    StagePlan,
    distillation_flops,
    find_hardware,
    load_hardware,
    make_plan,
    supervised_loss,
    supervised_tokens,
    write_plan,
)
from lmdistill.planning.estimate import construction_passes
from lmdistill.planning.hardware import OF_BANDWIDTH, on_hardware
from lmdistill.planning.make import Elsewhere
from lmdistill.planning.options import load_law
from lmdistill.planning.scaling import Case, advise
from lmdistill.progress import Progress
from lmdistill.recipe import ModelSpec, StudentSpec, load_recipe
from lmdistill.students.prune import choose_layers
from small import small_overrides

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "forward_kl.yaml"


@pytest.mark.parametrize("importance", ["block_influence", "perplexity", "greedy_perplexity"])
def test_ranking_layers_costs_the_passes_that_are_planned(importance: str, tiny_llama_folder: Path) -> None:
    model = load_model(ModelSpec(model=str(tiny_llama_folder)), dtype=torch.float32, device=torch.device("cpu"))
    calls = {"layers": 0, "heads": 0}

    def layer(*args: Any) -> None:
        calls["layers"] += 1

    for each in model.model.layers:
        each.register_forward_hook(layer)
    model.model.norm.register_forward_hook(lambda *args: calls.__setitem__("heads", calls["heads"] + 1))
    depth = {"keep": 2, "importance": importance, "protect_first": 1, "protect_last": 0}
    spec = StudentSpec.model_validate({"depth": depth})
    assert spec.depth is not None
    rows = [{"input_ids": list(range(8)), "labels": list(range(8)), "position_ids": list(range(8)), "row_ids": ["a"]}]
    batch = Collator()(rows)
    choose_layers(model, spec.depth, [{name: batch[name] for name in ("input_ids", "position_ids")}], Progress())
    layers, heads = construction_passes(spec, 4)
    assert layers == calls["layers"]
    # The recording pass goes through the norm once without a head.
    assert heads == max(0, calls["heads"] - 1)
    assert output_head(model).vocabulary_size > 0


def test_the_law_of_training_alone_and_its_inverse() -> None:
    assert supervised_loss(1e9, 1e11) > supervised_loss(1e10, 1e11) > supervised_loss(1e10, 1e12) > 1.220
    loss = supervised_loss(3e9, 4e11)
    assert supervised_tokens(3e9, loss) == pytest.approx(4e11)
    assert supervised_tokens(1e8, supervised_loss(1e10, 1e12)) == math.inf


def test_equation_9_counts_what_it_is_told_to() -> None:
    assert distillation_flops(1, 10, 5) == 3 * 10 + 5 * 10
    assert distillation_flops(1, 10, 5, inference=0) == 30
    assert distillation_flops(1, 10, 5, pretraining=0.5, teacher_tokens=100) == 80 + 0.5 * 5 * 3 * 100


def law() -> DistillationLaw:
    """Coefficients of no publication: the form of equation 8 is what is tested."""
    return DistillationLaw(
        a=2000, b=20000, alpha=0.3, beta=0.6, gamma=0.7, c0=2.5, c1=3.0, d1=1.3, f1=0.1, source="a test"
    )


def test_equation_8_is_the_formula_of_the_publication() -> None:
    found, n, d, teacher = law(), 3e8, 2e10, 2.4
    supervised = 1.220 + (3355 / n**0.408 + 18186 / d**0.431) ** 0.452
    gap = (1 + (teacher / (supervised * 1.3)) ** (1 / 0.1)) ** (-3.0 * 0.1)
    expected = teacher + 1 / teacher**2.5 * gap * (2000 / n**0.3 + 20000 / d**0.6) ** 0.7
    assert found.student_loss(n, d, teacher) == pytest.approx(expected)
    assert found.student_loss(n, 1e15, teacher) < found.student_loss(n, d, teacher)


@pytest.mark.parametrize(
    ("teacher_tokens", "tokens", "words"),
    [
        (None, 1e11, "declare accounting.teacher_training.tokens"),
        (1e12, 1e9, "short of"),
        (2e9, 4e11, "beyond"),
        (1e13, 1e11, "lie below all"),
    ],
)
def test_the_advice_names_the_point_from_which_training_alone_wins(
    teacher_tokens: float | None, tokens: float, words: str
) -> None:
    size = 1e10 if words == "lie below all" else 3e8
    case = Case(3e8, 6e8, 2e9, tokens, True, teacher_parameters=size, teacher_tokens=teacher_tokens, share=1.0)
    said = " ".join(advise(case))
    assert words in said
    assert "2502.08606" in said
    given = " ".join(advise(Case(**{**case.__dict__, "law": law()})))
    assert ("Equation 8 with the coefficients of a test" in given) == (teacher_tokens is not None)


def test_advice_outside_the_fitted_range_says_so() -> None:
    assert "lie outside" in " ".join(advise(Case(5e7, 1e8, 3e8, 1e13, True)))


def test_hardware_is_found_overridden_and_refused_with_the_nearest_name(tmp_path: Path) -> None:
    assert find_hardware("H100").memory_bytes == 80e9
    with pytest.raises(RecipeError, match="did you mean 'h100'"):
        find_hardware("h10")
    own = tmp_path / "own.json"
    own.write_text(json.dumps([{"name": "abacus", "bf16_flops": 10, "memory_bytes": 5, "bandwidth": 2}]))
    assert load_hardware(own)["abacus"].bf16_flops == 10
    own.write_text("[{}]")
    with pytest.raises(RecipeError, match="bandwidth"):
        load_hardware(own)


def test_time_elsewhere_is_operations_and_the_weights_that_are_read(tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    own.write_text(json.dumps([{"name": "abacus", "bf16_flops": 10, "memory_bytes": 5, "bandwidth": 2}]))
    device = find_hardware("abacus", own)
    stages = [StagePlan(name="distil", seconds=1, flops=50, written=8)]
    found = on_hardware(device, stages, memory=6, writer_bytes=3, slots=4, utilisation=0.5, price=7200)
    assert found.seconds == pytest.approx(50 / (10 * 0.5) + 8 / 4 * 3 / (2 * OF_BANDWIDTH))
    assert found.money == pytest.approx(2 * found.seconds)
    assert not found.fits


def test_a_law_without_all_its_coefficients_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "law.json"
    file.write_text('{"a": 1}')
    with pytest.raises(RecipeError, match="alpha"):
        load_law(file)
    file.write_text(law().model_dump_json())
    assert load_law(file) == law()


def test_a_plan_names_every_stage_of_the_run_and_the_report_sets_them_side_by_side(
    tiny_llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    more = [f"runs={tmp_path}", "name=run", "accounting={price_per_hour: 1, watts: 20}", "evaluation.baselines=[sft]"]
    overrides = [*small_overrides(RECIPE, tiny_llama_folder, text_file), *more, "training.max_steps=4"]
    recipe = load_recipe(RECIPE, overrides)
    elsewhere = Elsewhere(find_hardware("a100"))
    plan = make_plan(recipe, elsewhere=elsewhere, tokens=1e12)
    assert not recipe.folder.exists()  # the calibration leaves nothing
    write_plan(plan, recipe.folder)
    run_recipe(recipe)
    accounting = read_json(recipe.folder / "accounting.json")
    planned = {stage.name: stage for stage in plan.stages}
    assert list(planned) == [stage["name"] for stage in accounting["stages"]]
    for stage in accounting["stages"]:
        if stage["name"] in ("distil", "sft"):  # the same operations, before and after
            assert planned[stage["name"]].flops == pytest.approx(stage["flops"], rel=0.1)
            assert planned[stage["name"]].teacher_flops == pytest.approx(stage["teacher_flops"], rel=0.1)
    assert plan.disk_bytes == pytest.approx(accounting["disk_bytes"], rel=0.25)
    assert plan.money == pytest.approx(plan.seconds / 3600)
    assert plan.joules == pytest.approx(20 * plan.seconds)
    assert plan.hardware is not None
    assert plan.scale is not None
    assert plan.scale.student_flops == pytest.approx(
        (planned["distil"].flops - planned["distil"].teacher_flops) * 1e12 / planned["distil"].tokens
    )
    page = (recipe.folder / "report.html").read_text(encoding="utf-8")
    assert "Planned and happened" in page


STORED = ["signals={kind: top_k, k: 8}", "evaluation.baselines=[]"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "more", "stage"),
    [("seqkd", [], "generate-distil"), ("gkd", [], "distil"), ("forward_kl", STORED, "label-distil")],
)
def test_other_kinds_of_runs_are_planned_too(
    recipe: str, more: list[str], stage: str, tiny_llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    path = ROOT / "recipes" / f"{recipe}.yaml"
    overrides = [*small_overrides(path, tiny_llama_folder, text_file), *more, f"runs={tmp_path}", "name=run"]
    loaded = load_recipe(path, [*overrides, "trajectories.max_prompts=24", "training.max_steps=4"])
    plan = make_plan(loaded, tokens=1e9)
    run_recipe(loaded)
    accounting = read_json(loaded.folder / "accounting.json")
    assert [found.name for found in plan.stages] == [found["name"] for found in accounting["stages"]]
    planned = next(found for found in plan.stages if found.name == stage)
    happened = next(found for found in accounting["stages"] if found["name"] == stage)
    assert planned.seconds > 0
    assert planned.tokens == pytest.approx(happened["tokens"], rel=0.3)
    if stage == "label-distil":
        assert plan.scale is not None
        assert plan.scale.signals_bytes is not None
        assert plan.scale.signals_bytes > 1e9


def answered(*words: str) -> Mapping[str, Any]:
    command = [sys.executable, "-m", "lmdistill", *words, "--json", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


@pytest.mark.slow
def test_the_plan_of_a_real_run_is_within_a_quarter(smollm2_gguf: Path, tmp_path: Path) -> None:
    """On a machine whose other work changes between plan and run this fails rightly: the time did change."""
    sets = [f"runs={tmp_path}", "training.max_steps=30", "training.per_device_train_batch_size=4"]
    sets += ["evaluation.max_tokens=4096", "evaluation.speed=null", "evaluation.baselines=[none, sft]"]
    options = [word for each in sets for word in ("--set", each)]
    plan = answered("plan", str(RECIPE), *options)
    answered("run", str(RECIPE), *options)
    accounting = read_json(tmp_path / "forward_kl" / "accounting.json")
    happened = sum(stage["seconds"] for stage in accounting["stages"]) + accounting["other_seconds"]
    assert plan["seconds"] == pytest.approx(happened, rel=0.25)
    assert plan["memory_bytes"] == pytest.approx(accounting["peak_memory_bytes"], rel=0.25)
    assert plan["disk_bytes"] == pytest.approx(accounting["disk_bytes"], rel=0.25)
