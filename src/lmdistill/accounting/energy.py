"""Energy: read from the processor's meter where the system lets us, else from watts."""

from __future__ import annotations

from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
WATTS_A_CORE = 8.0
"""What a busy core is assumed to draw, memory, power supply and cooling included, where nothing is declared or read. A
round figure: server processors are sold with 4 to 8 W of design power a core. It is no measurement."""


class EnergyMeter:
    """Joules since it was made, by the packages' counters of RAPL (Linux, Intel and AMD); None where none is readable.

    The counters are of whole processors, so that whatever else runs on them is in the figure; memory and the rest of
    the machine are not.
    """

    def __init__(self, root: Path = POWERCAP) -> None:
        self._zones = _packages(root)
        self._start = [_read(zone / "energy_uj") for zone in self._zones]

    def joules(self) -> float | None:
        """Joules so far."""
        if not self._zones:
            return None
        total = 0.0
        for zone, start in zip(self._zones, self._start, strict=True):
            now = _read(zone / "energy_uj")
            if now is None or start is None:
                return None
            if now < start:  # the counter went past its end and began again; once, at most an hour of work long
                now += _read(zone / "max_energy_range_uj") or 0
            total += (now - start) / 1e6
        return total


def watts_assumed(cores: int) -> float:
    """Watts of a machine of which nothing is declared."""
    return WATTS_A_CORE * cores


def _packages(root: Path) -> list[Path]:
    """Zones of whole processors; those inside them would be counted twice."""
    zones = sorted(root.glob("intel-rapl:*")) if root.is_dir() else []
    return [zone for zone in zones if zone.name.count(":") == 1 and _read(zone / "energy_uj") is not None]


def _read(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
