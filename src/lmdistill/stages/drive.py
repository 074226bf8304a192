"""Letting a Trainer run to its end: resume, progress, checkpoints that verify, a signal, a full disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback

from lmdistill.errors import Interrupted, RecipeError, StorageError
from lmdistill.models import errors_of_the_disk
from lmdistill.stages.context import Context
from lmdistill.training.budget import Clock
from lmdistill.training.callbacks import StopOnSignal, TellProgress
from lmdistill.training.checkpoints import SealCheckpoints
from lmdistill.training.companions import Companions
from lmdistill.training.trainer import DistillTrainer


def drive(
    context: Context,
    name: str,
    trainer: DistillTrainer,
    *,
    clock: Clock,
    companions: Companions,
    resume: Path | None,
    problems: Sequence[str],
    callbacks: Sequence[TrainerCallback] = (),
    afresh: Callable[[], None] = lambda: None,
) -> int:
    """Train to the last step, or on from the checkpoint `resume`; returns the number of tokens that were read.

    `problems` are checkpoints that did not verify; `afresh` is called where nothing is resumed. Raises Interrupted
    after saving where a signal asked to stop, StorageError where a checkpoint could not be written, RecipeError where
    memory ran out.
    """
    arguments = trainer.args
    trainer.remove_callback(PrinterCallback)
    for problem in problems:
        context.warn(f"stage {name}: skipped a checkpoint that does not verify: {problem}")
    if resume is not None:
        context.note(f"stage {name} resumes from {resume.name}")
        companions.restore(resume)
    else:
        afresh()

    def event(kind: str, **fields: Any) -> None:
        context.folder.event(kind, name, **fields)

    with context.progress.task(f"train {name}", total=total_steps(trainer), unit="steps") as task:
        for callback in (*callbacks, TellProgress(trainer.ledger, task, event), StopOnSignal(context.stop)):
            trainer.add_callback(callback)
        trainer.add_callback(companions)  # before the seal: what it writes is sealed with the rest
        trainer.add_callback(SealCheckpoints(keep=arguments.save_total_limit or 2, seconds=lambda: clock.used))
        arguments.save_total_limit = None  # rotation is ours: nothing goes before a newer one is sealed
        try:
            with context.stop.patient(), errors_of_the_disk():
                trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        except (KeyError, RuntimeError) as error:
            _explain_out_of_memory(error)
            raise
        except OSError as error:
            raise StorageError(
                f"{arguments.output_dir}: a checkpoint could not be written ({error}); free space and run again"
            ) from error
    state = trainer.state
    if context.stop.raised and state.global_step < state.max_steps:
        raise Interrupted(
            f"stopped by {context.stop.name} after step {state.global_step} of {state.max_steps} of stage {name}; "
            "a checkpoint is saved: run the same command again to go on"
        )
    return int(state.num_input_tokens_seen)


def total_steps(trainer: DistillTrainer) -> int:
    """Optimiser steps that the Trainer will take."""
    arguments = trainer.args
    if arguments.max_steps > 0:
        return int(arguments.max_steps)
    batches = len(trainer.get_train_dataloader())
    per_epoch = max(1, -(-batches // arguments.gradient_accumulation_steps))
    return int(per_epoch * arguments.num_train_epochs)


def _explain_out_of_memory(error: Exception) -> None:
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text or "not enough memory" in text:
        raise RecipeError(
            f"out of memory ({text.splitlines()[0]}); lower training.per_device_train_batch_size or data.max_length, "
            "or set training.gradient_checkpointing=true; the last checkpoint is intact"
        ) from error
