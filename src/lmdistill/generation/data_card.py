"""The card of a generated data set: what is in it, what was left out and why, what it cost, whose words they are.

Torch is not imported here.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from lmdistill.generation.diversity import Diversity, diversity
from lmdistill.generation.licences import licence_note
from lmdistill.generation.types import Drop, Example

_EXAMPLES_SHOWN = 5
_MATCHES_LISTED = 1000


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Costs(_Part):
    """What the making of the data took, failed and dropped answers included."""

    money: float | None = None
    """US dollars; None where no price is known."""
    calls: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Those of the prompt tokens that the server had in its cache."""
    reasoning_tokens: int = 0
    output_tokens: int = 0
    minutes: float | None = None

    @property
    def tokens(self) -> int:
        """Prompt and output tokens together; reasoning tokens are part of the output."""
        return self.prompt_tokens + self.output_tokens


class Spread(_Part):
    """Smallest, median and largest value."""

    min: float
    median: float
    max: float


class Dropped(_Part):
    """What one check left out."""

    count: int
    examples: list[tuple[str, str]]
    """(name of the row, reason) of the first few."""


class Match(_Part):
    """A row that occurs in an evaluation set."""

    row: str
    matched: str
    """`set:number` of the evaluation row."""
    reason: str


class TeacherNote(_Part):
    """A teacher and what is known of its terms."""

    model: str
    examples: int
    """Accepted rows that it wrote."""
    licence: str
    note: str


class Sample(_Part):
    """An accepted row, as it is: escape it wherever it is shown."""

    id: str
    task: str
    prompt: str
    response: str


class DataCard(_Part):
    """What is known of a generated data set. Its texts come from models: escape them wherever they are shown."""

    name: str
    accepted: int
    dropped: int
    by_task: dict[str, int]
    by_verdict: dict[str, int]
    """`none` counts rows of which nothing was asked."""
    drops: dict[str, Dropped]
    """By check, the most frequent first."""
    filters: list[str]
    """Checks that every accepted row passed."""
    prompt_words: Spread | None
    response_words: Spread | None
    masked: dict[str, int]
    """Pieces of personal data that were masked, by kind."""
    prompt_diversity: Diversity
    response_diversity: Diversity
    costs: Costs
    cost_per_accepted: float | None
    """US dollars."""
    tokens_per_accepted: float | None
    calls_per_accepted: float | None
    teachers: list[TeacherNote]
    contamination: list[Match]
    """Rows that were left out because they occur in an evaluation set, the first thousand."""
    contaminated: int
    """How many there are in all."""
    samples: list[Sample] = Field(default_factory=list)


def data_card(
    accepted: Sequence[Example],
    drops: Sequence[Drop],
    costs: Costs,
    *,
    name: str = "",
    teachers: Iterable[str] = (),
    seed: int = 0,
) -> DataCard:
    """The card of these rows; `teachers` names models beside those that the rows' provenance names."""
    words = {side: [len(getattr(row, side).split()) for row in accepted] for side in ("prompt", "response")}
    leaks = [drop for drop in drops if drop.by == "contamination"]
    count = len(accepted)
    return DataCard(
        name=name,
        accepted=count,
        dropped=len(drops),
        by_task=_sorted(Counter(row.task for row in accepted)),
        by_verdict=_sorted(Counter(row.verdict or "none" for row in accepted)),
        drops=_dropped(drops),
        filters=_passed_by_all(accepted),
        prompt_words=_spread(words["prompt"]),
        response_words=_spread(words["response"]),
        masked=_masked(accepted),
        prompt_diversity=diversity(list(dict.fromkeys(row.prompt for row in accepted)), seed=seed),
        response_diversity=diversity([row.response for row in accepted], seed=seed),
        costs=costs,
        cost_per_accepted=costs.money / count if count and costs.money is not None else None,
        tokens_per_accepted=costs.tokens / count if count else None,
        calls_per_accepted=costs.calls / count if count else None,
        teachers=_teachers(accepted, teachers),
        contamination=[
            Match(row=drop.example.id, matched=drop.matched or "", reason=_clean(drop.reason))
            for drop in leaks[:_MATCHES_LISTED]
        ],
        contaminated=len(leaks),
        samples=[
            Sample(id=row.id, task=row.task, prompt=_clean(row.prompt), response=_clean(row.response))
            for row in accepted[:: max(1, count // _EXAMPLES_SHOWN)][:_EXAMPLES_SHOWN]
        ],
    )


def data_card_json(card: DataCard) -> dict[str, Any]:
    """The card as plain values for `io.write_json`; `DataCard.model_validate` reads them back."""
    return card.model_dump(mode="json")


def _dropped(drops: Sequence[Drop]) -> dict[str, Dropped]:
    by_check: dict[str, list[Drop]] = defaultdict(list)
    for drop in drops:
        by_check[drop.by].append(drop)
    return {
        check: Dropped(
            count=len(rows), examples=[(row.example.id, _clean(row.reason)) for row in rows[:_EXAMPLES_SHOWN]]
        )
        for check, rows in sorted(by_check.items(), key=lambda item: (-len(item[1]), item[0]))
    }


def _passed_by_all(rows: Sequence[Example]) -> list[str]:
    if not rows:
        return []
    common = set.intersection(*(set(row.provenance.filters) for row in rows))
    return [check for check in dict.fromkeys(rows[0].provenance.filters) if check in common]


def _masked(rows: Iterable[Example]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for row in rows:
        counts = row.fields.get("masked")
        found.update(counts if isinstance(counts, dict) else {})
    return dict(sorted(found.items()))


def _teachers(rows: Sequence[Example], named: Iterable[str]) -> list[TeacherNote]:
    counts = Counter(row.provenance.teacher for row in rows if row.provenance.teacher)
    for teacher in named:
        counts.setdefault(teacher, 0)
    notes = [(teacher, count, licence_note(teacher)) for teacher, count in _sorted(counts).items()]
    return [
        TeacherNote(model=_clean(teacher), examples=count, licence=note.licence, note=note.note)
        for teacher, count, note in notes
    ]


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _spread(values: Sequence[int]) -> Spread | None:
    return Spread(min=min(values), median=statistics.median(values), max=max(values)) if values else None


def _clean(text: str) -> str:
    """The text without lone surrogates, which no JSON file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
