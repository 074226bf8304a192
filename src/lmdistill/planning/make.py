"""Making a plan: calibrate, scale, sum up."""

from __future__ import annotations

import datetime
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import PreTrainedModel

from lmdistill.accounting import describe_machine, watts_assumed
from lmdistill.accounting.machine import cores, peak_memory
from lmdistill.doctor import Diagnosis, examine
from lmdistill.errors import RecipeError
from lmdistill.io import write_json
from lmdistill.planning.calibrate import Calibration, calibrate, small_recipe
from lmdistill.planning.estimate import disk, labelled_stage, student_stage, training_stage, written_stage
from lmdistill.planning.evaluation import plan_evaluation
from lmdistill.planning.hardware import UTILISATION, Hardware, on_hardware
from lmdistill.planning.records import HardwarePlan, Plan, StagePlan
from lmdistill.planning.scale import scaled
from lmdistill.planning.scaling import DistillationLaw
from lmdistill.progress import Progress
from lmdistill.recipe import Recipe, recipe_stages
from lmdistill.run_folder import RunFolder
from lmdistill.stages.context import Context
from lmdistill.students.families import decoder_layers
from lmdistill.training.callbacks import stop_flag


@dataclass(frozen=True)
class Elsewhere:
    """Other hardware that a plan is asked for."""

    device: Hardware
    utilisation: float = UTILISATION
    price: float | None = None


