"""Asks a server, inside one event loop, until every request has an answer or a reason why it has none.

A call passes the gate (how many, how fast), the budget (what it may take is reserved), the ledger (that it will be sent
is on the disk), the server, the ledger again (what came is on the disk); only then is the answer looked into. Torch is
not imported here.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from lmdistill.errors import BadAnswer, Broken, Busy, LmdistillError, TeacherError, Unanswerable
from lmdistill.recipe import ApiSpec
from lmdistill.teachers.api_http import Transport
from lmdistill.teachers.api_read import Reader, Reading, failed
from lmdistill.teachers.api_types import Answer, Request
from lmdistill.teachers.api_wire import Identity, body_of, call_text, path_of, whole
from lmdistill.teachers.concurrency import Gate, Outcome
from lmdistill.teachers.ledger import Ledger, Stored
from lmdistill.teachers.ledger_rows import now
from lmdistill.teachers.limits import Budget, Reserved, Stopwatch

_MOST_BUSY = 50
"""Calls of one request that find the server busy while others do not."""
_FEW_FAILURES = 10
_NOTED_WAIT_SECONDS = 5.0
_NOTHING = Reserved(0, 0)


class Abandoned(TeacherError):
    """Nobody wants the answer any more."""


@dataclass(eq=False)
class Pending:
    """A request on its way."""

    request: Request
    key: str
    task: asyncio.Task[Answer] | None = None
    sent: bool = False
    """Whether a call is at the server, or as good as there."""
    abandoned: bool = False
    """Whether no further call is to be made."""
    busy: int = 0
    broken: int = 0
    last_error: str = ""


@dataclass
class Tally:
    """What became of the requests that were asked now."""

    done: int = 0
    failures: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


class Asker:
    """Asks; everything that it does happens in one event loop."""

    def __init__(
        self,
        spec: ApiSpec,
        identity: Identity,
        transport: Transport,
        ledger: Ledger,
        reader: Reader,
        budget: Budget,
        watch: Stopwatch,
    ) -> None:
        self.spec = spec
        self.gate = Gate(spec.requests, spec.retries, spec.requests_per_minute)
        self.tally = Tally()
        self._identity = identity
        self._transport = transport
        self._ledger = ledger
        self._reader = reader
        self._budget = budget
        self._watch = watch
        self._models, self._fingerprints = ledger.models_answered(identity.model)
        self._under_way: dict[str, asyncio.Future[Answer]] = {}
        self._random = random.Random()

    async def ask(self, pending: Pending) -> Answer:
        """The answer to a request, from the ledger where it came there in the meantime.

        Raises what ends a run: Refused, BudgetSpent, ServerLost, StorageError.
        """
        key, pending.task = pending.key, asyncio.current_task()
        while (other := self._under_way.get(key)) is not None:
            try:
                return replace(await asyncio.shield(other), request=pending.request, paid=False)
            except Abandoned:
                continue  # by whoever asked first, not by this one
        mine = self._under_way[key] = asyncio.get_running_loop().create_future()
        mine.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody else may have waited for it
        self._watch.begin()
        try:
            answer = await self._answer(pending)
        except BaseException as error:
            mine.cancel() if isinstance(error, asyncio.CancelledError) else mine.set_exception(error)
            if isinstance(error, LmdistillError) and not isinstance(error, Abandoned):
                self.gate.stop(error)
            raise
        else:
            mine.set_result(answer)
            return answer
        finally:
            self._watch.end()
            del self._under_way[key]

    def abandon(self, pendings: Iterable[Pending]) -> None:
        """Make no further calls for these; what is at the server is waited for and stored."""
        for pending in pendings:
            pending.abandoned = True
            if not pending.sent and pending.task is not None:
                pending.task.cancel()

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    async def _answer(self, pending: Pending) -> Answer:
        """Ask until the answer can be used, or has been unusable often enough."""
        found, turn = self._reader.find(pending.key, pending.request), 0
        if found is not None:
            if self._reader.is_final(found):
                return found.answer
            turn = found.turn + 1
        last = self.spec.retries.bad_answers + (turn if self.spec.retry_failed else 0)
        while not pending.abandoned:
            try:
                reading = await self._call_until_answered(pending, turn)
            except Unanswerable as error:
                return self._count(failed(pending.request, pending.key, str(error)))
            if reading.usable or turn >= last:
                return self._count(reading.answer)
            turn += 1
        raise Abandoned("given up")

    async def _call_until_answered(self, pending: Pending, turn: int) -> Reading:
        """Call until the server sends an answer. Raises Unanswerable, and what ends a run."""
        while True:
            entered = await self.gate.enter()
            outcome: Outcome = "other"
            wait: float | None = None
            try:
                reading = await self._call(pending, turn)
                outcome = "good"
                return reading
            except Busy as error:
                outcome, wait = "busy", error.wait_seconds
                pending.busy += 1
                pending.last_error = str(error)
                self._note_wait(wait, str(error))
            except Broken as error:
                outcome = "broken"
                # A server that is not there is waited for; one that fails over this request is not asked for ever.
                pending.broken += error.reached or not self.gate.breaker.is_open
                pending.last_error = str(error)
            finally:
                self.gate.leave(entered, outcome, wait)
            if pending.abandoned:
                raise Abandoned("given up")
            if pending.broken >= self.spec.retries.attempts or pending.busy >= _MOST_BUSY:
                raise Unanswerable(f"{pending.last_error}; asked {pending.broken + pending.busy} times")
            if outcome == "broken":
                await asyncio.sleep(self._backoff(pending.broken))

    async def _call(self, pending: Pending, turn: int) -> Reading:
        """One call, from its reservation to its answer on the disk."""
        request, key, spec = pending.request, pending.key, self.spec
        path, tag = path_of(request), whole(request.tag)
        body = body_of(request, spec.model, turn, spec.max_tokens_field)
        call = call_text(path, body)
        size = len(call.encode("utf-8", "surrogatepass"))
        reserved = self._budget.most(size, len(request.messages), request.sampling.max_tokens)
        if self._transport.paid:
            await self._budget.reserve(reserved)
        pending.sent = True  # it counts from here on, so it is not given up either
        taken: Reserved | None = _NOTHING  # until it is sent
        number, outcome, message, start = 0, "cancelled", "", time.monotonic()
        try:
            if self._transport.paid:
                number, written = self._ledger.open_call(key, turn, tag, reserved.tokens, reserved.money)
                await asyncio.wrap_future(written)
            asked, start, taken = now(), time.monotonic(), None
            raw = await self._send(key, turn, path, body)
            seconds = time.monotonic() - start
            identity = self._identity
            stored = Stored(key, turn, raw, call, seconds, asked, identity.model, identity.where, tag, number)
            await asyncio.wrap_future(self._ledger.store(stored))
            outcome = "answered"
            reading, taken = self._look(stored, request, size)
            return reading
        except TeacherError as error:
            outcome, message = type(error).__name__.lower(), str(error)[:500]
            if not isinstance(error, Broken) or not error.billed or not error.reached:
                taken = _NOTHING
            raise
        finally:
            pending.sent = False
            if self._transport.paid:
                self._budget.settle(reserved, taken)
                if outcome != "answered" and number:
                    cost = None if taken is None else (taken.tokens, taken.money)
                    self._ledger.end_call(number, outcome, time.monotonic() - start, message, cost)

    async def _send(self, key: str, turn: int, path: str, body: dict[str, object]) -> bytes:
        """Send; bytes that can be no answer are one too, so that they are kept and counted."""
        deadline, left = self.spec.deadline_seconds, self._budget.seconds_left()
        try:
            return await self._transport.send(key, turn, path, body, deadline if left is None else min(deadline, left))
        except BadAnswer as error:
            return error.raw

    def _look(self, stored: Stored, request: Request, size: int) -> tuple[Reading, Reserved | None]:
        """Look into an answer that is on the disk, and at what it took."""
        reading = self._reader.read(stored, request, paid=self._transport.paid)
        facts = reading.facts
        self._ledger.add_facts(stored, facts)
        self._notice(facts.model, facts.fingerprint)
        if facts.usage is None:
            return reading, None
        self._budget.learn(size, facts.usage.prompt)
        return reading, Reserved(facts.usage.prompt + facts.usage.output, facts.money or 0)

    def _notice(self, model: str, fingerprint: str) -> None:
        """Say where the server answers as another model than before."""
        if model and model not in self._models:
            if self._models:
                known = ", ".join(sorted(self._models))
                text = (
                    f"{self._identity.model!r} now answers as {model!r}, before as {known}: answers of two models mix"
                )
                self._reader.messages.put(("warn", text))
            self._models.add(model)
        if fingerprint and fingerprint not in self._fingerprints:
            if self._fingerprints:
                text = f"{self._identity.model!r} answers with another system fingerprint: {fingerprint!r}"
                self._reader.messages.put(("note", text))
            self._fingerprints.add(fingerprint)

    def _note_wait(self, wait: float | None, why: str) -> None:
        if wait is not None and wait >= _NOTED_WAIT_SECONDS:
            wait = min(wait, self.spec.retries.longest_wait_seconds)
            self._reader.messages.put(("note", f"{why}; waiting {wait:.0f} s as it asks"))

    def _backoff(self, broken: int) -> float:
        """Seconds before the next call of a request: doubling, half of it drawn at random, capped."""
        retries = self.spec.retries
        longest = min(retries.first_wait_seconds * 2.0 ** max(0, broken - 1), retries.longest_wait_seconds)
        return longest * (0.5 + 0.5 * self._random.random())

    def _count(self, answer: Answer) -> Answer:
        """Count what was asked now. Raises TeacherError where too much of it fails."""
        tally = self.tally
        tally.done += 1
        if answer.finish == "failed":
            tally.failures += 1
            tally.reasons[(answer.error or "")[:160]] += 1
            share = self.spec.retries.failed_share
            if tally.failures > _FEW_FAILURES and tally.failures > share * tally.done:
                reasons = "\n  ".join(f"{count} x {reason}" for reason, count in tally.reasons.most_common(5))
                raise TeacherError(
                    f"{tally.failures} of {tally.done} requests failed, more than {share:.1%} "
                    f"(api.retries.failed_share); what was answered is in the ledger:\n  {reasons}"
                )
        return answer
