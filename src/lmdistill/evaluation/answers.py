"""Held-out prompts, and what a model writes to them.

Shape legend: L length, A answers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lmdistill.data import PromptRow
from lmdistill.errors import DataError
from lmdistill.recipe import GenerationSpec, ResponsesSpec
from lmdistill.trajectories.decode import advance_plainly, begin, limits_of, write_all
from lmdistill.trajectories.reader import Reader
from lmdistill.trajectories.types import Author

_IGNORED = -100


@dataclass(frozen=True)
class Answers:
    """What one model wrote to the prompts of one text, shortest first."""

    ids: list[list[int]]
    """Tokens of each answer, with the end token where it ended by itself."""
    finished: list[bool]
    prompt_A: NDArray[np.int64]
    """Number of the prompt of each answer."""
    texts: list[str]
    """The answers as plain text without special tokens."""

    def of(self, prompt: int) -> list[str]:
        """The texts that answer one prompt."""
        return [self.texts[place] for place in np.flatnonzero(self.prompt_A == prompt)]

    @property
    def bare_ids(self) -> list[list[int]]:
        """The tokens without end tokens."""
        return [ids[:-1] if done else ids for ids, done in zip(self.ids, self.finished, strict=True)]


def held_out_prompts(
    dataset: Dataset, spec: ResponsesSpec, tokenizer: PreTrainedTokenizerBase, room: int | None, name: str
) -> list[PromptRow]:
    """The first prompts of a packed data set, with the data set's own answers, cut at `spec.max_new_tokens`.

    A document that is trained from its second token on is plain text: its first `spec.prompt_tokens` tokens (BOS not
    counted) are the prompt. Of any other document the prompt is what stands before its last answer. Documents that
    are too short to be continued, or that leave no room for an answer in a context of `room` tokens, are passed over.
    Raises DataError where none is left.
    """
    found: list[PromptRow] = []
    seen = 0
    for ids, labels in _documents(dataset):
        seen += 1
        row = _prompt(ids, labels, spec, tokenizer.bos_token_id, f"{name}:{seen}")
        if row is not None and (room is None or len(row.prompt_ids) + spec.max_new_tokens <= room):
            found.append(row)
        if len(found) == spec.prompts:
            break
    if not found:
        raise DataError(
            f"held-out {name}: none of {seen} rows can be answered: plain text must have more than "
            f"evaluation.responses.prompt_tokens = {spec.prompt_tokens} tokens, and a prompt and max_new_tokens = "
            f"{spec.max_new_tokens} must fit into {room or 'any number of'} tokens; lower the two"
        )
    return found


def write_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[PromptRow],
    spec: ResponsesSpec,
    *,
    end_ids: Collection[int],
    samples: int,
    seed: int,
    told: Callable[[int], None] = lambda tokens: None,
) -> Answers:
    """Let a model answer each prompt `samples` times; `told` hears of each finished answer's tokens.

    The draws are those of (seed, place of the answer), whoever writes, so that two models differ by what they believe
    and not by their luck. Raises TrainingError for NaN logits, ModelError for a model without a key-value cache.
    """
    drawing = GenerationSpec(
        max_new_tokens=spec.max_new_tokens, temperature=spec.temperature, batch_size=spec.batch_size
    )
    reader = Reader(model, len(tokenizer))
    asked = [prompt for prompt in prompts for _ in range(samples)]
    texts = begin(
        [prompt.prompt_ids for prompt in asked],
        [prompt.row_id for prompt in asked],
        seed,
        drawing,
        limits_of(drawing, end_ids),
    )
    write_all(
        texts,
        [reader],
        lambda live: advance_plainly(live, reader, drawing, Author.STUDENT, step=0),
        slots=spec.batch_size,
        told=told,
    )
    # Shortest first: answers that are scored together are padded to the longest of them.
    order = sorted(range(len(texts)), key=lambda place: len(texts[place].prompt_ids) + len(texts[place].answer_ids))
    return Answers(
        ids=[texts[place].answer_ids for place in order],
        finished=[texts[place].finished for place in order],
        prompt_A=np.array(order, dtype=np.int64) // samples,
        texts=[str(tokenizer.decode(texts[place].answer_ids, skip_special_tokens=True)) for place in order],
    )


def end_tokens(tokenizer: PreTrainedTokenizerBase, models: Sequence[PreTrainedModel]) -> set[int]:
    """Every token that ends an answer for one of the models: one rule for all, or lengths would not compare."""
    found = {tokenizer.eos_token_id}
    for model in models:
        for config in (model.config, model.generation_config):
            ids = getattr(config, "eos_token_id", None)
            found |= set(ids) if isinstance(ids, list) else {ids}
    return {int(identity) for identity in found if identity is not None}


def scored_rows(prompts: Sequence[PromptRow], answers: Answers) -> Dataset:
    """The answers behind their prompts as a data set that `score_tokens` takes: a row an answer, scored alone."""
    rows = [
        (prompts[prompt].prompt_ids, ids) for prompt, ids in zip(answers.prompt_A.tolist(), answers.ids, strict=True)
    ]
    return Dataset.from_dict(
        {
            "input_ids": [asked + ids for asked, ids in rows],
            "labels": [[_IGNORED] * len(asked) + ids for asked, ids in rows],
            "position_ids": [list(range(len(asked) + len(ids))) for asked, ids in rows],
            "row_ids": [[str(number)] for number in range(len(rows))],
        }
    )


def _documents(dataset: Dataset) -> Iterator[tuple[list[int], list[int]]]:
    """Ids and labels of each document: positions begin anew with it."""
    for row in dataset:
        starts = [place for place, position in enumerate(row["position_ids"]) if position == 0]
        for start, end in pairwise([*starts, len(row["input_ids"])]):
            yield row["input_ids"][start:end], row["labels"][start:end]


def _prompt(
    ids: list[int], labels: list[int], spec: ResponsesSpec, bos_id: int | None, row_id: str
) -> PromptRow | None:
    trained_L = np.array(labels) != _IGNORED
    if not trained_L.any():
        return PromptRow(ids, [], row_id)
    end = len(ids) - int(trained_L[::-1].argmax())
    start = end - int(np.append(~trained_L[:end][::-1], True).argmax())
    if start <= 1:
        start = spec.prompt_tokens + (ids[0] == bos_id)
        if start >= end:
            return None
    return PromptRow(ids[:start], ids[start:end][: spec.max_new_tokens], row_id)
