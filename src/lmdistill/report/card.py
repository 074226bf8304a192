"""The model card of a student: what it is, how it was made, what it kept, what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lmdistill.evaluation.results import Interval
from lmdistill.generation.licences import licence_note
from lmdistill.report import costs
from lmdistill.report.card_metadata import metadata, public_name, sources_of, started_from, tag_and_class, teacher_of
from lmdistill.report.charts import LABELS
from lmdistill.report.exports import exports_table
from lmdistill.report.markdown import code, one_line, plain, table
from lmdistill.report.run_data import RunData, read_run
from lmdistill.report.sentences import summary_of
from lmdistill.report.suites import suites_of
from lmdistill.report.task import card_table


@dataclass(frozen=True)
class Origin:
    """The published method that made a student."""

    name: str
    title: str
    summary: str
    paper: str
    citation: str
    link: str


def student_card(folder: Path, origin: Origin | None = None) -> str:
    """README.md of the student folder, for people and for the hub; whatever models and data say is escaped."""
    run = read_run(folder)
    found = yaml.safe_load(run.recipe or "")
    recipe: dict[str, Any] = found if isinstance(found, dict) else {}
    kind = tag_and_class(run)[1]
    lines = [metadata(run, recipe), "", f"# {plain(run.name)}", "", plain(summary_of(run)), ""]
    lines += ["Made with lmdistill; it loads with transformers alone:", ""]
    lines += [f"    from transformers import {kind}, AutoTokenizer"]
    lines += [f"    model = {kind}.from_pretrained('path/to/this/folder')", ""]
    lines += _lineage(run, recipe) + _method(recipe, origin) + _data(run, recipe)
    for text in run.texts:
        lines += _results(run, text)
    lines += card_table(run) + _differences(run) + _suites(run) + exports_table(run) + _cost(run)
    return "\n".join(lines + _licences(run, recipe) + _limits(run)) + "\n"


def _lineage(run: RunData, recipe: Mapping[str, Any]) -> list[str]:
    start = started_from(recipe)
    lines = ["## Lineage", "", f"- Teacher: {code(public_name(teacher_of(recipe)))}"]
    lines += [f"- Weights it started from: {code(public_name(start)) if start else 'random ones'}"]
    for name, value in (run.student or {}).items():
        if isinstance(value, str | int | float):
            shown = f"{value:,}" if isinstance(value, int) else one_line(value)
            lines.append(f"- {plain(name.replace('_', ' '))}: {plain(shown)}")
    return [*lines, ""]


def _method(recipe: Mapping[str, Any], origin: Origin | None) -> list[str]:
    lines = ["## Method", ""]
    if origin is not None:
        lines += [f"{plain(origin.title)} ({code(origin.name)}): {plain(origin.summary)}", ""]
        lines += [f"Published as “{plain(origin.paper)}”, {plain(origin.citation)}: <{origin.link}>."]
    else:
        divergence = (recipe.get("objective") or {}).get("divergence") or {}
        lines += [
            f"No published method as it stands: {plain(recipe.get('method') or divergence.get('kind', 'unknown'))}."
        ]
    return [*lines, "", "All settings are in recipe.yaml of the run.", ""]


def _data(run: RunData, recipe: Mapping[str, Any]) -> list[str]:
    named = ", ".join(code(public_name(path)) for path in sources_of(recipe))
    lines = ["## Data", "", f"Training text: {named or 'unknown'}.", ""]
    found = run.data or {}
    rows = [
        [plain(name), kind, f"{part.get('documents', 0):,}", f"{part.get('tokens', 0):,}"]
        for kind, key in (("training", "train"), ("held out", "evaluation"))
        for name, part in (found.get(key) or {}).items()
        if isinstance(part, Mapping)
    ]
    lines += table(["part", "", "documents", "tokens"], rows) if rows else []
    for name, overlap in (found.get("contamination") or {}).items():
        if isinstance(overlap, Mapping) and "exact" in overlap:
            lines.append(
                f"- Of {overlap.get('heldout_documents', 0):,} held-out documents of {plain(name)}, "
                f"{overlap['exact']:,} stand in the training text word for word and {overlap.get('overlapping', 0):,} "
                f"share a run of {overlap.get('ngram', '?')} words with it."
            )
    for number, card in run.generated:
        lines.append(
            f"- Round {number}: the teacher wrote {card.accepted:,} rows that are trained on; {card.dropped:,} were "
            f"left out, {card.contaminated:,} of them because they occur in an evaluation set."
        )
    return [*lines, ""]


def _results(run: RunData, text: str) -> list[str]:
    models = run.evaluation.models if run.evaluation else []
    rows = []
    for model in models:
        s = model.texts[text]
        cells = [_cell(s.perplexity, 2), _cell(s.bits_per_byte, 3), _cell(s.agreement, 3), _cell(s.forward_kl, 3)]
        rows.append([LABELS[model.role], *cells, _cell(s.calibration_error, 3)])
    head = ["", "perplexity", "bits per byte", "agreement", "KL(teacher‖student)", "ECE"]
    tokens = models[0].texts[text].tokens if models else 0
    confidence = run.evaluation.confidence if run.evaluation else 0.95
    note = f"{tokens:,} tokens; in brackets {confidence:.0%} intervals of a bootstrap over sequences."
    return [f"## Held-out {plain(text)}", "", note, "", *table(head, rows)]


def _differences(run: RunData) -> list[str]:
    """The student minus its baselines."""
    rows = [
        [
            LABELS[found.other],
            plain(found.text),
            plain(found.metric.replace("_", " ")),
            _cell(found.difference, 3),
            {"student": "better", "other": "worse"}.get(found.better, "undecided"),
        ]
        for found in (run.evaluation.comparisons if run.evaluation else ())
        if found.other in ("none", "sft") and found.metric in ("agreement", "forward_kl", "log_perplexity")
    ]
    head = ["against", "text", "measure", "student minus it", "the student is"]
    return ["## Against the baselines", "", *table(head, rows)] if rows else []


def _suites(run: RunData) -> list[str]:
    lines: list[str] = []
    for suite in suites_of(run):
        lines += [f"## {suite['title']}", ""]
        for found in suite["sets"]:
            rows = [
                [plain(row["label"]), *(f"{cell['value']} ({cell['range']})" if cell else "–" for cell in row["cells"])]
                for row in found["rows"]
            ]
            lines += [f"{plain(found['name'])}, {found['count']:,} items:", ""]
            lines += table(["", *(LABELS.get(role, plain(role)) for role in found["roles"])], rows)
    return lines


def _cost(run: RunData) -> list[str]:
    lines = ["## Cost", ""]
    rows = [
        [plain(row["label"]), row["flops"], plain(row["money"]), plain(row["unknown"]) or "–"]
        for row in costs.totals(run.accounting)
    ]
    if rows:
        lines += table(["", "operations", "money", "not known"], rows)
    stages = (run.accounting or {}).get("stages") or []
    if stages:
        lines.append(f"{sum(float(stage['seconds']) for stage in stages) / 60:.1f} minutes over all stages.")
    machine = (run.accounting or {}).get("machine") or {}
    if machine:
        lines.append(f"Machine: {plain(machine.get('processor', 'unknown'))}, {plain(machine.get('device', '?'))}.")
    lines += [plain(fact) for fact in costs.facts(run.accounting)]
    return [*lines, ""] if len(lines) > 2 else []


def _licences(run: RunData, recipe: Mapping[str, Any]) -> list[str]:
    lines = ["## Licence notes", "", "Hints where to look, no legal advice.", ""]
    findings = [found for found in (run.doctor or {}).get("findings", []) if found.get("check") == "licence"]
    for found in findings:
        lines.append(f"- {plain(found.get('message', ''))} {plain(found.get('fix', ''))}".rstrip())
    if not findings:
        lines.append("- The teacher's terms apply; they were not found in its files.")
    teacher = teacher_of(recipe)
    lines.append(f"- Of a teacher with the name {code(public_name(teacher))}: {plain(licence_note(teacher).note)}.")
    for _, card in run.generated:
        for note in card.teachers:
            lines.append(f"- Text written by {code(note.model)}: {plain(note.licence)}; {plain(note.note)}.")
    lines.append("- Licences of the training text were not looked at; its sources are named above.")
    return [*lines, ""]


def _limits(run: RunData) -> list[str]:
    suites = run.evaluation.suites if run.evaluation else []
    beyond = "and on the suites above " if suites else ""
    lines = ["## Limits", ""]
    lines += [f"It was measured on the texts above {beyond}and on nothing else: no safety or bias evaluation was made."]
    return [*lines, "It can repeat what its teacher and its training text say, mistakes included."]


def _cell(interval: Interval | None, digits: int) -> str:
    if interval is None:
        return "–"
    return f"{interval.value:.{digits}f} ({interval.low:.{digits}f} to {interval.high:.{digits}f})"
