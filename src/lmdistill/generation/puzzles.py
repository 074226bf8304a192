"""Puzzles and word problems of reasoning-gym (arXiv 2505.24760) as seeds, and its own verifiers as verdicts.

A seed holds how its puzzle was made, and the puzzle is made again to score an answer: what a verifier needs besides the
answer does not survive being written as JSON. Torch is not imported here.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from lmdistill.errors import MissingExtra, RecipeError
from lmdistill.generation.child_process import ChildProcess
from lmdistill.generation.types import Seed, make_id
from lmdistill.recipe.base import nearest
from lmdistill.recipe.generation_verify import PuzzleSpec

PUZZLE = "reasoning_gym"
"""Name of the field of a seed that says how its puzzle was made."""
CHILD = "lmdistill.generation.verify_child"
_MISSING = "puzzles need reasoning-gym: pip install 'lmdistill[generate]'"
_MEMORY_MB = 2048
_MADE_WITHIN_SECONDS = 60.0


def make_puzzles(spec: PuzzleSpec) -> list[Seed]:
    """The puzzles of a recipe, one data set after the other; the same settings make the same ones.

    They are made in a child process, whose sets and global random numbers are the same each time. What speaks of the
    present date (`time_intervals`, `calendar_arithmetic`) may still come out differently on another day; where it does,
    scoring says unverifiable. Raises MissingExtra, and RecipeError for an unknown data set or setting.
    """
    if importlib.util.find_spec("reasoning_gym") is None:
        raise MissingExtra(_MISSING)
    with ChildProcess(CHILD, _MEMORY_MB) as child:
        return [seed for name in spec.names for seed in _seeds(name, spec, child)]


def make_dataset(name: str, config: Mapping[str, Any]) -> Any:
    """A data set of reasoning-gym, for the child process. Raises MissingExtra and RecipeError."""
    return _dataset(name, json.dumps(config, sort_keys=True))


def puzzle_request(seed: Seed, answer: str) -> dict[str, Any] | None:
    """What `lmdistill.generation.verify_child` is asked to score an answer; None where the seed is no puzzle."""
    made = seed.fields.get(PUZZLE)
    if not isinstance(made, Mapping):
        return None
    return {"do": "score", **made, "question": seed.prompt, "answer": answer}


def _seeds(name: str, spec: PuzzleSpec, child: ChildProcess) -> Iterator[Seed]:
    config = {**spec.config.get(name, {}), "seed": spec.seed, "size": spec.size}
    settings = make_id(json.dumps(config, sort_keys=True))[:8]
    for index in range(spec.size):
        made = {"dataset": name, "config": config, "index": index}
        puzzle = child.ask({"do": "make", **made}, _MADE_WITHIN_SECONDS)
        if "question" not in puzzle:
            raise RecipeError(puzzle.get("wrong") or f"{name}: puzzle {index} cannot be made: {puzzle.get('error')}")
        yield Seed(f"{name}-{index}-{settings}", puzzle["question"], puzzle["answer"], {PUZZLE: made})


@lru_cache(maxsize=32)
def _dataset(name: str, config_json: str) -> Any:
    if importlib.util.find_spec("reasoning_gym") is None:
        raise MissingExtra(_MISSING)
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        raise RecipeError(f"reasoning-gym has no data set {name!r}{nearest(name, sorted(DATASETS))}")
    config = json.loads(config_json)
    known = [field.name for field in dataclasses.fields(DATASETS[name][1])]
    for key in config:
        if key not in known:
            raise RecipeError(f"{name} has no setting {key!r}{nearest(key, known)}")
    try:
        return reasoning_gym.create_dataset(name, **config)
    except (AssertionError, TypeError, ValueError) as error:
        raise RecipeError(f"{name} does not take these settings: {error}") from error
