"""From what was measured to the stages of a run."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from lmdistill.accounting import forward_flops, training_flops_of
from lmdistill.planning.calibrate import Calibration, Pace, Text
from lmdistill.planning.records import StagePlan
from lmdistill.recipe import Recipe, StageSpec, StudentSpec, recipe_stages
from lmdistill.stages.generate import round_of
from lmdistill.training.arguments import DEFAULTS

ROUND = "generate-round-"
"""Beginning of the name of a round in which a teacher behind an API is asked."""


def student_stage(recipe: Recipe, found: Calibration, depth: int) -> StagePlan:
    """Building the student: loading the teacher of `depth` layers, ranking them, saving."""
    layers, heads = construction_passes(recipe.student, depth)
    tokens = min(recipe.student.calibration_tokens, max(text.tokens for text in found.texts.values()))
    ranking = tokens * (layers / depth * found.base_seconds + heads * found.head_seconds)
    loads = 0.0 if recipe.student.start == "pretrained" else found.teacher_load
    saving = found.student_bytes / max(1.0, found.save_rate)
    return StagePlan(
        name="student",
        seconds=loads + ranking + saving,
        how=f"loading {loads:.1f} s, ranking layers {ranking:.1f} s, saving {saving:.1f} s",
    )


def construction_passes(spec: StudentSpec, depth: int) -> tuple[float, float]:
    """How many of the teacher's layers a token of the calibration text goes through, and how often through its head."""
    layers = float(depth) if spec.width is not None else 0.0
    if spec.depth is None or spec.depth.importance in ("uniform", "first", "last"):
        return layers, 0.0
    if spec.depth.importance == "block_influence":
        return layers + depth, 0.0
    rounds = depth - spec.depth.keep if spec.depth.importance == "greedy_perplexity" else 1
    first, heads = spec.depth.protect_first, 0.0
    layers += depth
    for number in range(rounds):
        # In each round every layer that may go is left out once, which costs the layers behind it.
        now = depth - number
        places = range(first, now - spec.depth.protect_last)
        layers += now + sum(now - 1 - place for place in places)
        heads += 1 + len(places)
    return layers, heads


