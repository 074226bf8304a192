"""How long work shows itself: one interface that stages talk to, whatever is on the other end.

The command line puts a rich display, plain lines or JSON lines behind it (`lmdistill.console`); libraries and tests
use `Progress` itself, which is silent.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Task:
    """One piece of work with a known or unknown end."""

    def advance(self, amount: float = 1, **shown: float | str) -> None:
        """Count `amount` more units as done and show the named values (loss=2.1, tokens_per_second=310)."""


class Progress:
    """Silent progress; subclasses show it."""

    @contextmanager
    def stage(self, name: str, detail: str = "") -> Iterator[None]:
        """A stage of the pipeline: announced when it starts, closed with its duration."""
        yield

    @contextmanager
    def task(self, name: str, total: float | None = None, unit: str = "") -> Iterator[Task]:
        """A counted piece of work inside a stage."""
        yield Task()

    def note(self, text: str) -> None:
        """Something worth knowing."""

    def warn(self, text: str) -> None:
        """Something that the user should look at."""
