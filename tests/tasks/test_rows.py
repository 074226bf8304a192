"""From columns to examples: labels of all kinds, and what is refused, with the row and both numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lmdistill.data import DataReport
from lmdistill.errors import DataError
from lmdistill.progress import Progress
from lmdistill.recipe import SourceSpec
from lmdistill.recipe.task import TaskSpec
from lmdistill.tasks.encode import IGNORED, TaskCollator, encode_examples
from lmdistill.tasks.rows import Example, classes_of, read_examples
from small_task import tiny_encoder


def read(path: Path, task: TaskSpec, **options: Any) -> list[Example]:
    source = SourceSpec(path=str(path), **options)
    return read_examples(source, task, seed=0, on_bad_rows="stop", progress=Progress())[0]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_labels_are_names_whatever_json_calls_them(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": f"t{n}", "label": label} for n, label in enumerate((True, 3, " x "))])
    assert [example.label for example in read(path, TaskSpec())] == ["true", "3", "x"]


def test_the_class_within_a_label(tmp_path: Path) -> None:
    """MMLU's answers are whole options; the letter is the class."""
    path = write(tmp_path / "a.jsonl", [{"text": "t", "label": "B. 9 lines"}, {"text": "u", "label": "D. A. D."}])
    for pattern, found in ((r"^([A-D])\.", ["B", "D"]), (r"^[A-D]\.", ["B.", "D."])):
        assert [example.label for example in read(path, TaskSpec(label_pattern=pattern))] == found
    with pytest.raises(DataError, match=r"a.jsonl:1: 'label' is 'B. 9 lines', in which task.label_pattern"):
        read(path, TaskSpec(label_pattern=r"^[E-F]"))
    with pytest.raises(ValueError, match="is no regular expression"):
        TaskSpec(label_pattern="(")
    with pytest.raises(ValueError, match=r"remove task\.label_pattern"):
        TaskSpec(kind="sequence_regression", label_pattern="x")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "t"}, r"a.jsonl:1: no column 'label' \(task.label\)"),
        ({"text": "t", "label": None}, "'label' is null"),
        ({"text": "t", "label": ""}, "'label' is empty; a label is missing"),
        ({"text": "t", "label": [1]}, "is a list, not the name of a class"),
        ({"label": "x"}, r"no column 'text' \(task.text\)"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / "a.jsonl", [row]), TaskSpec())


def test_words_and_labels_must_be_as_many(tmp_path: Path) -> None:
    task = TaskSpec(kind="token_classification", text="tokens", label="tags")
    path = write(tmp_path / "a.jsonl", [{"tokens": ["a", "b", "c"], "tags": ["O", "O"]}])
    with pytest.raises(DataError, match="3 words but 2 labels"):
        read(path, task)


def test_one_class_alone_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": f"t{n}", "label": "x"} for n in range(3)])
    with pytest.raises(
        DataError, match="all 3 labels of the training rows are 'x': nothing can be learnt from 1 class"
    ):
        classes_of(TaskSpec(), read(path, TaskSpec()))


def test_an_unknown_label_gets_the_nearest(tmp_path: Path) -> None:
    task = TaskSpec(labels=["positive", "negative"])
    path = write(tmp_path / "a.jsonl", [{"text": "t", "label": "positiv"}])
    with pytest.raises(DataError, match=r"a.jsonl:1: the label 'positiv' is none of the 2 classes; did you mean 'pos"):
        classes_of(task, read(path, task))


def test_rows_that_differ_in_their_label_alone_stand_on_one_side(tmp_path: Path) -> None:
    rows = [{"text": f"text {n % 20}", "label": str(n // 20)} for n in range(40)]
    path = write(tmp_path / "a.jsonl", rows)
    sides = [
        {example.text for example in read(path, TaskSpec(), part=part, heldout_share=0.4, unique=False)}
        for part in ("train", "heldout")
    ]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 20


def test_csv_and_conll_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,label\n"one, two\nlines",x\nthree,y\n', encoding="utf-8")
    assert [(e.text, e.label) for e in read(tmp_path / "a.csv", TaskSpec())] == [
        ("one, two\nlines", "x"),
        ("three", "y"),
    ]
    (tmp_path / "b.conll").write_text("-DOCSTART- O\n\nJapan NNP B-LOC\nwins VB O\n\nno DT O\n", encoding="utf-8")
    task = TaskSpec(kind="token_classification", text="tokens", label="tags")
    found = read(tmp_path / "b.conll", task)
    assert [(e.words, e.label) for e in found] == [(["Japan", "wins"], ["B-LOC", "O"]), (["no"], ["O"])]
    assert [e.document.origin.rpartition(":")[2] for e in found] == ["3", "6"]


def test_a_csv_row_of_another_length_says_both(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na\n", encoding="utf-8")
    with pytest.raises(DataError, match="1 cells where the first line names 2 columns"):
        read(tmp_path / "a.csv", TaskSpec())


def test_the_first_piece_of_a_word_has_its_label(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder(tmp_path))
    task = TaskSpec(kind="token_classification", text="tokens", label="tags")
    path = write(tmp_path / "a.jsonl", [{"tokens": ["the", "zebra", "runs"], "tags": ["O", "B-X", "O"]}])
    rows = encode_examples(read(path, task), task.kind, ["B-X", "O"], tokenizer, 64, DataReport())
    pieces = tokenizer.convert_ids_to_tokens(rows[0]["input_ids"])
    assert len(rows[0]["labels"]) == len(pieces)
    labelled = {piece: label for piece, label in zip(pieces, rows[0]["labels"], strict=True) if label != IGNORED}
    assert list(labelled.values()) == [1, 0, 1]
    assert next(iter(labelled)) == "the"


def test_rows_whose_labels_are_all_cut_are_counted_and_none_left_is_an_error(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder(tmp_path))
    task = TaskSpec(kind="token_classification", text="tokens", label="tags")
    path = write(tmp_path / "a.jsonl", [{"tokens": ["the"], "tags": ["O"]}])
    report = DataReport()
    with pytest.raises(DataError, match=r"none of 1 rows has a label within data\.max_length = 2 tokens"):
        encode_examples(read(path, task), task.kind, ["O", "X"], tokenizer, 2, report)
    assert report.fully_masked == 1


def test_masks_leave_special_tokens_alone_and_every_row_something(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder(tmp_path))
    task = TaskSpec(kind="masked_lm", label=None)
    path = write(tmp_path / "a.jsonl", [{"text": "the cat runs"}, {"text": "a dog"}])
    rows = encode_examples(read(path, task), task.kind, [], tokenizer, 64, DataReport())
    collate = TaskCollator("masked_lm", tokenizer, masking=0.01, seed=3)
    batch = collate([rows[0], rows[1]])
    chosen = batch["labels"] != IGNORED
    assert chosen.any(-1).all()
    special = set(tokenizer.all_special_ids)
    assert not special & set(batch["labels"][chosen].tolist())
    again = collate([rows[0], rows[1]])
    assert (again["labels"] == batch["labels"]).all()
    assert (again["input_ids"] == batch["input_ids"]).all()
