"""Evaluate a student beside its teacher and its baselines."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lmdistill.errors import DataError
from lmdistill.evaluation.efficiency import measure_efficiency
from lmdistill.evaluation.fidelity import Subject, TokenScores, score_tokens
from lmdistill.evaluation.generations import side_by_side
from lmdistill.evaluation.responses import ResponseResults, check_responses, evaluate_responses
from lmdistill.evaluation.results import Comparison, Evaluation, ModelScores, ResponseScores, TextScores, TokenHeat
from lmdistill.evaluation.statistics import resampling
from lmdistill.evaluation.summarise import Tally, compare, text_scores, token_bytes
from lmdistill.progress import Progress
from lmdistill.recipe import EvaluationSpec

HEAT_TOKENS = 160
"""Tokens of a text that the heat map shows."""


def evaluate(
    subjects: Sequence[Subject],
    tokenizer: PreTrainedTokenizerBase,
    texts: Mapping[str, Dataset],
    spec: EvaluationSpec,
    *,
    training_counts_V: Tensor | None,
    seed: int,
    progress: Progress,
) -> Evaluation:
    """Score all subjects on all texts, compare the student with the others, measure speed, and let them write.

    The teacher, where there is one, must come first. Raises DataError for a text without a scored token, and what
    `check_responses` raises before anything is scored.
    """
    started = time.monotonic()
    if spec.responses is not None:
        check_responses(spec.responses, texts)
    counts_V = None if training_counts_V is None else training_counts_V.numpy()
    bytes_V = token_bytes(tokenizer)
    by_model: list[dict[str, TextScores]] = [{} for _ in subjects]
    comparisons: list[Comparison] = []
    heat: list[TokenHeat] = []
    for name, dataset in texts.items():
        scores = _score(subjects, tokenizer, dataset, name, spec, progress)
        draws = resampling(max(scores[0].sequence) + 1, spec.bootstrap_samples, spec.confidence, seed)
        tallies = [Tally(found, draws, spec.calibration_bins) for found in scores]
        for tally, found in zip(tallies, by_model, strict=True):
            found[name] = text_scores(tally, bytes_V, counts_V)
        comparisons += _comparisons(subjects, tallies, name)
        heat += _heat(subjects, scores, dataset, tokenizer, name, spec, len(texts))
    written = ResponseResults([{} for _ in subjects])
    if spec.responses is not None:
        written = evaluate_responses(subjects, tokenizer, texts, spec, seed=seed, progress=progress)
    models = _models(subjects, by_model, written.by_model, spec, progress)
    with progress.task("prompts", total=len(spec.prompts) * len(subjects), unit="answers") as task:
        generations = side_by_side(subjects, tokenizer, spec.prompts, spec.generation, seed, task.advance)
    return Evaluation(
        models=models,
        comparisons=comparisons + written.comparisons,
        heat=heat[: spec.heatmap_texts],
        generations=generations,
        responses=written.shown,
        confidence=spec.confidence,
        bootstrap_samples=spec.bootstrap_samples,
        seconds=round(time.monotonic() - started, 3),
    )


def _score(
    subjects: Sequence[Subject],
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    name: str,
    spec: EvaluationSpec,
    progress: Progress,
) -> list[TokenScores]:
    total = min(spec.max_tokens, sum(len(ids) for ids in dataset["input_ids"]))
    with progress.task(f"score {name}", total=total, unit="tokens") as task:
        scores = score_tokens(
            subjects,
            dataset,
            vocabulary_size=len(tokenizer),
            max_tokens=spec.max_tokens,
            batch_size=spec.batch_size,
            told=task.advance,
        )
    if not scores[0].target:
        raise DataError(f"held-out {name}: no token has a label, so nothing can be scored; see data.evaluation.{name}")
    return scores


def _models(
    subjects: Sequence[Subject],
    by_model: Sequence[dict[str, TextScores]],
    responses: Sequence[dict[str, ResponseScores]],
    spec: EvaluationSpec,
    progress: Progress,
) -> list[ModelScores]:
    models: list[ModelScores] = []
    measured = None
    with progress.task("speed and memory", total=len(subjects), unit="models") as task:
        for subject, texts, answers in zip(subjects, by_model, responses, strict=True):
            # Student and baselines have one shape; measuring it once spares the report differences that are noise.
            efficiency = measured if subject.role in ("none", "sft") else None
            if efficiency is None and spec.speed is not None:
                efficiency = measure_efficiency(subject.model, spec.speed)
            if subject.role == "student":
                measured = efficiency
            models.append(
                ModelScores(
                    role=subject.role, label=subject.label, texts=texts, responses=answers, efficiency=efficiency
                )
            )
            task.advance()
    return models


def _comparisons(subjects: Sequence[Subject], tallies: Sequence[Tally], text: str) -> list[Comparison]:
    student = next((t for s, t in zip(subjects, tallies, strict=True) if s.role == "student"), None)
    if student is None:
        return []
    return [
        found
        for subject, tally in zip(subjects, tallies, strict=True)
        if subject.role != "student"
        for found in compare(student, tally, subject.role, text)
    ]


def _heat(
    subjects: Sequence[Subject],
    scores: Sequence[TokenScores],
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    spec: EvaluationSpec,
    texts: int,
) -> list[TokenHeat]:
    """The first documents of a text with the divergence that remains at each token."""
    roles = [subject.role for subject in subjects]
    if "teacher" not in roles or "student" not in roles:
        return []
    teacher, student = scores[roles.index("teacher")], scores[roles.index("student")]
    rows = np.asarray(student.sequence)
    found = []
    for sequence in range(-(-spec.heatmap_texts // texts)):
        places = np.nonzero(rows == sequence)[0]
        if not len(places):
            break
        found.append(_one_heat(teacher, student, dataset[sequence], places, tokenizer, name))
    return found


def _one_heat(
    teacher: TokenScores,
    student: TokenScores,
    row: Mapping[str, Sequence[int]],
    places: NDArray[np.int64],
    tokenizer: PreTrainedTokenizerBase,
    name: str,
) -> TokenHeat:
    ids, labels, positions = list(row["input_ids"]), list(row["labels"]), list(row["position_ids"])
    end = next((index for index, position in enumerate(positions) if index and position == 0), len(ids))
    end = min(end, HEAT_TOKENS)
    tokens, divergence, teacher_top, student_top = [], [], [], []
    taken = 0
    for index in range(end):
        tokens.append(str(tokenizer.decode([ids[index]])))
        if labels[index] == -100 or index == 0:
            divergence.append(float("nan"))
            teacher_top.append("")
            student_top.append("")
            continue
        place = int(places[taken])
        taken += 1
        divergence.append(student.forward_kl[place])
        teacher_top.append(str(tokenizer.decode([teacher.top[place]])))
        student_top.append(str(tokenizer.decode([student.top[place]])))
    return TokenHeat(text=name, tokens=tokens, forward_kl=divergence, teacher_top=teacher_top, student_top=student_top)