def steps_of(stage: StageSpec, sequences: float) -> float:
    """Optimiser steps of a stage without a budget."""
    steps = int(stage.training.get("max_steps", 0) or 0)
    if steps > 0:
        return float(steps)
    rows = int(stage.training.get("per_device_train_batch_size", DEFAULTS["per_device_train_batch_size"]))
    rows *= int(stage.training.get("gradient_accumulation_steps", 1))
    epochs = float(stage.training.get("num_train_epochs", DEFAULTS["num_train_epochs"]))
    return max(1.0, -(-sequences // rows) * epochs)


def training_stage(
    recipe: Recipe,
    stage: StageSpec,
    found: Calibration,
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    *,
    name: str | None = None,
    steps: float | None = None,
    limited: bool = True,
    spent_seconds: float = 0.0,
    spent_flops: float = 0.0,
) -> tuple[StagePlan, float]:
    """A training and its steps; `limited` by the recipe's budget, of which `spent_...` are used before it.

    `teacher` is None where none reads along.
    """
    name = name or stage.name
    pace = found.paces[name]
    length = recipe.data.max_length
    step_teacher = forward_flops(teacher, pace.tokens, length) if teacher is not None else 0.0
    step_flops = training_flops_of(student, pace.tokens, length) + forward_flops(student, pace.written, length)
    if steps is None:
        steps = steps_of(stage, found.texts[stage.name].sequences)
    if limited:
        steps = _within(recipe, pace, steps, step_flops + step_teacher, spent_seconds, spent_flops)
    saves = steps // int(stage.training.get("save_steps", DEFAULTS["save_steps"]))
    parameters = sum(parameter.numel() for parameter in student.parameters())
    saving = saves * 12 * parameters / max(1.0, found.save_rate)
    end = 2 * parameters / max(1.0, found.save_rate)
    seconds = pace.start_seconds + steps * pace.step_seconds + saving + end
    plan = StagePlan(
        name=name,
        seconds=seconds,
        tokens=steps * pace.tokens,
        written=steps * pace.written,
        flops=steps * (step_flops + step_teacher),
        teacher_flops=steps * step_teacher,
        steps=steps,
        how=f"{steps:,.0f} steps of {pace.step_seconds:.2f} s, {pace.start_seconds:.1f} s before, "
        f"{saving + end:.1f} s of saving",
    )
    return plan, steps


def _within(
    recipe: Recipe, pace: Pace, steps: float, step_flops: float, spent_seconds: float, spent_flops: float
) -> float:
    """Steps that the budget allows; one is taken in any case, and the last one is finished."""
    budget, limits = recipe.budget, [steps]
    if budget.minutes is not None:
        limits.append((budget.minutes * 60 - spent_seconds) / pace.step_seconds + 0.5)
    if budget.tokens is not None:
        limits.append(budget.tokens / max(1.0, pace.tokens) + 0.5)
    if budget.flops is not None:
        limits.append((budget.flops - spent_flops) / max(1.0, step_flops) + 0.5)
    return max(1.0, min(limits))


def written_stage(stage: StageSpec, found: Calibration, teacher: PreTrainedModel, length: int) -> StagePlan:
    """Text that the teacher writes before training."""
    assert stage.trajectories is not None
    spec = stage.trajectories.generation
    seconds, tokens, times = found.generated[stage.name]
    read = (tokens + spec.prompt_tokens * tokens / max(1, spec.max_new_tokens)) * times * spec.num_beams
    flops = forward_flops(teacher, read, length)
    return StagePlan(
        name=f"generate-{stage.name}",
        seconds=seconds * times,
        tokens=tokens * times,
        written=tokens * times,
        flops=flops,
        teacher_flops=flops,
        how=f"one batch took {seconds:.1f} s, {times:.1f} of them are needed",
    )


def asked_stages(recipe: Recipe, found: Calibration, stage: StageSpec) -> list[StagePlan]:
    """The round in which a teacher behind an API writes for a stage, where it has one of its own."""
    asking = found.asking
    if asking is None or not any(source.is_generated for source in stage.train or []):
        return []
    tokens = float(asking.plan.prompt_tokens + asking.plan.output_tokens)
    name = f"{ROUND}{round_of(recipe, stage.name)}"
    return [StagePlan(name=name, seconds=asking.seconds, tokens=tokens, how=asking.how)]


def labelled_stage(recipe: Recipe, stage: StageSpec, found: Calibration, teacher: PreTrainedModel | None) -> StagePlan:
    """The teacher's word on all of a stage's text, kept on disk, and on what a new store's codec is learnt from.

    `teacher` is None where its weights are not here: it is a server's work, or was done before.
    """
    seconds, tokens, _ = found.labelled[stage.name]
    text = found.texts[stage.name].tokens
    total = text + min(text, recipe.signals.calibration_tokens)
    flops = forward_flops(teacher, total, recipe.data.max_length) if teacher is not None else 0.0
    return StagePlan(
        name=f"label-{stage.name}",
        seconds=seconds * total / max(1.0, tokens),
        tokens=total,
        flops=flops,
        teacher_flops=flops,
        how=f"{tokens:,.0f} tokens took {seconds:.1f} s, there are {total:,.0f}",
    )


def disk(recipe: Recipe, found: Calibration, parameters: int, signals: float) -> tuple[int, int]:
    """Bytes of the run's folder at the end, and while checkpoints lie in it."""
    save = {"bfloat16": 2, "float16": 2, "float32": 4}[recipe.student.save_dtype] * parameters
    models = found.student_bytes + save * (1 + ("sft" in found.paces))
    texts = sum(_text_bytes(text) for text in [*found.texts.values(), *found.heldout.values()])
    end = models + texts + signals + 6e6  # the page brings its charts along
    stages = recipe_stages(recipe)
    saves = any(
        steps_of(stage, found.texts[stage.name].sequences)
        >= int(stage.training.get("save_steps", DEFAULTS["save_steps"]))
        for stage in stages
    )
    keep = int(recipe.training.get("save_total_limit", DEFAULTS["save_total_limit"])) + 1
    peak = end + (keep * 12 * parameters if saves else 0) + (4 * parameters if len(stages) > 1 else 0)
    return int(end), int(peak)


def _text_bytes(text: Text) -> float:
    """Of an encoded text: ids, labels and positions in four bytes each, and names."""
    return 12 * text.tokens + 40 * text.documents


def training_seconds(stages: Sequence[StagePlan], names: Sequence[str]) -> float:
    """Seconds of the stages of these names."""
    return sum(stage.seconds for stage in stages if stage.name in names)
