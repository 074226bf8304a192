"""Making a plan: calibrate, scale, sum up."""

from __future__ import annotations

import datetime
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
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
from lmdistill.planning.asking import ASK
from lmdistill.planning.calibrate import Calibration, calibrate, small_recipe
from lmdistill.planning.estimate import (
    ROUND,
    asked_stages,
    disk,
    labelled_stage,
    student_stage,
    training_stage,
    written_stage,
)
from lmdistill.planning.evaluation import plan_evaluation
from lmdistill.planning.hardware import UTILISATION, Hardware, on_hardware
from lmdistill.planning.records import ApiPlan, HardwarePlan, Plan, StagePlan
from lmdistill.planning.scale import scaled
from lmdistill.planning.scaling import DistillationLaw
from lmdistill.planning.task import SCORED, plan_task, small_task
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
    ask: int = ASK,
    progress: Progress | None = None,
) -> Plan:
    """Predict a run. Takes some steps of it in a temporary folder; the run's own folder is not touched.

    A teacher behind an API is asked about `ask` questions, whose answers the run finds in its ledger; 0 asks nothing.
    Raises RecipeError where the doctor finds an error, or where `tokens` are asked for and the teacher's weights are
    not here; and what the run would raise.
    """
    progress = progress or Progress()
    if tokens is not None and recipe.teacher_is_remote:
        raise RecipeError(
            "--tokens scales by the teacher's operations, and its weights are behind an API: leave it away, or name "
            "the weights in teacher"
        )
    if tokens is not None and recipe.task is not None:
        raise RecipeError("--tokens asks the scaling law of language models: leave it away where the recipe has a task")
    startup = max(0.0, time.time() - psutil.Process().create_time())
    started = time.monotonic()
    with progress.stage("calibration", "a few steps of the run"):
        diagnosis = examine(recipe, progress=progress)
        diagnosis.raise_for_errors()
        checking = time.monotonic() - started
        if recipe.machine.threads:
            torch.set_num_threads(recipe.machine.threads)
        if recipe.task is not None:
            return _of_task(recipe, elsewhere, diagnosis, startup, checking, started, progress)
        with _folder(recipe, progress) as context:
            found, student, _ = calibrate(recipe, context, ask)
            model = student.load(context, context.fast_dtype)
            teacher = None if context.is_elsewhere else context.teacher
            plan = _plan(recipe, context, found, model, teacher, student.tokenizer, diagnosis, startup, checking)
            whole = found
    on_policy = any(stage.trajectories and stage.trajectories.on_policy for stage in recipe_stages(recipe))
    writes = model if on_policy or teacher is None else teacher
    there = _elsewhere(elsewhere, plan.stages, diagnosis, writes, recipe)
    plan = plan.model_copy(update={"hardware": there, "calibration_seconds": round(time.monotonic() - started, 1)})
    if tokens is None or teacher is None:
        return plan
    return plan.model_copy(
        update={"scale": scaled(recipe, plan, whole, teacher, model, tokens, elsewhere, diagnosis, law)}
    )


def write_plan(plan: Plan, folder: Path) -> Path:
    """Keep a plan in the run's folder, where the report finds it."""
    file = folder / "plan.json"
    write_json(file, plan.model_dump(mode="json"))
    return file


def _of_task(
    recipe: Recipe,
    elsewhere: Elsewhere | None,
    diagnosis: Diagnosis,
    startup: float,
    checking: float,
    started: float,
    progress: Progress,
) -> Plan:
    """The plan of a run that trains on a task."""
    with _folder(recipe, progress, lambda runs: small_task(recipe, runs, SCORED[0])) as context:
        found = plan_task(recipe, context)
        other = checking + found.other_seconds
        plan = summed_up(
            recipe,
            context,
            found.stages,
            diagnosis,
            other=other,
            startup=startup,
            disk_bytes=found.disk_bytes,
            unknown=found.unknown,
        )
    there = None
    if elsewhere is not None:
        memory = sum(term.bytes for term in diagnosis.memory)
        there = on_hardware(
            elsewhere.device,
            plan.stages,
            memory=memory,
            writer_bytes=0,
            slots=1,
            utilisation=elsewhere.utilisation,
            price=elsewhere.price,
        )
    return plan.model_copy(update={"hardware": there, "calibration_seconds": round(time.monotonic() - started, 1)})


