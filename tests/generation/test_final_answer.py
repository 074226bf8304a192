"""The final answer is found where a response marks it, or not at all."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lmdistill.generation.final_answer import LONGEST_RESPONSE, extract_answer, extract_gold
from lmdistill.generation.numbers import parse_quantity
from lmdistill.recipe.generation_verify import VerifySpec

DATA = Path("/work/shared/data")
OPTION = VerifySpec(answer="option", kind="option")
TEXT = VerifySpec(kind="text")
FORMATS = [
    VerifySpec(answer=form, kind=kind)
    for form, kind in [
        ("marked", "number"), ("marked", "text"), ("marked", "math"), ("last_number", "number"), ("option", "option"),
        ("yes_no", "yes_no"), ("json", "number"), ("program", "number"), ("whole", "text"),
    ]
]  # fmt: skip


@pytest.mark.parametrize(
    ("response", "spec", "answer"),
    [
        ("48 + 24 = 72\n#### 72", VerifySpec(), "72"),
        ("The answer is 72.", VerifySpec(), "72"),
        ("Therefore, the answer (arabic numerals) is 3.5.", VerifySpec(), "3.5"),
        ("**Answer:** 72", VerifySpec(), "72"),
        ("The final answer is $18 per day. That is a lot.", VerifySpec(), "$18 per day"),
        ("The answer is 3 + 4 = 7 apples.", VerifySpec(), "7 apples"),
        ("Answer: She makes $18 a day", VerifySpec(), "$18 a day"),
        ("The answer is:\n5", VerifySpec(), "5"),
        ("so $\\boxed{\\frac{1}{2}}$.", VerifySpec(), "\\frac{1}{2}"),
        ("6 * 12 = 72 --> 72 END", VerifySpec(), "72"),
        ("The answer is 5.0.\nThus \\boxed{5}", VerifySpec(), "5"),  # two marks that agree
        ("The answer is 5. The answer is 6.", VerifySpec(), None),
        ("The answer is 5. Wait. The answer is 6.", VerifySpec(several="last"), "6"),
        ("#### 5\nQ: another one\n#### 6", VerifySpec(), None),
        (
            "24 answers * 2 points/answer = <<24*2=48>>48 points.\nThe answer is <<66=66>>66\n#### 66",
            VerifySpec(),
            "66",
        ),
        ("I think 72", VerifySpec(), None),
        ("#### 5\nThe answer is 6.", VerifySpec(answer="hash"), "5"),
        ("first 3, then 1,200 left.", VerifySpec(answer="last_number"), "1,200"),
        ("on 12.34.56 there\nwere 7", VerifySpec(answer="last_number"), "7"),
        ("none at all", VerifySpec(answer="last_number"), None),
        ("The answer is (B).", OPTION, "B"),
        ("(b) four", OPTION, "B"),
        ("C", OPTION, "C"),
        ("A dog is an animal", OPTION, None),  # a word, not an option
        ("(A) or (B)? The answer is (A). No, the answer is (B).", OPTION, None),
        ("Yes, it does.", VerifySpec(answer="yes_no", kind="yes_no"), "Yes, it does."),
        ("It depends.", VerifySpec(answer="yes_no", kind="yes_no"), None),
        ('```json\n{"answer": 72.50, "x": {"answer": 3}}\n```', VerifySpec(answer="json"), "72.50"),
        ('{"a": {"b": "Paris"}}', VerifySpec(answer="json", json_field="a.b", kind="text"), "Paris"),
        ('{"answer": 1} {"answer": 2}', VerifySpec(answer="json"), None),
        ('{"answer": [1]}', VerifySpec(answer="json"), None),
        ("The answer is St. Louis. It lies there.", TEXT, "St. Louis"),
        ("x" * (LONGEST_RESPONSE + 1) + "\n#### 5", VerifySpec(), None),
    ],
)
def test_extraction(response: str, spec: VerifySpec, answer: str | None) -> None:
    found = extract_answer(response, spec)
    assert found.answer == answer
    assert found.reason


@given(
    st.text(max_size=300) | st.text(alphabet='answer is:5.#->{}\\boxed END\n`"(A)', max_size=80),
    st.sampled_from(FORMATS),
)
def test_no_response_is_too_strange(response: str, spec: VerifySpec) -> None:
    found = extract_answer(response, spec)
    assert found.answer is None or found.answer.strip()
    extract_gold(response, spec)


@pytest.mark.parametrize(
    "part", ["\\boxed{", "{", '{"a":', "--> ", "####\n", "answer is ", "1 ", "1,1", "$ ", "```\n", " ", "\\frac{1}"]
)
def test_no_response_takes_long(part: str) -> None:
    response = part * (LONGEST_RESPONSE // 4 // len(part))
    began = time.process_time()
    for spec in (
        VerifySpec(),
        VerifySpec(answer="last_number"),
        VerifySpec(answer="json"),
        VerifySpec(answer="program"),
    ):
        extract_answer(response, spec)
    assert time.process_time() - began < 20  # the square of 50,000 would be minutes


def test_a_format_and_a_kind_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValidationError, match="option goes with kind: option, and kind is number"):
        VerifySpec(answer="option")


@pytest.mark.parametrize("name", ["gsm8k_train.jsonl", "gsm8k_test.jsonl"])
def test_every_right_answer_of_gsm8k_is_extracted(name: str) -> None:
    if not (DATA / name).is_file():
        pytest.skip(f"needs {DATA / name}")
    spec = VerifySpec(answer="hash")
    for line in (DATA / name).read_text(encoding="utf-8").splitlines():
        solution = json.loads(line)["answer"]
        expected = solution.rsplit("####", 1)[1].strip()
        assert extract_answer(solution, spec).answer == expected == extract_gold(solution, spec)
        read = parse_quantity(expected)
        assert read is not None, expected
        assert read.value == int(expected.replace(",", "")), expected
