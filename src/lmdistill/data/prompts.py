"""Prompts with their answers, for texts that are written during training.

A row keeps the prompt and the data set's answer apart; the student, the teacher or the data set fills the answer in
when its turn comes. Plain text is a prompt of its first tokens and an answer of what follows.

Shape legend: L length.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import datasets

from lmdistill.data.chat import EncodedRow, RowEncoder
from lmdistill.data.documents import Document
from lmdistill.recipe import GenerationSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PromptRow:
    """One prompt; ids are the student's."""

    prompt_ids: list[int]
    answer_ids: list[int]
    """The data set's answer with its end token; empty where the data holds prompts alone."""
    row_id: str
    teacher: str | None = None
    """Name of the teacher that speaks of it."""
    context_ids: list[int] = field(default_factory=list)
    """What the teacher reads in place of the prompt; empty: the prompt itself."""
    teacher_answer_ids: list[int] = field(default_factory=list)
    """The teacher's answer, where it wrote one before training."""


def prompt_rows(
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerBase,
    spec: GenerationSpec,
    *,
    add_eos: bool = True,
    context: str | None = None,
    teacher: RowEncoder | None = None,
) -> list[PromptRow]:
    """Prompts and answers of documents, in order.

    `context` is what the teacher reads in place of a prompt, with `{prompt}` and `{context}` in it; documents without a
    context keep their prompt. `teacher` encodes what it reads, where its chat template is not the student's. An answer
    is cut at `spec.max_new_tokens`. Raises DataError.
    """
    encoder = RowEncoder(tokenizer, add_eos=add_eos)
    rows = [_row(document, row, encoder, spec) for document, row in _encoded(documents, encoder)]
    if context is None and teacher is None:
        return rows
    return [
        replace(row, context_ids=_read_by_teacher(document, row, teacher or encoder, context))
        for document, row in zip(documents, rows, strict=True)
    ]


def prompt_dataset(rows: Sequence[PromptRow]) -> datasets.Dataset:
    """A data set of prompt rows. `input_ids` is the prompt with the data set's answer, `prompt_length` its border."""
    return datasets.Dataset.from_dict(
        {
            "input_ids": [row.prompt_ids + row.answer_ids for row in rows],
            "prompt_length": [len(row.prompt_ids) for row in rows],
            "row_id": [row.row_id for row in rows],
            "teacher": [row.teacher or "" for row in rows],
            "context_ids": [row.context_ids for row in rows],
            "teacher_answer_ids": [row.teacher_answer_ids for row in rows],
        },
        features=datasets.Features(
            {
                "input_ids": datasets.List(datasets.Value("int32")),
                "prompt_length": datasets.Value("int32"),
                "row_id": datasets.Value("string"),
                "teacher": datasets.Value("string"),
                "context_ids": datasets.List(datasets.Value("int32")),
                "teacher_answer_ids": datasets.List(datasets.Value("int32")),
            }
        ),
    )


def row_of(columns: dict[str, object]) -> PromptRow:
    """A prompt row from a row of `prompt_dataset`."""
    ids, border = list(map(int, _list(columns["input_ids"]))), int(str(columns["prompt_length"]))
    return PromptRow(
        prompt_ids=ids[:border],
        answer_ids=ids[border:],
        row_id=str(columns["row_id"]),
        teacher=str(columns["teacher"]) or None,
        context_ids=list(map(int, _list(columns["context_ids"]))),
        teacher_answer_ids=list(map(int, _list(columns["teacher_answer_ids"]))),
    )


def _list(value: object) -> list[int]:
    assert isinstance(value, list)
    return value


def _encoded(documents: Iterable[Document], encoder: RowEncoder) -> Iterator[tuple[Document, EncodedRow]]:
    documents = list(documents)
    return zip(documents, encoder.encode(documents), strict=True)


def _row(document: Document, row: EncodedRow, encoder: RowEncoder, spec: GenerationSpec) -> PromptRow:
    ids = row.ids_L.tolist()
    if document.text is not None:
        border = min(len(ids), row.lead + spec.prompt_tokens)
        return PromptRow(ids[:border], ids[border:][: spec.max_new_tokens], document.id, document.teacher)
    border = len(ids) if row.last_answer is None else row.last_answer
    if not row.trained_L[border:].any():
        return PromptRow(encoder.prompt(document, spec.prompt_tokens), [], document.id, document.teacher)
    # What the template writes behind the end marker is never trained and no model has to write it.
    end = len(ids) - int(row.trained_L[::-1].argmax())
    return PromptRow(ids[:border], ids[border:end][: spec.max_new_tokens], document.id, document.teacher)


def _read_by_teacher(document: Document, row: PromptRow, encoder: RowEncoder, context: str | None) -> list[int]:
    """What the teacher reads in place of the prompt; nothing where that is the prompt."""
    if context is not None and document.context is not None:
        return _privileged(document, row, encoder, context)
    ids = row.prompt_ids if document.text is not None else encoder.prompt(document, 0)
    return [] if ids == row.prompt_ids else ids


def _privileged(document: Document, row: PromptRow, encoder: RowEncoder, template: str) -> list[int]:
    """The prompt that the teacher reads."""

    def filled(prompt: str) -> str:
        # Split first: a context may hold "{prompt}" itself.
        parts = {"{prompt}": prompt, "{context}": document.context or ""}
        return "".join(parts.get(piece, piece) for piece in re.split(r"(\{prompt\}|\{context\})", template))

    if document.text is not None:
        text = filled(str(encoder.tokenizer.decode(row.prompt_ids, skip_special_tokens=True)))
        return encoder.prompt(Document(text=text, origin=document.origin), len(text.encode()))
    if document.messages is not None:
        asked = document.messages[:-1] if document.messages[-1]["role"] == "assistant" else document.messages
        last = {**asked[-1], "content": filled(asked[-1]["content"])}
        return encoder.prompt(Document(messages=[*asked[:-1], last], origin=document.origin), 0)
    return encoder.prompt(Document(prompt=filled(document.prompt or ""), origin=document.origin), 0)
