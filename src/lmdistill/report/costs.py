"""The report's section on cost: stages, three totals, energy and money, each with what is not known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TOTALS = (
    ("student", "the student alone", "building, training and its own writing, lost attempts included"),
    ("with_teacher", "and the teacher's inference", "live, for labels, for text it wrote, behind an API"),
    ("with_training", "and a share of the teacher's training", "as the recipe declares it"),
    ("comparison", "beside them: evaluation and baselines", "in none of the totals above"),
)


def totals(accounting: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """A row for each total; empty for runs of before there were any."""
    found = (accounting or {}).get("totals")
    if not found:
        return []
    rows = []
    for key, label, what in _TOTALS:
        total = found[key]
        known = "" if not total["unknown"] else "at least; not known: " + "; ".join(total["unknown"])
        rows.append(
            {
                "label": label,
                "what": what,
                "flops": quantity(total["flops"], "FLOP"),
                "money": "–" if total["money"] is None else f"US $ {total['money']:.4g}",
                "unknown": known,
            }
        )
    return rows


def facts(accounting: Mapping[str, Any] | None) -> list[str]:
    """Energy, the API's bill and the work that was lost, in sentences."""
    found = accounting or {}
    said = []
    energy = found.get("energy")
    if energy:
        hours = energy["joules"] / 3.6e6
        said.append(f"Energy ({energy['how']}): {hours:.3g} kWh. {energy['detail'][0].upper()}{energy['detail'][1:]}.")
    api = found.get("api")
    if api:
        said.append(f"API: {api['calls']:,} calls, {api['tokens']:,} tokens, US $ {api['money']:.4g}.")
    lost = [stage for stage in found.get("stages", ()) if stage.get("lost_seconds")]
    if lost:
        seconds = sum(stage["lost_seconds"] for stage in lost)
        names = ", ".join(f"{stage['name']} ({stage['attempts']} attempts)" for stage in lost)
        said.append(f"Lost to attempts that were killed, failed or replaced: {seconds / 60:.1f} minutes of {names}.")
    if found.get("peak_memory_bytes"):
        memory, disk = found["peak_memory_bytes"] / 2**30, found["disk_bytes"] / 2**30
        said.append(f"Most memory of the process: {memory:.2f} GiB; on the disk at the end: {disk:.2f} GiB.")
    return said


def quantity(value: float, unit: str) -> str:
    """A number in the unit that suits it: `1.5 PFLOP`."""
    for border, prefix in ((1e24, "Y"), (1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= border:
            return f"{value / border:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"
