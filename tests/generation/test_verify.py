"""Verdicts in three values, with real processes that are really killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from lmdistill.errors import MissingExtra
from lmdistill.generation.child_process import ChildCannotStart, ChildProcess
from lmdistill.generation.puzzles import CHILD
from lmdistill.generation.verify import Verifier, verify
from lmdistill.recipe.generation_verify import VerifySpec

HANGS = "9^{9^{9^{9}}}"  # math-verify raises it to the power, for ever


@pytest.fixture(scope="module")
def formulas() -> Iterator[Verifier]:
    pytest.importorskip("math_verify")
    with Verifier(VerifySpec(kind="math", answer="boxed", timeout_seconds=20)) as verifier:
        yield verifier


@pytest.mark.parametrize(
    ("response", "gold", "spec", "expected"),
    [
        ("#### 72", "Natalia ... \n#### 72", VerifySpec(), "correct"),
        ("#### 71", "72", VerifySpec(), "incorrect"),
        ("I do not know.", "72", VerifySpec(), "unverifiable"),
        ("#### 72", None, VerifySpec(), "unverifiable"),
        ("#### 72", " ", VerifySpec(), "unverifiable"),
        ("#### 72", "seventy-two", VerifySpec(), "unverifiable"),
        ("#### 71\n#### 72", "72", VerifySpec(), "unverifiable"),
        ("The answer is the Eiffel Tower!", "eiffel tower", VerifySpec(kind="text"), "correct"),
        ("The answer is Paris.", "London", VerifySpec(kind="text"), "incorrect"),
        ("The answer is (b) four.", "B", VerifySpec(answer="option", kind="option"), "correct"),
        ("C", "(B)", VerifySpec(answer="option", kind="option"), "incorrect"),
        ("C", "Paris", VerifySpec(answer="option", kind="option"), "unverifiable"),
        ("Yes, it is.", "true", VerifySpec(answer="yes_no", kind="yes_no"), "correct"),
        ("No.", "yes", VerifySpec(answer="yes_no", kind="yes_no"), "incorrect"),
        ('{"answer": true}', "yes", VerifySpec(answer="json", kind="yes_no"), "correct"),
    ],
)
def test_verdicts(response: str, gold: str | None, spec: VerifySpec, expected: str) -> None:
    checked = verify(response, gold, spec)
    assert checked.verdict == expected
    assert checked.reason


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("\\frac{1}{2}", "0.5", "correct"),
        ("x^2 - 1", "(x-1)(x+1)", "correct"),
        ("\\{1, 2\\}", "\\{2, 1\\}", "correct"),
        ("2\\sqrt{2}", "\\sqrt{8}", "correct"),
        ("x + 1", "x + 2", "incorrect"),
        ("(0, 1)", "[0, 1]", "incorrect"),
        ("(((((((((", "2", "unverifiable"),
    ],
)
def test_formulas(formulas: Verifier, answer: str, gold: str, expected: str) -> None:
    assert formulas.verify(f"\\boxed{{{answer}}}", gold).verdict == expected
    assert formulas._child.starts == 1


def test_a_formula_that_hangs_is_killed_and_the_next_one_has_a_new_process() -> None:
    pytest.importorskip("math_verify")
    with Verifier(VerifySpec(kind="math", answer="boxed", timeout_seconds=15)) as verifier:
        verifier.verify("\\boxed{1/2}", "0.25")  # sympy is loaded
        first = verifier._child._process
        assert first is not None
        verifier.spec.timeout_seconds = 0.5
        began = time.monotonic()
        checked = verifier.verify(f"\\boxed{{{HANGS}}}", "3")
        assert time.monotonic() - began < 10
        assert checked.verdict == "unverifiable"
        assert "within 0.5 s" in checked.reason
        assert first.returncode == -9
        verifier.spec.timeout_seconds = 15
        assert verifier.verify("\\boxed{x + x}", "2x").verdict == "correct"
        assert verifier._child.starts == 2
        last = verifier._child._process
    assert last is not None
    assert last.returncode == -9  # nothing stays behind


def test_a_child_ends_with_its_parent_even_while_it_hangs() -> None:
    pytest.importorskip("math_verify")
    program = (
        "import sys, time, json\n"
        "from lmdistill.generation.child_process import ChildProcess\n"
        f"child = ChildProcess({CHILD!r}, 1024)\n"
        "process = child._alive()\n"
        f"request = dict(do='compare', answer={HANGS!r}, gold='3', timeout=1)\n"
        "process.stdin.write(json.dumps(request).encode() + b'\\n')\n"
        "process.stdin.flush()\n"
        "print(process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 30
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(child)


def test_memory_is_limited_and_too_little_is_said() -> None:
    with ChildProcess(CHILD, 10) as child, pytest.raises(ChildCannotStart, match="more than 10 MiB"):
        child.ask({"do": "compare", "answer": "1", "gold": "1"}, 1.0)


def test_votes_without_a_right_answer() -> None:
    responses = ["#### 5", "The answer is 5.0", "#### 6", "no idea"]
    with Verifier(VerifySpec()) as verifier:
        assert verifier.vote(responses).answer == "5"
        checked = verifier.verify_by_vote(responses)
        assert [each.verdict for each in checked] == ["correct", "correct", "incorrect", "unverifiable"]
        assert {each.verdict for each in verifier.verify_by_vote(responses, least_agreement=0.6)} == {"unverifiable"}
        assert {each.verdict for each in verifier.verify_by_vote(["#### 5", "#### 6"])} == {"unverifiable"}
        weighted = verifier.verify_by_vote(["#### 5", "#### 6"], weights=[1.0, 3.0])
        assert [each.verdict for each in weighted] == ["incorrect", "correct"]


def test_a_missing_package_names_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for spec in (VerifySpec(kind="math"), VerifySpec(answer="program")):
        with pytest.raises(MissingExtra, match=r"pip install 'lmdistill\[generate\]'"):
            Verifier(spec)


def test_verification_costs_no_torch() -> None:
    program = "import sys, lmdistill.generation.verify; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, env=os.environ).returncode == 0


def _runs(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat", encoding="ascii") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