@contextmanager
def _folder(recipe: Recipe, progress: Progress, smaller: Callable[[str], Recipe] | None = None) -> Iterator[Context]:
    with tempfile.TemporaryDirectory(prefix="lmdistill-plan-") as place, stop_flag() as stop:
        folder = RunFolder(Path(place) / "plan")
        folder.path.mkdir()
        small = small_recipe(recipe, place) if smaller is None else smaller(place)
        yield Context(recipe=small, folder=folder, progress=progress, stop=stop)


def _plan(
    recipe: Recipe,
    context: Context,
    found: Calibration,
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    tokenizer: Any,
    diagnosis: Diagnosis,
    startup: float,
    checking: float,
) -> Plan:
    length = recipe.data.max_length
    parameters = sum(parameter.numel() for parameter in student.parameters())
    stages = [student_stage(recipe, found, 1 if teacher is None else len(decoder_layers(teacher)))]
    stages += _trainings(recipe, found, student, teacher)
    judged = plan_evaluation(
        recipe.evaluation,
        found,
        None if context.is_foreign else teacher,
        student,
        tokenizer,
        startup_seconds=startup,
        length=length,
        elsewhere=teacher is None,
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
    return summed_up(
        recipe,
        context,
        stages,
        diagnosis,
        other=other,
        startup=startup,
        disk_bytes=disk(recipe, found, parameters, signals),
        api=None if found.asking is None or recipe.api is None else found.asking.plan,
        unknown=[*found.unknown, *judged.unknown, *_unknown(recipe)],
    )


def summed_up(
    recipe: Recipe,
    context: Context,
    stages: list[StagePlan],
    diagnosis: Diagnosis,
    *,
    other: float,
    startup: float,
    disk_bytes: tuple[int, int],
    api: ApiPlan | None = None,
    unknown: list[str],
) -> Plan:
    """The plan of these stages and of `other` seconds in none of them; `disk_bytes` at the end, and at most."""
    seconds = sum(stage.seconds for stage in stages) + other
    spec = recipe.accounting
    watts = spec.watts or watts_assumed(cores())
    rounds = sum(stage.name.startswith(ROUND) for stage in stages)
    money = [None if spec.price_per_hour is None else spec.price_per_hour * seconds / 3600]
    if api is not None:
        money.append(None if api.money is None else rounds * api.money)
        if api.money is None and api.calls:
            unknown = [*unknown, "what the API costs: the model has no price (api.prices)"]
        if api.limit:
            unknown = [*unknown, f"the end of asking: {api.limit}"]
    priced = [value for value in money if value is not None]
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
        disk_bytes=disk_bytes[0],
        peak_disk_bytes=disk_bytes[1],
        money=sum(priced) if priced else None,
        joules=watts * seconds,
        energy=f"{watts:g} W, {'as the recipe declares' if spec.watts else 'assumed (accounting.watts)'}",
        calibration_seconds=0.0,
        api=api,
        unknown=unknown,
    )


def _trainings(
    recipe: Recipe, found: Calibration, student: PreTrainedModel, teacher: PreTrainedModel | None
) -> list[StagePlan]:
    """What the teacher writes and says, the student's trainings, the baseline's."""
    stages: list[StagePlan] = []
    steps: list[float] = []
    seconds = flops = 0.0
    specs = recipe_stages(recipe)
    for stage in specs:
        before = [each for each in asked_stages(recipe, found, stage) if each.name not in named(stages)]
        if stage.name in found.generated:
            assert teacher is not None
            before.append(written_stage(stage, found, teacher, recipe.data.max_length))
        if stage.name in found.labelled:
            before.append(labelled_stage(recipe, stage, found, teacher))
        if recipe.budget.whole:
            seconds += sum(each.seconds for each in before)
            flops += sum(each.flops for each in before)
        live = stage.objective is not None and stage.objective.needs_teacher and stage.name not in found.labelled
        reads = teacher if live else None
        plan, taken = training_stage(recipe, stage, found, student, reads, spent_seconds=seconds, spent_flops=flops)
        seconds, flops = seconds + plan.seconds, flops + plan.flops
        stages += [*before, plan]
        steps.append(taken)
    if "sft" in found.paces:
        for stage, taken in zip(specs, steps, strict=True):
            plan, _ = training_stage(recipe, stage, found, student, None, name="sft", steps=taken, limited=False)
            stages.append(plan if len(specs) == 1 else plan.model_copy(update={"name": f"sft-{stage.name}"}))
    return stages


def named(stages: Sequence[StagePlan]) -> list[str]:
    """The names of stages."""
    return [stage.name for stage in stages]


def _unknown(recipe: Recipe) -> list[str]:
    found = []
    if recipe.student.vocabulary is not None:
        found.append("how much smaller a trimmed vocabulary makes the student (student.vocabulary)")
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
