"""Real programs in the real sandbox."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from lmdistill.generation.programs import ProgramRunner
from lmdistill.generation.verify import Verifier
from lmdistill.recipe.generation_verify import VerifySpec

pytest.importorskip("pydantic_monty")
SPEC = VerifySpec(answer="program", timeout_seconds=0.5, program_memory_mb=32)


@pytest.fixture(scope="module")
def runner() -> Iterator[ProgramRunner]:
    with ProgramRunner(SPEC) as runner:
        yield runner


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier(SPEC) as verifier:
        yield verifier


@pytest.mark.parametrize(
    ("source", "answer"),
    [
        ("48 + 48 / 2", "72"),
        ("print('steps')\nprint(72)", "72"),
        ("clips = 48\nanswer = clips + clips // 2", "72"),
        ("def solution():\n    return 0.1 + 0.2\n", "0.30000000000000004"),
        ("import math\nmath.sqrt(16)", "4"),
        ("from decimal import Decimal\nDecimal('1.5')", "1.5"),
        ("3 > 2", "yes"),
        ("'Paris'", "Paris"),
    ],
)
def test_results(runner: ProgramRunner, source: str, answer: str) -> None:
    ran = runner.run(source)
    assert (ran.ending, ran.answer) == ("finished", answer), ran.reason


@pytest.mark.parametrize(
    ("source", "ending"),
    [
        ("while True: pass", "limit"),
        ("try:\n    while True: pass\nexcept BaseException: pass\n5", "limit"),
        ("rows = []\nwhile True: rows.append('x' * 1000)", "limit"),
        ("'x' * 10**10", "limit"),
        ("2 ** 10 ** 9", "limit"),
        ("def f(n): return f(n + 1)\nf(0)", "limit"),
        ("while True: print('x' * 1000)", "limit"),
        ("x = 1\n" * 20_000, "limit"),
        ("import socket", "unsupported"),
        ("import subprocess\nsubprocess.run(['ls'])", "unsupported"),
        ("import os\nos.system('ls')", "unsupported"),
        ("open('/etc/passwd').read()", "unsupported"),
        ("input()", "unsupported"),
        ("import sympy", "unsupported"),
        ("def f():\n    yield 1\nlist(f())", "unsupported"),
        ("1 / 0", "crashed"),
        ("undefined_name", "crashed"),
        ("x = (", "crashed"),
        ("raise ValueError('no')", "crashed"),
        ("[1][5]", "crashed"),
        ("x = 5", "finished"),
        ("[1, 2]", "finished"),
        ("float('inf')", "finished"),
    ],
)
def test_endings(runner: ProgramRunner, source: str, ending: str) -> None:
    began = time.monotonic()
    ran = runner.run(source)
    assert (ran.ending, ran.answer) == (ending, None), ran
    assert ran.reason
    assert time.monotonic() - began < 20


def test_sessions_share_nothing_and_time_and_chance_stand_still(runner: ProgramRunner) -> None:
    runner.run("secret = 5")
    assert runner.run("secret").ending == "crashed"
    source = "import random, time\nprint(random.random(), time.time())\ntime.sleep(9)"
    began = time.monotonic()
    assert runner.run(source) == runner.run(source)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("```python\nprint(48 + 24)\n```", "correct"),
        ("Here it is:\n```py\nanswer = 48 + 24\n```\nDone.", "correct"),
        ("print(48 + 24)", "correct"),
        ("```python\nprint(48 - 24)\n```", "incorrect"),
        ("```python\n48 / 0\n```", "incorrect"),
        ("```python\nwhile True: pass\n```", "unverifiable"),
        ("```python\nimport numpy\nprint(72)\n```", "unverifiable"),
        ("```python\nx = 72\n```", "unverifiable"),
        ("I would add them.", "unverifiable"),
    ],
)
def test_verdicts_on_programs(verifier: Verifier, response: str, expected: str) -> None:
    checked = verifier.verify(response, "#### 72")
    assert checked.verdict == expected
    assert checked.reason
