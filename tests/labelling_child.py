"""Asks a server in child processes that can be killed at any instant.

A process that has imported everything waits for lines on its standard input, `FOLDER URL ROWS`, and forks for each,
so a kill costs no imports. A child appends the key of every answer that it was given to FOLDER/acknowledged, and at its
end writes all texts to FOLDER/rows.json.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REQUESTS = 4


def label(folder: Path, url: str, rows: int) -> None:
    from lmdistill.recipe import ApiLimits, ApiRetries, ApiSpec
    from lmdistill.teachers.api import ApiTeacher
    from lmdistill.teachers.api_types import Message, Request, Sampling

    spec = ApiSpec(
        model="m",
        base_url=url,
        revision="r",
        requests=REQUESTS,
        retries=ApiRetries(first_wait_seconds=0.01),
        limits=ApiLimits(calls=10_000),
    )
    acknowledged = os.open(folder / "acknowledged", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    requests = (Request((Message("user", f"row {i}"),), Sampling(max_tokens=16), tag=f"row {i}") for i in range(rows))
    texts = []
    with ApiTeacher(spec, folder=folder, run="labelling") as teacher:
        for answer in teacher.answer(requests):
            os.write(acknowledged, f"{answer.key}\n".encode())
            texts.append(answer.text)
    (folder / "rows.json").write_text(json.dumps(texts))


class Forker:
    """Starts children."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def start(self, folder: Path, url: str, rows: int) -> int:
        """Begin to label; the child's process id."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{folder} {url} {rows}\n")
        self._process.stdin.flush()
        return int(self._line())

    def wait(self) -> int:
        """How the child ended: 0, an exit code, or minus the signal."""
        return int(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


@contextmanager
def forking() -> Iterator[Forker]:
    """Something that starts children, for as long as the block lasts."""
    process = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        yield Forker(process)
    finally:
        process.communicate(timeout=60)


def main() -> None:
    import openai  # noqa: F401

    import lmdistill.teachers.api  # noqa: F401

    # A shell that starts tests in the background ignores the signal for all that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for line in sys.stdin:
        folder, url, rows = line.split()
        child = os.fork()
        if child == 0:
            try:
                label(Path(folder), url, int(rows))
            except KeyboardInterrupt:
                os._exit(1)
            except BaseException:
                traceback.print_exc()
                os._exit(2)
            os._exit(0)
        print(child, flush=True)  # noqa: T201
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
