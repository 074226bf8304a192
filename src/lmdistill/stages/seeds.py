"""The seeds of generation, read from their sources."""

from __future__ import annotations

from typing import Any

from lmdistill.data import Document
from lmdistill.data.load import is_heldout, read_rows, shuffled
from lmdistill.errors import DataError
from lmdistill.generation.desk import filled
from lmdistill.generation.puzzles import make_puzzles
from lmdistill.generation.types import Seed, make_id
from lmdistill.recipe import SeedSpec, SourceSpec
from lmdistill.stages.context import Context


def read_seeds(context: Context) -> list[Seed]:
    """The seeds of a run, in their order, no two with one question. Raises DataError where there are none."""
    spec = context.recipe.generation
    assert spec is not None
    found: dict[str, Seed] = {}
    for place, source in enumerate(spec.seeds):
        for seed in _seeds_of(context, source, place):
            found.setdefault(seed.id, seed)
    if spec.seeds and not found:
        raise DataError("generation.seeds: no row in any of them; see the paths, and part and limit")
    return list(found.values())


def _seeds_of(context: Context, spec: SeedSpec, place: int) -> list[Seed]:
    """The seeds of one source."""
    if spec.puzzles is not None:
        return make_puzzles(spec.puzzles)[: spec.limit]
    assert spec.path is not None
    source = SourceSpec(path=spec.path, split=spec.split, subset=spec.subset)
    seeds = []
    for row in read_rows(source, context.progress):
        if row.row is None:
            raise DataError(f"{row.origin}: {row.problem}. Repair this row of generation.seeds.{place}")
        prompt = _column(row.row, spec.prompt, row.origin, f"generation.seeds.{place}.prompt")
        if not prompt.strip():
            continue
        answer = None
        if spec.answer is not None and ("{" in spec.answer or spec.answer in row.row):
            answer = _column(row.row, spec.answer, row.origin, f"generation.seeds.{place}.answer").strip() or None
            answer = spec.answer_words.get(answer, answer) if answer is not None else None
        seeds.append(Seed(make_id(prompt), prompt, answer, row.row, spec.task, spec.use))
    # With its answer, as a held-out source of the same file has it: then both draw one line between the rows.
    documents = [Document(prompt=seed.prompt, response=seed.answer, origin=seed.id) for seed in seeds]
    if spec.part != "all":
        heldout = spec.part == "heldout"
        documents = [document for document in documents if is_heldout(document, spec.heldout_share) == heldout]
    documents = shuffled(documents, context.recipe.seed, "seeds")[: spec.limit]
    by_id = {seed.id: seed for seed in seeds}
    return [by_id[document.origin] for document in documents]


def _column(row: dict[str, Any], wanted: str, origin: str, place: str) -> str:
    """A column's text, or a template filled with columns. Raises DataError for a column that is not there."""
    names = [wanted] if "{" not in wanted else [name for name in row if f"{{{name}}}" in wanted]
    missing = next((name for name in names if name not in row), None)
    if missing is not None or not names:
        raise DataError(f"{origin}: no column for {place}: {wanted!r}; the row has {', '.join(map(str, row))}")
    if "{" not in wanted:
        return str(row[wanted])
    return filled(wanted, **{name: str(row[name]) for name in names})
