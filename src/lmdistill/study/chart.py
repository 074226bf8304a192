"""A picture of one measure: every seed a dot, every method a line with its mean and interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lmdistill.study.compare import Place, seeds_of, spread
from lmdistill.study.results import CellResult, Measure
from lmdistill.study.spec import StudySpec

LEFT, WIDTH, ROW, TOP = 190, 720, 26, 8
"""Where the lines begin, how wide the picture is, the height of a method's line, the space above, in pixels."""


@dataclass(frozen=True)
class Line:
    """One method."""

    label: str
    y: float
    dots: list[float]
    mean: float
    low: float
    high: float
    text: str


@dataclass(frozen=True)
class Strip:
    """A drawing, ready for SVG."""

    title: str
    lines: list[Line]
    ticks: list[tuple[float, str]]
    height: float
    left: int = LEFT
    width: int = WIDTH


def strip_of(spec: StudySpec, results: Sequence[CellResult], place: Place, measure: Measure) -> Strip:
    """The picture of a measure for one student and budget."""
    rows = []
    for method in spec.methods:
        values = [value * measure.factor for value in seeds_of(results, place, method, measure.key).values()]
        if values:
            mean, half = spread(values)
            rows.append((method, values, mean, 0.0 if math.isnan(half) else half))
    # Intervals of few seeds may be wider than everything else: the axis follows the dots, lines are cut at its ends.
    dots = [value for _, values, _, _ in rows for value in values] or [0.0]
    room = (max(dots) - min(dots) or abs(max(dots)) or 1.0) * 0.25
    start, end = min(dots) - room, max(dots) + room

    def at(value: float) -> float:
        share = (min(max(value, start), end) - start) / (end - start)
        return round(LEFT + share * (WIDTH - LEFT - 12), 1)

    lines = [
        Line(
            label=method,
            y=TOP + ROW * (number + 0.5),
            dots=[at(value) for value in values],
            mean=at(mean),
            low=at(mean - half),
            high=at(mean + half),
            text=f"{method}: {mean:.{measure.digits}f} ± {half:.{measure.digits}f}",
        )
        for number, (method, values, mean, half) in enumerate(rows)
    ]
    ticks = [(at(start + share * (end - start)), f"{start + share * (end - start):.4g}") for share in (0.1, 0.5, 0.9)]
    parts = [part for part in place if part]
    title = f"{measure.title} on {measure.key.rpartition('/')[0]}" + (f" ({', '.join(parts)})" if parts else "")
    return Strip(title, lines, ticks, TOP + ROW * len(rows) + 24)
