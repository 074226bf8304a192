"""What a teacher reads in the student's place, and where its words are put."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from teacher_helpers import segments, trained

from lmdistill.data import Collator, Document, RowEncoder
from lmdistill.errors import DataError
from lmdistill.models import load_tokenizer
from lmdistill.recipe import ModelSpec
from lmdistill.teachers import Retold, context_columns, privileged_batch, retemplate, teacher_columns, with_context

ids = st.lists(st.integers(1, 50), min_size=1, max_size=7)
row = st.tuples(ids, ids, st.lists(st.integers(51, 90), max_size=9))
"""Prompt, answer, and what the teacher reads in place of the prompt."""


def packed(sequences: list[list[tuple[list[int], list[int], list[int]]]]) -> tuple[dict[str, Any], list[list[Retold]]]:
    """A batch of packed rows, and how each is retold."""
    columns, retold = [], []
    for rows in sequences:
        texts = [prompt + answer for prompt, answer, _ in rows]
        columns.append(
            {
                "input_ids": list(itertools.chain(*texts)),
                "labels": [label for prompt, answer, _ in rows for label in [-100] * len(prompt) + answer],
                "position_ids": [place for text in texts for place in range(len(text))],
                "row_ids": [f"{len(columns)}.{place}" for place in range(len(rows))],
            }
        )
        retold.append([with_context(p + a, len(p), context) for p, a, context in rows])
    return Collator()(columns), retold


def row_before(ids_L: torch.Tensor, positions_L: torch.Tensor, place: int) -> list[int]:
    """The packed row up to a place, that included."""
    return ids_L[place - int(positions_L[place]) : place + 1].tolist()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(row, min_size=1, max_size=3), min_size=1, max_size=3))
def test_each_trained_position_is_told_from_the_same_answer_after_the_teachers_prompt(
    sequences: list[list[tuple[list[int], list[int], list[int]]]],
) -> None:
    batch, retold = packed(sequences)
    columns = teacher_columns(batch, retold)
    places = columns["teacher_places"]
    width = columns["teacher_input_ids"].shape[1]
    mask = trained(batch).view(places.shape)
    rows_of = {(number, first): place for number, first, place in _numbered(batch)}
    for number, place in mask.nonzero().tolist():
        first = place - int(batch["position_ids"][number, place])
        prompt, answer, context = sequences[number][rows_of[number, first]]
        said = place - first - len(prompt) + 1  # answer tokens that were read before
        there = int(places[number, place])
        if said == 0 and not context:
            assert there == -1
            continue
        assert there // width == number  # the teacher's row of the batch is the student's
        read = row_before(columns["teacher_input_ids"][number], columns["teacher_position_ids"][number], there % width)
        assert read == context + answer[:said]
        assert row_before(batch["input_ids"][number], batch["position_ids"][number], place) == prompt + answer[:said]
    assert bool((places[~mask] == -1).all())
    assert int(places.max()) < columns["teacher_input_ids"].numel()


def _numbered(batch: dict[str, Any]) -> list[tuple[int, int, int]]:
    counts: dict[int, int] = {}
    found = []
    for number, first, _ in segments(batch):
        found.append((number, first, counts.get(number, 0)))
        counts[number] = counts.get(number, 0) + 1
    return found


@settings(deadline=None, max_examples=30)
@given(st.lists(row.filter(lambda item: len(item[2]) > 0), min_size=1, max_size=4))
def test_a_padded_batch_is_the_packed_one_with_one_text_a_row(
    rows: list[tuple[list[int], list[int], list[int]]],
) -> None:
    batch = privileged_batch([(prompt, answer) for prompt, answer, _ in rows], [context for *_, context in rows])
    plain, retold = packed([[item] for item in rows])
    for name, value in {**plain, **teacher_columns(plain, retold)}.items():
        if name != "row_ids":
            assert torch.equal(batch[name], value), name
    assert int(trained(batch).sum()) == sum(len(answer) for _, answer, _ in rows)


def test_an_empty_context_is_the_prompt_itself() -> None:
    batch = privileged_batch([([1, 2], [3, 4]), ([5], [6])], [[], [7, 8, 9]])
    assert batch["teacher_input_ids"].tolist() == [[1, 2, 3, 4], [7, 8, 9, 6]]
    assert batch["teacher_places"].tolist() == [[0, 1, 2, 3], [6, -1, -1, -1]]
    columns = context_columns(batch, [2, 1], [[], [7, 8, 9]])
    assert all(torch.equal(columns[name], batch[name]) for name in columns)


def test_what_does_not_belong_to_the_batch_is_refused() -> None:
    batch, retold = packed([[([1], [2, 3], [9]), ([4], [5], [9])], [([6], [7], [9])]])
    with pytest.raises(ValueError, match="2 rows in the batch but 1 were retold"):
        teacher_columns(batch, retold[:1])
    with pytest.raises(ValueError, match="row 0 of the batch holds 2 packed rows but 1 were retold"):
        teacher_columns(batch, [retold[0][:1], retold[1]])
    with pytest.raises(ValueError, match="packed row of 3 tokens but 2 places; was it cut"):
        teacher_columns(batch, [[Retold([1, 2], [0, 1]), retold[0][1]], retold[1]])
    with pytest.raises(ValueError, match="places from 0 to 5 in a teacher's row of 2 tokens"):
        teacher_columns(batch, [[Retold([1, 2], [0, 1, 5]), retold[0][1]], retold[1]])
    with pytest.raises(ValueError, match="a prompt of 4 tokens in a row of 3"):
        with_context([1, 2, 3], 4, [9])
    with pytest.raises(ValueError, match="1 rows but 2 contexts"):
        privileged_batch([([1], [2])], [[3], [4]])


def test_a_context_that_the_teacher_cannot_read_is_named() -> None:
    batch, retold = packed([[([1], [2, 3], [9]), ([4], [5], [9] * 8)]])
    with pytest.raises(DataError, match=r"0\.1: .* has 9 tokens, but the teacher reads at most 8"):
        teacher_columns(batch, retold, max_length=8)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
COLON = (
    "{% for m in messages %}{% if m.role == 'user' %}Question: {{ m.content }}\n{% else %}Answer: {{ m.content }}"
    "<|endoftext|>{% endif %}{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(smollm2_folder: Path) -> Any:
    return load_tokenizer(ModelSpec(model=str(smollm2_folder)))


def encoder(tokenizer: Any, template: str) -> RowEncoder:
    tokenizer.chat_template = template
    return RowEncoder(tokenizer)


def test_a_conversation_under_two_templates_meets_in_the_answers(tokenizer: Any) -> None:
    student, teacher = encoder(tokenizer, CHATML), encoder(tokenizer, COLON)
    messages = [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "The capital of France is Paris."},
        {"role": "user", "content": "And of Italy?"},
        {"role": "assistant", "content": "It is Rome, of course: the eternal city."},
    ]
    document = Document(messages=messages, origin="test:1")
    row, retold = retemplate(document, student, teacher)
    spoken = [(place, there) for place, there in enumerate(retold.places) if there >= 0]
    for place, there in spoken:
        assert row.trained_L[place + 1]
        assert row.ids_L[place + 1] == retold.ids[there + 1]
    # Of each answer all but the end marker and the first word, which one template joins with a space.
    wanted = int(row.trained_L.sum())
    assert wanted - 4 <= len(spoken) < wanted
    text = tokenizer.decode([retold.ids[there + 1] for _, there in spoken])
    assert text == " capital of France is Paris. is Rome, of course: the eternal city."
    # The same template on both sides: everything is spoken of.
    same, whole = retemplate(document, student, student)
    assert sum(there >= 0 for there in whole.places) == int(same.trained_L.sum())
    batch = Collator()(
        [
            {
                "input_ids": row.ids_L.tolist(),
                "labels": [int(i) if t else -100 for i, t in zip(row.ids_L, row.trained_L, strict=True)],
                "position_ids": list(range(len(row.ids_L))),
                "row_ids": ["a"],
            }
        ]
    )
    columns = teacher_columns(batch, [[retold]])
    assert columns["teacher_places"][0].tolist() == list(retold.places)


def test_a_template_that_forgets_an_answer_is_refused(tokenizer: Any) -> None:
    forgetful = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}\n{% elif loop.last %}"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% endif %}{% endfor %}"
    )
    student, teacher = encoder(tokenizer, CHATML), encoder(tokenizer, forgetful)
    messages = [{"role": role, "content": "Hello there."} for role in ("user", "assistant") * 2]
    with pytest.raises(DataError, match="2 answers under the student's chat template but 1 under the teacher's"):
        retemplate(Document(messages=messages, origin="test:1"), student, teacher)
