"""What exports of a student kept, for its card and for the page."""

from __future__ import annotations

from typing import Any

from lmdistill.evaluation.export_results import ExportRecord, LlamaCppCheck
from lmdistill.evaluation.records import Interval
from lmdistill.report.markdown import plain, table
from lmdistill.report.run_data import RunData

HEAD = (
    "export", "text", "bytes", "agreement with the student", "KL(student‖export)", "KL(teacher‖export)", "tokens/s",
)  # fmt: skip


def export_rows(run: RunData) -> list[list[str]]:
    """A row for each export and held-out text, as in `HEAD`; cells are plain text."""
    return [row for record in run.exports for row in _rows(record)]


def export_notes(run: RunData) -> list[str]:
    """What else is worth knowing of the exports, in sentences."""
    said = []
    for record in run.exports:
        said += [f"{record.name}: {note}." for note in record.notes]
        check = record.llamacpp
        if check is not None:
            said.append(
                f"{record.name} in llama.cpp ({check.version}): {check.probes_equal} of {check.probes} texts cut into "
                f"the same tokens; {check.tokens_equal} of {check.tokens} tokens that it wrote greedily are "
                f"transformers' top choice too; {_differences(check)}."
            )
    return said


def _differences(check: LlamaCppCheck) -> str:
    if check.mean_difference is None or check.max_difference is None:
        return "their log-probabilities could not be compared"
    return (
        f"their log-probabilities differ by {check.mean_difference:.4f} nats on average, "
        f"{check.max_difference:.4f} at most"
    )


def exports_table(run: RunData) -> list[str]:
    """The section of the card; nothing where nothing was exported."""
    rows = export_rows(run)
    if not rows:
        return []
    first = run.exports[0]
    lines = ["## Exports", ""]
    lines += [f"The student itself takes {first.student_bytes:,} bytes. All compared in float32, on held-out text.", ""]
    lines += table(list(HEAD), [[plain(cell) for cell in row] for row in rows])
    return [*lines, *(f"- {plain(note)}" for note in export_notes(run)), ""]


def _rows(record: ExportRecord) -> list[list[str]]:
    speed = _speed(record)
    if not record.texts:
        return [[record.name, "not measured", f"{record.bytes:,}", "–", "–", "–", speed]]
    rows = []
    for text, found in record.texts.items():
        kept: list[Any] = [found.student.agreement, found.student.forward_kl]
        kept.append(found.teacher.forward_kl if found.teacher else None)
        cells = [_cell(interval, 5 if number == 1 else 4) for number, interval in enumerate(kept)]
        rows.append([record.name, text, f"{record.bytes:,}", *cells, speed])
    return rows


def _speed(record: ExportRecord) -> str:
    if record.tokens_per_second is None:
        return "–"
    before = record.student_tokens_per_second
    beside = f"; the student {before:.1f}" if before is not None else ""
    return f"{record.tokens_per_second:.1f} ({record.speed_by}{beside})"


def _cell(interval: Interval | None, digits: int) -> str:
    if interval is None:
        return "–"
    return f"{interval.value:.{digits}f} ({interval.low:.{digits}f} to {interval.high:.{digits}f})"
