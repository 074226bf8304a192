"""The journal of what was written: readable, robust, and the same share in every run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmdistill.trajectories import journal
from lmdistill.trajectories.journal import FILE, Entry, Journal, read, recent
from lmdistill.trajectories.types import Author, Trajectory

S, T = Author.STUDENT, Author.TEACHER


class Letters:
    """Ids are code points, so that a text can hold anything."""

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


def text(row: str, answer: str, authors: list[int] | None = None, **fields: Any) -> Trajectory:
    ids = [ord(letter) for letter in answer]
    values: dict[str, Any] = {
        "prompt_ids": [ord("?")],
        "answer_ids": ids,
        "authors": authors or [S] * len(ids),
        "logprobs": [-0.5] * len(ids),
        "finished": True,
        "step": 3,
        "row_id": row,
    }
    return Trajectory(**(values | fields))


def keep(folder: Path, items: list[Trajectory], share: float = 1.0, seed: int = 0) -> int:
    return Journal(folder, Letters(), share=share, seed=seed).keep(items)  # type: ignore[arg-type]


def test_what_is_kept_is_what_is_read(tmp_path: Path) -> None:
    items = [
        text("a", "hey!", [S, S, T, S]),
        text("b", "\x1b[31mred\n\u2028\udc80 \x00", logprobs=None, finished=False),
        text("c", "", step=9),
    ]
    assert keep(tmp_path, items) == 3
    assert list(read(tmp_path)) == [
        Entry(3, "a", "?", "hey!", [(S, 2), (T, 1), (S, 1)], True, -0.5),
        Entry(3, "b", "?", "\x1b[31mred\n\u2028\udc80 \x00", [(S, 13)], False, None),
        Entry(9, "c", "?", "", [], True, None),
    ]
    assert [entry.tokens for entry in read(tmp_path)] == [4, 13, 0]
    raw = (tmp_path / journal.FILE).read_bytes()
    assert raw.count(b"\n") == 3
    assert min(byte for byte in raw if byte != 10) >= 32  # nothing that a terminal would act on
    assert recent(tmp_path, 2) == list(read(tmp_path))[1:]
    assert recent(tmp_path, 0) == []
    assert recent(tmp_path / "none", 5) == []


def test_a_journal_is_cut_to_what_a_checkpoint_knows(tmp_path: Path) -> None:
    def journal(stage: str) -> Journal:
        return Journal(tmp_path, Letters(), share=1.0, seed=0, stage=stage)  # type: ignore[arg-type]

    earlier, later = journal("warm"), journal("distil")
    earlier.keep([text("a", "1"), text("b", "2")])
    later.keep([text("a", "3"), text("b", "4"), text("c", "5")])
    with open(tmp_path / FILE, "ab") as file:
        file.write(b'{"stage": "distil", "st')  # a kill cut it short
    later = journal("distil")
    later.cut(1)
    left = [(entry.stage, entry.completion) for entry in read(tmp_path)]
    assert left == [("warm", "1"), ("warm", "2"), ("distil", "3")]
    later.keep([text("b", "4 again")])
    assert later.kept == 2
    assert [entry.completion for entry in read(tmp_path)] == ["1", "2", "3", "4 again"]
    later.cut(5)  # a file that a person has shortened is no reason to stop
    journal("distil").cut(0)
    assert [entry.completion for entry in read(tmp_path)] == ["1", "2"]
    Journal(tmp_path / "none", Letters(), share=1.0, seed=0).cut(0)  # type: ignore[arg-type]


def test_a_share_is_kept_and_the_same_one_again(tmp_path: Path) -> None:
    items = [text(f"row {number}", "x") for number in range(2000)]
    kept = keep(tmp_path / "one", items, share=0.1)
    assert 130 < kept < 270
    keep(tmp_path / "two", items, share=0.1)
    assert (tmp_path / "one" / journal.FILE).read_text() == (tmp_path / "two" / journal.FILE).read_text()
    keep(tmp_path / "three", items, share=0.1, seed=1)
    assert list(read(tmp_path / "one")) != list(read(tmp_path / "three"))
    assert keep(tmp_path / "four", items, share=0.0) == 0
    assert not (tmp_path / "four").exists()


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 400), rubbish=st.binary(max_size=60))
def test_a_cut_or_spoilt_line_costs_only_itself(
    cut: int, rubbish: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    keep(folder, [text("a", "one"), text("b", "two"), text("c", "three")])
    path = folder / journal.FILE
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - cut] + rubbish if cut else whole)
    before = [entry.row_id for entry in read(folder)]
    assert before in ([], ["a"], ["a", "b"], ["a", "b", "c"])
    keep(folder, [text("d", "four")])
    after = [entry.row_id for entry in read(folder)]
    assert after[-1] == "d"
    assert after[: len(before)] == before


@pytest.mark.parametrize("line", ["{}", "[]", "3", "null", '{"step": "x"}', "[" * 100_000])
def test_lines_that_are_not_ours_are_left_out(line: str, tmp_path: Path) -> None:
    keep(tmp_path, [text("a", "one")])
    with (tmp_path / journal.FILE).open("a") as file:
        file.write(line + "\n")
        value = json.loads((tmp_path / journal.FILE).read_text().splitlines()[0])
        for name, wrong in (("authors", [["nobody", 1]]), ("mean_logprob", float("nan")), ("step", None)):
            file.write(json.dumps(value | {name: wrong}) + "\n")
    assert [entry.row_id for entry in read(tmp_path)] == ["a"]
