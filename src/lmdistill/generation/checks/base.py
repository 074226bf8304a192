"""What a check is: one reason to leave a row out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lmdistill.generation.types import Example


@dataclass(frozen=True)
class Finding:
    """Why a row is left out."""

    reason: str
    """In words, with the numbers."""
    matched: str | None = None
    """Name of the row that it is too like, where that is the reason."""


class Check:
    """Looks at one row after the other.

    A check that compares rows learns of those that stay by `keep`, which is called once all checks have passed: a row
    that another check drops never pushes a later one out.
    """

    name: ClassVar[str]
    """As in `Drop.by` and `Provenance.filters`."""

    def look(self, example: Example) -> Finding | None:
        """A reason to leave the row out, or None."""
        raise NotImplementedError

    def mend(self, example: Example) -> Example:
        """The row as the next checks and the student see it."""
        return example

    def keep(self, example: Example) -> None:
        """Hear of a row that stays."""


def texts_of(example: Example, side: str) -> list[tuple[str, str]]:
    """(name, text) of what a check looks at: the prompt, the response, or both."""
    sides = [("prompt", example.prompt), ("response", example.response)]
    return [pair for pair in sides if side in ("both", pair[0])]
