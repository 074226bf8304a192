"""What models wrote during a run, kept so that a person can read it: a share of the texts, one a line.

Everything of a text stands in JSON strings, so that a text can neither break a line nor hide control characters from
whoever opens the file.
"""

from __future__ import annotations

import json
import math
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from lmdistill.io import append_line, write_lines
from lmdistill.trajectories.types import Author, Trajectory

FILE = "rollouts.jsonl"


@dataclass(frozen=True)
class Entry:
    """One text as a person reads it."""

    step: int
    """Optimiser step of the weights that wrote it."""
    row_id: str
    prompt: str
    completion: str
    """Special tokens included."""
    authors: list[tuple[Author, int]]
    """Who wrote how many tokens, from the first to the last."""
    finished: bool
    mean_logprob: float | None
    """Mean log-probability of its tokens under the student; None where it is not known."""
    stage: str = ""
    """The training that it was written in."""

    @property
    def tokens(self) -> int:
        """Tokens of the completion."""
        return sum(count for _, count in self.authors)


class Journal:
    """Appends to `rollouts.jsonl` of a run's folder."""

    def __init__(
        self, folder: Path, tokenizer: PreTrainedTokenizerBase, *, share: float, seed: int, stage: str = ""
    ) -> None:
        """`share` of the texts is kept, the same ones in every run with this seed. `stage` names the training."""
        self.path = folder / FILE
        self.stage = stage
        self.tokenizer = tokenizer
        self.share = share
        self.seed = seed
        self.kept = 0
        """Texts of this training that were written down."""

    def keep(self, trajectories: Sequence[Trajectory]) -> int:
        """Write down a share of these texts; how many. Raises StorageError."""
        kept = 0
        for place, item in enumerate(trajectories):
            if random.Random(f"journal-{self.seed}-{item.step}-{place}-{item.row_id}").random() < self.share:
                append_line(self.path, self._line(item))
                kept += 1
        self.kept += kept
        return kept

    def cut(self, kept: int) -> None:
        """Leave the first `kept` texts of this training, which goes on from there; other trainings' stay.

        Raises StorageError.
        """
        self.kept = kept
        if not self.path.is_file():
            return
        with open(self.path, encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
        mine = [number for number, line in enumerate(lines) if (entry := _entry(line)) and entry.stage == self.stage]
        beyond = set(mine[kept:])
        if beyond:
            write_lines(self.path, (line for number, line in enumerate(lines) if number not in beyond))

    def _line(self, item: Trajectory) -> str:
        logprobs = item.logprobs
        value = {
            "stage": self.stage,
            "step": item.step,
            "row": item.row_id,
            "prompt": self.tokenizer.decode(item.prompt_ids),
            "completion": self.tokenizer.decode(item.answer_ids),
            "authors": [[Author(author).name.lower(), len(list(run))] for author, run in groupby(item.authors)],
            "finished": item.finished,
            "mean_logprob": round(sum(logprobs) / len(logprobs), 4) if logprobs else None,
        }
        return json.dumps(value, ensure_ascii=True)


def read(folder: Path) -> Iterator[Entry]:
    """The texts of a run's folder, oldest first. A line that a kill cut short, or that is none of ours, is left out."""
    path = folder / FILE
    if not path.is_file():
        return
    with open(path, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            entry = _entry(line)
            if entry is not None:
                yield entry


def recent(folder: Path, n: int) -> list[Entry]:
    """The last n texts, oldest first."""
    return list(deque(read(folder), maxlen=max(0, n)))


def _entry(line: str) -> Entry | None:
    try:
        value = json.loads(line)
        mean = value["mean_logprob"]
        entry = Entry(
            stage=str(value.get("stage", "")),
            step=int(value["step"]),
            row_id=str(value["row"]),
            prompt=str(value["prompt"]),
            completion=str(value["completion"]),
            authors=[(Author[name.upper()], int(count)) for name, count in value["authors"]],
            finished=bool(value["finished"]),
            mean_logprob=None if mean is None else float(mean),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        return None
    return entry if entry.mean_logprob is None or math.isfinite(entry.mean_logprob) else None
