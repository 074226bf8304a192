"""Contamination: every exact copy and every shared run of 13 words is found, and nothing else."""

from __future__ import annotations

import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lmdistill.data import Contamination, Document, contamination
from lmdistill.data.deduplicate import NGRAM


def documents(texts: list[str], name: str) -> list[Document]:
    return [Document(text=text, origin=f"{name}:{number}") for number, text in enumerate(texts, start=1)]


def compare(train: list[str], heldout: list[str]) -> Contamination:
    return contamination(documents(train, "train"), documents(heldout, "heldout"))


def words(start: int, count: int) -> str:
    return " ".join(f"word{number}" for number in range(start, start + count))


def test_exact_copies_are_found_with_their_origins() -> None:
    found = compare(["short one", words(0, 40)], ["other", f" {words(0, 40)}\n", "short  one"])
    assert (found.exact, found.overlapping) == (2, 1)
    assert [(copy.heldout, copy.train) for copy in found.exact_examples] == [
        ("heldout:2", "train:2"),
        ("heldout:3", "train:1"),
    ]
    assert found.overlap_examples == []
    assert (found.heldout_ngrams, found.shared_ngrams) == (28, 28)
    assert Contamination.model_validate_json(found.model_dump_json()) == found


def test_a_shared_run_is_found_and_a_shorter_one_is_not() -> None:
    shared = words(100, NGRAM)
    found = compare([f"{words(0, 20)} {shared} {words(30, 5)}"], [f"{words(50, 9)}, {shared.upper()}! {words(60, 9)}"])
    assert (found.exact, found.overlapping, found.shared_ngrams) == (0, 1, 1)
    (example,) = found.overlap_examples
    assert (example.heldout, example.train, example.shared) == ("heldout:1", "train:1", shared)
    shorter = words(100, NGRAM - 1)
    assert compare([f"{words(0, 20)} {shorter} {words(30, 5)}"], [f"{words(50, 9)} {shorter} x"]).overlapping == 0


def test_nothing_to_compare() -> None:
    assert compare([], ["a"]).exact == 0
    assert compare(["a"], []).heldout_documents == 0


def test_all_parts_of_a_document_count() -> None:
    talk = [{"role": "user", "content": words(0, 6)}, {"role": "assistant", "content": words(6, 20)}]
    train = [Document(messages=talk, origin="train:1")]
    held = [Document(prompt="Q", response=words(6, 20), origin="heldout:1")]
    assert contamination(train, held).overlapping == 1


def by_definition(train: list[str], heldout: list[str]) -> tuple[int, int]:
    """Held-out texts that share a run, and shared runs, by sets of tuples."""

    def runs(text: str) -> list[tuple[str, ...]]:
        split = text.split()
        return [tuple(split[at : at + NGRAM]) for at in range(len(split) - NGRAM + 1)]

    known = {run for text in train for run in runs(text)}
    shared = [sum(run in known for run in runs(text)) for text in heldout]
    return sum(count > 0 for count in shared), sum(shared)


text = st.lists(st.sampled_from("ab"), max_size=30).map(" ".join)


@settings(max_examples=200, deadline=None)
@given(train=st.lists(text, max_size=4), heldout=st.lists(text, max_size=4))
def test_equals_the_definition(train: list[str], heldout: list[str]) -> None:
    found = compare(train, heldout)
    assert (found.overlapping, found.shared_ngrams) == by_definition(train, heldout)
    assert found.exact == sum(text in train for text in heldout)


def test_twelve_thousand_passages_take_seconds() -> None:
    draw = np.random.Generator(np.random.PCG64(0)).zipf(1.3, (12_000, 110)) % 50_000
    passages = [" ".join(map(str, row)) for row in draw.tolist()]
    start = time.perf_counter()
    found = compare(passages, passages[:300])
    assert found.exact == found.overlapping == 300
    assert time.perf_counter() - start < 20
