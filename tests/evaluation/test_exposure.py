"""Exposure bias against its formula, computed naively from full logits in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from lmdistill.data import PromptRow
from lmdistill.evaluation.answers import Answers, scored_rows
from lmdistill.evaluation.exposure import Exposure, step_errors
from lmdistill.evaluation.fidelity import Subject, TokenScores, score_tokens
from lmdistill.evaluation.statistics import resampling

LENGTHS = ((1, 4, 6), (2, 6, 5), (3, 5, 6), (6, 1, 6))
"""Lengths of three answers to each of four prompts."""


@pytest.fixture(scope="module")
def models(tiny_llama_folder: Path) -> tuple[Any, Any]:
    teacher, student = (AutoModelForCausalLM.from_pretrained(tiny_llama_folder).eval() for _ in range(2))
    torch.manual_seed(3)
    with torch.no_grad():
        for model in (teacher, student):  # an untrained model believes all tokens alike: make it say something
            for parameter in model.parameters():
                parameter.add_(0.5 * torch.randn_like(parameter))
    return teacher, student


def invented_answers(seed: int) -> Answers:
    random = np.random.default_rng(seed)
    flat = [(length, prompt) for prompt, lengths in enumerate(LENGTHS) for length in lengths]
    flat = [flat[place] for place in random.permutation(len(flat))]
    ids = [random.integers(10, 40000, length).tolist() for length, _ in flat]
    prompts = np.array([prompt for _, prompt in flat], dtype=np.int64)
    return Answers(ids, [False] * len(ids), prompts, [""] * len(ids))


def prompts() -> list[PromptRow]:
    return [PromptRow(list(range(100 + number, 105 + 2 * number)), [], str(number)) for number in range(len(LENGTHS))]


def scores(models: tuple[Any, Any], answers: Answers) -> TokenScores:
    subjects = [Subject("teacher", "t", models[0]), Subject("student", "s", models[1])]
    dataset = scored_rows(prompts(), answers)
    return score_tokens(subjects, dataset, vocabulary_size=49152, max_tokens=10**6, batch_size=5)[1]


@torch.no_grad()
def errors_by_definition(models: tuple[Any, Any], answers: Answers) -> list[list[float]]:
    """KL(p‖q) of each step of each answer from all logits in float64."""
    found = []
    teacher, student = (model.double() for model in models)
    for prompt, ids in zip(answers.prompt_A, answers.ids, strict=True):
        asked = prompts()[prompt].prompt_ids
        whole = torch.tensor([asked + ids])
        log_p, log_q = (model(whole).logits[0].log_softmax(-1) for model in (teacher, student))
        steps = range(len(asked) - 1, len(asked) - 1 + len(ids))
        found.append([float((log_p[t].exp() * (log_p[t] - log_q[t])).sum()) for t in steps])
    for model in models:
        model.float()
    return found


def accumulated(errors: list[list[float]], length: int) -> float:
    """Sum over steps of the mean over the answers that reach the step."""
    means = [np.mean([steps[t] for steps in errors if len(steps) > t]) for t in range(length)]
    return float(sum(means))


@pytest.mark.parametrize("swapped", [False, True])
def test_the_curve_is_its_formula(models: tuple[Any, Any], swapped: bool) -> None:
    pair = models[::-1] if swapped else models
    own, oracle = invented_answers(1), invented_answers(2)
    draws = resampling(len(LENGTHS), 200, 0.95, 0)
    errors = [step_errors(scores(pair, answers), answers.prompt_A, len(LENGTHS)) for answers in (own, oracle)]
    found = Exposure(*errors, draws)
    by_hand = [errors_by_definition(pair, answers) for answers in (own, oracle)]
    assert found.reach == 6
    points = found.points()
    assert [point.length for point in points] == [1, 2, 3, 4, 5, 6]
    assert [point.answers for point in points] == [12, 10, 9, 8, 7, 5]
    for point in points:
        regret, expected = (accumulated(steps, point.length) for steps in by_hand)
        assert point.regret == pytest.approx(regret, rel=1e-4)
        assert point.expected == pytest.approx(expected, rel=1e-4)
        assert point.excess.value == pytest.approx(100 * (regret - expected) / expected, abs=0.02)
        assert point.excess.low <= point.excess.value <= point.excess.high
    assert points[0].excess.value == pytest.approx(0, abs=1e-3)  # the first prefix is the prompt, whoever goes on
    assert max(abs(point.excess.value) for point in points) > 1  # else the comparison above would see nothing


def test_a_resampling_is_the_same_curve_on_the_prompts_that_it_took(models: tuple[Any, Any]) -> None:
    own, oracle = invented_answers(1), invented_answers(2)
    draws = resampling(len(LENGTHS), 3, 0.95, 5)
    errors = [step_errors(scores(models, answers), answers.prompt_A, len(LENGTHS)) for answers in (own, oracle)]
    found = Exposure(*errors, draws)
    by_hand = [errors_by_definition(models, answers) for answers in (own, oracle)]
    for number, weights_S in enumerate(draws.weights_RS, start=1):
        taken = [
            [steps[place] for place, prompt in enumerate(answers.prompt_A) for _ in range(int(weights_S[prompt]))]
            for answers, steps in zip((own, oracle), by_hand, strict=True)
        ]
        regret, expected = (accumulated(steps, 5) for steps in taken)
        assert found.excess(5)[number] == pytest.approx(100 * (regret - expected) / expected, abs=0.02)


def test_a_model_that_is_its_teacher_has_no_exposure_bias(models: tuple[Any, Any]) -> None:
    same = (models[0], models[0])
    answers = invented_answers(1)
    errors = step_errors(scores(same, answers), answers.prompt_A, len(LENGTHS))
    assert errors.sums_SL.max() == 0.0
    found = Exposure(errors, errors, resampling(len(LENGTHS), 100, 0.95, 0))
    assert found.reach == 0
    assert found.points() == []


def test_steps_that_few_prompts_reach_are_left_out() -> None:
    """Forty answers of one token and four of nine: nine tokens are not spoken of."""
    lengths = [1] * 40 + [9] * 4
    token_scores = TokenScores()
    for row, length in enumerate(lengths):
        token_scores.sequence += [row] * length
        token_scores.forward_kl += [1.0] * length
    errors = step_errors(token_scores, np.arange(44), 44)
    assert errors.reach == 1
    assert [errors.answers_at(step) for step in (1, 2, 9)] == [44, 4, 4]
