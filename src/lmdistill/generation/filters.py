"""The chain of checks between what a teacher wrote and what the student learns from. Torch is not imported here.

It streams: a row goes through all checks before the next is read. Every row that comes in goes out, as an example with
the checks that it passed or as a drop with its reason. Checks that compare rows keep the first of two that are alike,
so their result depends on the order of the rows; all others judge a row by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from lmdistill.generation.checks.base import Check
from lmdistill.generation.checks.contamination import ContaminationCheck
from lmdistill.generation.checks.language import LanguageCheck
from lmdistill.generation.checks.likeness import NearDuplicateCheck, NoveltyCheck, RationaleCheck
from lmdistill.generation.checks.markers import MarkerCheck
from lmdistill.generation.checks.pii import PiiCheck
from lmdistill.generation.checks.plain import EmptyCheck, LengthCheck, RefusalCheck, VerdictCheck
from lmdistill.generation.checks.repetition import RepetitionCheck
from lmdistill.generation.types import Drop, Example
from lmdistill.recipe.generation_filters import FilterSpec


def apply_filters(
    examples: Iterable[Example | Drop],
    spec: FilterSpec,
    evaluation_sets: Mapping[str, Iterable[str | tuple[str, str]]],
    pool: Iterable[str] = (),
) -> Iterator[Example | Drop]:
    """Each row in its order, as an example or as a drop; drops that come in go out as they are.

    `evaluation_sets` holds texts or (question, answer) by the name of the set; `pool` the texts that `spec.novelty`
    starts from. Raises MissingExtra, before the first row, where a check needs a package that is not installed.
    """
    return run_checks(examples, make_checks(spec, evaluation_sets, pool))


def make_checks(
    spec: FilterSpec,
    evaluation_sets: Mapping[str, Iterable[str | tuple[str, str]]],
    pool: Iterable[str] = (),
) -> list[Check]:
    """The checks of a recipe: those of a single row first, the ones that compare rows last.

    Verdicts come behind the other checks of a single row: wrong answers are needed as the worse ones of pairs, and what
    is dropped by the verdict has passed the rest and is masked.
    """
    checks: list[Check] = []
    if spec.empty:
        checks.append(EmptyCheck())
    if spec.length is not None:
        checks.append(LengthCheck(spec.length))
    if spec.refusal is not None:
        checks.append(RefusalCheck(spec.refusal))
    if spec.repetition is not None:
        checks.append(RepetitionCheck(spec.repetition))
    if spec.language is not None:
        checks.append(LanguageCheck(spec.language))
    if spec.markers is not None:
        checks.append(MarkerCheck(spec.markers))
    if spec.contamination is not None:
        checks.append(ContaminationCheck(spec.contamination, evaluation_sets))
    if spec.pii is not None:
        checks.append(PiiCheck(spec.pii))
    if spec.verdict != "any":
        checks.append(VerdictCheck(spec.verdict))
    if spec.rationale is not None:
        checks.append(RationaleCheck(spec.rationale))
    if spec.near_duplicate is not None:
        checks.append(NearDuplicateCheck(spec.near_duplicate))
    if spec.novelty is not None:
        checks.append(NoveltyCheck(spec.novelty, pool))
    return checks


def run_checks(examples: Iterable[Example | Drop], checks: Sequence[Check]) -> Iterator[Example | Drop]:
    """Rows through given checks; a check is used for one stream."""
    for example in examples:
        yield example if isinstance(example, Drop) else _through(example, checks)


def _through(example: Example, checks: Sequence[Check]) -> Example | Drop:
    """One row through all checks; those that compare rows hear of it only if it stays."""
    row = example
    for check in checks:
        finding = check.look(row)
        if finding is not None:
            return Drop(row, by=check.name, reason=finding.reason, matched=finding.matched)
        row = check.mend(row)
    for check in checks:
        check.keep(row)
    passed = tuple(check.name for check in checks)
    return replace(row, provenance=replace(row.provenance, filters=(*row.provenance.filters, *passed)))
