"""Exports: the columns are those that TRL and others document, nothing is lost, nothing acts on a terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from generation.rows import row
from lmdistill.errors import DataError
from lmdistill.generation.export import EXPORT_FORMATS, ExportFormat, export, read_export
from lmdistill.generation.types import Example, Provenance

# TRL, "Dataset formats and types" (huggingface.co/docs/trl/dataset_formats), read in November 2026; Stanford Alpaca's
# README; LLaMA-Factory's data/README for the preference form; ShareGPT as FastChat reads it.
COLUMNS: dict[str, dict[str, Any]] = {
    "trl_prompt_completion": {"prompt": str, "completion": str},
    "trl_prompt_completion_chat": {"prompt": ["user"], "completion": ["assistant"]},
    "trl_preference": {"prompt": str, "chosen": str, "rejected": str},
    "trl_preference_chat": {"prompt": ["user"], "chosen": ["assistant"], "rejected": ["assistant"]},
    "trl_unpaired": {"prompt": str, "completion": str, "label": bool},
    "trl_unpaired_chat": {"prompt": ["user"], "completion": ["assistant"], "label": bool},
    "alpaca": {"instruction": str, "input": str, "output": str},
    "alpaca_preference": {"instruction": str, "input": str, "chosen": str, "rejected": str},
    "sharegpt": {"conversations": ["human", "gpt"]},
    "messages": {"messages": ["user", "assistant"]},
}
PAIR = row(
    "It is blue.",
    "What colour is the sky?",
    "p1",
    task="preference",
    seed="s",
    verdict="correct",
    answer="blue",
    fields={"rejected": "It is green.", "margin": 0.5},
    provenance=Provenance(teacher="t", requests=("k1", "k2"), time="2026-11-25", recipe="r", filters=("empty",)),
)


@pytest.mark.parametrize("format", EXPORT_FORMATS)
def test_columns_are_as_documented_and_rows_come_back(format: ExportFormat, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    other = row("x", "y", "p2", fields={"rejected": "z", "system": "Be short."}, verdict="unverifiable")
    count = export([PAIR, other], file, format)
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert count == len(rows) == (4 if "unpaired" in format else 2)
    for each, system in zip(rows[:1] + rows[-1:], ([], ["system"]), strict=True):
        side = json.loads(each.pop("lmdistill"))
        assert set(each) == set(COLUMNS[format])
        for name, kind in COLUMNS[format].items():
            if isinstance(kind, list):
                turns = [turn.get("role", turn.get("from")) for turn in each[name]]
                assert turns == (system if kind[0] in ("user", "human") else []) + kind
            else:
                assert type(each[name]) is kind
    assert side["id"] == "p2"
    assert list(read_export(file)) == [PAIR, other]


def test_unpaired_rows_are_labelled(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    verified = [row("7", name="a", verdict="correct"), row("8", name="b", verdict="incorrect")]
    assert export([PAIR, *verified], file, "trl_unpaired") == 4
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [(each["completion"], each["label"]) for each in rows] == [
        ("It is blue.", True), ("It is green.", False), ("7", True), ("8", False)
    ]  # fmt: skip
    assert list(read_export(file)) == [PAIR, *verified]


def test_alpaca_keeps_instruction_and_input_apart(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    example = row("Hallo", "Translate.\n\nHello", "a", fields={"instruction": "Translate.", "input": "Hello"})
    export([example], file, "alpaca")
    written = json.loads(file.read_text(encoding="utf-8"))
    assert (written["instruction"], written["input"], written["output"]) == ("Translate.", "Hello", "Hallo")
    assert list(read_export(file)) == [example]


def test_what_does_not_fit_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    export([PAIR], file, "trl_preference")
    before = file.read_bytes()
    with pytest.raises(DataError, match="row lone: no rejected answer"):
        export([PAIR, row("x", name="lone")], file, "trl_preference")
    with pytest.raises(DataError, match="row lone: neither a pair nor verified"):
        export([row("x", name="lone", verdict="unverifiable")], file, "trl_unpaired")
    with pytest.raises(DataError, match="did you mean 'alpaca'"):
        export([PAIR], file, "alpacca")  # type: ignore[arg-type]
    assert file.read_bytes() == before
    (tmp_path / "foreign.jsonl").write_text('{"prompt": "x", "completion": "y"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"foreign.jsonl:1: not a line of an export"):
        list(read_export(tmp_path / "foreign.jsonl"))


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.tuples(TEXT, TEXT, TEXT), max_size=4), format=st.sampled_from(EXPORT_FORMATS))
def test_any_text_comes_back_and_no_raw_control_byte_is_written(
    texts: list[tuple[str, str, str]], format: ExportFormat, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [
        Example(id=f"r{number}", prompt=prompt, response=response, fields={"rejected": rejected})
        for number, (prompt, response, rejected) in enumerate(texts)
    ]
    export(rows, file, format)
    written = file.read_text(encoding="utf-8")
    assert not any(c != "\n" and (ord(c) < 32 or 127 <= ord(c) < 160) for c in written)
    assert len(written.splitlines()) == len(rows) * (2 if "unpaired" in format else 1)
    assert list(read_export(file)) == rows


def test_the_file_is_what_datasets_reads(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    file = tmp_path / "rows.jsonl"
    export([PAIR, row("x", "y", "p2", fields={"rejected": "z"})], file, "trl_preference_chat")
    table = datasets.Dataset.from_json(str(file), cache_dir=str(tmp_path / "cache"))
    assert table.column_names == ["prompt", "chosen", "rejected", "lmdistill"]
    assert table[1]["chosen"] == [{"role": "assistant", "content": "x"}]
