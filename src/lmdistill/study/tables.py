"""A study's results as plain tables, and those as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from lmdistill.study.compare import (
    Contrast,
    Place,
    is_main,
    measures_of,
    places_of,
    seeds_of,
    spread,
    totals_by_method,
)
from lmdistill.study.results import CellResult, Measure
from lmdistill.study.spec import StudySpec


@dataclass(frozen=True)
class Table:
    """Text in rows and columns."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""
    level: int = 3
    """Of its heading."""


def result_tables(spec: StudySpec, results: Sequence[CellResult], found: Sequence[Contrast]) -> list[Table]:
    """For each student and budget, one table a measure, main ones first, then what the time went into."""
    tables = []
    measures = sorted(measures_of(results), key=lambda measure: not is_main(spec, measure))
    for place in places_of(results):
        tables += [_of_measure(spec, results, found, place, measure) for measure in measures]
        tables.append(_of_work(spec, results, place))
    return tables


def _of_measure(
    spec: StudySpec, results: Sequence[CellResult], found: Sequence[Contrast], place: Place, measure: Measure
) -> Table:
    better = {True: "lower is better", False: "higher is better", None: "no side is better"}[measure.lower_is_better]
    rows = [*_reference_rows(results, place, measure)]
    for method in spec.methods:
        own = seeds_of(results, place, method, measure.key)
        if not own:
            continue
        mean, half = spread(list(own.values()))
        contrast = next(
            (
                each
                for each in found
                if (each.student, each.budget, each.method, each.measure.key) == (*place, method, measure.key)
            ),
            None,
        )
        rows.append([method, _pm(measure, mean, half), str(len(own)), *_contrasted(measure, contrast)])
    header = ["method", "mean", "seeds", f"minus {spec.reference}", "p", "p, corrected", "detectable", "verdict"]
    title = f"{measure.key.rpartition('/')[0]}: {measure.title} ({better})"
    return Table(_at(spec, place, title), header, rows)


def _reference_rows(results: Sequence[CellResult], place: Place, measure: Measure) -> list[list[str]]:
    """The teacher and the student before training, which no method changes: those of the first cell."""
    cell = next((each for each in results if (each.cell.student, each.cell.budget) == place), None)
    rows = []
    for label, values in (
        ("teacher", cell.teacher if cell else {}),
        ("before training", cell.untrained if cell else {}),
    ):
        if measure.key in values:
            rows.append([label, measure.shown(values[measure.key].value), *[""] * 6])
    return rows


def _contrasted(measure: Measure, contrast: Contrast | None) -> list[str]:
    if contrast is None:
        return [""] * 5
    return [
        _pm(measure, contrast.difference, contrast.half, sign="+"),
        _p(contrast.p),
        "" if contrast.p_adjusted is None else _p(contrast.p_adjusted),
        "" if math.isnan(contrast.detectable) else measure.shown(contrast.detectable),
        contrast.verdict,
    ]


def _of_work(spec: StudySpec, results: Sequence[CellResult], place: Place) -> Table:
    rows = []
    for method, work in totals_by_method(spec, results, place).items():
        rows.append(
            [
                method,
                f"{work['training_seconds']:.0f}",
                f"{work['teacher_seconds']:.0f}",
                f"{work['steps']:.0f}",
                f"{work['tokens']:,.0f}",
                f"{work['written']:,.0f}",
                f"{work['student_flops'] / 1e12:.2f}",
                f"{work['flops'] / 1e12:.2f}",
            ]
        )
    header = ["method", "s of training", "s of the teacher before", "steps", "tokens read", "tokens written"]
    header += ["TFLOP, student", "TFLOP, with the teacher"]
    return Table(_at(spec, place, "What the budget went into"), header, rows, "Means over seeds.")


def _at(spec: StudySpec, place: Place, title: str) -> str:
    """A title with student and budget, where there are several."""
    parts = [place[0]] if len(spec.students) > 1 else []
    parts += [place[1]] if len(spec.budgets) > 1 else []
    return ", ".join(part for part in parts if part) + (" · " if any(parts) else "") + title


def _pm(measure: Measure, mean: float, half: float, sign: str = "") -> str:
    shown = f"{mean * measure.factor:{sign}.{measure.digits}f}"
    return shown if math.isnan(half) else f"{shown} ± {measure.shown(half)}"


def _p(value: float) -> str:
    if math.isnan(value):
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def to_markdown(table: Table) -> str:
    """A table under its heading."""
    lines = ["#" * table.level + f" {table.title}", "", _line(table.header), "|" + "---|" * len(table.header)]
    lines += [_line(row) for row in table.rows]
    return "\n".join(lines + (["", table.note] if table.note else [])) + "\n"


def _line(cells: Sequence[str]) -> str:
    escaped = [cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ") for cell in cells]
    return "| " + " | ".join(escaped) + " |"


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "‖": r"$\|$",
    "·": r"$\cdot$",
    "−": r"$-$",
    "\n": " ",
}


def latex_text(text: str) -> str:
    """Text in which no character means something to LaTeX, and none is missing from its usual fonts."""
    escaped = "".join(_LATEX.get(character, character) for character in text)
    return re.sub(r"[^\x20-\x7e\u00a1-\u017f]", "?", escaped)


def to_latex(table: Table) -> str:
    """A table with booktabs' rules."""
    lines = [
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{latex_text(table.title)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
        r"\toprule",
        " & ".join(map(latex_text, table.header)) + r" \\",
        r"\midrule",
        *(" & ".join(map(latex_text, row)) + r" \\" for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def cells_csv(results: Sequence[CellResult]) -> str:
    """Every value of every cell, one a line, with its interval over items: nothing is rounded or left out."""
    rows: list[list[object]] = []
    for found in results:
        cell = [found.cell.name, found.cell.method, found.cell.student, found.cell.budget, found.cell.seed]
        for key, interval in found.values.items():
            rows.append([*cell, key, interval.value, interval.low, interval.high])
        rows += [[*cell, f"work/{name}", value, "", ""] for name, value in found.work.items()]
    return _csv(["cell", "method", "student", "budget", "seed", "measure", "value", "low", "high"], rows)


def contrasts_csv(found: Sequence[Contrast]) -> str:
    """Every comparison, one a line."""
    header = ["measure", "method", "student", "budget", "seeds", "difference", "half_width", "p", "p_adjusted"]
    rows: list[list[object]] = [
        [
            each.measure.key,
            each.method,
            each.student,
            each.budget,
            each.seeds,
            each.difference,
            each.half,
            each.p,
            "" if each.p_adjusted is None else each.p_adjusted,
            each.detectable,
            each.verdict,
        ]
        for each in found
    ]
    return _csv([*header, "detectable", "verdict"], rows)


def _csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        # A spreadsheet takes a text that begins like this for a formula.
        writer.writerow([f"'{cell}" if isinstance(cell, str) and cell[:1] in "=+-@" else cell for cell in row])
    return text.getvalue()
