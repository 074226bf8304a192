"""Rows of several tasks, rows in pairs, responses of which a part is given: what the columns of the data set say."""

from __future__ import annotations

import pytest
import tokenizers_for_tests as family
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmdistill.data import Collator, DataReport, Document, build_dataset
from lmdistill.errors import DataError
from lmdistill.progress import Progress
from lmdistill.recipe import DataSpec, SourceSpec

CHAT = family.make_tokenizer("chatml", family.CHATML)
PLAIN = family.make_tokenizer("gemma")


def build(documents, tokenizer=CHAT, **values):
    spec = DataSpec(**{"train": [SourceSpec(path="x.jsonl")], "max_length": 96, **values})
    return build_dataset(documents, tokenizer, spec, seed=0, report=DataReport(), progress=Progress())


def learnt(row, tokenizer) -> str:
    """The text of the labels of a row."""
    return tokenizer.decode([label for label in row["labels"] if label != -100])


def tasks(counts: dict[str, int]) -> list[Document]:
    return [
        Document(prompt=f"{task} {n}", response="four " * (1 + n % 3), task=task, origin=f"{task}:{n}")
        for task, count in counts.items()
        for n in range(count)
    ]


@settings(max_examples=20, deadline=None)
@given(label=st.integers(1, 9), rationale=st.integers(1, 9), share=st.sampled_from([0.5, 0.2, 1.0]))
def test_each_task_has_its_share_of_the_weight(label: int, rationale: int, share: float) -> None:
    balance = {"label": share, "rationale": 1 - share}
    dataset = build(tasks({"label": label, "rationale": rationale}), packing=False, balance=balance)
    sums, count = {"label": 0.0, "rationale": 0.0}, 0
    for row in dataset:
        task = "label" if "label" in CHAT.decode(row["input_ids"]) else "rationale"
        trained = [weight for weight, one in zip(row["loss_weights"], row["labels"], strict=True) if one != -100]
        sums[task] += sum(trained)
        count += len(trained)
    assert sums["label"] / count == pytest.approx(share, rel=1e-5, abs=1e-9)
    assert sums["rationale"] / count == pytest.approx(1 - share, rel=1e-5, abs=1e-9)


def test_balance_must_name_the_tasks_of_the_rows() -> None:
    with pytest.raises(DataError, match=r"names the tasks label, other, but the rows have label, rationale"):
        build(tasks({"label": 1, "rationale": 1}), balance={"label": 0.5, "other": 0.5})


def test_rows_without_tasks_are_left_alone() -> None:
    dataset = build([Document(prompt="a", response="four", origin="x:1")], balance={"label": 1.0})
    assert "loss_weights" not in dataset.column_names


@pytest.mark.parametrize("tokenizer", [CHAT, PLAIN], ids=["chat", "plain"])
def test_what_is_given_is_read_and_not_learnt(tokenizer) -> None:
    response = " It is two and two. The answer is four"
    whole = build([Document(prompt="What?", response=response, origin="x:1")], tokenizer)[0]
    document = Document(prompt="What?", response=response, given=response.index(" four"), origin="x:1")
    row = build([document], tokenizer)[0]
    assert row["input_ids"] == whole["input_ids"]
    assert "The answer is four" in learnt(whole, tokenizer)
    assert "answer" not in learnt(row, tokenizer)
    assert "four" in learnt(row, tokenizer)


def pair(name: str, first: str, second: str, answer: str = "four") -> list[Document]:
    return [
        Document(
            prompt="What is two and two?",
            response=text,
            twin=name,
            span=(text.rindex(answer), text.rindex(answer) + len(answer)),
            task=task,
            origin=f"{name}:{task}",
        )
        for task, text in (("first", first), ("second", second))
    ]


def test_a_pair_is_one_sequence_and_its_answers_point_at_each_other() -> None:
    documents = pair("a", "It is four.", "What two and two is, is four.") + [
        Document(prompt="What?", response=f"It is {n}", origin=f"x:{n}") for n in range(4)
    ]
    dataset = build(documents)
    paired = [row for row in dataset if max(row["twins"]) >= 0]
    assert len(paired) == 1
    row = paired[0]
    assert row["position_ids"].count(0) == 2
    places = [place for place, twin in enumerate(row["twins"]) if twin >= 0]
    second = row["position_ids"].index(0, 1)
    assert all(place < second <= row["twins"][place] for place in places)
    for place in places:
        assert row["input_ids"][place] == row["input_ids"][row["twins"][place]] == row["labels"][place]
    assert CHAT.decode([row["input_ids"][place] for place in places]).strip() == "four"
    batch = Collator()(list(dataset))
    assert batch["twins"].shape == batch["input_ids"].shape
    assert batch["twins"].dtype == torch.long
    assert int((batch["twins"] >= 0).sum()) == len(places)


def test_spans_of_different_tokens_have_no_twins() -> None:
    first = pair("a", "It is four.", "It is what it is: four.")[0]
    other = Document(prompt="What?", response="It is two.", twin="a", span=(6, 9), task="second", origin="a:2")
    assert max(build([first, other])[0]["twins"]) == -1


def test_a_row_whose_twin_is_missing_is_an_ordinary_row() -> None:
    dataset = build(pair("a", "It is four.", "It is two and two, four.")[:1])
    assert "twins" not in dataset.column_names
