"""From what the ledger holds to an answer, by the recipe's policy. Torch is not imported here."""

from __future__ import annotations

import queue
from dataclasses import dataclass, replace
from typing import Literal

from lmdistill.errors import BadAnswer, CorruptFile
from lmdistill.recipe import ApiSpec
from lmdistill.teachers.api_types import Answer, Request, Usage
from lmdistill.teachers.api_wire import read_content, read_facts
from lmdistill.teachers.ledger import Facts, Ledger, Stored
from lmdistill.teachers.prices import Price, dollars

FAILED = "failed"
_RAW_KEPT = 100_000

Message = tuple[Literal["note", "warn"], str]


@dataclass(frozen=True)
class Reading:
    """What some bytes say."""

    answer: Answer
    facts: Facts
    usable: bool
    """Whether there is no reason to ask again."""
    turn: int


class Reader:
    """Reads what a ledger holds; the same bytes always give the same answer."""

    def __init__(self, spec: ApiSpec, ledger: Ledger, price: Price | None) -> None:
        self.spec = spec
        self.price = price
        self.messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        """What the user should know."""
        self._ledger = ledger

    def find(self, key: str, request: Request) -> Reading | None:
        """What the ledger has under a key. Bytes that were damaged are said to be so, and count as none."""
        try:
            stored = self._ledger.find(key)
        except CorruptFile as error:
            self.messages.put(("warn", f"{error}. It is asked for again"))
            return None
        return None if stored is None else self.read(stored, request, paid=False)

    def is_final(self, reading: Reading) -> bool:
        """Whether nothing is asked where this is in the ledger."""
        return reading.usable or (reading.turn >= self.spec.retries.bad_answers and not self.spec.retry_failed)

    def read(self, stored: Stored, request: Request, *, paid: bool) -> Reading:
        """The answer in some bytes; its `error` says why it does not count as one."""
        try:
            content = read_content(request, stored.raw)
        except BadAnswer as error:
            facts = replace(self.facts(stored), finish=FAILED, problem=str(error))
            bad = replace(
                failed(request, stored.key, str(error)),
                usage=self._usage(facts),
                seconds=stored.seconds,
                paid=paid,
                raw=stored.raw[:_RAW_KEPT].decode("utf-8", "replace"),
            )
            return Reading(bad, facts, usable=False, turn=stored.turn)
        facts = self._facts(content.finish, content.problem, content.model, content.fingerprint, content.usage)
        kept = content.problem is None or self.spec.unfinished == "keep"
        answer = Answer(
            request=request,
            text=content.text,
            reasoning=content.reasoning,
            finish=content.finish,
            usage=self._usage(facts),
            logprobs=content.logprobs,
            error=None if kept else content.problem,
            key=stored.key,
            seconds=stored.seconds,
            paid=paid,
            model=content.model,
            fingerprint=content.fingerprint,
        )
        return Reading(answer, facts, usable=True, turn=stored.turn)

    def facts(self, stored: Stored) -> Facts:
        """What the ledger keeps beside the bytes, without a look at whether they are what was asked for."""
        usage, finish, model, fingerprint = read_facts(stored.raw)
        problem = None if finish else "no answer in it"
        return self._facts(finish or FAILED, problem, model, fingerprint, usage)

    def _facts(self, finish: str, problem: str | None, model: str, fingerprint: str, usage: Usage | None) -> Facts:
        money = self.price.of(usage) if self.price is not None and usage is not None else None
        return Facts(finish, problem, model, fingerprint, usage, money, self.price.date if self.price else "")

    def _usage(self, facts: Facts) -> Usage:
        usage = facts.usage or Usage()
        return usage if facts.money is None else replace(usage, money=dollars(facts.money))


def failed(request: Request, key: str, error: str) -> Answer:
    """The record of a request that has no answer."""
    return Answer(
        request=request,
        text=None,
        reasoning=None,
        finish=FAILED,
        usage=Usage(),
        logprobs=None,
        error=error,
        key=key,
        seconds=0.0,
        paid=True,
    )
