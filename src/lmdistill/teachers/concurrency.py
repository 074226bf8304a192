"""How many calls a server bears at a time, how fast, and whether it is there at all: one gate that every call passes.

- *Width*: calls at a time. It starts at two until an answer has come (a wrong key costs two calls, not sixteen), falls
  to 0.8 of itself where the server says that it is busy, and grows by one for each round of good calls.
- *Pace*: calls a second. Free until the server is busy for the first time; then a little below what it bore, back
  there after some seconds, and later beyond (the cubic growth of TCP CUBIC, RFC 9438).
- *Breaker*: after some failures in a row nothing is sent for a while, then one call as a probe.

All of it is used by one event loop. Torch is not imported here.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from copy import copy
from typing import Literal

from lmdistill.errors import ServerLost
from lmdistill.recipe import ApiRetries

Outcome = Literal["good", "busy", "broken", "other"]
"""`other`: the server answered, and the fault is not its."""

UNPROVED = 2
"""Calls at a time before the first answer."""
FAILURES_IN_A_ROW = 5
"""After so many the breaker opens."""
_CUT = 0.8
_PACE_CUT = 0.93
_PACE_BACK_SECONDS = 30.0
_PACE_WINDOW_SECONDS = 60.0
_PACE_SOONEST_SECONDS = 1.0


class Width:
    """How many calls may be under way (AIMD)."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = float(min(UNPROVED, most))
        self._proved = False
        self._last_cut = -math.inf

    def answered(self) -> None:
        """A call came back, whatever it said."""
        if not self._proved:
            self._proved, self.limit = True, float(self.most)

    def good(self) -> None:
        """A call ended well."""
        self.limit = min(float(self.most), self.limit + 1 / self.limit)

    def busy(self, entered: float, now: float) -> bool:
        """The server was busy; whether that is news: a call sent before the last cut says nothing of the time since."""
        if entered < self._last_cut:
            return False
        self.limit = max(1.0, self.limit * _CUT)
        self._last_cut = now
        return True


class Pace:
    """How many calls a second may begin."""

    def __init__(self, most_per_second: float | None = None) -> None:
        self.most = most_per_second if most_per_second is not None else math.inf
        self._reached = math.inf
        """What the server bore when it was last busy."""
        self._cut_at = 0.0
        self._next = -math.inf
        self._began: float | None = None
        self._good: deque[float] = deque()

    def rate(self, now: float) -> float:
        """Calls a second at this time."""
        if math.isinf(self._reached):
            return self.most
        curve = (1 - _PACE_CUT) * ((now - self._cut_at) / _PACE_BACK_SECONDS - 1) ** 3
        return min(self.most, self._reached * (1 + curve))

    def wait(self, now: float) -> float:
        """Seconds until the next call may begin."""
        return max(0.0, self._next - now)

    def begin(self, now: float) -> None:
        """A call begins."""
        self._began = now if self._began is None else self._began
        self._next = max(self._next, now - 0.005) + 1 / self.rate(now)

    def good(self, now: float) -> None:
        """A call ended well."""
        self._good.append(now)
        while self._good[0] < now - _PACE_WINDOW_SECONDS:
            self._good.popleft()

    def busy(self, now: float, under_way: int) -> None:
        """The server was busy."""
        span = min(now - (now if self._began is None else self._began), _PACE_WINDOW_SECONDS)
        # Too early, answers that are still on their way would be missing in the count.
        if span >= _PACE_SOONEST_SECONDS:
            borne = (len(self._good) + under_way) / span
            self._reached, self._cut_at = (borne if math.isinf(self._reached) else self.rate(now)), now


class Breaker:
    """Whether the server is there."""

    def __init__(self, first_wait: float, longest_wait: float) -> None:
        self.failures = 0
        """In a row."""
        self.closed_until = -math.inf
        self._first_wait = first_wait
        self._longest_wait = longest_wait

    @property
    def is_open(self) -> bool:
        """Whether the server seems to be away, so that one call at a time tries."""
        return self.failures >= FAILURES_IN_A_ROW

    def good(self) -> None:
        """The server answered."""
        self.failures = 0

    def broken(self, now: float) -> None:
        """A call broke."""
        self.failures += 1
        if self.is_open:
            wait = self._first_wait * 2.0 ** min(self.failures - FAILURES_IN_A_ROW, 30)
            self.closed_until = now + min(wait, self._longest_wait)


