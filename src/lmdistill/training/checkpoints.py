"""Checkpoints that can be trusted: sealed after writing, verified before resuming, rotated only when a newer one holds.

The Trainer writes the folder; `SealCheckpoints` then flushes and hashes every file and writes the manifest last. A
folder without a manifest, or one whose files no longer match it, does not count. The pickled optimiser, scheduler and
random states inside are only ever read from a folder that verifies, through the Trainer's weights-only loader.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lmdistill.errors import CorruptFile
from lmdistill.io import read_json, seal_folder, verify_folder, write_json

_SECONDS = "seconds.json"
_NAME = re.compile(r"checkpoint-(\d+)")


class SealCheckpoints(TrainerCallback):
    """Seals each checkpoint when it is written, then removes older sealed ones beyond `keep`."""

    def __init__(self, keep: int = 2, seconds: Callable[[], float] = lambda: 0.0) -> None:
        """`seconds` tells the training time so far, which is kept beside the weights for the accounting."""
        if keep < 1:
            raise ValueError(f"keep = {keep}; at least 1 checkpoint must stay")
        self.keep = keep
        self.seconds = seconds

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Called by the Trainer after it wrote `checkpoint-<step>`."""
        if not state.is_world_process_zero:
            return
        parent = Path(str(args.output_dir))
        # The Trainer's own arguments are pickled and nothing of ours reads them: the resolved recipe replaces them.
        folder = parent / f"checkpoint-{state.global_step}"
        (folder / "training_args.bin").unlink(missing_ok=True)
        write_json(folder / _SECONDS, {"seconds": round(self.seconds(), 3)})
        seal_folder(folder)
        for old in _numbered(parent)[: -self.keep]:
            shutil.rmtree(old)

    @staticmethod
    def seconds_of(checkpoint: Path) -> float:
        """The training time that went into a checkpoint."""
        return float(read_json(checkpoint / _SECONDS)["seconds"])


def newest_checkpoint(parent: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and what was wrong with newer ones."""
    problems = []
    for folder in reversed(_numbered(parent)):
        try:
            verify_folder(folder)
        except CorruptFile as error:
            problems.append(f"{folder.name}: {error}")
            continue
        return folder, problems
    return None, problems


def _numbered(parent: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    if not parent.is_dir():
        return []
    found = [(int(match.group(1)), path) for path in parent.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]
