"""What an export kept: the exported student beside the student before and the teacher, on held-out text.

All models compute in float32, so that what is seen is the export and not the arithmetic of this machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from lmdistill.errors import DataError
from lmdistill.evaluation.decoding import decode_greedily, speed_prompt
from lmdistill.evaluation.export_results import ExportText, Kept
from lmdistill.evaluation.fidelity import Subject, TokenScores, score_tokens
from lmdistill.evaluation.records import Interval
from lmdistill.evaluation.statistics import resampling
from lmdistill.evaluation.summarise import Tally
from lmdistill.recipe import SpeedSpec

SPEED = SpeedSpec(prompt_tokens=32, new_tokens=24, repeats=3)


@dataclass
class Yardstick:
    """What an export is held against."""

    texts: Mapping[str, Dataset] = field(default_factory=dict)
    teacher: PreTrainedModel | None = None
    """In float32; None where its weights are not here or it cuts text otherwise."""
    kept_ids: Tensor | None = None
    """Teacher's id of each of the student's, where its vocabulary was trimmed."""
    vocabulary_size: int = 0
    max_tokens: int = 2048
    samples: int = 1000
    confidence: float = 0.95
    seed: int = 0


def measure_texts(student: PreTrainedModel, exported: PreTrainedModel, by: Yardstick) -> dict[str, ExportText]:
    """An export on every held-out text. Raises DataError for a text without a scored token."""
    return {name: _on(name, text, student, exported, by) for name, text in by.texts.items()}


def _on(name: str, text: Dataset, student: PreTrainedModel, exported: PreTrainedModel, by: Yardstick) -> ExportText:
    before, after = _scored([("teacher", student), ("student", exported)], text, by, None)
    if not after.target:
        raise DataError(f"held-out {name}: no token has a label, so an export cannot be compared on it")
    draws = resampling(max(after.sequence) + 1, by.samples, by.confidence, by.seed)
    own, found = Tally(before, draws, 15), Tally(after, draws, 15)
    beside_teacher: list[Kept | None] = [None, None]
    if by.teacher is not None:
        pair = [("teacher", by.teacher), ("none", student), ("student", exported)]
        beside_teacher = [_kept(Tally(scores, draws, 15)) for scores in _scored(pair, text, by, by.kept_ids)[1:]]
    return ExportText(
        perplexity=_perplexity(found),
        student_perplexity=_perplexity(own),
        student=_kept(found),
        teacher=beside_teacher[1],
        student_to_teacher=beside_teacher[0],
    )


def _scored(
    models: list[tuple[str, PreTrainedModel]], text: Dataset, by: Yardstick, kept_ids: Tensor | None
) -> list[TokenScores]:
    subjects = [
        Subject(role, role, model, None if role == "teacher" else kept_ids)  # type: ignore[arg-type]
        for role, model in models
    ]
    return score_tokens(
        subjects, text, vocabulary_size=by.vocabulary_size, max_tokens=by.max_tokens, batch_size=4, dtype=torch.float32
    )


def _kept(tally: Tally) -> Kept:
    agreement, forward = tally.interval("agreement"), tally.interval("forward_kl")
    return Kept(
        tokens=len(tally.scores.target), agreement=cast(Interval, agreement), forward_kl=cast(Interval, forward)
    )


def _perplexity(tally: Tally) -> Interval:
    logs = cast(Interval, tally.interval("log_perplexity"))
    return Interval(**{name: float(torch.tensor(value).exp()) for name, value in logs.model_dump().items()})


def decoding_speed(model: PreTrainedModel, spec: SpeedSpec = SPEED) -> float:
    """New tokens a second: one sequence, greedy, with a cache; the median of a few runs behind a first one."""
    found = []
    prompt = speed_prompt(model, spec)
    for repeat in range(spec.repeats + 1):
        tokens = decode_greedily(model, prompt, spec.new_tokens)
        next(tokens)
        started = time.perf_counter()
        count = sum(1 for _ in tokens)
        if repeat:
            found.append(count / (time.perf_counter() - started))
    return statistics.median(found)


def prompts_of(by: Yardstick, count: int, length: int) -> list[list[int]]:
    """The first tokens of a few held-out sequences."""
    found = [
        list(row["input_ids"][:length])
        for text in by.texts.values()
        for row in text.select(range(min(len(text), count)))
    ]
    return [ids for ids in found if ids][:count]
