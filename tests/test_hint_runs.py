"""Hints through the real pipeline: what a run leaves, what it refuses, and students that change while they learn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoConfig

from lmdistill.doctor import examine
from lmdistill.errors import RecipeError
from lmdistill.pipeline import run_recipe
from lmdistill.recipe import Recipe, load_recipe
from small import ROOT, small_overrides

CONTEXT = "data.train.0.fields.context=c"


def recipe(name: str, tiny: Path, text: Path, runs: Path, *more: str) -> Recipe:
    path = ROOT / "recipes" / f"{name}.yaml"
    return load_recipe(path, [*small_overrides(path, tiny, text), f"runs={runs}", *more])


def events(folder: Path, kind: str) -> list[dict[str, object]]:
    lines = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event.get("kind") == kind]


def test_projectors_lie_beside_the_student(tiny_llama_folder: Path, text_file: Path, tmp_path: Path) -> None:
    made = recipe(
        "minitron_hidden",
        tiny_llama_folder,
        text_file,
        tmp_path,
        "objective.hints=[{kind: hidden_mse, projector: {kind: linear}, weight_schedule: loss_magnitude}]",
        "student.width={hidden: 16}",
        "training.logging_steps=1",
    )
    result = run_recipe(made)
    projectors = load_file(result.folder / "projectors-distil.safetensors")
    assert {tuple(value.shape) for name, value in projectors.items() if name.endswith("weight")} == {(32, 16)}
    assert not any("projector" in name for name in load_file(result.folder / "student" / "model.safetensors"))
    steps = events(result.folder, "step")
    assert len(steps) == 2
    for step in steps:  # the hint is as large as the rest, at each step
        assert step["loss"] == pytest.approx(2 * float(step["divergence"]), rel=1e-3)  # type: ignore[arg-type]
        assert float(step["hint_hidden_mse"]) > 0  # type: ignore[arg-type]


def test_blocks_by_themselves_then_the_whole(tiny_llama_folder: Path, text_file: Path, tmp_path: Path) -> None:
    made = recipe("bld", tiny_llama_folder, text_file, tmp_path, "training.logging_steps=1")
    steps = events(run_recipe(made).folder, "step")
    assert [step["stage"] for step in steps] == ["blocks"] * 2 + ["whole"] * 2
    for step in steps[:2]:
        assert step["divergence"] == 0
        assert step["loss"] == pytest.approx(step["hint_hidden_residual_mse"])
    assert all("hint_hidden_residual_mse" not in step for step in steps[2:])


def test_a_student_is_smaller_after_a_stage_that_prunes(
    tiny_llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    made = recipe(
        "forward_kl",
        tiny_llama_folder,
        text_file,
        tmp_path,
        "stages=[{name: prune, pruning: {intermediate: 24, end: 0.5, every: 1}}, {name: thaw, unfreeze: {until: 0.9}}]",
        "training.max_steps=4",
    )
    result = run_recipe(made)
    assert AutoConfig.from_pretrained(result.folder / "student").intermediate_size == 24
    assert (
        load_file(result.folder / "student" / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].shape[0] == 24
    )


@pytest.mark.slow
def test_attention_maps_are_told_to_cost_something(tiny_llama_folder: Path, text_file: Path, tmp_path: Path) -> None:
    made = recipe(
        "forward_kl",
        tiny_llama_folder,
        text_file,
        tmp_path,
        "objective.hints=[{kind: attention_kl, student: [1, -1], teacher: [1, -1]}]",
        "training.activation_checkpointing=true",
    )
    result = run_recipe(made)
    notes = [str(event["text"]) for event in events(result.folder, "note")]
    assert any("sdpa attention makes no maps: layers 1, 2" in note for note in notes)
    config = AutoConfig.from_pretrained(result.folder / "student")
    assert "lmdistill" not in json.dumps(config.to_dict())


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["signals.kind=top_k"], "signals.kind: live"),
        (["teaching={kind: self, context: '{context} {prompt}'}", CONTEXT], "which teaching.kind: self is"),
        (
            ["teaching={context: '{context} {prompt}'}", CONTEXT, "objective.hints=[{kind: attention_kl}]"],
            "text of its own",
        ),
        (["objective.hints=[{kind: hidden_mse, only_current: true}]"], "unfreeze.mode: one"),
        (["student.lora={}", "unfreeze={}"], "leave student.lora away"),
        (
            ["objective.cross_tokenizer={}", "objective.divergence.weight=0"],
            "hints compare position with position",
        ),
        (["objective.block_inputs=teacher", "objective.hints=[]"], "needs a hint"),
        (["objective.hints=[{kind: hiden_mse}]"], "hidden_mse"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    more: list[str], told: str, tiny_llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=told):
        recipe("forward_kl", tiny_llama_folder, text_file, tmp_path, "objective.hints=[{kind: cka}]", *more)


def test_the_doctor_sees_layers_and_widths(tiny_llama_folder: Path, text_file: Path, tmp_path: Path) -> None:
    for hint, told in (
        ("{kind: hidden_mse, student: [5], teacher: [1]}", "layer 5 of the student, which has the layers 0 to 4"),
        ("{kind: attention_kl, student: [0], teacher: [1]}", "layer 0 of the student, which has the layers 1 to 4"),
        ("{kind: hidden_mse}", "the student has 16 and the teacher 32"),
        ("{kind: hidden_mse, projector: {}}", ""),
    ):
        width = "student.width={hidden: 16}"
        made = recipe("forward_kl", tiny_llama_folder, text_file, tmp_path, f"objective.hints=[{hint}]", width)
        made = made.model_copy(update={"student": made.student.model_copy(update={"depth": None})})
        problems = [finding.message for finding in examine(made).findings if finding.severity == "error"]
        assert (told in " ".join(problems)) if told else not problems


@pytest.mark.parametrize(
    ("hint", "told"),
    [
        ("{kind: hidden_mse, student: [1], teacher: [9]}", "layer 9 of the teacher, which has the layers 0 to 4"),
        ("{kind: hidden_mse, student: model.layers.0.mpl, teacher: model.layers.0.mlp}", "nearest: "),
    ],
)
def test_layers_that_are_not_there(
    hint: str, told: str, tiny_llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    made = recipe("forward_kl", tiny_llama_folder, text_file, tmp_path, f"objective.hints=[{hint}]")
    with pytest.raises(ValueError, match=told):
        run_recipe(made)


def test_filters_learn_behind_frozen_models_and_are_then_compared(
    tiny_llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    """TED for decoders: two stages of filters, each lowers the loss of the next token; a second run does nothing."""
    hint = (
        "{kind: hidden_mse, student: [1, 2], positions: all, filters: {training: {max_steps: 8, learning_rate: 0.02}}}"
    )
    made = recipe(
        "ted_decoder",
        tiny_llama_folder,
        text_file,
        tmp_path,
        f"objective.hints=[{hint}]",
        "student.width={hidden: 16}",
        "training.logging_steps=1",
    )
    result = run_recipe(made)
    steps = events(result.folder, "step")
    for side in ("teacher", "student"):
        own = [step for step in steps if step["stage"] == f"filters-{side}-distil"]
        assert len(own) == 8
        assert own[-1]["loss"] < own[0]["loss"]  # type: ignore[operator]
        shapes = {
            tuple(value.shape)
            for name, value in load_file(result.folder / f"filters-{side}-distil.safetensors").items()
            if "weight" in name
        }
        assert shapes == {(32, 32 if side == "teacher" else 16)}
    learnt = [step for step in steps if step["stage"] == "distil"]
    assert len(learnt) == result.steps == 2
    assert all(float(step["hint_hidden_mse"]) > 0 for step in learnt)  # type: ignore[arg-type]
    assert not any("filter" in name for name in load_file(result.folder / "student" / "model.safetensors"))
    costs = {
        stage["name"]: stage for stage in json.loads((result.folder / "accounting.json").read_text("utf-8"))["stages"]
    }
    assert costs["filters-teacher-distil"]["flops"] > 0
    assert not [*(result.folder / "checkpoints").glob("*")]
    written = (result.folder / "filters-student-distil.safetensors").stat().st_mtime_ns
    run_recipe(made)
    assert (result.folder / "filters-student-distil.safetensors").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("hint", "told"),
    [
        ("{kind: cka, filters: {}}", "filters are behind hidden states"),
        ("{kind: hidden_mse, filters: {}, projector: {}}", "take projector away"),
        ("{kind: hidden_mse, filters: {}, map: cka}", "use another map"),
        ("{kind: hidden_mse, filters: {}, student: [0], teacher: [0]}", "by their numbers, from 1"),
        ("{kind: hidden_mse, filters: {}}, {kind: hidden_cosine, filters: {}}", "2 hints with filters"),
    ],
)
def test_filters_that_cannot_be(hint: str, told: str, tiny_llama_folder: Path, text_file: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=told):
        recipe("forward_kl", tiny_llama_folder, text_file, tmp_path, f"objective.hints=[{hint}]")
