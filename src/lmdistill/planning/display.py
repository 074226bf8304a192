"""What `lmdistill plan` prints."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lmdistill.console import clean, duration
from lmdistill.display import facts, size
from lmdistill.planning.records import ApiPlan, HardwarePlan, Plan, ScalePlan
from lmdistill.report.costs import quantity


def plan_page(plan: Plan) -> RenderableType:
    """Stages, sums, other hardware, other token counts, and what is not known."""
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("stage", "time", "tokens", "operations", "of the teacher", "how"):
        table.add_column(title, justify="left" if title in ("stage", "how") else "right", overflow="fold")
    for stage in plan.stages:
        table.add_row(
            Text(clean(stage.name), style="bold"),
            duration(stage.seconds),
            f"{stage.tokens:,.0f}" if stage.tokens else "",
            quantity(stage.flops, "FLOP") if stage.flops else "",
            f"{stage.teacher_flops / stage.flops:.0%}" if stage.teacher_flops else "",
            Text(clean(stage.how), style="dim"),
        )
    table.add_row("checking, reading, encoding", duration(plan.other_seconds), "", "", "", "")
    table.add_row(Text("together", style="bold"), Text(duration(plan.seconds), style="bold"), "", "", "", "")
    sums = {
        "memory": f"{size(plan.memory_bytes)} in the calibration ({size(plan.memory_estimate_bytes)} by the shapes)",
        "disk": f"{size(plan.disk_bytes)} at the end, {size(plan.peak_disk_bytes)} while it trains",
        "energy": f"{plan.joules / 3.6e6:.3g} kWh at {plan.energy}",
    }
    if plan.money is not None:
        sums["money"] = f"US $ {plan.money:.4g}"
    if plan.api is not None:
        sums["API"] = _asked(plan.api)
    sums["calibration"] = f"{duration(plan.calibration_seconds)}, beside {duration(plan.startup_seconds)} to start"
    parts: list[RenderableType] = [table, "", facts(sums)]
    if plan.unknown:
        parts += ["", Text(f"Not in it: {clean('; '.join(plan.unknown))}.", style="yellow")]
    if plan.hardware is not None:
        parts += [
            "",
            Text(f"On {clean(plan.hardware.name)}", style="bold"),
            Padding(_there(plan.hardware), (0, 0, 0, 2)),
        ]
    if plan.scale is not None:
        parts += ["", *_scaled(plan.scale)]
    return Group(*parts)


def _asked(found: ApiPlan) -> str:
    """What a teacher behind an API is asked in a round."""
    money = "the model has no price" if found.money is None else f"US $ {found.money:.4g}"
    time = f"{duration(found.seconds)}, " if found.seconds is not None else ""
    said = (
        f"a round: {found.requests:,} requests, {found.stored:,} of them in the ledger or asked twice; {found.calls:,} "
        f"calls, {found.prompt_tokens:,} tokens of prompts and {found.output_tokens:,} of answers, {time}{money}"
    )
    return said + (f"; {found.asked:,} were asked now and are not asked again" if found.asked else "")


def _there(found: HardwarePlan) -> RenderableType:
    rows = {"time": _long(found.seconds)}
    if found.money is not None:
        rows["money"] = f"US $ {found.money:,.4g}"
    if found.joules is not None:
        rows["energy"] = f"{found.joules / 3.6e6:,.3g} kWh"
    rows["memory of a step"] = "fits into one device" if found.fits else "does not fit into one device: shard it"
    rows["assumed"] = found.detail
    return facts(rows)


def _scaled(found: ScalePlan) -> list[RenderableType]:
    rows = {
        "student": quantity(found.student_flops, "FLOP"),
        "teacher": quantity(found.teacher_flops, "FLOP"),
        "training here": _long(found.seconds),
    }
    if found.signals_bytes is not None:
        rows["signals on disk"] = size(found.signals_bytes)
    parts: list[RenderableType] = [
        Text(f"With {found.tokens:.3g} tokens", style="bold"),
        Padding(facts(rows), (0, 0, 0, 2)),
    ]
    if found.hardware is not None:
        parts += [
            Text(f"  on {clean(found.hardware.name)}", style="bold"),
            Padding(_there(found.hardware), (0, 0, 0, 4)),
        ]
    return [*parts, *(Text(f"  - {clean(sentence)}") for sentence in found.advice)]


def _long(seconds: float) -> str:
    """Hours and minutes, and from a day on days or years."""
    if seconds < 86400:
        return duration(seconds)
    days = seconds / 86400
    return f"{days:,.1f} days" if days < 1000 else f"{days / 365.25:,.0f} years"
