"""What a study's results support and what they do not, in sentences made from the numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lmdistill.evaluation.significance import LEVEL
from lmdistill.study.carry import CellState
from lmdistill.study.compare import Contrast, is_main, measures_of
from lmdistill.study.results import CellResult, Measure
from lmdistill.study.spec import StudySpec


def introduction(spec: StudySpec, results: Sequence[CellResult]) -> list[str]:
    """What was compared, how, and on what machine."""
    students = f" × {len(spec.students)} students" if len(spec.students) > 1 else ""
    budgets = " or ".join(budget.label for budget in spec.budgets)
    said = [
        f"{len(spec.methods)} methods{students} × {len(spec.seeds)} seeds"
        + (f", each with a budget of {budgets}" if budgets else ", each as long as its recipe says")
        + (", what the teacher wrote before training taken from it" if any(not b.tokens for b in spec.budgets) else "")
        + (". All begin with one student, trained before" if spec.start is not None else "")
        + f". Others are compared with {spec.reference}."
    ]
    machines = {str(found.machine.get("processor")): found.machine for found in results}
    for machine in machines.values():
        said.append(f"Machine: {machine.get('processor')}, {machine.get('cores')} cores, {machine.get('dtype')}.")
    if len(machines) > 1:
        said.append("Cells ran on different machines: where the budget is time, they are not comparable.")
    return [*said, spec.conditions] if spec.conditions else said


def progress_of(states: Mapping[str, CellState]) -> str:
    """How many cells are done, and which failed; empty where all are done."""
    done = sum(found.state == "done" for found in states.values())
    failed = {name: found.message for name, found in states.items() if found.state == "failed"}
    if done == len(states):
        return ""
    said = f"Partial: {done} of {len(states)} cells are done"
    if failed:
        said += f"; {len(failed)} failed ({'; '.join(f'{name}: {why}' for name, why in failed.items())})"
    return said + "."


def verdicts(spec: StudySpec, results: Sequence[CellResult], found: Sequence[Contrast]) -> list[str]:
    """For each main measure, who is better, worse or not told apart."""
    said = []
    for measure in measures_of(results):
        if not is_main(spec, measure):
            continue
        own = [each for each in found if each.measure.key == measure.key]
        groups = {
            word: [_named(spec, each) for each in own if each.verdict == word]
            for word in ("better", "worse", "not told apart")
        }
        parts = [f"{word}: {', '.join(names)}" for word, names in groups.items() if names]
        if parts:
            said.append(f"{_full(measure)}: against {spec.reference}, {'; '.join(parts)}.")
    return said


def limits(spec: StudySpec, results: Sequence[CellResult], found: Sequence[Contrast]) -> list[str]:
    """What these results cannot carry."""
    tested = [each for each in found if each.p_adjusted is not None]
    said = []
    if tested:
        decided = sum(each.p_adjusted is not None and each.p_adjusted < LEVEL for each in tested)
        alone = sum(each.p < LEVEL for each in tested)
        said.append(
            f"{len(tested)} comparisons of main measures were made; {alone} are below 5 % by themselves and {decided} "
            "after Holm's correction, which keeps the chance of any false finding below 5 %. Measures that are not "
            "main ones are shown without a verdict."
        )
        said += _sight(found, spec, results)
    if len(spec.seeds) < 2:
        said.append("One seed: no difference can be told from chance, and none is.")
    elif len(spec.seeds) < 5:
        said.append(
            f"{len(spec.seeds)} seeds make wide intervals: 'not told apart' does not say equal. The column "
            "'detectable' is the true difference that such a comparison finds in four of five studies."
        )
    said.append(
        "Random are the seeds (order of the data, draws, the teacher's text); the held-out items are the same in all "
        "cells, and results.csv has each cell's own interval over them. What holds for these texts, this teacher, "
        "these students and this budget need not hold for others, nor after convergence."
    )
    said.append(
        "Every method ran with the settings in the study file and none was tuned: a method that is published with "
        "other learning rates or more steps may be worse here than it can be."
    )
    return said


def _sight(found: Sequence[Contrast], spec: StudySpec, results: Sequence[CellResult]) -> list[str]:
    """The range of what could be seen, for each main measure."""
    said = []
    for measure in measures_of(results):
        seen = [
            each.detectable
            for each in found
            if each.measure.key == measure.key and is_main(spec, measure) and not math.isnan(each.detectable)
        ]
        if seen:
            low, high = measure.shown(min(seen)), measure.shown(max(seen))
            said.append(f"Detectable in {_full(measure)}: differences of {low} to {high}, by method.")
    return said


def _full(measure: Measure) -> str:
    return f"{measure.title} on {measure.key.rpartition('/')[0]}"


def _named(spec: StudySpec, contrast: Contrast) -> str:
    parts = [contrast.method]
    parts += [contrast.student] if len(spec.students) > 1 else []
    parts += [contrast.budget] if len(spec.budgets) > 1 else []
    return " / ".join(part for part in parts if part)