def make_plan(
    recipe: Recipe,
    *,
    elsewhere: Elsewhere | None = None,
    tokens: float | None = None,
    law: DistillationLaw | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Predict a run. Takes some steps of it in a temporary folder; the run's own folder is not touched.

    Raises RecipeError where the doctor finds an error or the teacher has no weights here, and what the run would raise.
    """
    progress = progress or Progress()
    if recipe.teacher_is_remote:
        raise RecipeError(
            "the teacher is behind an API: its time and price are the server's, and cannot be calibrated here; "
            "api.limits cap them, and a run tells what it would ask for before it asks"
        )
    if recipe.task is not None or any(stage.task is not None for stage in recipe_stages(recipe)):
        raise RecipeError("a recipe that trains on a task (`task`) cannot be planned yet; its report says what it took")
    startup = max(0.0, time.time() - psutil.Process().create_time())
    started = time.monotonic()
    with progress.stage("calibration", "a few steps of the run"):
        diagnosis = examine(recipe, progress=progress)
        diagnosis.raise_for_errors()
        checking = time.monotonic() - started
        if recipe.machine.threads:
            torch.set_num_threads(recipe.machine.threads)
        with _folder(recipe, progress) as context:
            found, student, _ = calibrate(recipe, context)
            model = student.load(context, context.fast_dtype)
            plan = _plan(recipe, context, found, model, student.tokenizer, diagnosis, startup, checking)
            teacher = context.teacher
            whole = found
    writes = (
        model
        if any(stage.trajectories and stage.trajectories.on_policy for stage in recipe_stages(recipe))
        else teacher
    )
    there = _elsewhere(elsewhere, plan.stages, diagnosis, writes, recipe)
    plan = plan.model_copy(update={"hardware": there, "calibration_seconds": round(time.monotonic() - started, 1)})
    if tokens is None:
        return plan
    return plan.model_copy(
        update={"scale": scaled(recipe, plan, whole, teacher, model, tokens, elsewhere, diagnosis, law)}
    )


def write_plan(plan: Plan, folder: Path) -> Path:
    """Keep a plan in the run's folder, where the report finds it."""
    file = folder / "plan.json"
    write_json(file, plan.model_dump(mode="json"))
    return file


@contextmanager
def _folder(recipe: Recipe, progress: Progress) -> Iterator[Context]:
    with tempfile.TemporaryDirectory(prefix="lmdistill-plan-") as place, stop_flag() as stop:
        folder = RunFolder(Path(place) / "plan")
        folder.path.mkdir()
        yield Context(recipe=small_recipe(recipe, place), folder=folder, progress=progress, stop=stop)


def _plan(
    recipe: Recipe,
    context: Context,
    found: Calibration,
    student: PreTrainedModel,
    tokenizer: Any,
    diagnosis: Diagnosis,
    startup: float,
    checking: float,
) -> Plan:
    length = recipe.data.max_length
    parameters = sum(parameter.numel() for parameter in student.parameters())
    initial = parameters * next(context.teacher.parameters()).element_size()
    stages = [student_stage(recipe, found, len(decoder_layers(context.teacher)), initial)]
    stages += _trainings(recipe, context, found, student)
    judged = plan_evaluation(
        recipe.evaluation,
        found,
        None if context.is_foreign else context.teacher,
        student,
        tokenizer,
        startup_seconds=startup,
        length=length,
    )
    stages.append(
        StagePlan(
            name="evaluate",
            seconds=judged.seconds,
            tokens=judged.tokens,
            flops=judged.flops,
            teacher_flops=judged.teacher_flops,
            how=judged.how,
        )
    )
    encoding = sum(text.encode_seconds for text in [*found.texts.values(), *found.heldout.values()])
    other = checking + found.read_seconds + encoding
    signals = sum(found.texts[name].tokens * rate for name, (_, _, rate) in found.labelled.items())
    end, peak = disk(recipe, found, initial, parameters, signals)
    seconds = sum(stage.seconds for stage in stages) + other
    spec = recipe.accounting
    watts = spec.watts or watts_assumed(cores())
    return Plan(
        recipe=recipe.name,
        made=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine=describe_machine(context.device, context.fast_dtype),
        stages=stages,
        other_seconds=other,
        startup_seconds=startup,
        seconds=seconds,
        memory_bytes=peak_memory(),
        memory_estimate_bytes=sum(term.bytes for term in diagnosis.memory),
        disk_bytes=end,
        peak_disk_bytes=peak,
        money=None if spec.price_per_hour is None else spec.price_per_hour * seconds / 3600,
        joules=watts * seconds,
        energy=f"{watts:g} W, {'as the recipe declares' if spec.watts else 'assumed (accounting.watts)'}",
        calibration_seconds=0.0,
        unknown=[*found.unknown, *judged.unknown, *_unknown(recipe)],
    )


def _trainings(recipe: Recipe, context: Context, found: Calibration, student: PreTrainedModel) -> list[StagePlan]:
    """What the teacher writes and says, the student's trainings, the baseline's."""
    stages: list[StagePlan] = []
    steps: list[float] = []
    seconds = flops = 0.0
    specs = recipe_stages(recipe)
    for stage in specs:
        before: list[StagePlan] = []
        if stage.name in found.generated:
            before.append(written_stage(stage, found, context.teacher, recipe.data.max_length))
        if stage.name in found.labelled:
            before.append(labelled_stage(recipe, stage, found, context.teacher))
        if recipe.budget.whole:
            seconds += sum(each.seconds for each in before)
            flops += sum(each.flops for each in before)
        live = stage.objective is not None and stage.objective.needs_teacher and stage.name not in found.labelled
        teacher = context.teacher if live else None
        plan, taken = training_stage(recipe, stage, found, student, teacher, spent_seconds=seconds, spent_flops=flops)
        seconds, flops = seconds + plan.seconds, flops + plan.flops
        stages += [*before, plan]
        steps.append(taken)
    if "sft" in found.paces:
        for stage, taken in zip(specs, steps, strict=True):
            plan, _ = training_stage(recipe, stage, found, student, None, name="sft", steps=taken, limited=False)
            stages.append(plan if len(specs) == 1 else plan.model_copy(update={"name": f"sft-{stage.name}"}))
    return stages


def _unknown(recipe: Recipe) -> list[str]:
    found = []
    if recipe.student.vocabulary is not None:
        found.append("how much smaller a trimmed vocabulary makes the student (student.vocabulary)")
    if recipe.api is not None:
        found.append("what asking the API takes and costs")
    if recipe.data.difference is not None:
        found.append("choosing documents by two models (data.difference)")
    if any("eval_strategy" in stage.training for stage in recipe_stages(recipe)):
        found.append("held-out scores while training (training.eval_strategy)")
    return found


def _elsewhere(
    elsewhere: Elsewhere | None, stages: list[StagePlan], diagnosis: Diagnosis, writer: PreTrainedModel, recipe: Recipe
) -> HardwarePlan | None:
    if elsewhere is None:
        return None
    return on_hardware(
        elsewhere.device,
        stages,
        memory=sum(term.bytes for term in diagnosis.memory),
        writer_bytes=2 * sum(parameter.numel() for parameter in writer.parameters()),
        slots=recipe.trajectories.generation.batch_size,
        utilisation=elsewhere.utilisation,
        price=elsewhere.price,
    )
