"""What the tables need of one cell, read from its run folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lmdistill.errors import CorruptFile
from lmdistill.evaluation.results import Evaluation, Interval, ModelScores, Role
from lmdistill.io import read_json
from lmdistill.run_folder import RunFolder
from lmdistill.study.cells import Cell


@dataclass(frozen=True)
class Measure:
    """One column of the tables."""

    key: str
    """`TEXT/NAME`, or `SUITE:SET/NAME`."""
    title: str
    lower_is_better: bool | None
    """None where neither side is better."""
    factor: float = 1.0
    digits: int = 3

    @property
    def name(self) -> str:
        """Without the text."""
        return self.key.rpartition("/")[2]

    def shown(self, value: float) -> str:
        """A value with its digits."""
        return f"{value * self.factor:.{self.digits}f}"


_TEXT = (
    ("perplexity", "perplexity", True, 1, 2),
    ("bits_per_byte", "bits per byte", True, 1, 4),
    ("agreement", "agreement with the teacher, %", False, 100, 1),
    ("forward_kl", "KL(teacher‖student), nats", True, 1, 3),
    ("reverse_kl", "KL(student‖teacher), nats", True, 1, 3),
    ("calibration_error", "calibration error, %", True, 100, 2),
)
_WRITTEN = (
    ("rouge_teacher", "ROUGE-L to the teacher's answers, %", False, 100, 1),
    ("rouge_reference", "ROUGE-L to the data's answers, %", False, 100, 1),
    ("forward_kl_own", "KL(teacher‖student) on its own text, nats", True, 1, 3),
    ("reverse_kl_own", "KL(student‖teacher) on its own text, nats", True, 1, 3),
    ("likelihood", "the teacher's NLL of what it writes, nats", True, 1, 3),
    ("coverage", "its NLL of what the teacher writes, nats", True, 1, 3),
    ("repetition", "repeated 4-grams, %", True, 100, 1),
    ("length", "length of its answers, tokens", None, 1, 1),
)
SHARES = ("accuracy", "rate", "f1", "agreement", "success", "pass@", "maj@")
"""Parts of the names of suites' measures that are shares, shown in per cent."""


@dataclass(frozen=True)
class CellResult:
    """One cell that is done."""

    cell: Cell
    values: dict[str, Interval]
    """The student's, by the measures' keys; the interval is over items (sequences, prompts, questions)."""
    teacher: dict[str, Interval]
    """The teacher's: the ceiling."""
    untrained: dict[str, Interval]
    """Of the student before training, where the recipe asks for it."""
    measures: dict[str, Measure]
    work: dict[str, float] = field(default_factory=dict)
    """Steps, tokens, written tokens, seconds, operations."""
    machine: dict[str, Any] = field(default_factory=dict)


def read_cell(cell: Cell) -> CellResult | None:
    """The results of a cell; None where there are none that can be read."""
    folder = RunFolder(cell.folder)
    try:
        evaluation = Evaluation.model_validate(read_json(folder.file("evaluation.json")))
        accounting = read_json(folder.file("accounting.json"))
    except (FileNotFoundError, CorruptFile, ValueError):
        return None
    measures: dict[str, Measure] = {}
    values = {role: dict(values_of(evaluation, role, measures)) for role in _ROLES}
    if not values["student"]:
        return None
    return CellResult(
        cell=cell,
        values=values["student"],
        teacher=values["teacher"],
        untrained=values["none"],
        measures=measures,
        work=_work(cell, folder, accounting),
        machine=accounting.get("machine", {}),
    )


_ROLES: tuple[Role, ...] = ("student", "teacher", "none")


def values_of(evaluation: Evaluation, role: Role, measures: dict[str, Measure]) -> Iterator[tuple[str, Interval]]:
    """What was measured of one model, by keys; the measures that occur are put into `measures`."""
    model = evaluation.scores(role)
    if model is not None:
        yield from _of_texts(model, measures)
    for suite in evaluation.suites:
        for found in suite.sets:
            own = next((each for each in found.models if each.role == role), None)
            if own is None:
                continue
            for name, measure in own.measures.items():
                key = f"{suite.suite}:{found.name}/{name}"
                share = any(part in name for part in SHARES)
                lower = found.lower_is_better.get(name)
                title = f"{name.replace('_', ' ')}{', %' if share else ''}"
                measures.setdefault(key, Measure(key, title, lower, 100 if share else 1, 1 if share else 3))
                yield key, measure.interval


def _of_texts(model: ModelScores, measures: dict[str, Measure]) -> Iterator[tuple[str, Interval]]:
    for table, found in ((_TEXT, model.texts), (_WRITTEN, model.responses)):
        for text, scores in found.items():
            for name, title, lower, factor, digits in table:
                interval = getattr(scores, name, None)
                if interval is None:
                    continue
                key = f"{text}/{name}"
                measures.setdefault(key, Measure(key, title, lower, factor, digits))
                yield key, interval


def _work(cell: Cell, folder: RunFolder, accounting: dict[str, Any]) -> dict[str, float]:
    """What the training was, and what the cell took."""
    names = [stage.name for stage in cell.resolved().stages] or ["distil"]
    records = [record for name in names if (record := folder.record(name)) is not None]
    totals = accounting.get("totals") or {}
    seconds = sum(stage["seconds"] + stage.get("lost_seconds", 0.0) for stage in accounting.get("stages", ()))
    before = sum(stage["seconds"] for stage in accounting.get("stages", ()) if stage.get("part") == "teacher")
    return {
        "steps": sum(float(record.get("steps", 0)) for record in records),
        "tokens": sum(float(record.get("tokens", 0)) for record in records),
        "written": sum(float(record.get("written_tokens", 0)) for record in records),
        "training_seconds": sum(float(record.get("training_seconds", 0.0)) for record in records),
        "teacher_seconds": before,
        "seconds": seconds,
        "student_flops": float((totals.get("student") or {}).get("flops", 0.0)),
        "flops": float((totals.get("with_teacher") or {}).get("flops", 0.0)),
    }
