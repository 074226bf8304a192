"""Context distillation from text and chains in context, on the recorded answers of a real teacher."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from recorded import make

from lmdistill.stages.generated import document_of
from small import RECORDINGS


@pytest.fixture(autouse=True)
def _recorded(request: pytest.FixtureRequest) -> None:
    name = request.node.name.removeprefix("test_")
    if not (RECORDINGS / f"{name}.jsonl").is_file():
        pytest.skip(f"not recorded yet: python tools/record_answers.py {name}")


def test_context_distillation_text(tmp_path: Path) -> None:
    """The teacher read the instruction and three solved problems, the student reads the question alone."""
    made = make("context_distillation_text", tmp_path)
    shown = made.seeds
    assert made.asked == len(shown) == 8
    assert len(made.examples) >= 3
    requests = [json.loads(line)["request"]["body"] for line in _lines("context_distillation_text")]
    told = {body["messages"][-1]["content"]: body["messages"] for body in requests}
    for example in made.examples:
        seed = shown[example.seed]
        assert example.prompt == seed.prompt
        assert example.response in made.said(example)
        messages = told[seed.prompt]
        assert [turn["role"] for turn in messages] == ["system", *(["user", "assistant"] * 3), "user"]
        for turn, other in zip(messages[1:-1:2], example.fields["shown"], strict=True):
            assert turn["content"] == shown[other].prompt
        for turn, other in zip(messages[2:-1:2], example.fields["shown"], strict=True):
            assert turn["content"] == shown[other].answer


def test_aicd(tmp_path: Path) -> None:
    """Each row holds three questions with rationales that end right, and all rationales are learnt."""
    made = make("aicd", tmp_path)
    assert made.examples
    kept = {}
    for example in made.examples:
        turns = example.fields["turns"]
        assert len(turns) == 3
        questions = [question for question, _ in turns]
        assert len(set(questions)) == 3
        assert questions[-1] == made.seeds[example.seed].prompt
        for question, rationale in turns:
            first, other = map(int, re.findall(r"\d+", question)[:2])
            wanted = first - other if re.search(r"away|loses|eats|breaks", question) else first + other
            assert rationale.endswith(f"So the answer is {wanted}.")
            kept[question] = kept.get(question, 0) + 1
        document = document_of(example, "x")
        assert document.messages is not None
        assert [message["content"] for message in document.messages] == [
            text.strip() for turn in turns for text in turn
        ]
    assert len(kept) >= 3
    alone = make("aicd", tmp_path, "generation.demonstrations.count=40")
    assert not alone.examples
    assert any(drop.by == "chains" and "fewer than the 40 of one context" in drop.reason for drop in alone.drops)


def _lines(name: str) -> list[str]:
    return [
        line for line in (RECORDINGS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines() if '"request"' in line
    ]
