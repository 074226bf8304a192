"""What is told while training runs, and how it is stopped."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lmdistill.errors import Interrupted
from lmdistill.progress import Task
from lmdistill.training.ledger import LossLedger

Event = Callable[..., None]
"""Writes one line of events.jsonl: called with the kind and its fields."""


class TellProgress(TrainerCallback):
    """Moves the progress display at each step, and writes an event whenever the Trainer logs."""

    def __init__(self, ledger: LossLedger, task: Task, event: Event) -> None:
        self.ledger = ledger
        self.task = task
        self.event = event
        self._since = time.monotonic()
        self._tokens = 0
        self._rate = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock; after a resume, count the steps that are already done."""
        self._since, self._tokens = time.monotonic(), int(state.num_input_tokens_seen)
        if state.global_step:
            self.task.advance(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """One step further."""
        elapsed = max(1e-9, time.monotonic() - self._since)
        self._rate = (int(state.num_input_tokens_seen) - self._tokens) / elapsed
        self.task.advance(1, loss=self.ledger.step.get("loss", 0.0), tokens_per_second=self._rate)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write what the Trainer logs, completed by the parts of the loss."""
        logs = logs or {}
        heldout: dict[str, dict[str, float]] = {}
        for name, value in logs.items():
            if name.startswith("eval_") and "/" in name:
                text, metric = name.removeprefix("eval_").split("/", 1)
                heldout.setdefault(text, {})[metric] = value
        for text, scores in heldout.items():
            self.event("heldout", step=state.global_step, text=text, **scores)
        if "learning_rate" in logs:
            self.event(
                "step",
                step=state.global_step,
                tokens=int(state.num_input_tokens_seen),
                learning_rate=logs["learning_rate"],
                gradient_norm=logs.get("grad_norm"),
                tokens_per_second=self._rate,
                **self.ledger.window,
            )


class StopFlag:
    """Set by a signal, read between steps.

    Only training waits for the end of its step, inside `patient()`; in every other stage a signal interrupts at once,
    since what those stages finished is on the disk and what they did not is done again.
    """

    def __init__(self) -> None:
        self.raised = False
        self.name = ""
        self._waiting = False

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Let the block look at `raised` by itself."""
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False

    def signalled(self, name: str) -> None:
        """A signal came. Raises Interrupted where nobody looks at the flag."""
        self.raised, self.name = True, name
        if not self._waiting:
            raise Interrupted(f"stopped by {name}; run the same command again to go on from the last finished stage")


class StopOnSignal(TrainerCallback):
    """Saves a checkpoint and ends training after the step in which the flag was raised."""

    def __init__(self, flag: StopFlag) -> None:
        self.flag = flag

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask the Trainer to save and stop; a step that was the last one ends by itself."""
        if self.flag.raised and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True


@contextmanager
def stop_flag() -> Iterator[StopFlag]:
    """A flag that SIGINT and SIGTERM raise; the second signal ends the process as usual."""
    flag = StopFlag()
    previous: dict[int, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        for each, handler in previous.items():
            signal.signal(each, handler)
        flag.signalled(signal.Signals(number).name)

    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            previous[number] = signal.signal(number, handle)
        except ValueError:  # not the main thread: whoever owns it decides about signals
            break
    try:
        yield flag
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
