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

from lmdistill.io import append_line
from lmdistill.progress import Progress
from lmdistill.recipe import GenerationSpec


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
    """Let the teacher answer every prompt, keeping each batch in `file` (JSON lines) as soon as it is written.

    Prompts are batched by length, which wastes least on padding, and each batch draws from a generator of its own
    (seed, batch), so that a run that was stopped continues with the same text that it would have written. The teacher
    is loaded only where a batch is missing.
    """
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    batches = [order[first : first + spec.batch_size] for first in range(0, len(order), spec.batch_size)]
    done = {line.batch: line.written for line in _read(file)}
    with progress.task("teacher writes", total=len(prompts) * spec.samples_per_prompt, unit="answers") as task:
        for number, batch in enumerate(batches):
            if number in done:
                task.advance(len(done[number]))
                continue
            written = _answer(load_teacher(), tokenizer, [prompts[index] for index in batch], spec, seed + number)
            append_line(file, _line(number, written))
            done[number] = written
            task.advance(len(written))
    return [item for number in range(len(batches)) for item in done[number]]


def _answer(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    spec: GenerationSpec,
    seed: int,
) -> list[Written]:
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
    batch: int
    written: list[Written]


def _line(batch: int, written: list[Written]) -> str:
    rows = [{"prompt": w.prompt_ids, "answer": w.answer_ids, "finished": w.finished} for w in written]
    return json.dumps({"batch": batch, "written": rows})


def _read(file: Path) -> Iterator[_Line]:
    """The batches already in the file. One whose line a kill cut short is left out, so that it is written again."""
    if not file.is_file():
        return
    for text in file.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            value = json.loads(text)
            rows = [Written(row["prompt"], row["answer"], row["finished"]) for row in value["written"]]
            yield _Line(value["batch"], rows)
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
