"""Fidelity: how like its teacher a model is on held-out text, and what is left of it away from the training text.

Agreement and both divergences are those of `lmdistill.evaluation.fidelity`, over sequences. The generalisation gap of a
measure is its mean on held-out text minus that on training text; a student whose surprise has a wider gap than its
teacher's has learnt the text more than the teacher. What models write to a few prompts (exposure bias by length,
coverage and likelihood loss) is measured as `evaluation.responses` does it (`own_text`).

Shape legend: S sequences.
"""

from __future__ import annotations

import numpy as np
from datasets import Dataset, concatenate_datasets
from numpy.typing import NDArray

from lmdistill.errors import DataError, ModelError
from lmdistill.evaluation.fidelity import TokenScores, score_tokens
from lmdistill.evaluation.rouge import RougeL
from lmdistill.evaluation.statistics import Floats
from lmdistill.evaluation.suites.columns import Gap, Mean
from lmdistill.evaluation.suites.own_text import own_text
from lmdistill.evaluation.suites.types import Bench, Column, Outcome, Suite, Table
from lmdistill.recipe import FidelitySpec, SuitesSpec

_COLUMNS = {"agreement": "agrees", "forward_kl": "forward_kl", "reverse_kl": "reverse_kl", "surprise": "nll"}
LOWER_IS_BETTER = {"agreement": False, "forward_kl": True, "reverse_kl": True, "surprise": True}
_KEPT = ["input_ids", "labels", "position_ids", "row_ids"]


def run(bench: Bench, spec: FidelitySpec) -> list[Outcome]:
    """Every held-out text, and its gap to the training text where that is known.

    Raises ModelError without a teacher that shares its tokens with the others, DataError without a text.
    """
    if not bench.subjects or bench.subjects[0].role != "teacher":
        raise ModelError(
            "the suite `fidelity` compares with a teacher that cuts text into the same tokens; name one (--teacher), "
            "or leave the suite out"
        )
    if not bench.texts:
        raise DataError("the suite `fidelity` needs held-out text: data.evaluation in a recipe, --data in a command")
    found = []
    for name, dataset in bench.texts.items():
        found.append(_on_text(bench, spec, name, dataset))
        if bench.train is not None and len(bench.train) > 1:
            found.append(_gap(bench, spec, name, dataset, bench.train))
    return [*found, *own_text(bench, spec)] if spec.prompts and bench.tokenizer is not None else found


def _on_text(bench: Bench, spec: FidelitySpec, name: str, dataset: Dataset) -> Outcome:
    scored = _first(dataset, bench.limit(spec.limit))
    scores = _score(bench, spec, scored, name)
    tables = [
        Table(subject, token_columns(found, len(scored))) for subject, found in zip(bench.subjects, scores, strict=True)
    ]
    return Outcome(
        name=name,
        tables=tables,
        clusters=range(len(scored)),
        main="agreement",
        lower_is_better=LOWER_IS_BETTER,
        ceiling="1: the teacher's distribution at a given text is always the same",
    )


def token_columns(scores: TokenScores, sequences: int) -> dict[str, Column]:
    """Means over tokens, resampled by sequence; a teacher has its surprise alone."""
    index = np.asarray(scores.sequence, dtype=np.int64)
    counts_S = np.bincount(index, minlength=sequences).astype(np.float64)
    columns: dict[str, Column] = {}
    for name, column in _COLUMNS.items():
        if getattr(scores, column):
            columns[name] = Mean.of(_by_sequence(scores, column, sequences), counts_S)
    return columns


def _by_sequence(scores: TokenScores, column: str, sequences: int) -> Floats:
    index = np.asarray(scores.sequence, dtype=np.int64)
    return np.bincount(index, weights=scores.array(column), minlength=sequences).astype(np.float64)


def _gap(bench: Bench, spec: FidelitySpec, name: str, dataset: Dataset, train: Dataset) -> Outcome:
    """Held-out minus training text, both scored in one go: the first part of the rows is held out."""
    limit = bench.limit(spec.limit) or len(dataset)
    held, seen = _first(dataset, limit), _first(train, min(limit, len(dataset)))
    both = concatenate_datasets([part.select_columns(_shared(held, seen)) for part in (held, seen)])
    is_held_S = np.arange(len(both)) < len(held)
    scores = _score(bench, spec, both, f"{name} and training text")
    tables = [
        Table(subject, gap_columns(found, is_held_S)) for subject, found in zip(bench.subjects, scores, strict=True)
    ]
    return Outcome(
        name=f"{name}: gap to the training text",
        tables=tables,
        clusters=range(len(both)),
        main="surprise_gap",
        lower_is_better={"surprise_gap": True, "agreement_gap": None, "forward_kl_gap": True},
        notes=[f"{len(held)} held-out and {len(seen)} training sequences; held-out minus training"],
    )


def gap_columns(scores: TokenScores, is_held_S: NDArray[np.bool_]) -> dict[str, Column]:
    """The gaps of one model."""
    count = len(is_held_S)
    index = np.asarray(scores.sequence, dtype=np.int64)
    counts_S = np.bincount(index, minlength=count).astype(np.float64)
    columns: dict[str, Column] = {"surprise_gap": Gap(_by_sequence(scores, "nll", count), counts_S, is_held_S)}
    if scores.agrees:
        columns["agreement_gap"] = Gap(_by_sequence(scores, "agrees", count), counts_S, is_held_S)
        columns["forward_kl_gap"] = Gap(_by_sequence(scores, "forward_kl", count), counts_S, is_held_S)
    return columns


def _first(dataset: Dataset, limit: int | None) -> Dataset:
    return dataset if limit is None else dataset.select(range(min(limit, len(dataset))))


def _shared(*datasets: Dataset) -> list[str]:
    return [name for name in _KEPT if all(name in dataset.column_names for dataset in datasets)]


def _score(bench: Bench, spec: FidelitySpec, dataset: Dataset, name: str) -> list[TokenScores]:
    tokens = sum(len(ids) for ids in dataset["input_ids"])
    with bench.progress.task(f"fidelity on {name}", total=tokens, unit="tokens") as task:
        return score_tokens(
            bench.subjects,
            dataset,
            vocabulary_size=bench.vocabulary_size,
            max_tokens=2**62,
            batch_size=spec.batch_size,
            told=task.advance,
        )


def check(suites: SuitesSpec, spec: FidelitySpec) -> None:
    """Whether ROUGE is there, where models write."""
    if spec.prompts:
        RougeL()


SUITE = Suite("fidelity", "Fidelity to the teacher", run, check)
