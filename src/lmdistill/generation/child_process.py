"""A process that can be killed: it answers one request at a time, and what takes too long ends with it.

`math-verify` and its like hang now and then, in loops that no timeout inside the same process interrupts (Math-Verify
issue 65). So they run in a child with limits of its own; requests and answers are lines of JSON. Torch is not imported
here.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from lmdistill.errors import LmdistillError

STARTS_WITHIN_SECONDS = 120.0
"""Importing sympy on a busy machine."""
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "PYTHONPATH", "VIRTUAL_ENV", "TMPDIR", "SYSTEMROOT")
# Sets have one order in every child. Threads of linear algebra would each reserve address space, which is what the
# memory limit counts.
_FIXED = {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"}
_LONGEST_LINE = 2**24


class ChildGone(LmdistillError, RuntimeError):
    """The child gave no answer: it was killed after the timeout, or ended by itself. The next request gets another."""


class ChildCannotStart(LmdistillError, RuntimeError):
    """No child starts at all, so that nothing can be verified."""


class ChildProcess:
    """One long-lived child, started at the first request and again after each death.

    It is a module of ours that speaks as `lmdistill.generation.verify_child` does. Not for several threads at once.
    """

    def __init__(self, module: str, memory_mb: int) -> None:
        self.module = module
        self.memory_mb = memory_mb
        self.starts = 0
        """How many children there have been."""
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, request: dict[str, Any], timeout_seconds: float) -> dict[str, Any]:
        """The child's answer.

        Raises ChildGone where none comes in time; the child is dead then. Raises ChildCannotStart.
        """
        process = self._alive()
        line = json.dumps({**request, "timeout": timeout_seconds}).encode() + b"\n"
        try:
            assert process.stdin is not None
            process.stdin.write(line)
            process.stdin.flush()
            return self._answer(process, timeout_seconds)
        except OSError as error:
            self.close()
            raise ChildGone(f"its process ended ({error})") from error

    def close(self) -> None:
        """Kill the child, if there is one."""
        process, self._process, self._unread = self._process, None, b""
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            with suppress(OSError):  # what was not flushed is of no use to a dead child
                stream.close()

    def _alive(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        self._process = subprocess.Popen(
            [sys.executable, "-m", self.module, str(self.memory_mb)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in _KEPT if name in os.environ} | _FIXED,
            start_new_session=True,  # a Ctrl-C is for the run, which ends the child when it is ready to
        )
        self.starts += 1
        process = self._process
        try:
            self._answer(process, STARTS_WITHIN_SECONDS)
        except ChildGone as error:
            raise ChildCannotStart(
                f"{sys.executable} -m {self.module} does not start: {error}; give it more than {self.memory_mb} MiB "
                "(memory_mb), or run it by hand to see why"
            ) from error
        return process

    def _answer(self, process: subprocess.Popen[bytes], timeout_seconds: float) -> dict[str, Any]:
        """The next line of the child. Raises ChildGone after killing it."""
        assert process.stdout is not None
        deadline = time.monotonic() + timeout_seconds
        while b"\n" not in self._unread:
            # Asked again after the deadline, without waiting: a run that was itself held up has lost no answer.
            wait_seconds = max(0.0, deadline - time.monotonic())
            if not select.select([process.stdout], [], [], wait_seconds)[0]:
                self.close()
                raise ChildGone(f"nothing came of it within {timeout_seconds:g} s, and its process was killed")
            part = os.read(process.stdout.fileno(), 2**16)
            self._unread += part
            if not part or len(self._unread) > _LONGEST_LINE:
                self.close()
                raise ChildGone(f"its process ended with exit code {process.returncode}")
        line, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer
