"""Caps on what asking may cost: reserved before a call is sent, settled when it has ended, never exceeded.

Used by one event loop. Torch is not imported here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from lmdistill.errors import BudgetSpent, RecipeError
from lmdistill.recipe import ApiLimits
from lmdistill.teachers.ledger_rows import Spent
from lmdistill.teachers.prices import PICO, Price, dollars

_EXTRA_TOKENS = 64
_TOKENS_OF_A_MESSAGE = 16
"""What a chat template adds, at the start."""


@dataclass(frozen=True)
class Reserved:
    """The most that a call can take."""

    tokens: int
    money: int
    """Picodollars."""


class Stopwatch:
    """Seconds in which at least one request was pending."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pending = 0
        self._begun = 0.0
        self._seconds = 0.0

    def begin(self) -> None:
        """A request begins to be pending."""
        if self._pending == 0:
            self._begun = self._clock()
        self._pending += 1

    def end(self) -> None:
        """It has ended."""
        self._pending -= 1
        if self._pending == 0:
            self._seconds += self._clock() - self._begun

    def seconds(self) -> float:
        """So far."""
        return self._seconds + (self._clock() - self._begun if self._pending else 0.0)


class Budget:
    """What a run may still spend, its earlier starts counted."""

    def __init__(
        self, limits: ApiLimits, before: Spent, price: Price | None, watch: Stopwatch, model: str = ""
    ) -> None:
        """Raises RecipeError for a cap on money where the model has no price."""
        if limits.money is not None and price is None:
            raise RecipeError(
                f"api.limits.money = {limits.money}, but {model!r} has no price in the table; give one: api.prices: "
                f"{{{model}: {{prompt: 0.15, output: 0.6}}}} (US dollars for a million tokens)"
            )
        self.limits = limits
        self.calls = before.calls
        self.tokens = before.tokens
        """Taken, and reserved for calls under way."""
        self.money = before.money
        self._price = price
        self._seconds_before = before.seconds
        self._watch = watch
        self._under_way = 0
        self._most_beyond = _EXTRA_TOKENS
        self._settled = asyncio.Event()

    def most(self, prompt_bytes: int, messages: int, max_tokens: int) -> Reserved:
        """The most that a call can take: no tokenizer makes more tokens than bytes, beside what a template adds."""
        prompt = prompt_bytes + messages * _TOKENS_OF_A_MESSAGE + self._most_beyond
        return Reserved(prompt + max_tokens, 0 if self._price is None else self._price.at_most(prompt, max_tokens))

    def seconds_left(self) -> float | None:
        """Seconds that asking may still take; None without a cap."""
        if self.limits.minutes is None:
            return None
        return self.limits.minutes * 60 - self._seconds_before - self._watch.seconds()

    async def reserve(self, most: Reserved) -> None:
        """Set aside what a call can take; waits where calls under way may leave enough of it. Raises BudgetSpent."""
        while (spent := self._exceeded(most)) is not None:
            if self._under_way == 0 or self._exceeded(most, final=True) is not None:
                raise BudgetSpent(
                    f"{spent}; what was answered is in the ledger. Raise the cap, then run the same command"
                )
            self._settled.clear()
            await self._settled.wait()
        self.take(most)
        self._under_way += 1

    def settle(self, reserved: Reserved, taken: Reserved | None) -> None:
        """A call has ended and took this; None: nobody knows, and what was reserved counts."""
        self._under_way -= 1
        if taken is not None:
            self.tokens += taken.tokens - reserved.tokens
            self.money += taken.money - reserved.money
        self._settled.set()

    def learn(self, prompt_bytes: int, prompt_tokens: int) -> None:
        """What a template adds is found in what the server counts."""
        self._most_beyond = max(self._most_beyond, prompt_tokens - prompt_bytes)

    def take(self, most: Reserved) -> None:
        """Count what goes out in a batch file, whose end is not waited for."""
        self.calls += 1
        self.tokens += most.tokens
        self.money += most.money

    def exceeded_by(self, calls: int, tokens: int, money: int) -> str | None:
        """Which cap so many calls together would exceed."""
        return self._exceeded(Reserved(tokens, money), calls=calls) if calls else None

    def _exceeded(self, most: Reserved, final: bool = False, calls: int = 1) -> str | None:
        """Which cap the next calls would exceed; with `final`, of those that no ending call can help."""
        limits, left = self.limits, self.seconds_left()
        if limits.calls is not None and self.calls + calls > limits.calls:
            more = "" if calls == 1 else f", and {calls} more are needed"
            return f"{self.calls} of {limits.calls} calls are used{more} (api.limits.calls)"
        if left is not None and left <= 0:
            return f"{limits.minutes:g} minutes of asking are over (api.limits.minutes)"
        if final:
            return None
        if limits.tokens is not None and self.tokens + most.tokens > limits.tokens:
            return (
                f"{self.tokens} of {limits.tokens} tokens are used, and the next call may take {most.tokens} "
                "(api.limits.tokens)"
            )
        if limits.money is not None and self.money + most.money > limits.money * PICO:
            return (
                f"${dollars(self.money):.6g} of ${limits.money:g} are spent, and the next call may cost "
                f"${dollars(most.money):.6g} (api.limits.money)"
            )
        return None
