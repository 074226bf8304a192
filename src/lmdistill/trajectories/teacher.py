"""Text that the teacher writes: sequence-level distillation (Kim & Rush, 1606.07947).

Shape legend: B prompts of a batch, L length.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from lmdistill.errors import ModelError
from lmdistill.io import append_line
from lmdistill.progress import Progress
from lmdistill.recipe import GenerationSpec
from lmdistill.trajectories.decode import advance_plainly, begin, limits_of, write_all
from lmdistill.trajectories.reader import Reader
from lmdistill.trajectories.types import Author

_BATCHES = 4
"""Batches of a chunk: enough that slots seldom stand empty, few enough that a stopped run loses little."""


@dataclass(frozen=True)
class Written:
    """One prompt and what the teacher wrote after it, as token ids."""

    prompt_ids: list[int]
    answer_ids: list[int]
    finished: bool
    """Whether the teacher ended by itself; otherwise the length limit cut it."""


def write_answers(
    load_teacher: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    spec: GenerationSpec,
    *,
    file: Path,
    seed: int,
    progress: Progress,
) -> list[Written]:
    """Let the teacher answer every prompt, keeping each chunk in `file` (JSON lines) as soon as it is written.

    A chunk is some batches of prompts alike in length. Its draws come from (seed, chunk, place) alone, so that a run
    that was stopped continues with the same text that it would have written. The teacher is loaded only where a chunk
    is missing. Raises DataError for a prompt that leaves no room for an answer, TrainingError for NaN logits.
    """
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    size = _BATCHES * spec.batch_size
    chunks = [order[first : first + size] for first in range(0, len(order), size)]
    done = {line.chunk: line.written for line in _read(file)}
    with progress.task("teacher writes", total=len(prompts) * spec.samples_per_prompt, unit="answers") as task:
        for number, chunk in enumerate(chunks):
            if number in done:
                task.advance(len(done[number]))
                continue
            given = [prompts[index] for index in chunk]
            written = _answer(load_teacher(), tokenizer, given, spec, seed + number, lambda tokens: task.advance(1))
            append_line(file, _line(number, written))
            done[number] = written
    return [item for number in range(len(chunks)) for item in done[number]]


def _answer(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    spec: GenerationSpec,
    seed: int,
    told: Callable[[int], None],
) -> list[Written]:
    """Answers of one chunk: drawn by the sampler of the student's text, or searched for with beams."""
    if spec.num_beams == 1:
        try:
            reader = Reader(teacher, len(tokenizer))
        except ModelError:  # its layers keep more than keys and values; `generate` knows how to go on with them
            pass
        else:
            return _sample(reader, tokenizer, prompts, spec, seed, told)
    written = []
    for first in range(0, len(prompts), spec.batch_size):
        batch = _generate(teacher, tokenizer, prompts[first : first + spec.batch_size], spec, seed + first)
        for item in batch:
            told(len(item.answer_ids))
        written += batch
    return written


def _sample(
    reader: Reader,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    spec: GenerationSpec,
    seed: int,
    told: Callable[[int], None],
) -> list[Written]:
    repeated = [prompt for prompt in prompts for _ in range(spec.samples_per_prompt)]
    names = [f"prompt {number + 1} of {len(prompts)}" for number in range(len(prompts))]
    row_ids = [name for name in names for _ in range(spec.samples_per_prompt)]
    texts = begin(repeated, row_ids, seed, spec, limits_of(spec, [tokenizer.eos_token_id]))
    write_all(
        texts,
        [reader],
        lambda live: advance_plainly(live, reader, spec, Author.TEACHER, step=None),
        slots=spec.batch_size,
        told=told,
    )
    return [Written(text.prompt_ids, text.answer_ids, text.finished) for text in texts]


def _generate(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    spec: GenerationSpec,
    seed: int,
) -> list[Written]:
    """Answers of one batch, by transformers."""
    end_id = tokenizer.eos_token_id
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end_id
    ids_BL, mask_BL = _pad_left(prompts, pad_id)
    sampling = {"temperature": spec.temperature, "top_p": spec.top_p} if spec.temperature > 0 else {}
    config = GenerationConfig(
        max_new_tokens=spec.max_new_tokens,
        do_sample=spec.temperature > 0 and spec.num_beams == 1,
        num_beams=spec.num_beams,
        num_return_sequences=spec.samples_per_prompt,
        pad_token_id=pad_id,
        eos_token_id=end_id,
        bos_token_id=tokenizer.bos_token_id,
        **(sampling if spec.num_beams == 1 else {}),
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        writer: Any = teacher
        out_BL = writer.generate(
            ids_BL.to(teacher.device), attention_mask=mask_BL.to(teacher.device), generation_config=config
        )
    written = []
    for row, answer_L in enumerate(out_BL[:, ids_BL.shape[1] :].tolist()):
        finished = end_id in answer_L
        answer = answer_L[: answer_L.index(end_id) + 1] if finished else answer_L
        written.append(Written(prompts[row // spec.samples_per_prompt], answer, finished))
    return written


def _pad_left(prompts: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    length = max(map(len, prompts))
    ids_BL = torch.tensor([[pad_id] * (length - len(prompt)) + prompt for prompt in prompts])
    mask_BL = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids_BL, mask_BL


@dataclass(frozen=True)
class _Line:
    chunk: int
    written: list[Written]


def _line(chunk: int, written: list[Written]) -> str:
    rows = [{"prompt": w.prompt_ids, "answer": w.answer_ids, "finished": w.finished} for w in written]
    return json.dumps({"chunk": chunk, "written": rows})


def _read(file: Path) -> Iterator[_Line]:
    """The chunks already in the file. One whose line a kill cut short is left out, so that it is written again."""
    if not file.is_file():
        return
    for text in file.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            value = json.loads(text)
            rows = [Written(row["prompt"], row["answer"], row["finished"]) for row in value["written"]]
            yield _Line(value["chunk"], rows)
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
