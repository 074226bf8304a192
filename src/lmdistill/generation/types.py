"""What generation hands on: seeds, examples, and what was left out with its reason. Torch is not imported here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Verdict = Literal["correct", "incorrect", "unverifiable"]
"""What a check can say of an answer. What cannot be checked is never called wrong."""


@dataclass(frozen=True)
class Seed:
    """What generation starts from: a question, an instruction, a passage."""

    id: str
    """Name of the row; it stays with everything that is made from it."""
    prompt: str
    """The question or instruction."""
    answer: str | None = None
    """The answer that is known to be right, where there is one."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Further columns of the row."""
    task: str = ""
    """Name of the task that it belongs to."""
    use: Literal["both", "asked", "shown"] = "both"
    """Whether it is a question, a demonstration, or may be either."""


@dataclass(frozen=True)
class Provenance:
    """Where an example comes from."""

    teacher: str = ""
    """The model as it named itself in its answer."""
    requests: tuple[str, ...] = ()
    """Keys in the ledger of the answers that it was made from."""
    time: str = ""
    """When the last of them was stored (UTC, ISO 8601)."""
    recipe: str = ""
    """Name of the recipe, and fingerprint of its generation section."""
    filters: tuple[str, ...] = ()
    """The checks that it passed, in their order."""


@dataclass(frozen=True)
class Example:
    """One row to train on."""

    id: str
    prompt: str
    """What the student reads."""
    response: str
    """What it learns to write."""
    task: str = "answer"
    """What kind of row it is: `answer`, `rationale`, `label`, `program`, `question`, ..."""
    seed: str = ""
    """The seed that it was made from."""
    answer: str | None = None
    """The final answer within the response, where there is one."""
    verdict: Verdict | None = None
    """What verification said; None where nothing was asked of it."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What a method needs besides: a second rationale, soft labels, a rejected response, ..."""
    provenance: Provenance = field(default_factory=Provenance)

    def row(self) -> dict[str, Any]:
        """The example as one JSON object; what is empty is left out."""
        return {key: value for key, value in asdict(self).items() if value not in (None, "", {}, ())}

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Example:
        """The example that `row` describes."""
        provenance = dict(row.get("provenance", {}))
        for name in ("requests", "filters"):
            provenance[name] = tuple(provenance.get(name, ()))
        return cls(**{"prompt": "", "response": "", **row, "provenance": Provenance(**provenance)})


@dataclass(frozen=True)
class Drop:
    """What was left out, and why; nothing disappears without one."""

    example: Example
    by: str
    """The check that left it out: `answer`, `verify`, `near_duplicate`, `contamination`, ..."""
    reason: str
    """Why, in words, with the numbers."""
    matched: str | None = None
    """Name of the row that it was too like, where that is the reason."""

    def row(self) -> dict[str, Any]:
        """The drop as one JSON object."""
        found = {"by": self.by, "reason": self.reason, "matched": self.matched}
        return {key: value for key, value in found.items() if value is not None} | {"example": self.example.row()}


def make_id(*parts: object) -> str:
    """A short name that depends on the parts alone."""
    text = "\x1f".join(str(part) for part in parts)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
