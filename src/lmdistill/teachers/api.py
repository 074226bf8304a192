"""A teacher behind an API: requests in, answers out in the same order, each paid for once.

    with ApiTeacher(recipe.api, folder=recipe.folder) as teacher:
        for answer in teacher.answer(requests):
            ...

The calls run side by side in a thread of their own; the caller sees an ordinary iterator. `requests` is read some way
ahead, never further than the window. Torch is not imported here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from lmdistill.progress import Progress
from lmdistill.recipe import ApiSpec
from lmdistill.teachers.api_asker import Asker, Pending
from lmdistill.teachers.api_estimate import ENOUGH_ANSWERS, Estimate, estimate
from lmdistill.teachers.api_http import HttpTransport, Transport
from lmdistill.teachers.api_loop import LoopThread
from lmdistill.teachers.api_read import Reader
from lmdistill.teachers.api_secret import Secret, read_secret
from lmdistill.teachers.api_types import Answer, Request
from lmdistill.teachers.api_wire import Identity, check_request, request_key
from lmdistill.teachers.ledger import Ledger, Spent
from lmdistill.teachers.limits import Budget, Stopwatch
from lmdistill.teachers.llamacpp import LlamaCppServer, find_gguf, serve_llamacpp, weights_revision
from lmdistill.teachers.prices import FREE, find_price
from lmdistill.teachers.recordings import Recording, ReplayTransport

WINDOW = 8
"""Requests that are read ahead, for each call under way."""
GRACE_SECONDS = 20.0
"""How long calls that are at the server are waited for when nobody wants their answers any more."""
_LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class _Waiting:
    """A request whose answer is not there yet."""

    pending: Pending
    future: Future[Answer]


class ApiTeacher:
    """Asks an API, or a recording of one; a context manager.

    The server of `serve: llamacpp` is started when the first answer is missing in the ledger, and stopped at the end.
    """

    def __init__(
        self,
        spec: ApiSpec,
        *,
        folder: Path | None = None,
        run: str = "run",
        progress: Progress | None = None,
        transport: Transport | None = None,
    ) -> None:
        """`folder` is the run's, where the ledger lies unless the recipe says otherwise; `run` names what limits count.

        `transport` is asked in place of what the recipe names. Raises RecipeError, MissingExtra, ModelError (no such
        GGUF file), DataError (no such recording), RunFolderInUse while another process has the ledger, CorruptFile,
        StorageError.
        """
        self.spec = spec
        self.progress = progress or Progress()
        self.watch = Stopwatch()
        self._transport = transport
        self._secret = read_secret(spec) if spec.base_url is not None and spec.recording is None else None
        self._asker: Asker | None = None
        self._windows: list[deque[Answer | _Waiting]] = []
        self._server: LlamaCppServer | None = None
        path = Path(spec.ledger).expanduser() if spec.ledger is not None else (folder or Path()) / "ledger.sqlite"
        price = find_price(spec.model, spec.prices)
        price = FREE if price is None and spec.serve is not None else price
        with ExitStack() as owned:
            self.ledger = owned.enter_context(Ledger(path, run))
            self.ledger.clock = self.watch.seconds
            self._recording = Recording(Path(spec.recording).expanduser()) if spec.recording is not None else None
            if self._recording is not None:
                owned.callback(self._recording.close)
            self.identity = self._identify()
            self.reader = Reader(spec, self.ledger, price)
            self.budget = Budget(spec.limits, self.ledger.before, price, self.watch, spec.model)
            for stored in self.ledger.unread():
                self.ledger.add_facts(stored, self.reader.facts(stored))
            self._owned = owned.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def answer(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """The answers to requests, in their order; what has none is an answer whose `error` says why.

        Ending the iteration early makes no further calls; those at the server are waited for and stored. Raises
        Refused, BudgetSpent, ServerLost, TeacherError (too many failures) and DataError (a request that cannot be
        asked): all that was answered is in the ledger, and the same requests again go on from there.
        """
        coming = iter(requests)
        window: deque[Answer | _Waiting] = deque()
        self._windows.append(window)
        try:
            while True:
                while len(window) < WINDOW * self.spec.requests and (request := next(coming, None)) is not None:
                    window.append(self._begin(request))
                if not window:
                    return
                first = window[0]
                answer = self._wait(first) if isinstance(first, _Waiting) else first
                window.popleft()  # not before: where waiting fails, this one is given up with the others
                self._tell()
                yield answer
        finally:
            self._give_up(window)
            self._windows = [other for other in self._windows if other is not window]

    def estimate(self, requests: Iterable[Request], enough: int = ENOUGH_ANSWERS) -> Estimate:
        """What answering these would cost; nothing is asked. `enough` earlier answers say how long they are.

        Raises DataError for a request that cannot be asked.
        """
        return estimate(self.ledger, self.reader, self.budget, self.identity, requests, enough)

    def key(self, request: Request) -> str:
        """The ledger's key of a request. Raises DataError for one that cannot be asked."""
        check_request(request)
        return request_key(self.identity, request)

    def spent(self) -> Spent:
        """What the run has used so far: its earlier starts, and all that calls under way may take."""
        budget = self.budget
        return Spent(budget.calls, budget.tokens, budget.money, self.ledger.before.seconds + self.watch.seconds())

    def close(self) -> None:
        """End the calls and the server, and let others have the ledger."""
        for window in self._windows:
            self._give_up(window)
        self._owned.close()

    def _identify(self) -> Identity:
        """Whose answers these are. Weights stand for a server of our own, whose address changes with every start."""
        spec = self.spec
        where = spec.revision or (spec.base_url or "").rstrip("/")
        if self._recording is not None:
            return replace(self._recording.identity(spec.model, where or None), template=spec.template)
        if spec.serve is not None and spec.revision is None:
            where = weights_revision(find_gguf(spec.model), self.ledger)
        return Identity(spec.model, where, spec.template)

    def _begin(self, request: Request) -> Answer | _Waiting:
        """The answer where it is in the ledger; else it is asked for."""
        key = self.key(request)
        found = self.reader.find(key, request)
        if found is not None and self.reader.is_final(found):
            return found.answer
        if self._asker is None:
            self._asker = self._start()
        pending = Pending(request, key)
        return _Waiting(pending, self._loop.submit(self._asker.ask(pending)))

    def _start(self) -> Asker:
        """Whatever is needed to ask."""
        spec = self.spec
        with ExitStack() as owned:
            base_url, secret = spec.base_url or "", self._secret
            if self._transport is None and self._recording is None and spec.serve is not None:
                self._server = owned.enter_context(serve_llamacpp(spec.model, spec.llamacpp))
                base_url, secret = self._server.base_url, self._server.secret
            transport = self._transport or self._make_transport(base_url, secret)
            asker = Asker(spec, self.identity, transport, self.ledger, self.reader, self.budget, self.watch)
            self._loop = owned.enter_context(LoopThread())
            owned.callback(lambda: self._loop.submit(transport.close()).result(GRACE_SECONDS))
            self._owned.push(owned.pop_all())
        return asker

    def _make_transport(self, base_url: str, secret: Secret | None) -> Transport:
        if self._recording is not None:
            return ReplayTransport(self._recording)
        return HttpTransport(base_url, secret, self.spec.requests)

    def _wait(self, waiting: _Waiting) -> Answer:
        """Wait for one answer, passing on meanwhile what the user should know."""
        while not wait([waiting.future], _LOOK_SECONDS).done:
            self._tell()
            if self._server is not None and self._asker is not None and (error := self._server.ended()) is not None:
                self._loop.call(self._asker.gate.stop, error)
        return waiting.future.result()

    def _give_up(self, window: deque[Answer | _Waiting]) -> None:
        """Make no further calls for these; what is at the server is waited for, so that it is not paid for again."""
        waiting = [entry for entry in window if isinstance(entry, _Waiting)]
        window.clear()
        if self._asker is not None and waiting:
            self._loop.call(self._asker.abandon, [entry.pending for entry in waiting])
            wait([entry.future for entry in waiting], GRACE_SECONDS)
        self._tell()

    def _tell(self) -> None:
        while not self.reader.messages.empty():
            kind, text = self.reader.messages.get()
            (self.progress.warn if kind == "warn" else self.progress.note)(text)
