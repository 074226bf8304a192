"""A study ends with the same results however it was stopped, and says how far it came."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from lmdistill.errors import EXIT_FAILED, EXIT_INPUT, EXIT_INTERRUPTED, RecipeError
from lmdistill.io import read_json
from lmdistill.study import StudySpec, cells_of, load_study, primers_of, selected, starts_of, states_of
from lmdistill.study.carry import state_of

ROOT = Path(__file__).parents[2]


def fields(tiny: Path, text: Path, folder: Path, **more: Any) -> dict[str, Any]:
    """A study of two methods and two seeds on a tiny model."""
    source = {"path": str(text), "fields": {"text": "text"}, "heldout_share": 0.2}
    base = {
        "teacher": {"model": str(tiny)},
        "student": {"layers": [0, 2]},
        "data": {
            "train": [{**source, "part": "train"}],
            "evaluation": {"held": {**source, "part": "heldout"}},
            "max_length": 64,
        },
        "training": {"max_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 0.01, "save_steps": 1},
        "evaluation": {"baselines": ["none"], "max_tokens": 128, "bootstrap_samples": 100, "speed": None},
        "machine": {"compile": False},
    }
    methods = {"KD": {"method": "forward_kl"}, "reverse | KL": {"method": "reverse_kl"}}
    given = {"name": "small", "runs": str(folder), "base": base, "methods": methods, "seeds": [0, 1], "prime": False}
    return given | more


def written(folder: Path, values: dict[str, Any]) -> Path:
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return file


def command(file: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "lmdistill", "study", str(file), "--json", *options]


def answered(file: Path, *options: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(command(file, *options), capture_output=True, text=True, timeout=300, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return done.returncode, answer


def test_the_grid_is_every_method_student_budget_and_seed(tmp_path: Path) -> None:
    students = {"half": {"student": {"layers": [0]}}, "whole": {}}
    budgets = [{"minutes": 1}, {"tokens": 1e6}]
    spec = StudySpec.model_validate(fields(tmp_path, tmp_path, tmp_path, students=students, budgets=budgets))
    cells = cells_of(spec)
    assert len(cells) == 2 * 2 * 2 * 2
    assert cells[0].name == "kd-half-1-minutes-s0"
    assert [cell.seed for cell in cells] == [0] * 8 + [1] * 8  # a study cut short compares all methods
    recipe = cells[0].resolved()
    assert recipe.budget.minutes == 1
    assert recipe.budget.whole
    assert recipe.training["max_steps"] > 1000
    assert recipe.student.layers == [0]
    assert recipe.folder == tmp_path / "small" / "kd-half-1-minutes-s0"


def test_all_cells_begin_with_what_the_start_leaves(tmp_path: Path) -> None:
    start = {"method": "sft", "training": {"max_steps": 9}}
    spec = StudySpec.model_validate(fields(tmp_path, tmp_path, tmp_path, start=start, prime=True))
    (before,) = starts_of(spec)
    assert before.resolved().method == "sft"
    assert before.resolved().student.layers == [0, 2]
    for cell in [*cells_of(spec), *primers_of(spec)]:
        student = cell.resolved().student
        assert (student.start, student.layers) == ("pretrained", None)
        assert student.model is not None
        assert student.model.model == str(before.folder / "student")
    assert all(cell.resolved().training["max_steps"] == 2 for cell in primers_of(spec))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"methodes": {}}, "did you mean 'methods'"),
        ({"baseline": "GKD"}, "no method"),
        ({"seeds": [1, 1]}, "same seed twice"),
        ({"budgets": [{"minutes": 1, "tokens": 5}]}, "one of minutes"),
        ({"name": "../up"}, "cannot name a folder"),
        ({"methods": {}}, "methods"),
    ],
)
def test_a_wrong_study_is_refused_with_the_place(more: dict[str, Any], words: str, tmp_path: Path) -> None:
    file = written(tmp_path, fields(tmp_path, tmp_path, tmp_path, **more))
    with pytest.raises(RecipeError, match=words):
        load_study(file)


def test_cells_are_chosen_by_pattern_and_names_must_differ(tmp_path: Path) -> None:
    spec = StudySpec.model_validate(fields(tmp_path, tmp_path, tmp_path))
    assert [cell.name for cell in selected(cells_of(spec), ["kd-*"])] == ["kd-s0", "kd-s1"]
    with pytest.raises(RecipeError, match="no cell is called so"):
        selected(cells_of(spec), ["gkd-*"])
    methods = {"a b": {"method": "sft"}, "a-b": {"method": "sft"}}
    with pytest.raises(RecipeError, match="two cells are called a-b-s0"):
        cells_of(StudySpec.model_validate(fields(tmp_path, tmp_path, tmp_path, methods=methods)))


def test_a_cell_with_a_wrong_recipe_is_told_before_anything_runs(tmp_path: Path, tiny_llama_folder: Path) -> None:
    methods = {"KD": {"method": "forward_kl"}, "bad": {"methd": "x"}}
    file = written(tmp_path, fields(tiny_llama_folder, tmp_path, tmp_path, methods=methods))
    code, answer = answered(file)
    assert code == EXIT_INPUT
    assert "cell bad-s0" in answer["error"]["message"]
    assert not list(tmp_path.glob("small/*/"))


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("survey*.yaml")), ids=lambda path: path.name)
def test_the_surveys_studies_are_sound(path: Path) -> None:
    spec = load_study(path)
    names = {cell.name for cell in cells_of(spec)}
    assert len(names) == len(spec.methods) * len(spec.seeds) * len(spec.students) * max(1, len(spec.budgets))
    for cell in [*starts_of(spec), *primers_of(spec), *cells_of(spec)[: len(spec.methods)]]:
        cell.resolved()


@pytest.mark.slow
def test_a_study_that_is_killed_stopped_and_broken_ends_with_all_its_cells(
    tiny_llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    values = fields(tiny_llama_folder, text_file, tmp_path, page=str(tmp_path / "page.md"))
    values["methods"]["broken"] = {"method": "forward_kl", "training": {"learning_rate": 1e30, "max_grad_norm": 0}}
    values["methods"]["broken"]["training"] |= {"warmup_steps": 0, "max_steps": 4}
    file = written(tmp_path, values)
    spec = load_study(file)
    first, second = cells_of(spec)[:2]

    # Killed while its first cell is at work: the cell's own process goes on and is waited for.
    child = subprocess.Popen(command(file), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until(lambda: (first.folder / "events.jsonl").is_file(), child)
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    assert state_of(first).state == "open"

    # Stopped by a signal in its second cell: the first is done, the page says so.
    child = subprocess.Popen(command(file), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: (second.folder / "events.jsonl").is_file(), child)
    child.send_signal(signal.SIGTERM)
    out, _ = child.communicate(timeout=120)
    assert child.returncode == EXIT_INTERRUPTED, out
    assert state_of(first).state == "done"
    assert state_of(second).state == "open"
    page = (spec.folder / "study.html").read_text(encoding="utf-8")
    assert "Partial: 1 of 6 cells are done" in page
    assert (spec.folder / "results.csv").read_text(encoding="utf-8").count("kd-s0") > 5
    assert not Path(spec.page or "").exists()

    # A method that cannot work fails alone.
    code, answer = answered(file)
    assert code == EXIT_FAILED
    assert (answer["done"], answer["failed"], answer["open"]) == (4, 2, 0)
    assert "2 failed" in (spec.folder / "results.md").read_text(encoding="utf-8")
    before = {name: state.seconds for name, state in states_of(spec).items()}

    # Mended, only its cells are run; then everything is there.
    del values["methods"]["broken"]
    values["methods"]["mended"] = {"method": "jsd"}
    code, answer = answered(written(tmp_path, values))
    assert (code, answer["done"], answer["failed"]) == (0, 6, 0)
    after = {name: state.seconds for name, state in states_of(load_study(file)).items()}
    assert all(before[name] == after[name] for name in ("kd-s0", "kd-s1", "reverse-kl-s0", "reverse-kl-s1"))
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "Partial" not in text
    assert r"| reverse \| KL |" in text
    with open(spec.folder / "results.csv", encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    value = next(row for row in rows if row["cell"] == "kd-s1" and row["measure"] == "held/forward_kl")
    evaluation = read_json(spec.folder / "kd-s1" / "evaluation.json")
    own = next(model for model in evaluation["models"] if model["role"] == "student")
    assert float(value["value"]) == own["texts"]["held"]["forward_kl"]["value"]
    assert (spec.folder / "runs.html").is_file()


def until(wanted: Any, child: subprocess.Popen[Any], seconds: float = 120) -> None:
    """Wait for something that a process does. Fails where the process ends before."""
    deadline = time.monotonic() + seconds
    while not wanted():
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
