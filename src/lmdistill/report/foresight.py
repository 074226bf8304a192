"""What was planned against what happened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmdistill.errors import CorruptFile
from lmdistill.io import read_json


def planned_against(folder: Path, accounting: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """A row for each stage and their sum, memory and disk; empty where the run's folder holds no plan.

    Stages that an earlier start had done, or that were begun more than once, are compared by the time that counts.
    """
    try:
        plan = read_json(folder / "plan.json")
        return _rows(plan, accounting or {})
    except (FileNotFoundError, CorruptFile, KeyError, TypeError, AttributeError):
        return []


def _rows(plan: Mapping[str, Any], accounting: Mapping[str, Any]) -> list[dict[str, str]]:
    planned = {stage["name"]: float(stage["seconds"]) for stage in plan["stages"]}
    happened = {stage["name"]: float(stage["seconds"]) for stage in accounting["stages"]}
    rows = [_row(name, planned.get(name), happened.get(name), "s") for name in dict.fromkeys([*planned, *happened])]
    other = float(accounting.get("other_seconds", 0.0))
    rows.append(_row("checking, reading, encoding", float(plan["other_seconds"]), other, "s"))
    rows.append(_row("together", float(plan["seconds"]), sum(happened.values()) + other, "s"))
    for label, key in (("most memory, MiB", "memory_bytes"), ("disk at the end, MiB", "disk_bytes")):
        found = accounting.get("peak_memory_bytes" if key == "memory_bytes" else key)
        rows.append(_row(label, plan[key] / 2**20, found / 2**20 if found else None, ""))
    api, bill = plan.get("api"), accounting.get("api")
    if api is not None and bill is not None:
        rounds = sum(name.startswith("generate-round-") for name in planned)
        # The ledger counts what the plan itself asked among the run's calls.
        rows.append(_row("calls of the API", float(rounds * api["calls"] + api["asked"]), float(bill["calls"]), ""))
        if api["money"] is not None and not api["asked"]:
            rows.append(_row("the API's bill, US $", rounds * api["money"], bill["money"], ""))
    return rows


def _row(name: str, planned: float | None, happened: float | None, unit: str) -> dict[str, str]:
    off = ""
    if planned and happened:
        off = f"{planned / happened - 1:+.0%}"

    def shown(value: float | None) -> str:
        return "–" if value is None else f"{value:,.1f} {unit}".strip()

    return {"name": name, "planned": shown(planned), "happened": shown(happened), "off": off}
