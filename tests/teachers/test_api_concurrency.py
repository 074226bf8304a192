"""How the gate behaves before servers of many kinds, in virtual time: limiters, outages, slow starts."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import pytest

from lmdistill.errors import ServerLost
from lmdistill.recipe import ApiRetries
from lmdistill.teachers.concurrency import FAILURES_IN_A_ROW, Gate, Outcome
from virtual_time import run_virtually

Say = Callable[[float], tuple[Outcome, float | None]]


class Limiter:
    """Lets `rate` calls a second pass, and `burst` at once; the others are told to wait `told` seconds."""

    def __init__(self, rate: float, burst: float, told: float | None) -> None:
        self.rate, self.burst, self.told = rate, burst, told
        self._tokens, self._last = burst, 0.0

    def __call__(self, now: float) -> tuple[Outcome, float | None]:
        self._tokens = min(self.burst, self._tokens + (now - self._last) * self.rate)
        self._last = now
        if self._tokens < 1:
            return "busy", self.told
        self._tokens -= 1
        return "good", None


class Log:
    def __init__(self) -> None:
        self.ended: list[tuple[float, Outcome]] = []
        self.most = 0

    def count(self, outcome: Outcome, since: float = 0.0, until: float = 1e9) -> int:
        return sum(kind == outcome for time, kind in self.ended if since <= time < until)


async def drive(gate: Gate, say: Say, seconds: float, latency: float = 0.2, workers: int = 64) -> Log:
    """Calls for some time, as many as the gate lets through."""
    loop, log = asyncio.get_running_loop(), Log()

    async def worker() -> None:
        while loop.time() < seconds:
            entered = await gate.enter()
            log.most = max(log.most, gate.under_way)
            outcome, wait = say(loop.time())
            await asyncio.sleep(latency if outcome == "good" else latency / 10)
            log.ended.append((loop.time(), outcome))
            gate.leave(entered, outcome, wait)

    for ended in await asyncio.gather(*(worker() for _ in range(workers)), return_exceptions=True):
        if ended is not None:
            raise ended
    return log


def gate_of(most: int = 32, per_minute: float | None = None, **retries: float) -> Gate:
    return Gate(most, ApiRetries(**retries), per_minute, clock=lambda: asyncio.get_running_loop().time())  # type: ignore[arg-type]


@pytest.mark.parametrize("told", [None, 1.0])
@pytest.mark.parametrize(("rate", "burst"), [(20.0, 1.0), (20.0, 20.0), (60.0, 60.0), (5.0, 1.0)])
@pytest.mark.parametrize("latency", [0.05, 1.0])
def test_a_limiter_is_used_up_and_seldom_run_into(
    rate: float, burst: float, told: float | None, latency: float
) -> None:
    async def work() -> Log:
        return await drive(gate_of(128), Limiter(rate, burst, told), 180.0, latency, workers=200)

    log = run_virtually(work())
    good, busy = log.count("good", 60.0, 180.0), log.count("busy", 60.0, 180.0)
    assert good >= 0.9 * rate * 120
    assert busy <= 0.05 * (good + busy)


def test_width_falls_by_a_fifth_for_each_bad_moment_and_grows_back() -> None:
    async def work() -> list[float]:
        gate, widths = gate_of(20), []
        times = [await gate.enter(), await gate.enter()]
        assert gate.under_way == 2
        for entered in times:
            gate.leave(entered, "good")
        widths.append(gate.width.limit)
        times = [await gate.enter() for _ in range(20)]
        await asyncio.sleep(1)
        for entered in times:
            gate.leave(entered, "busy", 0.0)
        widths.append(gate.width.limit)
        for _ in range(18 * 4):
            gate.leave(await gate.enter(), "good")
        widths.append(gate.width.limit)
        return widths

    proved, cut, grown = run_virtually(work())
    assert (proved, cut) == (20.0, 16.0)
    assert 18.0 < grown <= 20.0


def test_before_the_first_answer_two_calls_are_under_way() -> None:
    async def work() -> tuple[int, int]:
        gate = gate_of(50)
        driving = asyncio.create_task(drive(gate, lambda now: ("good", None), 3.0, latency=1.0))
        await asyncio.sleep(0.5)
        before = gate.under_way
        await asyncio.sleep(1.0)
        after = gate.under_way
        await driving
        return before, after

    assert run_virtually(work()) == (2, 50)


def test_a_dead_server_is_probed_one_call_at_a_time_and_then_given_up() -> None:
    calls: list[float] = []

    def say(now: float) -> tuple[Outcome, None]:
        calls.append(now)
        return "broken", None

    async def work() -> float:
        loop = asyncio.get_running_loop()
        with pytest.raises(ServerLost, match="for 30"):
            await drive(gate_of(patience_seconds=300.0), say, 10_000.0, latency=0.1)
        return loop.time()

    lasted = run_virtually(work())
    assert 300 <= lasted <= 370
    assert len(calls) < 25
    gaps = [round(after - before, 3) for before, after in itertools.pairwise(calls[FAILURES_IN_A_ROW:])]
    assert gaps == sorted(gaps)
    assert max(gaps) <= 61.0


def test_patience_ends_where_waits_are_longer_than_it() -> None:
    async def work() -> float:
        loop = asyncio.get_running_loop()
        with pytest.raises(ServerLost):
            await drive(gate_of(patience_seconds=5.0), lambda now: ("broken", None), 10_000.0, latency=0.1)
        return loop.time()

    assert 5 <= run_virtually(work()) <= 70  # one wait more than the patience, and no further ones


def test_an_outage_is_waited_through() -> None:
    def say(now: float) -> tuple[Outcome, None]:
        return ("broken" if 20 <= now < 120 else "good"), None

    async def work() -> Log:
        return await drive(gate_of(8), say, 200.0, workers=8)

    log = run_virtually(work())
    assert log.count("broken") < 25
    assert log.count("good", since=190.0) > 0.9 * 8 * 10 / 0.2


def test_a_huge_wait_is_cut_and_the_server_asked_again() -> None:
    def say(now: float) -> tuple[Outcome, float | None]:
        return ("busy", 1e9) if now < 10 else ("good", None)

    async def work() -> Log:
        return await drive(gate_of(4, longest_wait_seconds=30.0), say, 60.0, workers=4)

    log = run_virtually(work())
    assert log.count("good") > 0
    assert min(time for time, kind in log.ended if kind == "good") < 31.0


def test_requests_per_minute_hold() -> None:
    async def work() -> Log:
        return await drive(gate_of(32, per_minute=120), lambda now: ("good", None), 60.0, workers=32)

    log = run_virtually(work())
    assert 115 <= log.count("good") <= 155  # the last ones wait behind the end


def test_calls_begin_in_the_order_in_which_they_came() -> None:
    order: list[int] = []

    async def work() -> None:
        gate = gate_of(3)

        async def one(number: int) -> None:
            entered = await gate.enter()
            order.append(number)
            await asyncio.sleep(0.1 * (number % 3))
            gate.leave(entered, "good")

        await asyncio.gather(*(one(number) for number in range(40)))

    run_virtually(work())
    assert order == list(range(40))
