"""What models write by themselves, for the suite `fidelity`: exposure bias by length, coverage and likelihood loss.

Answers and scores are those of `lmdistill.evaluation.responses`; here they become the suite's columns.

    coverage     minus the model's log-probability of what the teacher wrote, nats a token      (f-DISTILL 2307.15190)
    likelihood   minus the teacher's log-probability of what the model wrote, nats a token      (ibidem)
    excess_N     ExAccErr at N tokens, per cent                                                 (2204.01171)

Shape legend: I prompts, L steps, R one estimate and its resamplings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmdistill.evaluation.exposure import StepErrors, step_errors
from lmdistill.evaluation.fidelity import TokenScores
from lmdistill.evaluation.response_tally import Judged
from lmdistill.evaluation.responses import judged_answers
from lmdistill.evaluation.statistics import Draws, Floats
from lmdistill.evaluation.suites.columns import Mean, OneSeed
from lmdistill.evaluation.suites.types import Bench, Column, Outcome, Table
from lmdistill.recipe import FidelitySpec, ResponsesSpec

LENGTHS = (8, 16, 32, 64, 128)
"""Tokens at which excess error is given, as far as answers of all models reach."""


@dataclass(frozen=True)
class Excess(OneSeed):
    """ExAccErr at a length in per cent; see `lmdistill.evaluation.exposure`."""

    own: StepErrors
    oracle: StepErrors
    length: int

    def values(self, draws: Draws) -> Floats:
        """(R(l) - l eps(l)) / (l eps(l)) * 100, (R,)."""
        regret_R, expected_R = (self._accumulated(errors, draws) for errors in (self.own, self.oracle))
        return 100 * (regret_R - expected_R) / np.maximum(expected_R, np.finfo(np.float64).tiny)

    def _accumulated(self, errors: StepErrors, draws: Draws) -> Floats:
        steps = range(self.length)
        means = [draws.ratio(errors.sums_SL[None, :, step], errors.counts_SL[None, :, step]) for step in steps]
        found_R: Floats = np.nansum(means, axis=0)
        return found_R


def own_text(bench: Bench, spec: FidelitySpec) -> list[Outcome]:
    """What all models write to prompts of each held-out text. Raises what `judged_answers` raises."""
    assert bench.tokenizer is not None
    wanted = ResponsesSpec(
        prompts=spec.prompts, prompt_tokens=spec.prompt_tokens, max_new_tokens=spec.new_tokens,
        batch_size=spec.batch_size, shown=0,
    )  # fmt: skip
    evaluation = bench.evaluation.model_copy(update={"responses": wanted})
    found = judged_answers(
        bench.subjects, bench.tokenizer, bench.texts, evaluation, seed=bench.seed, progress=bench.progress
    )
    return [_outcome(bench, spec, name, judged) for name, judged in found.items()]


def _outcome(bench: Bench, spec: FidelitySpec, name: str, judged: Sequence[Judged]) -> Outcome:
    prompts = 1 + int(max(one.prompt_A.max() for one in judged))
    errors = [errors_of(one, prompts) for one in judged]
    reach = min((min(own.reach, oracle.reach) for own, oracle in filter(None, errors)), default=0)
    lengths = [length for length in LENGTHS if length <= reach]
    tables = [
        Table(subject, written_columns(one, prompts, pair, lengths))
        for subject, one, pair in zip(bench.subjects, judged, errors, strict=True)
    ]
    excess = {f"excess_{length}": None for length in lengths}
    return Outcome(
        name=f"{name}: what they write",
        tables=tables,
        clusters=range(prompts),
        main="coverage",
        lower_is_better={"coverage": True, "likelihood": True, "rouge_teacher": False, **excess},
        ceiling="the teacher's row: its own answers, read by itself",
        notes=[f"{prompts} prompts, at most {spec.new_tokens} tokens each, at temperature 1, the same draws for all"],
    )


def errors_of(judged: Judged, prompts: int) -> tuple[StepErrors, StepErrors] | None:
    """A model's errors along its own text and along its teacher's; None for the teacher."""
    if judged.on_teacher is None or not judged.own.agrees:
        return None
    own = step_errors(judged.own, judged.prompt_A, prompts)
    return own, step_errors(judged.on_teacher, judged.teacher_prompt_A, prompts)


def written_columns(
    judged: Judged, prompts: int, errors: tuple[StepErrors, StepErrors] | None, lengths: Sequence[int]
) -> Mapping[str, Column]:
    """The measures of one model, by prompt."""
    columns: dict[str, Column] = {}
    for name, scores, prompt_A in (
        ("coverage", judged.on_teacher, judged.teacher_prompt_A),
        ("likelihood", judged.teacher, judged.prompt_A),
    ):
        if scores is not None:
            columns[name] = _by_token(scores, prompt_A, prompts)
    if judged.rouge_teacher is not None:
        columns["rouge_teacher"] = _by_prompt(judged.rouge_teacher.scores_A, judged.prompt_A, prompts)
    if errors is not None:
        columns |= {f"excess_{length}": Excess(*errors, length) for length in lengths}
    return columns


def _by_token(scores: TokenScores, prompt_A: NDArray[np.int64], prompts: int) -> Mean:
    """A mean over tokens, in nats."""
    prompt_N = prompt_A[np.asarray(scores.sequence, dtype=np.int64)]
    return _by_prompt(scores.array("nll"), prompt_N, prompts)


def _by_prompt(values: Floats, prompt: NDArray[np.int64], prompts: int) -> Mean:
    sums = np.bincount(prompt, weights=values, minlength=prompts).astype(np.float64)
    return Mean.of(sums, np.bincount(prompt, minlength=prompts).astype(np.float64))
