"""One training of `on_policy.py`, held step by step: it waits before each optimiser step until it is told to take it.

Both sides import this, each in its own environment, so nothing of lmdistill and nothing of TRL belongs here.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


@dataclass(frozen=True)
class Job:
    """What is trained, the same for both sides."""

    teacher: str
    """Folder of the teacher."""
    student: str
    """Folder of the student."""
    prompts: str
    """JSON lines of `text` and `ids`, in the order in which they are used."""
    setting: str
    """How the side is configured."""
    divergence: str
    new_tokens: int
    batch: int
    accumulation: int
    steps: int
    learning_rate: float
    threads: int
    clock: str
    """`wall`, or `cpu`: seconds of this process on all processors, for a machine that is not one's own."""

    @classmethod
    def read(cls, text: str) -> Job:
        """From the JSON object that the driver hands over."""
        return cls(**json.loads(text))

    def rows(self) -> list[dict[str, Any]]:
        """The prompts."""
        return [json.loads(line) for line in Path(self.prompts).read_text(encoding="utf-8").splitlines()]


class Answers:
    """What this process tells the driver, a JSON object a line; whatever else is printed goes to standard error."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def tell(self, **facts: Any) -> None:
        """One line."""
        self._out.write(json.dumps(facts) + "\n")
        self._out.flush()


class Parts:
    """Seconds of the parts of a step, and what else was counted in it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.seconds: dict[str, float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Time the block."""
        started = self.clock()
        try:
            yield
        finally:
            self.seconds[name] += self.clock() - started

    def timed(self, name: str, function: Callable[..., Any], seen: Callable[[Any], None] | None = None) -> Any:
        """The function, its calls timed; `seen` looks at what it returns."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.of(name):
                found = function(*args, **kwargs)
            if seen is not None:
                seen(found)
            return found

        return call


class Turns(TrainerCallback):
    """Waits for the driver between steps and tells it what each step took."""

    def __init__(self, answers: Answers, parts: Parts) -> None:
        self.answers = answers
        self.parts = parts
        self._started = 0.0
        self._optimiser = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Everything is loaded."""
        self.answers.tell(ready=True, resident_mib=resident("VmRSS"), **formats(kwargs["model"]))
        self._wait(control)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The gradient is there and clipped."""
        self._optimiser = self.parts.clock()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The weights have moved."""
        self.parts.seconds["optimiser"] += self.parts.clock() - self._optimiser

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **kwargs: Any
    ) -> None:
        """One line for the driver: every step ends with its losses being logged."""
        if "loss" not in logs:
            return
        seconds = self.parts.clock() - self._started
        self.answers.tell(
            seconds=seconds,
            parts=dict(self.parts.seconds),
            peak_mib=resident("VmHWM"),
            loss=float(logs["loss"]),
            **self.parts.counts,
        )
        self._wait(control)

    def _wait(self, control: TrainerControl) -> None:
        self.parts.seconds.clear()
        self.parts.counts.clear()
        if sys.stdin.readline().strip() != "step":
            control.should_training_stop = True
            return
        Path("/proc/self/clear_refs").write_text("5")  # the peak is that of the step
        self._started = self.parts.clock()


def formats(model: torch.nn.Module) -> dict[str, str]:
    """The number format of the trained weights."""
    return {"weights": str(next(model.parameters()).dtype).removeprefix("torch.")}


def resident(field: str) -> float:
    """MiB of this process now (VmRSS) or at most since the peak was reset (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def begin() -> tuple[Job, Answers, Parts]:
    """What every side does first."""
    job = Job.read(sys.argv[1])
    torch.set_num_threads(job.threads)
    return job, Answers(), Parts(time.process_time if job.clock == "cpu" else time.perf_counter)
