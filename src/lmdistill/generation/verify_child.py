"""The child process of `lmdistill.generation.child_process` that compares formulas, makes puzzles and scores answers.

    python -m lmdistill.generation.verify_child MEBIBYTES

Each line of its standard input is a request as JSON, and is answered by a line of its standard output:
`{"same": true}`, `{"score": 0.5}`, `{"refused": "..."}` where the answer would have been run as code,
`{"question": ..., "answer": ...}`, `{"wrong": "..."}` of settings, or `{"error": "..."}`. What it may do is bounded:
memory, no files written, and while it compares no processes and no connections.
"""

from __future__ import annotations

import json
import os
import queue
import random
import resource
import signal
import sys
import threading
import zlib
from typing import IO, Any

from lmdistill.errors import RecipeError

_FORBIDDEN = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn", "socket.", "ctypes.")
_GRACE_SECONDS = 5.0


class Guard:
    """An audit hook (PEP 578) that refuses what a comparison has no need of, and remembers that it did."""

    def __init__(self) -> None:
        self.no_code = False
        """Whether source text may not be compiled: what a model wrote must not be evaluated."""
        self.refused: str | None = None
        self.on = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Raise PermissionError where an event is not allowed."""
        if not self.on:
            return
        code = self.no_code and event == "compile" and arguments[0] is not None
        if code or event.startswith(_FORBIDDEN):
            self.refused = event
            raise PermissionError(f"not allowed here: {event}")


def main() -> None:
    """Answer until standard input ends."""
    _limit(int(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not come between the answers
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin.buffer, requests), daemon=True).start()
    guard = Guard()
    sys.addaudithook(guard)
    _say(answers, {"ready": True})
    while True:
        request = json.loads(requests.get())
        # The parent kills what takes too long; where the parent itself is gone, this does, even inside C code.
        signal.setitimer(signal.ITIMER_REAL, float(request["timeout"]) + _GRACE_SECONDS)
        _say(answers, _answer(request, guard))
        signal.setitimer(signal.ITIMER_REAL, 0.0)


def _answer(request: dict[str, Any], guard: Guard) -> dict[str, Any]:
    try:
        if request["do"] == "compare":
            return {"same": _compare(str(request["answer"]), str(request["gold"]), guard)}
        if request["do"] == "make":
            _, entry = _entry(request)
            return {"question": str(entry["question"]), "answer": str(entry["answer"])}
        return _score(request, guard)
    except RecipeError as error:
        return {"wrong": str(error)}
    except MemoryError:
        return {"error": "it needed more memory than it may have"}
    except RecursionError:
        return {"error": "it is nested too deeply"}
    except Exception as error:  # of sympy and the parsers, of any kind: one formula must not end the others
        return {"error": f"{type(error).__name__}: {str(error)[:200]}"}
    finally:
        guard.on = False


def _compare(answer: str, gold: str, guard: Guard) -> bool | None:
    """Whether two formulas are the same by math-verify; None where one of them is not read as a formula."""
    from math_verify import parse, verify

    guard.on, guard.no_code, guard.refused = True, False, None  # its grammar lets digits and operators alone through
    right = parse(_in_math(gold), parsing_timeout=None)
    given = parse(_in_math(answer), parsing_timeout=None)
    if not any(_is_formula(part) for part in given) or not any(_is_formula(part) for part in right):
        return None
    return bool(verify(right, given, timeout_seconds=None, raise_on_error=True))


def _is_formula(part: Any) -> bool:
    return not isinstance(part, str)


def _in_math(text: str) -> str:
    """As LaTeX that math-verify looks for."""
    text = text.strip()
    return text if "$" in text or "\\(" in text or "\\[" in text else f"${text}$"


def _score(request: dict[str, Any], guard: Guard) -> dict[str, Any]:
    """The score of an answer by the verifier of its puzzle, which is made again from its settings."""
    dataset, entry = _entry(request)
    if entry["question"] != request["question"]:
        return {"error": "the installed reasoning-gym makes another puzzle of these settings than the one answered"}
    guard.on, guard.no_code, guard.refused = True, True, None
    score = float(dataset.score_answer(request["answer"], entry))
    return {"score": score} if guard.refused is None else {"refused": guard.refused}


def _entry(request: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A data set and one of its puzzles."""
    import numpy as np

    from lmdistill.generation.puzzles import make_dataset

    # A few data sets draw from the global generators too.
    place = f"{request['config'].get('seed')}-{request['index']}"
    random.seed(place)
    np.random.seed(zlib.crc32(place.encode()))
    dataset = make_dataset(str(request["dataset"]), request["config"])
    return dataset, dataset[int(request["index"])]


def _limit(memory_mb: int) -> None:
    size = memory_mb * 2**20
    for kind, value in ((resource.RLIMIT_AS, size), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(kind, (value, value))
    sys.dont_write_bytecode = True


def _read(stream: IO[bytes], requests: queue.SimpleQueue[bytes]) -> None:
    """Hand on each request, and end with the parent, whatever is being compared."""
    for line in stream:
        requests.put(line)
    os._exit(0)


def _say(answers: IO[bytes], value: dict[str, Any]) -> None:
    answers.write(json.dumps(value).encode() + b"\n")
    answers.flush()


if __name__ == "__main__":
    main()
