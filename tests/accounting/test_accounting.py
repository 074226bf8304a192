"""Costs are counted as the shapes say, lost work is not forgotten, and what is not known is said."""

from __future__ import annotations

import datetime
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode

from lmdistill.accounting import (
    ApiCost,
    Attempt,
    EnergyMeter,
    Pulse,
    StageCost,
    account,
    attempts_of,
    forward_flops,
    left_behind,
    lost_seconds,
    meta_model,
    role_of,
)
from lmdistill.accounting.energy import WATTS_A_CORE
from lmdistill.errors import LmdistillError
from lmdistill.io import read_json
from lmdistill.models import load_config, load_model
from lmdistill.pipeline import run_recipe
from lmdistill.recipe import AccountingSpec, ModelSpec, TeacherTrainingSpec, load_recipe
from lmdistill.run_folder import RunFolder
from lmdistill.stages import train as train_stage
from lmdistill.stages.costs import stage_costs
from small import small_overrides

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "forward_kl.yaml"
MACHINE = {"cores": 2}


def test_operations_are_those_that_torch_counts(tiny_llama_folder: Path) -> None:
    spec = ModelSpec(model=str(tiny_llama_folder), attention="eager")  # of the fused one torch counts nothing here
    model = load_model(spec, dtype=torch.float32, device=torch.device("cpu"))
    tokens_BL = torch.randint(0, 100, (2, 64))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens_BL)
    assert forward_flops(model, 128, 2 * 64) == pytest.approx(counter.get_total_flops(), rel=0.01)  # torch: no mask


def test_shapes_alone_tell_the_same(tiny_llama_folder: Path) -> None:
    spec = ModelSpec(model=str(tiny_llama_folder))
    real = load_model(spec, dtype=torch.float32, device=torch.device("cpu"))
    empty = meta_model(load_config(spec))
    assert next(iter(empty.parameters())).device.type == "meta"
    assert forward_flops(empty, 7, 32) == forward_flops(real, 7, 32)


def event(second: float, kind: str, stage: str, **more: Any) -> dict[str, Any]:
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    return {"time": (start + datetime.timedelta(seconds=second)).isoformat(), "kind": kind, "stage": stage, **more}


def test_attempts_are_what_the_events_tell() -> None:
    events = [
        event(0, "stage_started", "distil"),
        event(3, "step", "distil"),
        event(100, "stage_started", "distil"),  # killed: nothing was heard after second 3
        event(110, "stage_failed", "distil"),
        event(120, "stage_started", "distil"),
        event(130, "stage_killed", "distil", seconds=9.5),  # by its pulse
        event(140, "stage_started", "distil"),
        event(160, "stage_finished", "distil", seconds=25.0),
        event(170, "stage_started", "evaluate"),  # still going on
        {"kind": "stage_started", "stage": "evaluate", "time": "no time"},
    ]
    found = attempts_of(events)
    assert found == [
        Attempt("distil", 3, "killed"),
        Attempt("distil", 10, "failed"),
        Attempt("distil", 9.5, "killed"),
        Attempt("distil", 20, "done"),
    ]
    assert lost_seconds(found, "distil") == 22.5
    assert lost_seconds(found, "distil", resumed=5.0) == 17.5  # that came into the result by a checkpoint
    assert lost_seconds(found, "evaluate") == 0


def test_a_result_that_was_replaced_is_lost_too() -> None:
    attempts = [Attempt("distil", 20, "done"), Attempt("distil", 30, "done")]
    assert lost_seconds(attempts, "distil") == 20


def test_a_pulse_says_how_long_a_dead_process_worked(tmp_path: Path) -> None:
    with Pulse(tmp_path, "distil", interval=0.01):
        deadline = time.monotonic() + 10
        while not (tmp_path / "pulse.json").is_file():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        kept = (tmp_path / "pulse.json").read_bytes()
    assert left_behind(tmp_path) is None  # a stage that ends leaves nothing
    (tmp_path / "pulse.json").write_bytes(kept)
    stage, seconds = left_behind(tmp_path) or ("", 0.0)
    assert stage == "distil"
    assert seconds > 0
    (tmp_path / "pulse.json").write_text("{")
    assert left_behind(tmp_path) is None
    assert not (tmp_path / "pulse.json").exists()


