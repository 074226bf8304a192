"""How much of a run's budget is used: operations, tokens, and what the teacher did before training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, TrainerState

from lmdistill.accounting import forward_flops, training_flops_of
from lmdistill.stages.context import Context
from lmdistill.stages.jobs import Job


@dataclass(frozen=True)
class Spent:
    """What earlier stages took of the budget."""

    seconds: float = 0.0
    tokens: float = 0.0
    flops: float = 0.0


def spent_before(context: Context, job: Job, jobs: Sequence[Job]) -> Spent:
    """What the trainings `jobs`, which came before, used of the budget; with `budget.whole` the teacher's text and
    labels for them and for `job` too."""
    found = Spent()
    for name in [each.name for each in jobs]:
        record = context.folder.record(name) or {}
        found = _plus(found, record.get("training_seconds", 0.0), record.get("tokens", 0), record.get("flops", 0.0))
    if not context.recipe.budget.whole:
        return found
    for name in [each.name for each in (*jobs, job)]:
        for kind in ("generate", "label", "filters-teacher", "filters-student"):
            record = context.folder.record(f"{kind}-{name}") or {}
            found = _plus(found, record.get("seconds", 0.0), 0, record.get("flops", 0.0))
    return found


def _plus(spent: Spent, seconds: float, tokens: float, flops: float) -> Spent:
    return Spent(spent.seconds + float(seconds), spent.tokens + float(tokens), spent.flops + float(flops))


def training_flops(context: Context, job: Job, model: PreTrainedModel, tokens: int, written: int) -> dict[str, float]:
    """Operations of a training: what the student read forward and backward and wrote, and what its teacher read.

    `flops` holds all of them, `teacher_flops` the teacher's.
    """
    length = context.recipe.data.max_length
    own = training_flops_of(model, tokens, length) + forward_flops(model, written, length)
    read = tokens if job.objective.needs_teacher and job.signals is None else 0
    if job.trajectories.on_policy and (job.trajectories.teacher_mixing > 0 or job.trajectories.interleaved is not None):
        read += written
    teacher = forward_flops(context.teacher, read, length) if read else 0.0
    return {"flops": own + teacher, "teacher_flops": teacher}


def share_used(
    context: Context, job: Job, model: PreTrainedModel, before: Spent, written: Callable[[], int]
) -> Callable[[TrainerState], float] | None:
    """The share of the budget of tokens or operations that is used, by the Trainer's state; None where there is none.

    `written` tells how many tokens the student wrote so far.
    """
    budget = context.recipe.budget
    if not job.limited or (budget.tokens is None and budget.flops is None):
        return None

    def used(state: TrainerState) -> float:
        tokens, shares = int(state.num_input_tokens_seen), [0.0]
        if budget.tokens is not None:
            shares.append((before.tokens + tokens) / budget.tokens)
        if budget.flops is not None:
            now = training_flops(context, job, model, tokens, written())["flops"]
            shares.append((before.flops + now) / budget.flops)
        return max(shares)

    return used
