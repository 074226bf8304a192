"""Other hardware: a small dated table, and how long a plan would take on it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from lmdistill.errors import RecipeError
from lmdistill.io import read_json
from lmdistill.planning.records import HardwarePlan, StagePlan
from lmdistill.recipe import nearest

_TABLE = Path(__file__).with_name("hardware.json")
UTILISATION = 0.35
"""Share of the peak that training and scoring are assumed to reach. Well-tuned training of large models reaches 0.3 to
0.5; models as small as a demo's, in small batches, far less: measure, then say it with --utilisation."""
OF_BANDWIDTH = 0.6
"""Share of the memory's bandwidth that writing token by token is assumed to reach."""


class Hardware(BaseModel):
    """One device."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: str
    title: str = ""
    bf16_flops: float
    """Peak dense operations a second in bfloat16."""
    memory_bytes: float
    bandwidth: float
    """Bytes of memory a second."""
    watts: float | None = None
    price_per_hour: float | None = None
    """US dollars."""


def load_hardware(file: Path | None = None) -> dict[str, Hardware]:
    """The devices that are known by name; a file of the user's (a list of them in JSON) goes before the table.

    Raises RecipeError where the file is not of that form.
    """
    known = dict(_shipped())
    if file is None:
        return known
    try:
        rows = read_json(file)
        own = [Hardware.model_validate(row) for row in (rows["devices"] if isinstance(rows, dict) else rows)]
    except (FileNotFoundError, ValidationError, KeyError, TypeError, ValueError) as error:
        shown = str(error).splitlines()[0]
        fields = ", ".join(name for name, field in Hardware.model_fields.items() if field.is_required())
        raise RecipeError(f"{file}: no list of devices ({shown}); each needs {fields}") from error
    return known | {device.name: device for device in own}


def find_hardware(name: str, file: Path | None = None) -> Hardware:
    """A device by its name. Raises RecipeError with the nearest known one."""
    known = load_hardware(file)
    if name.lower() not in known:
        raise RecipeError(f"--hardware {name}: not known{nearest(name.lower(), list(known))}; or give --hardware-file")
    return known[name.lower()]


def on_hardware(
    device: Hardware,
    stages: Sequence[StagePlan],
    *,
    memory: float,
    writer_bytes: float,
    slots: int,
    utilisation: float = UTILISATION,
    price: float | None = None,
) -> HardwarePlan:
    """How long the stages would take there, by their operations and, for what is written, by reading the weights.

    `writer_bytes` are the weights that are read for each token that is written, `slots` the texts written at a time.
    """
    seconds = sum(stage.flops for stage in stages) / (device.bf16_flops * utilisation)
    written = sum(stage.written for stage in stages)
    seconds += written / max(1, slots) * writer_bytes / (device.bandwidth * OF_BANDWIDTH)
    price = device.price_per_hour if price is None else price
    return HardwarePlan(
        name=device.title or device.name,
        seconds=seconds,
        money=None if price is None else price * seconds / 3600,
        joules=None if device.watts is None else device.watts * seconds,
        utilisation=utilisation,
        fits=memory <= device.memory_bytes,
        detail=(
            f"{device.bf16_flops / 1e12:g} TFLOP/s of which {utilisation:.0%} are assumed to be reached"
            + (f", {OF_BANDWIDTH:.0%} of {device.bandwidth / 1e9:g} GB/s for what is written" if written else "")
            + f"; table of {_date()}"
        ),
    )


@cache
def _shipped() -> dict[str, Hardware]:
    rows = json.loads(_TABLE.read_text(encoding="utf-8"))["devices"]
    return {row["name"]: Hardware.model_validate(row) for row in rows}


def _date() -> str:
    return str(json.loads(_TABLE.read_text(encoding="utf-8"))["checked"])
