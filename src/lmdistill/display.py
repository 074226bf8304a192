"""What commands print on standard output: the catalogue, findings, scores. Each function draws, none decides."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lmdistill.console import clean
from lmdistill.methods import METHODS, Method
from lmdistill.yamltext import write_yaml

if TYPE_CHECKING:
    from lmdistill.doctor import Diagnosis
    from lmdistill.evaluation import Evaluation
    from lmdistill.evaluation.export_results import ExportRecord
    from lmdistill.evaluation.results import Interval, ModelScores
    from lmdistill.evaluation.suite_results import SuiteResult, SuiteSet

_PIPE_WIDTH = 120
_MARKS = {"ok": ("✓", "green"), "note": ("·", "cyan"), "warning": ("!", "yellow"), "error": ("✗", "bold red")}


def show(renderable: RenderableType) -> None:
    """Print on standard output; in a pipe without colours and without spaces at the ends of lines."""
    console = _console()
    if console.is_terminal:
        console.print(renderable)
        return
    with console.capture() as captured:
        console.print(renderable)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def width() -> int:
    """Columns of standard output: the terminal's; in a pipe what COLUMNS says, or 120."""
    return _console().width


def _console() -> Console:
    columns = None if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit() else _PIPE_WIDTH
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False, width=columns)


def methods_table(columns: int) -> RenderableType:
    """The catalogue: name, what it is, and where it was published; without the authors where that is too wide."""
    wide = columns >= 100
    table = _table()
    for title, style in (("method", "bold"), ("what it is", ""), *([("paper", "")] if wide else []), ("arXiv", "dim")):
        table.add_column(title, style=style, no_wrap=title != "what it is")
    for method in METHODS.values():
        paper = method.paper
        author = [f"{paper.authors} {paper.year}"] if wide else []
        table.add_row(method.name, method.title, *author, paper.arxiv or "")
    end = Text("lmdistill methods NAME shows one in full, lmdistill new NAME writes a recipe.", style="dim")
    return Group(table, "", end)


def method_page(method: Method) -> RenderableType:
    """One method: summary, formula, defaults, notes, citation."""
    names = f"  (also: {', '.join(method.aliases)})" if method.aliases else ""
    parts: list[RenderableType] = [
        Text.assemble((method.name, "bold"), f"  {method.title}", (names, "dim")),
        "",
        Text(method.summary),
        "",
        Text(f"    {method.formula}", style="cyan"),
        Text("    p is the teacher's distribution, q the student's", style="dim"),
        "",
        Text("Defaults", style="bold"),
        Padding(Text(write_yaml(dict(method.fragment)).rstrip()), (0, 0, 0, 4)),
        "",
        Text("Notes", style="bold"),
        *(_note(note) for note in method.notes),
        "",
        Text("Paper", style="bold"),
        Padding(Text(f"{method.paper.title}. {method.paper.citation}"), (0, 0, 0, 4)),
        Padding(Text(method.paper.link, style="dim", no_wrap=True, overflow="ignore"), (0, 0, 0, 4)),
    ]
    return Group(*parts)


def diagnosis(found: Diagnosis) -> RenderableType:
    """Findings with their remedies, and the memory estimate term by term."""
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(ratio=1)
    for finding in found.findings:
        mark, colour = _MARKS[finding.severity]
        text = Text(clean(finding.message, lines=True))
        if finding.fix:
            text.append(f"\n→ {clean(finding.fix, lines=True)}", style="cyan")
        table.add_row(Text(mark, style=colour), clean(finding.check), text)
    if not found.memory:
        return table
    memory = Table.grid(padding=(0, 2))
    memory.add_column()
    memory.add_column(justify="right")
    for term in found.memory:
        memory.add_row(clean(term.term), size(term.bytes))
    memory.add_row(Text("together", style="bold"), Text(size(sum(term.bytes for term in found.memory)), style="bold"))
    return Group(table, "", Text("Memory", style="bold"), Padding(memory, (0, 0, 0, 2)))


_MEASURES = (
    # title, field, whether it is a share shown in percent, whether a narrow table has it
    ("perplexity", "perplexity", False, True),
    ("bits/byte", "bits_per_byte", False, False),
    ("accuracy %", "accuracy", True, False),
    ("ECE %", "calibration_error", True, True),
    ("agreement %", "agreement", True, True),
    ("KL(t‖s)", "forward_kl", False, True),
)


_WRITTEN = (
    ("ROUGE-L to teacher", "rouge_teacher", False, True),
    ("to the data", "rouge_reference", False, False),
    ("coverage", "coverage", False, True),
    ("likelihood", "likelihood", False, True),
    ("excess error %", "excess_error", False, True),  # it is in per cent already
    ("tokens", "length", False, False),
    ("cut %", "unfinished", True, False),
)
"""The same of what models wrote."""


