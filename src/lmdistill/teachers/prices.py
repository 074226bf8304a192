"""What tokens cost: a dated table that comes with lmdistill, over which a recipe lays prices of its own.

Money is counted in whole picodollars (1e-12 US dollars): sums over millions of tokens stay exact, and $0.0375 for a
million tokens is 37,500 of them a token. Torch is not imported here.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lmdistill.recipe import ApiPrice
from lmdistill.teachers.api_types import Usage

PICO = 10**12
_TABLE = Path(__file__).with_name("prices.json")
_DATED = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{8}|latest)$")


@dataclass(frozen=True)
class Price:
    """Picodollars for one token of each kind."""

    prompt: int
    cached: int
    output: int
    date: str
    """Since when it holds, or when it was looked up; `recipe` for one that the recipe gives."""

    def of(self, usage: Usage) -> int:
        """Picodollars of an answer; reasoning is part of its output."""
        fresh = usage.prompt - usage.cached
        return fresh * self.prompt + usage.cached * self.cached + usage.output * self.output

    def at_most(self, prompt_tokens: int, output_tokens: int) -> int:
        """Picodollars that a call can cost."""
        return prompt_tokens * max(self.prompt, self.cached) + output_tokens * self.output


FREE = Price(0, 0, 0, "")
"""Of a model on this machine."""


def find_price(model: str, own: Mapping[str, ApiPrice] | None = None, day: datetime.date | None = None) -> Price | None:
    """The price of a model on a day (today where absent); a recipe's goes before the table's. None: not known.

    A name with a date behind it (`gpt-4o-mini-2024-07-18`) has the price of the name without it.
    """
    day = day or datetime.datetime.now(datetime.UTC).date()
    for name in (model, _DATED.sub("", model)):
        if own is not None and name in own:
            given = own[name]
            cached = given.prompt if given.cached is None else given.cached
            return _price(given.prompt, cached, given.output, "recipe")
        if rows := [row for row in _table()["prices"] if row["model"] == name and row.get("since", "") <= str(day)]:
            row = max(rows, key=lambda row: row.get("since", ""))
            date = row.get("since") or _table()["checked"]
            return _price(row["prompt"], row.get("cached", row["prompt"]), row["output"], date)
    return None


def dollars(money: int) -> float:
    """Picodollars in US dollars."""
    return money / PICO


def _price(prompt: float, cached: float, output: float, date: str) -> Price:
    of_prompt, of_cached, of_output = (round(value * PICO / 10**6) for value in (prompt, cached, output))
    return Price(of_prompt, of_cached, of_output, date)


@cache
def _table() -> dict[str, Any]:
    value: dict[str, Any] = json.loads(_TABLE.read_text(encoding="utf-8"))
    return value
