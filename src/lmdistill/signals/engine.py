"""Whoever lets the teacher speak: this process (`local`), workers (`workers`) or a server (`server`)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from lmdistill.signals.store import TrainingSequence
from lmdistill.signals.teller import Payload


@dataclass(frozen=True)
class Ask:
    """What is asked for at a time and answered whole, such as the rows of one shard."""

    sequences: Sequence[TrainingSequence]
    seeds: Sequence[int]
    """For kinds that sample, one a sequence."""


class Engine(Protocol):
    """Lets the teacher speak."""

    def tell_all(self, asks: Iterable[Ask], told: Callable[[int], None]) -> Generator[list[Payload], None, None]:
        """The answers in order, each with what the teacher says at the labelled positions of its sequences.

        `told` is called with the number of tokens that the teacher has read. An engine may work ahead of what is taken;
        closing the generator ends that.
        """

    def close(self) -> None:
        """Give back what it holds."""
