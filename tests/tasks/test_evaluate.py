"""Scores of embeddings and of numbers: whole, against the labels and against the teacher."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_task_runs import recipe

from lmdistill.evaluation.results import Evaluation
from lmdistill.io import read_json
from lmdistill.pipeline import run_recipe

QUIET = {"baselines": [], "speed": None, "bootstrap_samples": 100}


@pytest.mark.parametrize("pair", ["second", None])
def test_embeddings_are_compared_with_the_teachers_where_there_are_no_labels(pair: str | None, tmp_path: Path) -> None:
    task = {"kind": "sentence_embedding", "label": None, "text_pair": pair}
    objective = {"divergence": {"weight": 1.0}, "cross_entropy": {"weight": 0.5 if pair else 0.0}}
    result = run_recipe(recipe(tmp_path, task=task, objective=objective, evaluation=QUIET))
    evaluation = Evaluation.model_validate(read_json(result.folder / "evaluation.json"))
    teacher, student = (evaluation.scores(role).task["held"] for role in ("teacher", "student"))  # type: ignore[union-attr]
    assert teacher.reference == student.reference == "teacher"
    assert teacher.metrics["cosine_spearman"].value == pytest.approx(1.0)
    assert student.agreement is not None
    assert student.agreement.value == pytest.approx(student.metrics["cosine_spearman"].value)
    assert student.items == student.rows


def test_numbers_are_learnt_and_correlated(tmp_path: Path) -> None:
    task = {"kind": "sequence_regression", "label": "number", "teacher": {"training": {"max_steps": 2}}}
    result = run_recipe(recipe(tmp_path, task=task, evaluation=QUIET))
    evaluation = Evaluation.model_validate(read_json(result.folder / "evaluation.json"))
    student = evaluation.scores("student")
    assert student is not None
    assert set(student.task["held"].metrics) == {"pearson", "spearman"}
    assert student.task["held"].forward_kl is None
    events = (result.folder / "events.jsonl").read_text(encoding="utf-8")
    assert '"divergence": 0.0' not in [line for line in events.splitlines() if '"stage": "distil"' in line][-1]
