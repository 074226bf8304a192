"""`lmdistill data export`: a run's rows in other tools' formats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lmdistill.cli import app
from lmdistill.errors import DataError
from lmdistill.generation.exporting import export_run
from lmdistill.generation.types import Example


def run_with(folder: Path, name: str, *rounds: list[Example]) -> Path:
    for number, rows in enumerate(rounds, start=1):
        path = folder / "generated" / f"round-{number}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row.row()) + "\n" for row in rows), encoding="utf-8")
    return folder


def test_all_rounds_are_written_in_their_order(tmp_path: Path) -> None:
    rounds = [[Example(str(n), f"question {n}", f"answer {n}")] for n in range(1, 12)]
    run = run_with(tmp_path / "run", "examples.jsonl", *rounds)
    result = CliRunner().invoke(app, ["data", "export", str(run), "-o", str(tmp_path / "out.jsonl"), "--json"])
    assert json.loads(result.stdout)["rows"] == 11
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["messages"][0]["content"] for line in lines] == [f"question {n}" for n in range(1, 12)]


def test_pairs_come_from_the_file_of_pairs(tmp_path: Path) -> None:
    pair = Example("p", "question", "good", task="preference", fields={"rejected": "bad"})
    run = run_with(tmp_path / "run", "preferences.jsonl", [pair])
    assert export_run(run, tmp_path / "out.jsonl", "trl_preference") == 1
    row = json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8"))
    assert (row["prompt"], row["chosen"], row["rejected"]) == ("question", "good", "bad")


def test_what_is_missing_or_unknown_is_said(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", "examples.jsonl", [Example("1", "q", "a")])
    with pytest.raises(DataError, match=r"set generation\.preferences"):
        export_run(run, tmp_path / "out.jsonl", "trl_preference")
    with pytest.raises(DataError, match="did you mean 'alpaca'"):
        export_run(run, tmp_path / "out.jsonl", "alpacca")
    (tmp_path / "broken.jsonl").write_text("{\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"broken\.jsonl:1"):
        export_run(tmp_path / "broken.jsonl", tmp_path / "out.jsonl", "messages")
    assert not (tmp_path / "out.jsonl").exists()