class Gate:
    """What every call passes before it is sent and after it has ended."""

    def __init__(
        self,
        most: int,
        retries: ApiRetries,
        per_minute: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.width = Width(most)
        self.pace = Pace(None if per_minute is None else per_minute / 60)
        self.breaker = Breaker(retries.first_wait_seconds, retries.longest_wait_seconds)
        self.under_way = 0
        self._retries = retries
        self._clock = clock
        self._paused_until = -math.inf
        self._busy_in_a_row = 0
        self._failing_since: float | None = None
        self._last_failure = -math.inf
        self._stopped: BaseException | None = None
        self._turnstile = asyncio.Lock()
        self._changed = asyncio.Event()

    async def enter(self) -> float:
        """Wait until a call may begin, in order; when it began. Raises what `stop` was given, ServerLost."""
        async with self._turnstile:
            while True:
                if self._stopped is not None:
                    raise copy(self._stopped)  # one for each: a traceback grows with every raise
                now = self._clock()
                wait = self._wait(now)
                if wait == 0.0:
                    break
                self._changed.clear()
                try:
                    async with asyncio.timeout(wait):
                        await self._changed.wait()
                except TimeoutError:
                    pass
            self.under_way += 1
            self.pace.begin(now)
            return now

    def leave(self, entered: float, outcome: Outcome, wait_seconds: float | None = None) -> None:
        """A call has ended; `wait_seconds` is what a busy server asked for."""
        now = self._clock()
        self.under_way -= 1
        if outcome != "broken":
            self.width.answered()
        if outcome == "busy":
            self._busy(entered, now, wait_seconds)
            self._failed(now, f"it was busy {self._busy_in_a_row} times")
        elif outcome == "broken":
            self.breaker.broken(now)
            self._failed(now, f"{self.breaker.failures} calls in a row broke")
        else:
            self.breaker.good()
            self._busy_in_a_row, self._failing_since = 0, None
            if outcome == "good":
                self.width.good()
                self.pace.good(now)
        self._changed.set()

    def stop(self, error: BaseException) -> None:
        """Let no call begin any more."""
        if self._stopped is None:
            self._stopped = error
        self._changed.set()

    def _wait(self, now: float) -> float | None:
        """Seconds until a call may begin; None: until another has ended."""
        if (closed := max(self._paused_until, self.breaker.closed_until)) > now:
            return closed - now
        if self.under_way >= (1 if self.breaker.is_open else int(self.width.limit)):
            return None
        return self.pace.wait(now)

    def _busy(self, entered: float, now: float, wait_seconds: float | None) -> None:
        self.breaker.good()  # it is there
        if not self.width.busy(entered, now):
            return
        self.pace.busy(now, self.under_way)
        self._busy_in_a_row += 1
        if wait_seconds is None:
            wait_seconds = self._retries.first_wait_seconds * 2.0 ** min(self._busy_in_a_row - 1, 30)
        self._paused_until = max(self._paused_until, now + min(wait_seconds, self._retries.longest_wait_seconds))

    def _failed(self, now: float, what: str) -> None:
        """Give up where nothing has succeeded for as long as patience lasts."""
        if self._failing_since is None or now - self._last_failure > self._retries.patience_seconds:
            self._failing_since = now
        # Until then nobody may call: a wait that is longer than the patience is no time without failures.
        self._last_failure = max(now, self.breaker.closed_until, self._paused_until)
        seconds = now - self._failing_since
        if seconds >= self._retries.patience_seconds:
            self.stop(
                ServerLost(
                    f"the server gave no answer for {seconds:.0f} s ({what}); what was answered is in the ledger. Look "
                    "at the server, then run the same command again (api.retries.patience_seconds waits longer)"
                )
            )
