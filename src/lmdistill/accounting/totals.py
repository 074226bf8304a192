"""From what each stage cost to the three totals, the energy and the money."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmdistill.accounting.energy import watts_assumed
from lmdistill.accounting.records import Accounting, ApiCost, Energy, Part, StageCost, Total, Totals
from lmdistill.recipe import AccountingSpec

_TEACHERS = ("generate-", "label-", "select-", "teacher-")
_COMPARISONS = ("sft-", "suite-", "export-")


def role_of(stage: str) -> Part:
    """Whom a stage of this name serves."""
    if stage == "teacher" or stage.startswith(_TEACHERS):
        return "teacher"
    return "comparison" if stage in ("evaluate", "sft") or stage.startswith(_COMPARISONS) else "student"


def account(
    stages: Sequence[StageCost],
    spec: AccountingSpec,
    machine: dict[str, Any],
    *,
    api: ApiCost | None = None,
    teacher_training_flops: float | None = None,
    other_seconds: float = 0.0,
    peak_memory_bytes: int = 0,
    disk_bytes: int = 0,
) -> Accounting:
    """The whole accounting.

    `teacher_training_flops` is what the teacher's training took in all, where the recipe declares it.
    """
    return Accounting(
        stages=list(stages),
        machine=machine,
        other_seconds=round(other_seconds, 3),
        peak_memory_bytes=peak_memory_bytes,
        disk_bytes=disk_bytes,
        api=api,
        energy=_energy(stages, spec, machine),
        totals=_totals(stages, spec, api, teacher_training_flops),
    )


def _totals(stages: Sequence[StageCost], spec: AccountingSpec, api: ApiCost | None, training: float | None) -> Totals:
    made = [stage for stage in stages if stage.part != "comparison"]
    beside = [stage for stage in stages if stage.part == "comparison"]
    own = [stage for stage in made if stage.part == "student"]
    student = Total(flops=sum(_own_flops(stage) for stage in own), money=_rent(own, spec), unknown=_unfinished(own))
    teacher_flops = sum(_all_flops(stage) for stage in made) - student.flops
    with_teacher = Total(
        flops=student.flops + teacher_flops + (api.flops or 0.0 if api else 0.0),
        money=_sum(_rent(made, spec), api.money if api else None),
        unknown=_unfinished(made) + _unknown_api(api),
    )
    with_training = _with_training(with_teacher, spec, training)
    comparison = Total(flops=sum(map(_all_flops, beside)), money=_rent(beside, spec), unknown=_unfinished(beside))
    return Totals(student=student, with_teacher=with_teacher, with_training=with_training, comparison=comparison)


def _with_training(below: Total, spec: AccountingSpec, training: float | None) -> Total:
    declared = spec.teacher_training
    if declared is None:
        return Total(
            flops=below.flops,
            money=below.money,
            unknown=[*below.unknown, "the teacher's training: nothing is declared in accounting.teacher_training"],
        )
    unknown = list(below.unknown)
    if training is None:
        unknown.append("the operations of the teacher's training")
    if declared.money is None:
        unknown.append("the money of the teacher's training")
    money = None if declared.money is None else declared.share * declared.money
    return Total(
        flops=below.flops + declared.share * (training or 0.0), money=_sum(below.money, money), unknown=unknown
    )


def _own_flops(stage: StageCost) -> float:
    """The student's operations of a stage, lost ones in the same proportion."""
    share = 1 - stage.teacher_flops / stage.flops if stage.flops else 1.0
    return share * _all_flops(stage)


def _all_flops(stage: StageCost) -> float:
    return stage.flops + stage.lost_flops


def _unfinished(stages: Sequence[StageCost]) -> list[str]:
    """Stages of whose lost attempts no operations are known, though they took time."""
    names = [stage.name for stage in stages if stage.lost_seconds > 0 and not stage.lost_flops]
    return [f"the operations of lost attempts of {', '.join(names)}"] if names else []


def _unknown_api(api: ApiCost | None) -> list[str]:
    if api is None or api.flops is not None or not api.tokens:
        return []
    size = "its model's size is not known (accounting.api_parameters)"
    return [f"the operations of the API for {api.tokens:,} tokens: {size}"]


def _rent(stages: Sequence[StageCost], spec: AccountingSpec) -> float | None:
    """What the machine costs for as long as these stages had it."""
    if spec.price_per_hour is None:
        return None
    return sum(stage.seconds + stage.lost_seconds for stage in stages) / 3600 * spec.price_per_hour


def _sum(*parts: float | None) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if known else None


def _energy(stages: Sequence[StageCost], spec: AccountingSpec, machine: dict[str, Any]) -> Energy | None:
    seconds = sum(stage.seconds + stage.lost_seconds for stage in stages)
    if not seconds:
        return None
    if spec.watts is not None:
        return Energy(joules=seconds * spec.watts, how="declared", detail=f"{spec.watts:g} W, as the recipe declares")
    if all(stage.joules is not None for stage in stages):
        measured = sum(stage.joules or 0.0 for stage in stages)
        lost = sum(stage.lost_seconds for stage in stages)
        detail = "by the processors' meter (RAPL), all that ran on them meanwhile; memory and the rest are not in it"
        return Energy(joules=measured, how="measured", detail=detail + (f"; {lost:.0f} lost s neither" if lost else ""))
    count = int(machine.get("cores") or 1)
    watts = watts_assumed(count)
    detail = f"{watts:g} W assumed for {count} busy cores, nothing measured: declare accounting.watts"
    return Energy(joules=seconds * watts, how="assumed", detail=detail)
