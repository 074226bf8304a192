"""What a text is that was written for training: its tokens, who wrote each, how likely the student found them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum


class Author(IntEnum):
    """Who wrote a token. 0 is left for the prompt."""

    DATASET = 1
    TEACHER = 2
    STUDENT = 3


@dataclass(frozen=True)
class Trajectory:
    """A prompt and what was written after it; every list but the prompt's has one item for each answer token."""

    prompt_ids: list[int]
    answer_ids: list[int]
    """With the end token, where `finished`."""
    authors: list[int]
    """`Author` of each answer token; interleaved text has several."""
    logprobs: list[float] | None
    """Log-probability of each answer token under the student that sampled, of its plain distribution (temperature 1,
    no nucleus, real vocabulary). None where it is not known: text of the data set."""
    finished: bool
    """Whether the text ended by itself; otherwise the length limit cut it."""
    step: int
    """Optimiser step of the student's weights that sampled it."""
    row_id: str
    """Name of the prompt's row."""
    behaviour_logprobs: list[float] | None = None
    """Log-probability of each answer token under the distribution that it was really drawn from (temperature, nucleus,
    mixture with the teacher): the divisor of importance weights. None where it is not known."""

    def __post_init__(self) -> None:
        for name in ("authors", "logprobs", "behaviour_logprobs"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.answer_ids):
                raise ValueError(f"{self.row_id}: {len(self.answer_ids)} answer tokens but {len(values)} {name}")

    @property
    def empty(self) -> bool:
        """Whether nothing was written before the end."""
        return len(self.answer_ids) <= int(self.finished)


@dataclass(frozen=True)
class Tally:
    """What a guard wants to know of many texts."""

    rows: int
    tokens: int
    """Answer tokens, end tokens included."""
    empty: int
    """Texts that ended at once."""
    unfinished: int
    """Texts that the length limit cut."""


def tally(trajectories: Sequence[Trajectory]) -> Tally:
    """Count rows, tokens, texts that hold nothing, and texts that never ended."""
    return Tally(
        rows=len(trajectories),
        tokens=sum(len(item.answer_ids) for item in trajectories),
        empty=sum(item.empty for item in trajectories),
        unfinished=sum(not item.finished for item in trajectories),
    )
