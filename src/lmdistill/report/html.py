"""The page of a run, and the page that compares runs: self-contained, nothing is loaded from anywhere."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from lmdistill.evaluation.results import Interval, TokenHeat
from lmdistill.io import write_text
from lmdistill.report import costs as cost_rows
from lmdistill.report.charts import LABELS, PLACEHOLDERS, all_charts
from lmdistill.report.exports import HEAD as EXPORT_HEAD
from lmdistill.report.exports import export_notes, export_rows
from lmdistill.report.foresight import planned_against
from lmdistill.report.responses import answered_texts, response_table
from lmdistill.report.responses import shown as shown_interval
from lmdistill.report.run_data import RunData, read_run
from lmdistill.report.sentences import summary_of
from lmdistill.report.suites import suites_of
from lmdistill.report.task import task_differences, task_tables

_METRICS = (
    ("perplexity", "perplexity", False, "{:.2f}"),
    ("bits_per_byte", "bits per byte", False, "{:.4f}"),
    ("agreement", "agreement with the teacher", True, "{:.2%}"),
    ("forward_kl", "KL(teacher‖student)", False, "{:.4f}"),
    ("reverse_kl", "KL(student‖teacher)", False, "{:.4f}"),
    ("accuracy", "next-token accuracy", True, "{:.2%}"),
    ("calibration_error", "calibration error (ECE)", False, "{:.4f}"),
)
_DIFFERENCES = {
    "agreement": ("agreement", "{:+.2%}"),
    "forward_kl": ("KL(teacher‖student)", "{:+.4f}"),
    "reverse_kl": ("KL(student‖teacher)", "{:+.4f}"),
    "log_perplexity": ("log perplexity", "{:+.4f}"),
    "calibration_error": ("calibration error", "{:+.4f}"),
}
"""What is compared on given text; what models wrote has a section of its own."""
HEAT_LEVELS = (0.1, 0.3, 1.0, 2.0, 4.0)
"""Borders of the heat map's colours, in nats."""


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run's folder from what lies in it. Raises DataError where it is no run folder."""
    run = read_run(folder)
    target = folder / "report.html"
    write_text(target, page_of(run))
    return target


def compare_runs(folders: Sequence[Path], target: Path) -> Path:
    """Write one page that puts runs side by side."""
    runs = [read_run(folder) for folder in folders]
    rows = [row for run in runs for row in _comparison_rows(run)]
    template = _environment().get_template("compare.html.j2")
    write_text(target, template.render(runs=runs, rows=rows, style=_style(), summaries=[summary_of(r) for r in runs]))
    return target


def page_of(run: RunData) -> str:
    """The page as text."""
    template = _environment().get_template("report.html.j2")
    charts = all_charts(run)
    return template.render(
        run=run,
        summary=summary_of(run),
        tiles=_tiles(run),
        labels=LABELS,
        tables=[_table(run, text) for text in run.texts],
        efficiency=_efficiency(run),
        task_tables=task_tables(run),
        task_differences=task_differences(run),
        differences=_differences(run),
        suites=suites_of(run),
        responses=[response_table(run, text) for text in answered_texts(run)],
        heat=[_heat(found) for found in (run.evaluation.heat if run.evaluation else ())],
        heat_levels=HEAT_LEVELS,
        charts=charts,
        chart_data=_script_json(charts),
        colour_names=_script_json({place: name for name, place in PLACEHOLDERS.items()}),
        plotly=Markup(get_plotlyjs()) if charts else "",
        style=_style(),
        costs=_costs(run),
        export_head=EXPORT_HEAD,
        export_rows=export_rows(run),
        export_notes=export_notes(run),
        generated=run.generated,
        totals=cost_rows.totals(run.accounting),
        cost_facts=cost_rows.facts(run.accounting),
        foresight=planned_against(run.folder, run.accounting),
    )