def test_the_meter_counts_packages_once_and_over_its_end(tmp_path: Path) -> None:
    for name, value in (("intel-rapl:0", 900), ("intel-rapl:1", 100), ("intel-rapl:0:0", 5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{value * 10**6}\n")
        (tmp_path / name / "max_energy_range_uj").write_text(f"{1000 * 10**6}\n")
    meter = EnergyMeter(tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text(f"{20 * 10**6}")  # went past 1000
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text(f"{130 * 10**6}")
    assert meter.joules() == pytest.approx(120 + 30)
    assert EnergyMeter(tmp_path / "none").joules() is None


STAGES = [
    StageCost(name="generate-distil", seconds=60, flops=50, teacher_flops=50, part="teacher"),
    StageCost(name="distil", seconds=100, flops=400, teacher_flops=100, lost_seconds=25, lost_flops=100),
    StageCost(name="sft", seconds=90, flops=300, part="comparison"),
    StageCost(name="evaluate", seconds=10, flops=30, part="comparison"),
]


def test_three_totals() -> None:
    training = TeacherTrainingSpec(flops=1e6, money=1000, share=0.25)
    spec = AccountingSpec(price_per_hour=3.6, teacher_training=training)
    api = ApiCost(calls=3, tokens=1000, money=0.5, flops=2000)
    found = account(STAGES, spec, MACHINE, api=api, teacher_training_flops=1e6).totals
    assert found is not None
    assert found.student.flops == pytest.approx(500 * 3 / 4)  # three quarters of what was done, lost attempts too
    assert found.student.money == pytest.approx(0.125)
    assert found.with_teacher.flops == pytest.approx(50 + 500 + 2000)
    assert found.with_teacher.money == pytest.approx(0.185 + 0.5)
    assert found.with_training.flops == pytest.approx(2550 + 250_000)
    assert found.with_training.money == pytest.approx(0.685 + 250)
    assert found.comparison.flops == 330
    assert not found.with_training.unknown


def test_what_is_not_known_is_said_and_not_made_up() -> None:
    api = ApiCost(calls=3, tokens=1000, money=0.5)
    killed = StageCost(name="late", seconds=0, lost_seconds=12)
    found = account([*STAGES, killed], AccountingSpec(), MACHINE, api=api)
    assert found.totals is not None
    assert found.totals.student.money is None
    assert found.totals.student.unknown == ["the operations of lost attempts of late"]
    assert any("1,000 tokens" in text for text in found.totals.with_teacher.unknown)
    assert any("teacher_training" in text for text in found.totals.with_training.unknown)
    assert found.energy is not None
    assert found.energy.how == "assumed"
    assert found.energy.joules == pytest.approx((60 + 125 + 90 + 10 + 12) * 2 * WATTS_A_CORE)


def test_energy_is_declared_or_measured_before_it_is_assumed() -> None:
    declared = account(STAGES, AccountingSpec(watts=100), MACHINE).energy
    assert declared is not None
    assert (declared.how, declared.joules) == ("declared", pytest.approx(28500))
    read = account([stage.model_copy(update={"joules": 5.0}) for stage in STAGES], AccountingSpec(), MACHINE).energy
    assert read is not None
    assert (read.how, read.joules) == ("measured", 20.0)


def test_stages_serve_student_teacher_or_comparison() -> None:
    parts = {
        "student": ("student", "distil"),
        "teacher": ("label-distil", "generate-a", "teacher"),
        "comparison": ("sft", "sft-a", "evaluate", "suite-tasks"),
    }
    for part, names in parts.items():
        assert [role_of(name) for name in names] == [part] * len(names)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "declares nothing"),
        ({"flops": 1.0, "tokens": 1.0}, "keep one of them"),
        ({"money": 1, "share": 2}, "share"),
    ],
)
def test_a_training_that_says_nothing_or_two_things_is_refused(fields: dict[str, float], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        TeacherTrainingSpec.model_validate(fields)


def test_a_run_that_failed_leaves_its_cost_and_the_next_one_counts_it(
    tiny_llama_folder: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = [f"runs={tmp_path}", "name=run", "evaluation.baselines=[none]"]
    more += ["accounting={price_per_hour: 2, watts: 50, teacher_training: {tokens: 1.0e+6, share: 0.5}}"]
    recipe = load_recipe(RECIPE, [*small_overrides(RECIPE, tiny_llama_folder, text_file), *more])
    folder = RunFolder(tmp_path / "run")

    def fail(*args: Any, **options: Any) -> None:
        time.sleep(0.3)
        raise LmdistillError("the machine stumbled")

    with monkeypatch.context() as patched:
        patched.setattr(train_stage, "train", fail)
        with pytest.raises(LmdistillError, match="stumbled"):
            run_recipe(recipe)
    broken = read_json(folder.file("accounting.json"))
    by_name = {stage["name"]: stage for stage in broken["stages"]}
    assert by_name["distil"]["seconds"] == 0
    assert by_name["distil"]["lost_seconds"] >= 0.3
    assert "the operations of lost attempts of distil" in broken["totals"]["student"]["unknown"]
    (folder.path / "pulse.json").write_text(json.dumps({"stage": "distil", "seconds": 7.0}))  # and a kill

    run_recipe(recipe)
    whole = read_json(folder.file("accounting.json"))
    distil = next(stage for stage in whole["stages"] if stage["name"] == "distil")
    assert distil["attempts"] == 3
    assert distil["lost_seconds"] >= 7.3
    assert distil["lost_flops"] == pytest.approx(distil["flops"] * distil["lost_seconds"] / distil["seconds"])
    assert 0 < distil["teacher_flops"] < distil["flops"]
    totals = whole["totals"]
    assert totals["student"]["flops"] < totals["with_teacher"]["flops"] < totals["with_training"]["flops"]
    assert totals["student"]["money"] > 0
    assert whole["energy"]["how"] == "declared"
    assert whole["disk_bytes"] > 10_000
    assert whole["peak_memory_bytes"] > 2**20
    assert whole["other_seconds"] > 0
    assert stage_costs(folder, ["distil"], ["distil"])[0].skipped
    page = folder.report.read_text(encoding="utf-8").replace("&#39;", "'")
    assert "the teacher's inference" in page
    assert "share of the teacher's training" in page


@pytest.mark.parametrize(("budget", "steps"), [("tokens: 300", 3), ("flops: 1.0", 1), ("tokens: 1.0e+9", 6)])
def test_a_budget_of_tokens_or_operations_ends_training(
    budget: str, steps: int, tiny_llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    overrides = small_overrides(RECIPE, tiny_llama_folder, text_file)  # 2 sequences of at most 64 tokens a step
    more = [f"runs={tmp_path}", "name=run", "evaluation.baselines=[]", f"budget={{{budget}}}", "training.max_steps=6"]
    result = run_recipe(load_recipe(RECIPE, [*overrides, *more, "training.lr_scheduler_type=constant"]))
    assert result.steps == steps
    if budget == "tokens: 300":
        assert 300 <= (RunFolder(tmp_path / "run").record("distil") or {})["tokens"] < 300 + 128
