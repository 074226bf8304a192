"""Makers of data on the recorded answers of a real teacher, without a server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lmdistill.generation.desk import Contraster, Desk
from lmdistill.generation.makers import MAKERS
from lmdistill.generation.types import Drop, Example, Seed
from lmdistill.progress import Progress
from lmdistill.recipe import Recipe, load_recipe
from lmdistill.stages.seeds import read_seeds
from lmdistill.teachers import ApiTeacher
from small import RECORDINGS, ROOT, small_overrides


class Made:
    """What a maker made of a recording."""

    def __init__(
        self, recipe: Recipe, seeds: Sequence[Seed], rows: Sequence[Example | Drop], asked: int, raw: dict[str, str]
    ) -> None:
        self.recipe = recipe
        self.seeds = {seed.id: seed for seed in seeds}
        self.examples = [row for row in rows if isinstance(row, Example)]
        self.drops = [row for row in rows if isinstance(row, Drop)]
        self.asked = asked
        self.raw = raw
        """What the teacher wrote, by the key of the request."""

    def of(self, task: str) -> list[Example]:
        """The examples of one task."""
        return [example for example in self.examples if example.task == task]

    def said(self, example: Example) -> str:
        """What the teacher wrote for an example, all of it."""
        return "\n".join(self.raw[key] for key in example.provenance.requests)


def make(
    name: str, folder: Path, *changes: str, contraster: Contraster | None = None, method: str | None = None
) -> Made:
    """Let the maker of a recipe work on the recording of its method."""
    file = ROOT / "recipes" / f"{name}.yaml"
    unused = folder / "unused"
    recipe = load_recipe(file, [*small_overrides(file, unused, unused), *changes])
    assert recipe.generation is not None
    assert recipe.api is not None
    context: Any = SimpleNamespace(recipe=recipe, progress=Progress())
    seeds = read_seeds(context)
    with ApiTeacher(recipe.api, folder=folder) as teacher:
        counting = _Counting(teacher)
        desk = Desk(recipe.generation, counting, recipe=name, folder=folder, contraster=contraster)
        rows = list(MAKERS[recipe.generation.maker](desk, seeds))
    return Made(recipe, seeds, rows, counting.asked, _raw(method or recipe.method or name))


class _Counting:
    def __init__(self, teacher: ApiTeacher) -> None:
        self.teacher, self.asked = teacher, 0

    def answer(self, requests: Any) -> Any:
        for answer in self.teacher.answer(requests):
            self.asked += 1
            assert not answer.paid
            yield answer


def _raw(method: str) -> dict[str, str]:
    """The texts of a recording by key, read as JSON alone."""
    lines = (RECORDINGS / f"{method}.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    found = {}
    for line in map(json.loads, lines):
        choice = json.loads(line["raw"])["choices"][0]
        found[line["key"]] = choice.get("text") or (choice.get("message") or {}).get("content") or ""
    return found
