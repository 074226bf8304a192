"""Drawings as SVG in the theme's colours: nothing is loaded, they are redrawn in milliseconds, and screen readers get
their ends in words. Curves are given as plotly figures, as the report makes them, so that each is defined once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from lmdistill.report.charts import PLACEHOLDERS
from lmdistill.studio import page

_WIDTH, _HEIGHT = 520, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 12, 48
_POINTS = 400
"""Points of a line that are drawn; of more, evenly spaced ones and the last."""
_COLOURS = ("student", "none", "sft", "extra", "teacher", "more", "link", "bad")
_DASHES = ("", "7 4", "2 3")
_ROLES = {place: name for name, place in PLACEHOLDERS.items()}


@dataclass(frozen=True)
class _Line:
    name: str
    points: list[tuple[float, float]]
    colour: str
    dash: str
    marked: bool


def figure_svg(figure: Mapping[str, Any], title: str) -> Markup:
    """The lines of a plotly figure (`to_plotly_json`) under a title, with a legend."""
    lines = [_line(trace, number) for number, trace in enumerate(figure.get("data", ()))]
    lines = [line for line in lines if line.points]
    if not lines:
        return Markup("")
    layout = figure.get("layout", {})
    titles = [layout.get(axis, {}).get("title", {}).get("text", "") for axis in ("xaxis", "yaxis")]
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    across, up = _Axis.over(xs, _LEFT, _WIDTH - _RIGHT), _Axis.over(ys, _HEIGHT - _BOTTOM, _TOP)
    drawn = [_grid(across, up, titles[0], titles[1]), *(_drawn(line, across, up) for line in lines)]
    said = "; ".join(
        f"{line.name}: {line.points[0][1]:.4g} at the beginning, {line.points[-1][1]:.4g} at {line.points[-1][0]:g}"
        for line in lines
    )
    return _framed(title, f"{title}. {said}", drawn, _HEIGHT, [(line.name, line.colour, line.dash) for line in lines])


@dataclass(frozen=True)
class Bar:
    """A value with its interval."""

    label: str
    value: float
    low: float
    high: float
    text: str
    """Value and interval in words."""
    colour: str = "student"


def interval_svg(bars: Sequence[Bar], title: str, unit: str) -> Markup:
    """Values as dots with the lines of their intervals, one below the other."""
    if not bars:
        return Markup("")
    height = _TOP + 46 * len(bars) + _BOTTOM
    ends = [end for bar in bars for end in (bar.low, bar.high, bar.value) if math.isfinite(end)]
    across = _Axis.over(ends, 16, _WIDTH - 16)
    drawn = [_ticks_below(across, height, unit)]
    for number, bar in enumerate(bars):
        y = _TOP + 46 * number
        low, high, at = (across.at(value) for value in (bar.low, bar.high, bar.value))
        drawn.append(
            Markup(
                '<text x="16" y="{}">{}: {}</text><line x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}" class="stroke-{}" '
                'stroke-width="3" opacity="0.6"/><circle cx="{:.1f}" cy="{}" r="6" class="fill-{}"/>'
            ).format(
                y + 12, page.shown(bar.label), bar.text, low, high, y + 28, y + 28, bar.colour, at, y + 28, bar.colour
            )
        )
    said = "; ".join(f"{bar.label}: {bar.text}" for bar in bars)
    return _framed(title, f"{title}. {said}", drawn, height, [])


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> _Axis:
        low, high = min(values), max(values)
        room = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
        return cls(low - room, high + room, start, end)

    def at(self, value: float) -> float:
        if not math.isfinite(value):
            return self.start
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """About five round numbers."""
        rough = (self.high - self.low) / 5
        power = 10 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
        first = math.ceil(self.low / step)
        return [number * step for number in range(first, math.floor(self.high / step) + 1)]


def _line(trace: Mapping[str, Any], number: int) -> _Line:
    given = str((trace.get("line") or {}).get("color", ""))
    pairs = zip(_values(trace.get("x")), _values(trace.get("y")), strict=False)
    points = [(float(x), float(y)) for x, y in pairs if _finite(x) and _finite(y)]
    return _Line(
        name=page.shown(trace.get("name") or "value"),
        points=_thinned(points),
        colour=_ROLES.get(given, _COLOURS[number % len(_COLOURS)]),
        dash=_DASHES[number // len(_COLOURS) % len(_DASHES)],
        marked="markers" in str(trace.get("mode")) or len(points) == 1,
    )


def _values(values: Any) -> Iterable[Any]:
    return [] if values is None else list(values)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(points) <= _POINTS:
        return points
    return [points[number * (len(points) - 1) // (_POINTS - 1)] for number in range(_POINTS)]


def _drawn(line: _Line, across: _Axis, up: _Axis) -> Markup:
    places = [(across.at(x), up.at(y)) for x, y in line.points]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    drawn = Markup('<path d="{}" class="stroke-{}" fill="none" stroke-width="2.2" stroke-dasharray="{}"/>').format(
        path, line.colour, line.dash
    )
    dots = (Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3.5" class="fill-{}"/>').format(x, y, line.colour)
            for x, y in (places if line.marked else ()))  # fmt: skip
    return drawn + Markup("").join(dots)


def _grid(across: _Axis, up: _Axis, x_title: str, y_title: str) -> Markup:
    parts = [_ticks_below(across, _HEIGHT, x_title)]
    for value in up.ticks():
        y = up.at(value)
        parts.append(
            Markup(
                '<line x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}" class="rule"/>'
                '<text x="{}" y="{:.1f}" text-anchor="end" dominant-baseline="middle">{}</text>'
            ).format(_LEFT, _WIDTH - _RIGHT, y, y, _LEFT - 6, y, _number(value))
        )
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(
        Markup('<text x="13" y="{0}" transform="rotate(-90 13 {0})" text-anchor="middle">{1}</text>').format(
            middle, y_title
        )
    )
    return Markup("").join(parts)


def _ticks_below(across: _Axis, height: float, title: str) -> Markup:
    parts = [
        Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
            across.at(value), height - _BOTTOM + 18, _number(value)
        )
        for value in across.ticks()
    ]
    middle = (across.start + across.end) / 2
    parts.append(Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(middle, height - 8, title))
    return Markup("").join(parts)


def _number(value: float) -> str:
    for border, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= border:
            return f"{value / (1e3 if unit == 'k' else border):.4g} {unit}"
    return f"{value:.4g}"


def _framed(
    title: str, said: str, drawn: Sequence[Markup], height: float, legend: Sequence[tuple[str, str, str]]
) -> Markup:
    keys = Markup("").join(
        Markup(
            '<span><svg width="26" height="8" aria-hidden="true"><line x1="0" x2="26" y1="4" y2="4" '
            'class="stroke-{}" stroke-width="3" stroke-dasharray="{}"/></svg> {}</span>'
        ).format(colour, dash, page.shown(name))
        for name, colour, dash in legend
    )
    return Markup(
        '<figure class="chart"><figcaption>{}</figcaption><div class="keys">{}</div>'
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg></figure>'
    ).format(title, keys, _WIDTH, height, page.shown(said), Markup("").join(drawn))
