"""What a study writes: the page, and the tables in Markdown, CSV and LaTeX, as far as its cells are done."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from lmdistill.io import write_text
from lmdistill.report import compare_runs
from lmdistill.report.html import visible
from lmdistill.study.carry import CellState, states_of
from lmdistill.study.cells import Cell, cells_of
from lmdistill.study.chart import Strip, strip_of
from lmdistill.study.compare import Contrast, contrasts, is_main, measures_of, places_of
from lmdistill.study.results import CellResult, read_cell
from lmdistill.study.spec import StudySpec
from lmdistill.study.tables import cells_csv, contrasts_csv, result_tables, to_latex, to_markdown
from lmdistill.study.words import introduction, limits, progress_of, verdicts


@dataclass(frozen=True)
class StudyFiles:
    """What was written."""

    page: Path
    markdown: Path
    cells: Path
    comparisons: Path
    latex: Path
    runs: Path | None
    """The page that puts the runs side by side; None before any is done."""


def write_study(spec: StudySpec, source: Path | None = None) -> StudyFiles:
    """Write everything from what lies in the cells' folders; `source` is the study's file, which the page names."""
    cells, states = cells_of(spec), states_of(spec)
    done = [cell for cell in cells if states[cell.name].state == "done"]
    results = [found for cell in done if (found := read_cell(cell)) is not None]
    compared = contrasts(spec, results)
    folder = spec.folder
    files = StudyFiles(
        page=folder / "study.html",
        markdown=folder / "results.md",
        cells=folder / "results.csv",
        comparisons=folder / "comparisons.csv",
        latex=folder / "results.tex",
        runs=compare_runs([found.cell.folder for found in results], folder / "runs.html") if results else None,
    )
    tables = result_tables(spec, results, compared)
    text = _markdown(spec, states, results, compared, source)
    write_text(files.markdown, text)
    write_text(files.cells, cells_csv(results))
    write_text(files.comparisons, contrasts_csv(compared))
    write_text(files.latex, "% needs \\usepackage{booktabs}\n\n" + "\n".join(map(to_latex, tables)))
    write_text(files.page, _page(spec, states, cells, results, compared, source))
    if spec.page is not None and len(results) == len(cells):
        write_text(Path(spec.page), text)
    return files


def _title(spec: StudySpec) -> str:
    return spec.title or f"Study {spec.name}"


def _markdown(
    spec: StudySpec,
    states: Mapping[str, CellState],
    results: Sequence[CellResult],
    found: Sequence[Contrast],
    source: Path | None,
) -> str:
    made = f"Made by `lmdistill study {source}`, which says everything about the runs." if source else ""
    lines = [f"# {_title(spec)}", "", " ".join([made, *introduction(spec, results)]).strip(), ""]
    if partial := progress_of(states):
        lines += [f"**{partial}**", ""]
    if said := verdicts(spec, results, found):
        lines += ["## What the results support", "", *(f"- {sentence}" for sentence in said), ""]
    lines += ["## What they do not support", "", *(f"- {sentence}" for sentence in limits(spec, results, found)), ""]
    lines += ["## Results", "", "± is the 95 % t-interval over seeds; p is of the paired t-test over seeds.", ""]
    lines += [to_markdown(table) for table in result_tables(spec, results, found)]
    took = sum(state.seconds for state in states.values()) / 60
    lines += [f"All cells together took {took:.0f} minutes of wall-clock time, evaluation and loading included."]
    return "\n".join(lines) + "\n"


def _page(
    spec: StudySpec,
    states: Mapping[str, CellState],
    cells: Sequence[Cell],
    results: Sequence[CellResult],
    found: Sequence[Contrast],
    source: Path | None,
) -> str:
    rows = [
        {
            "name": cell.name,
            "state": states[cell.name].state,
            "minutes": f"{states[cell.name].seconds / 60:.1f}" if states[cell.name].seconds else "",
            "message": states[cell.name].message,
            "report": f"{cell.name}/report.html" if states[cell.name].state == "done" else None,
        }
        for cell in cells
    ]
    return (
        _environment()
        .get_template("study.html.j2")
        .render(
            title=_title(spec),
            source=str(source) if source else "",
            introduction=introduction(spec, results),
            partial=progress_of(states),
            verdicts=verdicts(spec, results, found),
            limits=limits(spec, results, found),
            strips=_strips(spec, results),
            tables=result_tables(spec, results, found),
            cells=rows,
        )
    )


def _strips(spec: StudySpec, results: Sequence[CellResult]) -> list[Strip]:
    """A picture of each main measure."""
    return [
        strip_of(spec, results, place, measure)
        for place in places_of(results)
        for measure in measures_of(results)
        if is_main(spec, measure)
    ]


@functools.lru_cache(maxsize=1)
def _environment() -> Environment:
    loader = ChoiceLoader([PackageLoader("lmdistill.study"), PackageLoader("lmdistill.report")])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["visible"] = visible
    return environment
