"""What fits a teacher that reads conversations under its own chat template, and what does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmdistill.recipe.whole import Recipe, StageSpec

_FIELD = "teaching.template: teacher"


def check_own_template(recipe: Recipe, stages: Sequence[StageSpec]) -> None:
    """Refuse `teaching.template: teacher` where the teacher cannot read its own template. Raises ValueError."""
    teaching = recipe.teaching
    if teaching.template == "student":
        return
    if teaching.kind not in ("model", "server"):
        raise ValueError(f"{_FIELD} is for one teacher, in this process or behind a server, not for {teaching.kind}")
    if recipe.student.start != "pretrained":
        raise ValueError(f"{_FIELD}: student.start: {recipe.student.start} has the teacher's template already")
    if recipe.signals.kind != "live":
        raise ValueError(f"{_FIELD}: signals on disk are of the student's text; use signals.kind: live")
    for stage in stages:
        if stage.objective is not None and stage.objective.needs_teacher:
            _check_stage(recipe, stage)


def _check_stage(recipe: Recipe, stage: StageSpec) -> None:
    objective, trajectories = stage.objective, stage.trajectories
    assert objective is not None
    assert trajectories is not None
    if objective.cross_tokenizer is not None:
        raise ValueError(f"{_FIELD}: across tokenizers a teacher reads its own template anyway; remove the field")
    whole = {
        "policy": objective.policy.weight > 0,
        "preference": objective.preference.weight > 0,
        "contrastive": objective.contrastive is not None,
    }
    for name in (name for name, present in whole.items() if present):
        raise ValueError(
            f"{_FIELD}: objective.{name} needs the likelihood of whole answers, but under its own template the teacher "
            "does not speak of end markers that are not its own; use objective.divergence, or template: student"
        )
    if trajectories.teacher_writes or trajectories.interleaved is not None or trajectories.teacher_mixing > 0:
        raise ValueError(
            f"{_FIELD}: the teacher writes after the student's prompts; use trajectories.source: dataset, student, or "
            "mixture without a teacher's share, interleaved or teacher_mixing"
        )
    if trajectories.source == "dataset" and recipe.data.truncation not in ("drop", "error"):
        raise ValueError(
            f"{_FIELD}: a conversation cannot be cut in two templates at one place; set data.truncation: drop or error"
        )
