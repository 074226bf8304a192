"""Prompts with their answers kept apart."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from lmdistill.data import Document, build_dataset, prompt_dataset, prompt_rows, row_of
from lmdistill.data.documents import DataReport, to_document
from lmdistill.models import load_tokenizer
from lmdistill.progress import Progress
from lmdistill.recipe import DataSpec, FieldNames, GenerationSpec, ModelSpec, SourceSpec


@pytest.fixture(scope="module")
def tokenizer(smollm2_gguf: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(ModelSpec(model=str(smollm2_gguf), gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf"))


DOCUMENTS = [
    Document(text="The quick brown fox jumps over the lazy dog near the river bank."),
    Document(prompt="What is 2 + 2?", response="It is 4."),
    Document(messages=[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there"}]),
]


def test_prompt_and_answer_together_are_what_ordinary_training_reads(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = prompt_rows(DOCUMENTS, tokenizer, GenerationSpec(prompt_tokens=4, max_new_tokens=64))
    settings = DataSpec(train=[SourceSpec(path="x")], packing=False, shuffle=False, max_length=256)
    whole = build_dataset(DOCUMENTS, tokenizer, settings, seed=0, report=DataReport(), progress=Progress())
    for row, sequence in zip(rows, whole, strict=True):
        ids = row.prompt_ids + row.answer_ids
        assert sequence["input_ids"][: len(ids)] == ids
    for row, sequence in list(zip(rows, whole, strict=True))[1:]:
        trained = [label for label in sequence["labels"] if label != -100]
        assert row.answer_ids == trained


def test_plain_text_is_cut_into_beginning_and_end(tokenizer: PreTrainedTokenizerBase) -> None:
    (row,) = prompt_rows(DOCUMENTS[:1], tokenizer, GenerationSpec(prompt_tokens=4, max_new_tokens=5))
    assert tokenizer.decode(row.prompt_ids) == "The quick brown fox"
    assert tokenizer.decode(row.answer_ids) == " jumps over the lazy dog"


def test_a_prompt_alone_has_no_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    (row,) = prompt_rows([Document(prompt="What is 2 + 2?")], tokenizer, GenerationSpec())
    assert row.answer_ids == []
    assert str(tokenizer.decode(row.prompt_ids)).endswith("<|im_start|>assistant\n")


def test_the_teacher_alone_reads_the_context(tokenizer: PreTrainedTokenizerBase) -> None:
    documents = [
        Document(prompt="What is 2 + 2?", response="4", context="Add the {prompt} numbers."),
        Document(prompt="What is 3 + 3?", response="6"),
    ]
    with_context, without = prompt_rows(documents, tokenizer, GenerationSpec(), context="{context}\n\n{prompt}")
    told = str(tokenizer.decode(with_context.context_ids))
    assert "Add the {prompt} numbers.\n\nWhat is 2 + 2?" in told
    assert "Add the" not in str(tokenizer.decode(with_context.prompt_ids))
    assert without.context_ids == []


def test_rows_survive_the_data_set(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = prompt_rows(DOCUMENTS, tokenizer, GenerationSpec(prompt_tokens=4))
    dataset = prompt_dataset(rows)
    assert [row_of(dataset[place]) for place in range(3)] == rows


def test_columns_for_the_teacher_come_from_the_source() -> None:
    names = FieldNames(context="hint", teacher="who")
    row = {"prompt": "p", "response": "r", "hint": "h", "who": "expert"}
    found = to_document(row, "prompt_response", names, "file:1", has_response=True)
    assert (found.context, found.teacher) == ("h", "expert")
    assert found.id == Document(prompt="p", response="r").id
