"""Everything that a run's folder says, read once; parts that are absent are None."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lmdistill.errors import CorruptFile, DataError
from lmdistill.evaluation.export_results import ExportRecord
from lmdistill.evaluation.results import Comparison, Evaluation, ModelScores, Role
from lmdistill.generation.data_card import DataCard
from lmdistill.io import read_json
from lmdistill.run_folder import RunFolder


@dataclass
class RunData:
    """One run as its files tell it."""

    folder: Path
    recipe: str | None
    doctor: dict[str, Any] | None
    data: dict[str, Any] | None
    student: dict[str, Any] | None
    evaluation: Evaluation | None
    accounting: dict[str, Any] | None
    events: list[dict[str, Any]] = field(default_factory=list)
    generated: list[tuple[int, DataCard]] = field(default_factory=list)
    """What the run's teacher wrote, by round."""
    exports: list[ExportRecord] = field(default_factory=list)
    """What was exported of the student, and what that kept."""

    @property
    def name(self) -> str:
        """The run's name."""
        return self.folder.resolve().name

    def model(self, role: Role) -> ModelScores | None:
        """Scores of the model with this role."""
        return self.evaluation.scores(role) if self.evaluation else None

    def comparison(self, other: Role, text: str, metric: str) -> Comparison | None:
        """The paired difference between the student and another model."""
        for found in self.evaluation.comparisons if self.evaluation else ():
            if (found.other, found.text, found.metric) == (other, text, metric):
                return found
        return None

    @property
    def texts(self) -> list[str]:
        """Names of the held-out texts."""
        models = self.evaluation.models if self.evaluation else []
        return list(models[0].texts) if models else []


def read_run(folder: Path) -> RunData:
    """Read a run folder. Raises DataError where it is none."""
    recipe = folder / "recipe.yaml"
    if not recipe.is_file() and not (folder / "evaluation.json").is_file():
        raise DataError(f"{folder}: no run folder (neither recipe.yaml nor evaluation.json is in it); give runs/<name>")
    evaluation = _json(folder / "evaluation.json")
    return RunData(
        folder=folder,
        recipe=recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else None,
        doctor=_json(folder / "doctor.json"),
        data=_json(folder / "data.json"),
        student=_json(folder / "student.json"),
        evaluation=None if evaluation is None else Evaluation.model_validate(evaluation),
        accounting=_json(folder / "accounting.json"),
        events=RunFolder(folder).events(),
        generated=_cards(folder / "generated"),
        exports=_exports(folder / "export.json"),
    )


def _json(path: Path) -> dict[str, Any] | None:
    try:
        value = read_json(path)
    except (FileNotFoundError, CorruptFile):
        return None
    return value if isinstance(value, dict) else None


def _exports(path: Path) -> list[ExportRecord]:
    """The exports; none where the file is absent or cannot be read."""
    with suppress(ValidationError, TypeError, KeyError):
        return [ExportRecord.model_validate(found) for found in (_json(path) or {"exports": []})["exports"]]
    return []


def _cards(folder: Path) -> list[tuple[int, DataCard]]:
    """The cards of the data of each round; one that cannot be read is left out."""
    found = []
    for path in folder.glob("round-*/data_card.json"):
        value = _json(path)
        number = path.parent.name.removeprefix("round-")
        if value is not None and number.isdecimal():
            with suppress(ValidationError):
                found.append((int(number), DataCard.model_validate(value)))
    return sorted(found, key=lambda pair: pair[0])


def steps_of(events: list[dict[str, Any]], kind: str = "step") -> dict[str, list[dict[str, Any]]]:
    """Events of one kind by stage, one for each step (and text), in order of steps."""
    by_stage: dict[str, dict[Any, dict[str, Any]]] = {}
    for event in events:
        if event.get("kind") == kind:
            by_stage.setdefault(str(event.get("stage")), {})[event.get("step"), event.get("text")] = event
    return {
        stage: sorted(found.values(), key=lambda event: event.get("step") or 0) for stage, found in by_stage.items()
    }
