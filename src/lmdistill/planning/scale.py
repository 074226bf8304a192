"""The same recipe with another number of training tokens, up to those of the internet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from lmdistill.accounting import forward_flops
from lmdistill.doctor import Diagnosis
from lmdistill.planning.calibrate import Calibration
from lmdistill.planning.estimate import ROUND
from lmdistill.planning.hardware import on_hardware
from lmdistill.planning.records import Plan, ScalePlan, StagePlan
from lmdistill.planning.scaling import Case, DistillationLaw, advise
from lmdistill.recipe import Recipe, recipe_stages

if TYPE_CHECKING:
    from lmdistill.planning.make import Elsewhere


def scaled(
    recipe: Recipe,
    plan: Plan,
    found: Calibration,
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    tokens: float,
    elsewhere: Elsewhere | None,
    diagnosis: Diagnosis,
    law: DistillationLaw | None,
) -> ScalePlan:
    """Training alone, on so many tokens, at the pace that was measured; and what the scaling law says of it."""
    names = [stage.name for stage in recipe_stages(recipe)]
    before = [f"{kind}-{name}" for kind in ("generate", "label") for name in names]
    before += [stage.name for stage in plan.stages if stage.name.startswith(ROUND)]
    chosen = [stage for stage in plan.stages if stage.name in names + before]
    trained = sum(stage.tokens for stage in chosen if stage.name in names)
    factor = tokens / max(1.0, trained)
    stages = [_times(stage, factor if stage.name in names else _text_factor(stage, tokens)) for stage in chosen]
    seconds = sum(
        tokens * stage.tokens / trained / pace.tokens * pace.step_seconds
        for stage in chosen
        if (pace := found.paces.get(stage.name)) is not None
    )
    seconds += sum(stage.seconds for stage in stages if stage.name in before)
    hardware = None
    if elsewhere is not None:
        hardware = on_hardware(
            elsewhere.device,
            stages,
            memory=sum(term.bytes for term in diagnosis.memory),
            writer_bytes=2 * sum(parameter.numel() for parameter in teacher.parameters()),
            slots=recipe.trajectories.generation.batch_size,
            utilisation=elsewhere.utilisation,
            price=elsewhere.price,
        )
    rates = [rate for _, _, rate in found.labelled.values()]
    teacher_flops = sum(stage.teacher_flops for stage in stages)
    return ScalePlan(
        tokens=tokens,
        student_flops=sum(stage.flops for stage in stages) - teacher_flops,
        teacher_flops=teacher_flops,
        seconds=seconds,
        signals_bytes=tokens * max(rates) if rates else None,
        hardware=hardware,
        advice=advise(_case(recipe, teacher, student, tokens, teacher_flops > 0, law)),
    )


def _times(stage: StagePlan, factor: float) -> StagePlan:
    changed = {
        name: getattr(stage, name) * factor for name in ("seconds", "tokens", "written", "flops", "teacher_flops")
    }
    return stage.model_copy(update=changed)


def _text_factor(stage: StagePlan, tokens: float) -> float:
    """Each token is written or labelled once, however often it is trained on."""
    return tokens / max(1.0, stage.tokens)


def _case(
    recipe: Recipe,
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    tokens: float,
    asked: bool,
    law: DistillationLaw | None,
) -> Case:
    declared = recipe.accounting.teacher_training
    length = recipe.data.max_length
    return Case(
        student_parameters=bare_parameters(student),
        student_flops=forward_flops(student, 1, length),
        teacher_flops=forward_flops(teacher, 1, length),
        tokens=tokens,
        teacher_is_live=asked,
        teacher_parameters=bare_parameters(teacher),
        teacher_tokens=None if declared is None else declared.tokens,
        share=0.0 if declared is None else declared.share,
        law=law,
    )


def bare_parameters(model: PreTrainedModel) -> float:
    """Parameters without the embedding of the input, and without the head where it is the same matrix."""
    plain: Any = model
    table = plain.get_input_embeddings().weight
    return float(sum(parameter.numel() for parameter in model.parameters() if parameter is not table))
