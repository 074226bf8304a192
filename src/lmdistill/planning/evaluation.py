"""How long the evaluation of a run takes, from its parts: scoring, speed, prompts, answers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lmdistill.accounting import forward_flops
from lmdistill.evaluation.answers import end_tokens, held_out_prompts, write_answers
from lmdistill.evaluation.decoding import decode_greedily, speed_prompt
from lmdistill.evaluation.fidelity import Subject, score_tokens
from lmdistill.planning.calibrate import Calibration
from lmdistill.recipe import EvaluationSpec, ResponsesSpec, SpeedSpec

_SCORED = 1024
"""Tokens that are scored by a calibration."""
_WRITTEN = 12
"""Tokens of the answers that it lets write."""


@dataclass(frozen=True)
class Judged:
    """What the evaluation will take."""

    seconds: float
    tokens: float
    """Scored and written, by all models."""
    flops: float
    teacher_flops: float
    how: str
    unknown: list[str]


def plan_evaluation(
    spec: EvaluationSpec,
    found: Calibration,
    teacher: PreTrainedModel | None,
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    startup_seconds: float,
    length: int,
    elsewhere: bool = False,
) -> Judged:
    """Time a little of each part with teacher and student, and scale it.

    `teacher` None: it is not timed, because it is not scored (`elsewhere`), or because it cuts text otherwise, which
    `unknown` then says.
    """
    students = 1 + len(spec.baselines)
    seconds = {"loading": students * found.student_load}
    tokens_by = sum(min(spec.max_tokens + spec.batch_size * length, text.tokens) for text in found.heldout.values())
    together, alone, scored = _scoring(spec, found, teacher, student, tokenizer)
    if scored:
        seconds["scoring"] = tokens_by * (together + (students - 1) * alone)
    models = [model for model in (teacher, student) if model is not None]
    if spec.speed is not None:
        seconds["speed"] = sum(_speed(spec, model, startup_seconds, found) for model in models)
    if spec.prompts:
        rates = _decoding(models)
        every = sum(rates) + (students - 1) * rates[-1]
        seconds["prompts"] = len(spec.prompts) * spec.generation.max_new_tokens * every
    written = 0.0
    if spec.responses is not None and teacher is not None and found.heldout:
        more, written = _answers(spec, spec.responses, found, teacher, student, tokenizer, together, alone)
        seconds["answers"] = more
    unknown = ["the evaluation of a teacher that cuts text otherwise"] if teacher is None and not elsewhere else []
    if spec.suites is not None:
        unknown.append("the suites of the evaluation (evaluation.suites)")
    teacher_flops = forward_flops(teacher, tokens_by + written, length) if teacher is not None else 0.0
    own = students * forward_flops(student, tokens_by + written, length)
    return Judged(
        seconds=sum(seconds.values()),
        tokens=(students + (teacher is not None)) * (tokens_by + written),
        flops=own + teacher_flops,
        teacher_flops=teacher_flops,
        how=", ".join(f"{name} {value:.1f} s" for name, value in seconds.items()),
        unknown=unknown,
    )


def _scoring(
    spec: EvaluationSpec,
    found: Calibration,
    teacher: PreTrainedModel | None,
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[float, float, bool]:
    """Seconds a token of teacher and student together, and of one student more."""
    if not found.heldout:
        return 0.0, 0.0, False
    dataset = next(iter(found.heldout.values())).dataset

    def scored(subjects: Sequence[Subject]) -> float:
        started = time.monotonic()
        scores = score_tokens(
            subjects, dataset, vocabulary_size=len(tokenizer), max_tokens=_SCORED, batch_size=spec.batch_size
        )
        return (time.monotonic() - started) / max(1, len(scores[0].target))

    one = Subject("student", "student", student)
    two = Subject("none", "none", student)
    if teacher is None:
        return scored([one]), scored([one]), True
    both = [Subject("teacher", "teacher", teacher), one]
    together = scored(both)
    return together, max(0.0, scored([*both, two]) - together), True


def _speed(spec: EvaluationSpec, model: PreTrainedModel, startup: float, found: Calibration) -> float:
    """The measurement of speed, and the process that measures memory: it starts, loads and writes as much once more."""
    assert spec.speed is not None
    started = time.monotonic()
    for _ in decode_greedily(model, speed_prompt(model, spec.speed), spec.speed.new_tokens):
        pass
    once = time.monotonic() - started
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return (spec.speed.repeats + 2) * once + startup + size / max(1.0, found.save_rate) + found.student_load


def _decoding(models: Sequence[PreTrainedModel]) -> list[float]:
    """Seconds a token, one after the other, of each model."""
    rates = []
    for model in models:
        tokens = decode_greedily(model, speed_prompt(model, SpeedSpec(prompt_tokens=8)), _WRITTEN)
        next(tokens)
        started = time.monotonic()
        count = sum(1 for _ in tokens)
        rates.append((time.monotonic() - started) / max(1, count))
    return rates


def _answers(
    spec: EvaluationSpec,
    responses: ResponsesSpec,
    found: Calibration,
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    together: float,
    alone: float,
) -> tuple[float, float]:
    """Seconds that answers take, written and scored, and tokens that each model writes."""
    students = 1 + len(spec.baselines)
    names = responses.texts or list(found.heldout)
    few = responses.model_copy(update={"prompts": responses.batch_size, "max_new_tokens": _WRITTEN})
    seconds = written = 0.0
    for name in names:
        prompts = held_out_prompts(found.heldout[name].dataset, few, tokenizer, None, name)
        rates = []
        for model in (teacher, student):
            started = time.monotonic()
            answers = write_answers(
                model,
                tokenizer,
                prompts,
                few,
                end_ids=end_tokens(tokenizer, [model]),
                samples=1,
                seed=0,
                told=lambda tokens: None,
            )
            rates.append((time.monotonic() - started) / max(1, sum(len(ids) for ids in answers.ids)))
        asked = min(responses.prompts, found.heldout[name].documents)
        tokens = float(asked * responses.max_new_tokens)
        by_teacher = rates[0] * (responses.samples + responses.references)
        seconds += tokens * (by_teacher + rates[1] * students * responses.samples)
        # The teacher's answers are read by all, each student's by the teacher and itself, prompts included.
        longer = (responses.prompt_tokens + responses.max_new_tokens) / responses.max_new_tokens
        read = together + (students - 1) * alone + students * together
        seconds += tokens * responses.samples * longer * read
        written += tokens * responses.samples
    return seconds, written
