"""Programs that a teacher wrote, run where they can do no harm: pydantic-monty, an interpreter of a part of Python.

It has no file system, network, host's modules or clock, and limits on time, memory and depth (PaD, arXiv 2305.13888,
and program of thoughts, 2211.12588, run theirs by Python itself). A program that is wrong by itself is incorrect; one
that asks for what this interpreter lacks, or for more than it may use, is unverifiable. Torch is not imported here.
"""

from __future__ import annotations

import builtins
import datetime
import importlib.util
import re
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from lmdistill.errors import MissingExtra
from lmdistill.generation.comparison import shown
from lmdistill.generation.numbers import MOST_DIGITS, format_number
from lmdistill.recipe.generation_verify import VerifySpec

if TYPE_CHECKING:
    from pydantic_monty import Monty

Ending = Literal["finished", "crashed", "unsupported", "limit"]
"""How a program ended: by itself, by an error of its own, by what the interpreter lacks or forbids, or by a limit."""

RESULT_NAMES = ("answer", "ans", "result")
"""Variables that hold the result where a program prints nothing and its last line has no value."""
_MOST_OUTPUT = 64 * 2**10
_MOST_SOURCE = 32 * 2**10
_SOLUTION = re.compile(r"^def (solution|solve|main)\(\s*\)", re.MULTILINE)
_LIMITS = {"TimeoutError", "MemoryError", "RecursionError"}
_LACKING = {"NotImplementedError", "ModuleNotFoundError", "ImportError", "PermissionError", "OSError"}
_NO_NAME = re.compile(r"name '(\w+)' is not defined")
_NO_ATTRIBUTE = re.compile(r"'(\w+)' object has no attribute '(\w+)'")
_NOT_IN_MODULE = re.compile(r"module '[\w.]+' has no attribute|cannot import name")


@dataclass(frozen=True)
class Ran:
    """What came of a program."""

    ending: Ending
    answer: str | None
    """Its result as text, where it finished and has one."""
    reason: str
    """In words."""


class ProgramRunner:
    """Runs programs, each in a session of its own in a process that may die. Safe for several threads.

    Raises MissingExtra without pydantic-monty.
    """

    def __init__(self, spec: VerifySpec) -> None:
        if importlib.util.find_spec("pydantic_monty") is None:
            raise MissingExtra("running programs needs pydantic-monty: pip install 'lmdistill[generate]'")
        self._spec = spec
        self._stack = ExitStack()
        self._pool: Monty | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the interpreter's processes."""
        with self._lock:
            self._pool = None
            self._stack.close()

    def run(self, source: str) -> Ran:
        """Run a program; its result is what its last line is worth, else the last line that it printed, else a
        variable of `RESULT_NAMES`, else what `solution()` returns."""
        if len(source) > _MOST_SOURCE:
            return Ran("limit", None, f"the program has {len(source)} characters, more than {_MOST_SOURCE}")
        from pydantic_monty import CollectString, MontyCrashedError, MontyError, MontySyntaxError

        limits: Any = {
            "max_feed_duration_secs": self._spec.timeout_seconds,
            "max_memory": self._spec.program_memory_mb * 2**20,
            "max_recursion_depth": self._spec.program_recursion,
            "max_total_sleep_secs": 0.0,
        }
        # The same program has the same result: time stands still, and chance begins at the same place.
        policy: Any = {"sleep": "zero", "datetime": _NOON, "random_start": {"seed": 0}}
        printed = CollectString(max_bytes=_MOST_OUTPUT)
        try:
            with self._processes().checkout(limits=limits, os_policy=policy) as session:
                value = session.feed_run(source, print_callback=printed)
                value = _result(session, source, value, printed.output)
        except MontySyntaxError as error:
            return Ran("crashed", None, f"it is no valid program ({shown(str(error))})")
        except MontyCrashedError as error:
            return Ran("limit", None, f"the interpreter's process ended ({shown(str(error))})")
        except MontyError as error:
            return _failed(error)
        text = _as_text(value)
        if text is None:
            return Ran("finished", None, f"its result is {shown(str(value))}, no number or text" if value else _NOTHING)
        return Ran("finished", text, f"the program's result is {shown(text)}")

    def _processes(self) -> Monty:
        from pydantic_monty import Monty

        with self._lock:
            if self._pool is None:
                self._pool = self._stack.enter_context(Monty())
            return self._pool


_NOTHING = "the program prints and returns nothing"
_NOON = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)


def _result(session: Any, source: str, value: Any, printed: str) -> Any:
    """The result of a program that has run in a session."""
    if value is not None:
        return value
    lines = [line for line in printed.splitlines() if line.strip()]
    if lines:
        return lines[-1].strip()
    for name in RESULT_NAMES:
        if re.search(rf"^{name}\s*=[^=]", source, re.MULTILINE):
            return session.feed_run(name)
    solution = _SOLUTION.search(source)
    return session.feed_run(f"{solution.group(1)}()") if solution else None


def _failed(error: Any) -> Ran:
    """How an error of the interpreter counts."""
    inner = error.exception()
    kind, said = type(inner).__name__, str(error)
    if kind in _LIMITS:
        return Ran("limit", None, f"the program reached a limit ({shown(said)})")
    if kind in _LACKING or _NOT_IN_MODULE.search(said) or _python_has_it(said):
        return Ran("unsupported", None, f"the sandbox does not have what the program asks for ({shown(said)})")
    return Ran("crashed", None, f"the program crashed ({shown(said)})")


def _python_has_it(said: str) -> bool:
    """Whether an error is about a name or method that Python itself has: the program is not wrong by that."""
    name, attribute = _NO_NAME.search(said), _NO_ATTRIBUTE.search(said)
    if name is not None:
        return hasattr(builtins, name.group(1))
    return attribute is not None and hasattr(getattr(builtins, attribute.group(1), None), attribute.group(2))


def _as_text(value: Any) -> str | None:
    """A result as an answer is written; None where it is no single number or text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value) if abs(value) < 10**MOST_DIGITS else None
    if isinstance(value, float):
        return format_number(Fraction(repr(value))) if abs(value) < float("inf") else None
    if isinstance(value, str) or type(value).__name__ in ("Decimal", "Fraction"):
        return str(value)
    return None
