"""A real vLLM for processors, from the environment that `make test-vllm` makes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VLLM = Path(__file__).parents[1] / ".venv-vllm" / "bin" / "python"
STARTS_WITHIN = 600
"""Seconds: the first start compiles."""


@contextmanager
def serving_vllm(model: Path, log: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Address and process of a server on a free port of this machine, for as long as the block lasts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The command `vllm` asks for the metadata of a package of that name, which the build for processors has not.
    command = [str(VLLM), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port), *options]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "2"}
    with log.open("wb") as out:
        # A session of its own: its workers outlive a killed server, and are ended with the group.
        server = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **settings}, start_new_session=True
        )
    try:
        _wait(server, port, log)
        yield f"http://127.0.0.1:{port}/v1", server
    finally:
        _end(server)


def _end(server: subprocess.Popen[bytes]) -> None:
    for number, seconds in ((signal.SIGTERM, 30), (signal.SIGKILL, 10)):
        for turn in range(seconds * 10):
            server.poll()
            try:
                os.killpg(server.pid, number if turn == 0 else 0)
            except ProcessLookupError:
                return
            time.sleep(0.1)


def _wait(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    for _ in range(STARTS_WITHIN):
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except OSError:
            time.sleep(1)
    raise AssertionError("vLLM did not start: " + log.read_text(errors="replace")[-3000:])