def scores(evaluation: Evaluation, columns: int) -> RenderableType:
    """One table for each held-out text, a row for each model; the interval stands under the value.

    Accuracy and bits per byte are left out where the terminal is too narrow for all.
    """
    parts: list[RenderableType] = []
    names = list(dict.fromkeys(name for model in evaluation.models for name in model.texts))
    for name in names:
        models = [model for model in evaluation.models if name in model.texts]
        parts += [_scores_of(name, models, columns), ""]
    for name in dict.fromkeys(name for model in evaluation.models for name in model.responses):
        models = [model for model in evaluation.models if name in model.responses]
        parts += [_written(name, models, columns), ""]
    sizes = _table()
    for title in ("model", "parameters", "saved", "prefill/s", "decode/s", "peak memory"):
        sizes.add_column(title, justify="left" if title == "model" else "right")
    for model in evaluation.models:
        cost = model.efficiency
        if cost is not None:
            numbers = (f"{cost.parameters:,}", size(cost.bytes), f"{cost.prefill_tokens_per_second:,.0f}")
            rest = (f"{cost.decode_tokens_per_second:,.1f}", size(cost.peak_memory_bytes))
            sizes.add_row(clean(model.label), *numbers, *rest)
    if sizes.row_count:
        parts += [sizes, ""]
    parts += [
        part for result in evaluation.suites for found in result.sets for part in (*_suite_set(result, found), "")
    ]
    interval = f"{evaluation.confidence:.0%} intervals from {evaluation.bootstrap_samples:,} resamplings of sequences"
    return Group(*parts, Text(interval, style="dim"))


def _scores_of(name: str, models: list[ModelScores], columns: int) -> Table:
    first = models[0].texts[name]
    title = Text.assemble((clean(name), "bold"), (f"  {first.tokens:,} tokens in {first.sequences:,} sequences", "dim"))
    table = _table(title=title, title_justify="left")
    table.add_column("model")
    measures = [
        measure
        for measure in _MEASURES
        if (measure[3] or columns >= 100) and any(getattr(model.texts[name], measure[1]) for model in models)
    ]
    for label, *_ in measures:
        table.add_column(label, justify="right", overflow="fold")
    for model in models:
        found = model.texts[name]
        cells = [_interval(getattr(found, key), percent) for _, key, percent, _ in measures]
        table.add_row(clean(model.label), *cells)
    return table


def _written(name: str, models: list[ModelScores], columns: int) -> Table:
    """What the models wrote to the prompts of one text."""
    first = models[0].responses[name]
    counts = f"  {first.answers:,} answers to {first.prompts:,} prompts"
    table = _table(title=Text.assemble((clean(name), "bold"), (counts, "dim")), title_justify="left")
    table.add_column("model")
    measures = [
        measure
        for measure in _WRITTEN
        if (measure[3] or columns >= 100) and any(getattr(model.responses[name], measure[1]) for model in models)
    ]
    for label, *_ in measures:
        table.add_column(label, justify="right", overflow="fold")
    for model in models:
        found = model.responses[name]
        cells = [_interval(getattr(found, key), percent) for _, key, percent, _ in measures]
        table.add_row(clean(model.label), *cells)
    return table


def _suite_set(result: SuiteResult, found: SuiteSet) -> list[RenderableType]:
    """One set of a suite: its measures, comparisons with what they could detect, and what is to be said of it."""
    from lmdistill.report.suites import comparison_row, name_of

    names = list(dict.fromkeys(name for model in found.models for name in model.measures))
    title = Text.assemble((f"{result.suite}: {clean(found.name)}", "bold"), (f"  {found.items:,} items", "dim"))
    table = _table(title=title, title_justify="left")
    table.add_column("measure")
    for model in found.models:
        table.add_column(clean(model.label), justify="right", overflow="fold")
    for name in names:
        cells = [
            _suite_cell(model.measures[name].interval, name) if name in model.measures else "" for model in found.models
        ]
        table.add_row(Text(name_of(name), style="bold" if name == found.main else ""), *cells)
    parts: list[RenderableType] = [table]
    rows = [comparison_row(c) for c in found.comparisons if c.measure == found.main]
    labels = {model.role: clean(model.label) for model in found.models}
    for row in rows:
        text = f"student minus {labels[row['other']]}: {row['difference']} ({row['range']}), smallest detectable "
        text += f"{row['detectable']}, p {row['p']} ({row['test']}), corrected {row['p_adjusted'] or 'not'}: "
        parts.append(Text(text + (row["verdict"] or "no better side")))
    parts += [Text(f"ceiling: {clean(found.ceiling)}", style="dim")] if found.ceiling else []
    parts += [Text(clean(note), style="dim") for note in found.notes]
    return parts


def _suite_cell(interval: Interval, name: str) -> Text:
    from lmdistill.report.suites import form_of

    form = form_of(name)
    value, low, high = (form.format(number) for number in (interval.value, interval.low, interval.high))
    return Text.assemble(value, (f"\n{low}–{high}", "dim") if low != high else "", justify="right")


