"""What all stages of one run share."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lmdistill.accounting import Accounting, EnergyMeter, Pulse, left_behind
from lmdistill.errors import LmdistillError, ModelError
from lmdistill.models import fastest_dtype, load_model, load_tokenizer, pick_device
from lmdistill.progress import Progress
from lmdistill.recipe import ModelSpec, Recipe, recipe_stages
from lmdistill.run_folder import RunFolder
from lmdistill.stages.costs import write_costs
from lmdistill.training.callbacks import StopFlag

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Context:
    """One run while it is carried out."""

    recipe: Recipe
    folder: RunFolder
    progress: Progress
    stop: StopFlag
    device: torch.device = field(init=False)
    fast_dtype: torch.dtype = field(init=False)
    _teacher: PreTrainedModel | None = field(default=None, init=False)
    _since: float = field(default_factory=time.monotonic, init=False)
    _staged: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.device = pick_device(self.recipe.machine.device)
        self.fast_dtype = fastest_dtype(self.device)
        killed = left_behind(self.folder.path)
        if killed is not None:
            self.folder.event("stage_killed", killed[0], seconds=killed[1])

    @property
    def teacher(self) -> PreTrainedModel:
        """The teacher, loaded when it is first asked for."""
        if self._teacher is None:
            spec = self.recipe.teacher
            if self.recipe.teacher_is_remote:
                raise ModelError(f"{spec.model}: this teacher is behind an API; its weights are not on this machine")
            self._teacher = load_model(spec, dtype=self.dtype_of(spec), device=self.device)
        return self._teacher

    @property
    def save_dtype(self) -> torch.dtype:
        """The format in which results are saved."""
        return DTYPES[self.recipe.student.save_dtype]

    @property
    def is_foreign(self) -> bool:
        """Whether the teacher cuts text otherwise than the student, by what the recipe says."""
        return any(
            stage.objective is not None and stage.objective.cross_tokenizer is not None
            for stage in recipe_stages(self.recipe)
        )

    @property
    def is_elsewhere(self) -> bool:
        """Whether the teacher's weights are not here: an API writes for this run, or spoke before."""
        signals = self.recipe.signals
        return self.recipe.teacher_is_remote or (signals.engine == "answers" and signals.kind != "live")

    def teacher_tokenizer(self) -> PreTrainedTokenizerBase:
        """The teacher's tokenizer."""
        if self.recipe.teacher_is_remote:
            assert self.recipe.student.model is not None
            return load_tokenizer(self.recipe.student.model)
        return load_tokenizer(self.recipe.teacher)

    def dtype_of(self, spec: ModelSpec) -> torch.dtype:
        """The format of a frozen model's weights: as the recipe says, or the fast one."""
        return self.fast_dtype if spec.dtype == "auto" else DTYPES[spec.dtype]

    @contextmanager
    def stage(self, name: str, fingerprint: str, detail: str = "") -> Iterator[Facts]:
        """Announce a stage, time it, and record it as done when it ends without an error.

        What is put into the facts (tokens, flops, ...) is kept in the record and counted in the accounting.
        """
        facts: Facts = Facts()
        self.folder.event("stage_started", name)
        started, meter = time.monotonic(), EnergyMeter()
        try:
            with Pulse(self.folder.path, name), self.progress.stage(name, detail):
                yield facts
        except BaseException as error:
            self._failed(name, time.monotonic() - started, error)
            raise
        spent = time.monotonic() - started
        self._staged += spent
        if earlier := facts.pop("earlier_seconds", 0.0):
            facts["resumed_seconds"] = earlier
        facts["seconds"] = round(earlier + spent, 3)
        if (joules := meter.joules()) is not None:
            facts["joules"] = round(joules, 1)
        self.folder.event("stage_finished", name, **facts)
        self.folder.finish(name, fingerprint, **facts)

    def note(self, text: str) -> None:
        """Tell the user and the events."""
        self.progress.note(text)
        self.folder.event("note", "run", text=text)

    def warn(self, text: str) -> None:
        """Warn the user and the events."""
        self.progress.warn(text)
        self.folder.event("warning", "run", text=text)

    def write_accounting(self, names: list[str], skipped: set[str]) -> Accounting:
        """accounting.json: what each stage cost, from the records that the stages left."""
        other = time.monotonic() - self._since - self._staged
        return write_costs(
            self.recipe, self.folder, names, skipped, device=self.device, dtype=self.fast_dtype, other_seconds=other
        )

    def _failed(self, name: str, seconds: float, error: BaseException) -> None:
        """A stage failed: what it cost is written down, and nothing stands between the error and who waits for it."""
        with contextlib.suppress(LmdistillError, OSError, ValueError):
            self.folder.event("stage_failed", name, seconds=round(seconds, 3), error=type(error).__name__)
            begun = [event["stage"] for event in self.folder.events() if event.get("kind") == "stage_started"]
            self.write_accounting(list(dict.fromkeys(begun)), set())


class Facts(dict[str, Any]):
    """What a stage found out about itself."""
