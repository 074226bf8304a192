"""An API's answers made ready to train from: the training data, and a recipe that reads the log-probabilities."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmdistill.errors import DataError
from lmdistill.io import write_text
from lmdistill.recipe import ModelSpec
from lmdistill.signals.answers import read_answers
from lmdistill.yamltext import write_yaml

TRAIN, RECIPE, STORE = "train.jsonl", "recipe.yaml", "signals"
_HELDOUT_FROM = 200
"""Answers from which on a twentieth is held out."""


@dataclass(frozen=True)
class Import:
    """What was written."""

    recipe: Path
    answers: int
    was_there: bool
    """Whether the recipe was there before, and was left alone."""


def write_import(answers: Path, model: ModelSpec, folder: Path, *, name: str | None, k: int, max_length: int) -> Import:
    """Write training data and, unless there is one, a recipe into a folder.

    `model` has the tokenizer that the answers are read with, and is the student that the recipe trains; `name` is the
    API's model. Raises DataError naming the line of an answer that cannot be used.
    """
    lines = [json.dumps(answer.row, ensure_ascii=False) for answer in read_answers(answers)]
    if not lines:
        raise DataError(f"{answers}: no answers in it; write one a line")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / TRAIN, "".join(line + "\n" for line in lines))
    recipe = folder / RECIPE
    was_there = recipe.is_file()
    if not was_there:
        signals = {"kind": "top_k", "k": k, "engine": "answers", "answers": str(answers.resolve())}
        values = _recipe(signals, model, folder.resolve(), name, max_length, len(lines))
        write_text(recipe, _HEADER.format(recipe=recipe, answers=answers) + write_yaml(values))
    return Import(recipe, len(lines), was_there)


_HEADER = """\
# Distil from what an API said: {answers}
#
#     lmdistill run {recipe}
#
# The teacher named here is where the tokenizer comes from; nobody is asked. The small weight of cross-entropy teaches
# the student to end its answers, of which many APIs say nothing. Every field: docs/recipe.md, docs/signals.md
"""


def _recipe(
    signals: dict[str, Any], model: ModelSpec, folder: Path, name: str | None, max_length: int, count: int
) -> dict[str, Any]:
    source: dict[str, Any] = {"path": str(folder / TRAIN)}
    data: dict[str, Any] = {"train": [source], "max_length": max_length}
    if count >= _HELDOUT_FROM:
        source.update(part="train", heldout_share=0.05)
        data["evaluation"] = {"answers": {**source, "part": "heldout"}}
    student = model.model_dump(exclude_defaults=True)
    return {
        "name": "run",
        "runs": str(folder),
        "teacher": student,
        "student": {"start": "pretrained", "model": dict(student)},
        "data": data,
        "signals": {**signals, "store": str(folder / STORE), **({} if name is None else {"served_model": name})},
        "objective": {
            "divergence": {"kind": "forward_kl", "weight": 1.0},
            "cross_entropy": {"weight": 0.1},
        },
        "training": {"num_train_epochs": 2, "per_device_train_batch_size": 8, "learning_rate": 5e-5},
    }