def _interval(interval: Interval | None, percent: bool) -> Text:
    if interval is None:
        return Text("")
    factor, digits = (100, 1) if percent else (1, _digits(interval.value))
    value, low, high = (f"{number * factor:,.{digits}f}" for number in (interval.value, interval.low, interval.high))
    return Text.assemble(value, (f"\n{low}–{high}", "dim"), justify="right")


def _digits(value: float) -> int:
    """Digits after the point that leave three or four in all."""
    return (
        0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2 if abs(value) >= 1 else 3 if abs(value) >= 0.1 else 5
    )


def size(amount: float) -> str:
    """Bytes in the unit that suits them: `81 MiB`, `1.4 GiB`."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(amount) < 1024:
            return f"{amount:,.0f} {unit}" if unit == "bytes" or amount >= 10 else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:,.1f} TiB"


def facts(pairs: Mapping[str, Any]) -> RenderableType:
    """Names and values, one a line."""
    table = Table.grid(padding=(0, 2))
    for name, value in pairs.items():
        table.add_row(Text(name, style="bold"), Text(clean(str(value)), overflow="fold"))
    return table


def ledger_page(found: Mapping[str, Any]) -> RenderableType:
    """What a ledger holds: the whole, models, runs, and how calls ended."""
    span = f"{found['first']} to {found['last']}" if found["answers"] else "-"
    whole = {"answers": f"{found['answers']:,}", "requests": f"{found['requests']:,}", "span": span}
    parts: list[RenderableType] = [facts({**whole, "bytes": size(found["bytes"])}), ""]
    models = _table(title=Text("Models", style="bold"), title_justify="left")
    for title in ("asked as", "answered as", "answers", "good", "prompt", "cached", "reasoning", "output", "US $", "s"):
        models.add_column(title, justify="left" if title.endswith("as") else "right", overflow="fold")
    for model in found["models"]:
        tokens = (model[f"{kind}_tokens"] for kind in ("prompt", "cached", "reasoning", "output"))
        counts = (f"{number or 0:,}" for number in (model["answers"], model["good"], *tokens))
        money = "no price" if model["money"] is None else f"{model['money']:.4f}"
        models.add_row(
            clean(model["asked_as"]), clean(model["answered_as"]), *counts, money, f"{model['seconds_mean']:.2f}"
        )
    runs = _table(title=Text("Runs", style="bold"), title_justify="left")
    for title in ("run", "calls", "tokens", "US $", "minutes"):
        runs.add_column(title, justify="left" if title == "run" else "right")
    for name, used in found["runs"].items():
        numbers = (f"{used['calls']:,}", f"{used['tokens']:,}", f"{used['money']:.4f}", f"{used['minutes']:.1f}")
        runs.add_row(clean(name), *numbers)
    endings = ", ".join(f"{count:,} {clean(ending)}" for ending, count in found["calls"].items()) or "none"
    parts += [models, "", runs, "", facts({"calls": endings})]
    if "damaged" in found:
        parts += ["", facts({"sound": f"{found['sound']:,} answers", "damaged": len(found["damaged"])})]
        parts += [Text(clean(problem)) for problem in found["damaged"]]
    return Group(*parts)


def _note(text: str) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    grid.add_row("  -", Text(text))
    return grid


def _table(**options: Any) -> Table:
    return Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0), **options)


def export_page(record: ExportRecord, results: object) -> RenderableType:
    """An export: where it lies, its size, and what it kept."""
    rows: dict[str, Any] = {
        "export": record.path,
        "bytes": f"{size(record.bytes)} (the student {size(record.student_bytes)})",
    }
    for name, text in record.texts.items():
        agreement, kl = text.student.agreement, text.student.forward_kl
        rows[f"{name}: agreement with the student"] = (
            f"{agreement.value:.4f} ({agreement.low:.4f} to {agreement.high:.4f})"
        )
        rows[f"{name}: KL(student‖export)"] = f"{kl.value:.5f} ({kl.low:.5f} to {kl.high:.5f})"
        if text.teacher is not None and text.student_to_teacher is not None:
            before, after = text.student_to_teacher.forward_kl.value, text.teacher.forward_kl.value
            rows[f"{name}: teacher"] = f"KL(teacher‖export) {after:.4f}, of the student before {before:.4f}"
    if not record.texts:
        rows["fidelity"] = "not measured: name held-out text with --data"
    if record.tokens_per_second is not None:
        beside = record.student_tokens_per_second
        rows["tokens/s"] = f"{record.tokens_per_second:.1f}, {record.speed_by}"
        rows["tokens/s"] += f"; the student {beside:.1f}" if beside is not None else ""
    if (check := record.llamacpp) is not None:
        within = "" if check.max_difference is None else f", log-probabilities within {check.max_difference:.4f}"
        rows["llama.cpp"] = (
            f"{check.tokens_equal} of {check.tokens} greedy tokens are transformers' too{within}; "
            f"{check.probes_equal} of {check.probes} texts cut alike"
        )
    for note in record.notes:
        rows["note"] = note
    return facts({**rows, "results": results})