@functools.lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("lmdistill.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"visible": visible, "number": _number, "share": _share}
    return environment


def visible(text: object) -> str:
    """Text with control characters made visible: pages and terminals alike must only show them."""
    return "".join(
        c if c in "\n\t" or (ord(c) >= 32 and ord(c) != 127) else chr(0x2400 + ord(c) % 33) for c in str(text)
    )


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _style() -> Markup:
    source = _environment().loader.get_source(_environment(), "style.css")[0]  # type: ignore[union-attr]
    return Markup(source)


def _script_json(value: Any) -> Markup:
    """JSON inside a script element: no character in it can end the element or break a line of script."""
    text = json.dumps(_plain(value), ensure_ascii=True, allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _plain(value: Any) -> Any:
    """Plain values without NaN, which JSON lacks; control characters are made visible."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return visible(value)
    return value


def _number(value: float) -> str:
    for border, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= border:
            return f"{value / border:.1f} {unit}"
    return f"{value:,.0f}"


def _shown(interval: Interval | None, form: str) -> dict[str, str] | None:
    return None if interval is None else shown_interval(interval, form)


def _tiles(run: RunData) -> list[dict[str, str]]:
    student, teacher = run.model("student"), run.model("teacher")
    if student is None or teacher is None or not run.texts:
        return []
    text, tiles = run.texts[0], []
    scores, best = student.texts[text], teacher.texts[text]
    if scores.agreement is not None:
        tiles.append({"value": f"{scores.agreement.value:.1%}", "label": f"agreement with the teacher on {text}"})
    tiles.append(
        {
            "value": f"{scores.perplexity.value:.1f}",
            "label": f"perplexity on {text} (teacher {best.perplexity.value:.1f})",
        }
    )
    if student.efficiency and teacher.efficiency:
        small, large = student.efficiency, teacher.efficiency
        tiles.append(
            {
                "value": f"{small.parameters / large.parameters:.0%}",
                "label": f"of the parameters ({_number(small.parameters)})",
            }
        )
        speed = small.decode_tokens_per_second / large.decode_tokens_per_second
        tiles.append(
            {"value": f"{speed:.1f}×", "label": f"decoding speed ({small.decode_tokens_per_second:.0f} tokens/s)"}
        )
    if run.accounting:
        minutes = sum(stage["seconds"] for stage in run.accounting["stages"]) / 60
        tiles.append({"value": f"{minutes:.0f} min", "label": "all stages, baselines and evaluation included"})
    return tiles


def _table(run: RunData, text: str) -> dict[str, Any]:
    """Rows of metrics, columns of models; the best of the students is marked where its interval is apart."""
    assert run.evaluation is not None
    models = run.evaluation.models
    rows = []
    for name, label, higher, form in _METRICS:
        intervals = [getattr(model.texts[text], name) for model in models]
        values = [i.value for i, m in zip(intervals, models, strict=True) if i is not None and m.role != "teacher"]
        best = (max(values) if higher else min(values)) if values else None
        cells = []
        for interval, model in zip(intervals, models, strict=True):
            shown = _shown(interval, form)
            is_best = interval is not None and model.role != "teacher" and interval.value == best
            cells.append(None if shown is None else {**shown, "best": is_best})
        rows.append({"label": label, "better": "higher" if higher else "lower", "cells": cells})
    first = models[0].texts[text]
    return {"text": text, "models": models, "rows": rows, "tokens": first.tokens, "sequences": first.sequences}


def _efficiency(run: RunData) -> list[dict[str, Any]]:
    return [
        {"label": LABELS[model.role], **model.efficiency.model_dump()}
        for model in (run.evaluation.models if run.evaluation else ())
        if model.efficiency
    ]


def _differences(run: RunData) -> list[dict[str, Any]]:
    """Paired differences by other model and text."""
    found = []
    for comparison in run.evaluation.comparisons if run.evaluation else ():
        if comparison.other == "teacher" or comparison.metric not in _DIFFERENCES:
            continue
        label, form = _DIFFERENCES[comparison.metric]
        found.append(
            {
                "other": LABELS[comparison.other],
                "text": comparison.text,
                "metric": label,
                **(_shown(comparison.difference, form) or {}),
                "verdict": {"student": "better", "other": "worse", "undecided": "undecided"}[comparison.better],
            }
        )
    return found


def _heat(found: TokenHeat) -> dict[str, Any]:
    tokens = []
    for token, value, teacher, student in zip(
        found.tokens, found.forward_kl, found.teacher_top, found.student_top, strict=True
    ):
        known = math.isfinite(value)
        level = sum(value >= border for border in HEAT_LEVELS) if known else -1
        tip = (
            f"{value:.2f} nats · teacher: {_quoted(teacher)} · student: {_quoted(student)}"
            if known
            else "not predicted"
        )
        tokens.append({"token": token, "level": level, "tip": tip})
    return {"text": found.text, "tokens": tokens}


def _quoted(token: str) -> str:
    return "“" + visible(token).replace("\n", "↵") + "”"


def _costs(run: RunData) -> list[dict[str, str]]:
    stages = (run.accounting or {}).get("stages") or []
    return [
        {
            "name": stage["name"],
            "minutes": f"{stage['seconds'] / 60:.1f}",
            "tokens": f"{stage['tokens']:,}" if stage["tokens"] else "–",
            "flops": f"{_number(stage['flops'])}FLOP" if stage["flops"] else "–",
            "skipped": "done by an earlier run of this folder" if stage["skipped"] else "",
        }
        for stage in stages
    ]


def _comparison_rows(run: RunData) -> list[dict[str, Any]]:
    student = run.model("student")
    if student is None:
        return []
    rows = []
    for text, scores in student.texts.items():
        written = student.responses.get(text)
        rows.append(
            {
                "run": run.name,
                "text": text,
                "parameters": _number(student.efficiency.parameters) if student.efficiency else "–",
                "speed": f"{student.efficiency.decode_tokens_per_second:.1f}" if student.efficiency else "–",
                "perplexity": _shown(scores.perplexity, "{:.2f}"),
                "bits_per_byte": _shown(scores.bits_per_byte, "{:.4f}"),
                "agreement": _shown(scores.agreement, "{:.2%}"),
                "forward_kl": _shown(scores.forward_kl, "{:.4f}"),
                "calibration_error": _shown(scores.calibration_error, "{:.4f}"),
                "rouge_teacher": _shown(written.rouge_teacher, "{:.4f}") if written else None,
                "excess_error": _shown(written.excess_error, "{:+.1f} %") if written else None,
            }
        )
    return rows
