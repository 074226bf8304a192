"""Runs side by side: every measure that they share, with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from lmdistill.errors import CorruptFile
from lmdistill.evaluation.results import Evaluation, Interval, Role
from lmdistill.io import read_json
from lmdistill.report.charts import LABELS
from lmdistill.studio import page
from lmdistill.studio.live import LiveRun, loss_overlay
from lmdistill.studio.svg import Bar, interval_svg
from lmdistill.study.results import Measure, values_of

_FIRST = ("agreement", "accuracy", "forward_kl", "perplexity")
"""Measures that are shown first where they are there."""


@dataclass(frozen=True)
class Judged:
    """What the evaluation of one run found."""

    values: Mapping[Role, Mapping[str, Interval]]
    measures: Mapping[str, Measure]


def judged(folder: Path) -> Judged | None:
    """A run's evaluation; None where there is none that can be read."""
    try:
        evaluation = Evaluation.model_validate(read_json(folder / "evaluation.json"))
    except (OSError, CorruptFile, ValueError):
        return None
    measures: dict[str, Measure] = {}
    values: dict[Role, dict[str, Interval]] = {}
    for model in evaluation.models:
        values[model.role] = dict(values_of(evaluation, model.role, measures))
        for text, scores in model.task.items():
            named = {**scores.metrics, "agreement": scores.agreement, "forward_kl": scores.forward_kl}
            for name, interval in named.items():
                if interval is not None:
                    key = f"{text}/{name}"
                    measures.setdefault(key, Measure(key, name.replace("_", " "), name == "forward_kl", 1, 4))
                    values[model.role][key] = interval
    return Judged(values, measures)


def measures_of(found: Mapping[str, Judged]) -> dict[str, Measure]:
    """All measures of the given runs, those first that are looked at first."""
    known = {key: measure for run in found.values() for key, measure in run.measures.items()}

    def place(key: str) -> tuple[int, str]:
        name = known[key].name
        return (_FIRST.index(name) if name in _FIRST else len(_FIRST), key)

    return {key: known[key] for key in sorted(known, key=place)}


def title_of(measure: Measure) -> str:
    """A measure with the text that it is of."""
    return f"{measure.title} · {measure.key.rpartition('/')[0]}"


def comparison(found: Mapping[str, Judged], key: str | None, live: Mapping[str, LiveRun]) -> str:
    """The chart of one measure, the table of all, and the losses of the runs over each other."""
    if not live:
        return page.whole(page.note("Choose the runs to compare."))
    parts: list[Markup] = []
    measures = measures_of(found)
    missing = [name for name in live if name not in found]
    if missing:
        parts.append(page.note(f"No evaluation yet that can be read: {', '.join(missing)}"))
    chosen = measures.get(key or "") or next(iter(measures.values()), None)
    overlay = loss_overlay(live)
    drawn = [*([_chart(found, chosen)] if chosen is not None else []), *([overlay] if overlay is not None else [])]
    parts.append(Markup('<div class="grid">{}</div>').format(Markup("").join(drawn)))
    if chosen is not None:
        parts.append(_legend(chosen))
    if overlay is not None:
        parts.append(page.note("Losses of different objectives are on different scales."))
    if measures:
        parts += [page.heading("All measures of the students"), _table(found, measures)]
    return page.whole(*parts)


def _chart(found: Mapping[str, Judged], measure: Measure) -> Markup:
    bars = []
    for name, run in found.items():
        for role in ("student", "sft", "none", "teacher"):
            interval = run.values.get(role, {}).get(measure.key)
            if interval is not None:
                label = name if role == "student" else f"{name}, {LABELS[role]}"
                low, value, high = (measure.factor * each for each in (interval.low, interval.value, interval.high))
                bars.append(Bar(label, value, low, high, shown(measure, interval), role))
    return interval_svg(bars, title_of(measure), measure.title)


def _legend(measure: Measure) -> Markup:
    side = {True: "Lower is better.", False: "Higher is better.", None: "Neither side is better."}
    return page.note(
        f"{side[measure.lower_is_better]} Lines are the intervals of each run by itself; whether two students differ "
        "on the same items is said by paired comparisons: lmdistill study."
    )


def _table(found: Mapping[str, Judged], measures: Mapping[str, Measure]) -> Markup:
    rows: list[Sequence[page.Cell]] = []
    for key, measure in measures.items():
        intervals = [run.values.get("student", {}).get(key) for run in found.values()]
        if any(interval is not None for interval in intervals):
            best = _best(measure, intervals)
            rows.append([title_of(measure), *(_cell(measure, interval, best) for interval in intervals)])
    return page.table(("measure", *found), rows, "Measures of the students, with intervals", "measures")


def _best(measure: Measure, intervals: Sequence[Interval | None]) -> float | None:
    values = [interval.value for interval in intervals if interval is not None]
    if measure.lower_is_better is None or len(values) < 2:
        return None
    return min(values) if measure.lower_is_better else max(values)


def _cell(measure: Measure, interval: Interval | None, best: float | None) -> Markup | None:
    if interval is None:
        return None
    mark = "best" if interval.value == best else ""
    low, high = measure.shown(interval.low), measure.shown(interval.high)
    return Markup('<span class="{}">{}</span><small>{} to {}</small>').format(
        mark, measure.shown(interval.value), low, high
    )


def shown(measure: Measure, interval: Interval) -> str:
    """A value and its interval in words."""
    return f"{measure.shown(interval.value)} ({measure.shown(interval.low)} to {measure.shown(interval.high)})"
