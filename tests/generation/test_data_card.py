"""The data card: its counts are those of the rows, and nothing in it acts on a page or a terminal."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generation.rows import row
from lmdistill.generation.checks.similarity import rouge_l, rouge_words
from lmdistill.generation.data_card import Costs, DataCard, data_card, data_card_json
from lmdistill.generation.data_card_markdown import data_card_markdown
from lmdistill.generation.diversity import diversity
from lmdistill.generation.escape import escape_markdown
from lmdistill.generation.filters import apply_filters
from lmdistill.generation.licences import UNKNOWN, licence_note
from lmdistill.generation.types import Drop, Example, Provenance
from lmdistill.io import read_json, write_json
from lmdistill.recipe.generation_filters import FilterSpec

ATTACKS = [
    "\x1b[31mred\x1b[0m\x07\x9b2J",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "# heading\n\n| a | b |\n---\n[link](javascript:alert(1)) ![i](http://x.y/z) https://x.y www.x.y `code` **bold**",
    "a\u202eb\u2066c\u200bd\ud800e",
    "&lt;b&gt; &#60;",
]


def made() -> tuple[list[Example], list[Drop]]:
    teacher = Provenance(teacher="SmolLM2-135M-Instruct", requests=("k",))
    rows = [
        row(f"Number {n} is {attack}", f"Say {n}: {attack}", f"r{n}", provenance=teacher, verdict="correct")
        for n, attack in enumerate(ATTACKS)
    ]
    rows += [row("I cannot help with that.", name="no"), row("Paris", "What is the capital of France?", "leak")]
    rows += [row("", name="empty", task="label")]
    spec = FilterSpec(markers=None, near_duplicate={"side": "both"})
    results = list(apply_filters(rows, spec, {"exam|<b>": ["What is the capital of France?"]}))
    return [r for r in results if isinstance(r, Example)], [r for r in results if isinstance(r, Drop)]


def test_counts_costs_and_terms() -> None:
    accepted, drops = made()
    costs = Costs(money=0.5, calls=8, prompt_tokens=100, output_tokens=60, reasoning_tokens=10, minutes=1.0)
    card = data_card(accepted, drops, costs, name="demo", teachers=["gpt-4o-mini", "my-model"])
    assert (card.accepted, card.dropped) == (5, 3)
    assert card.by_task == {"answer": 5}
    assert card.by_verdict == {"correct": 5}
    assert {check: dropped.count for check, dropped in card.drops.items()} == {
        "contamination": 1,
        "empty": 1,
        "refusal": 1,
    }
    assert (card.cost_per_accepted, card.tokens_per_accepted, card.calls_per_accepted) == (0.1, 32.0, 1.6)
    assert [(match.row, match.matched) for match in card.contamination] == [("leak", "exam|<b>:1")]
    assert card.filters == [
        "empty", "refusal", "repetition", "contamination", "pii", "verdict", "near_duplicate"
    ]  # fmt: skip
    assert card.prompt_words is not None
    words = sorted(len(each.prompt.split()) for each in accepted)
    assert (card.prompt_words.min, card.prompt_words.median, card.prompt_words.max) == (words[0], words[2], words[-1])
    notes = {note.model: (note.examples, note.licence) for note in card.teachers}
    assert notes["SmolLM2-135M-Instruct"] == (5, "Apache-2.0")
    assert notes["my-model"] == (0, "unknown")
    assert "OpenAI" in notes["gpt-4o-mini"][1]


def test_the_card_survives_json(tmp_path: Path) -> None:
    card = data_card(*made(), Costs())
    write_json(tmp_path / "data_card.json", data_card_json(card))
    assert DataCard.model_validate(read_json(tmp_path / "data_card.json")) == card
    json.dumps(data_card_json(card)).encode()


def test_nothing_in_the_markdown_acts() -> None:
    text = data_card_markdown(data_card(*made(), Costs(calls=3), name=ATTACKS[2] + ATTACKS[1]))
    text.encode()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]", text)
    assert "<script" not in text
    assert "<img" not in text
    assert "](" not in text
    assert "https://" not in text
    assert "**" not in text
    assert "\\\\x1b\\[31mred" in text
    assert "&lt;script&gt;" in text
    assert len(re.findall("^#", text, re.MULTILINE)) == 11
    sizes = [len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")]
    heads = [line.count("|") for line in text.splitlines() if line.startswith("| ---")]
    assert set(sizes) == set(heads)
    assert "no price is known" in text


def test_a_card_of_nothing() -> None:
    card = data_card([], [], Costs(money=0.1, calls=1))
    assert card.cost_per_accepted is None
    assert card.prompt_words is None
    assert "0 rows were kept and 0 left out" in data_card_markdown(card)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_escaped_text_is_one_harmless_line(text: str) -> None:
    shown = escape_markdown(text)
    assert "\n" not in shown
    assert not re.search(r"[<>\x00-\x1f\x7f-\x9f]", shown)
    assert not re.search(r"(?<!\\)(?:\\\\)*[|`*_\[\]#~]", shown)


def test_diversity_by_definition() -> None:
    texts = ["add the two numbers", "add the three numbers", "count sheep"]
    found = diversity(texts)
    assert (found.texts, found.sample) == (3, 3)
    assert found.distinct_1 == pytest.approx(7 / 10)
    assert found.distinct_2 == pytest.approx(6 / 7)
    assert found.distinct_first_words == pytest.approx(2 / 3)
    near = rouge_l(rouge_words(texts[0]), rouge_words(texts[1]))
    assert found.self_rouge_l == pytest.approx((2 * near + 0) / 3)
    many = [f"text number {n}" for n in range(150)]
    assert diversity(many).sample == 100
    assert diversity(many, seed=1) == diversity(many, seed=1)
    nothing = diversity([])
    assert (nothing.distinct_1, nothing.self_rouge_l) == (None, None)


TERMS: list[tuple[str, Any]] = [
    ("smollm2-135m", "Apache-2.0"),
    ("google/gemma-2-27b-it", "Gemma Terms of Use (Gemma 1 to 3)"),
    ("google/gemma-7b", "Gemma Terms of Use (Gemma 1 to 3)"),
    ("google/gemma-4-31b-it", "Apache-2.0 (Gemma 4)"),
    ("meta-llama/Llama-2-7b-chat-hf", "Llama 2 or Llama 3 Community License"),
    ("meta-llama/Meta-Llama-3-8B-Instruct", "Llama 2 or Llama 3 Community License"),
    ("meta-llama/Llama-3.1-8B-Instruct", "Llama Community License (3.1 and later)"),
    ("llama3.2:1b", "Llama Community License (3.1 and later)"),
    ("meta-llama/Llama-4-Scout", "Llama Community License (3.1 and later)"),
    ("llama-13b", "a Llama licence, version unknown"),
    ("gpt-5-mini", "OpenAI's terms of use"),
    ("openai/gpt-oss-20b", "Apache-2.0"),
    ("o3-mini", "OpenAI's terms of use"),
    ("claude-sonnet", "Anthropic's terms"),
    ("echo", "unknown"),
]


@pytest.mark.parametrize(("model", "licence"), TERMS)
def test_terms_by_name(model: str, licence: str) -> None:
    note = licence_note(model)
    assert note.licence == licence
    assert "check" in note.note
    assert UNKNOWN.note.startswith("unknown: check before you publish")
