"""The suites by name, and running them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lmdistill.errors import ModelError
from lmdistill.evaluation.suite_results import SuiteName, SuiteResult
from lmdistill.evaluation.suites import (
    calibration,
    efficiency,
    fidelity,
    instruction,
    reasoning,
    robustness,
    tasks,
)
from lmdistill.evaluation.suites.summarise import summarise
from lmdistill.evaluation.suites.types import Bench, Suite
from lmdistill.recipe import SuitesSpec

SUITES: Mapping[str, Suite] = {
    suite.name: suite
    for suite in (
        tasks.SUITE,
        instruction.SUITE,
        reasoning.SUITE,
        robustness.SUITE,
        fidelity.SUITE,
        calibration.SUITE,
        efficiency.SUITE,
    )
}


def check_suites(spec: SuitesSpec) -> None:
    """Whether the suites can be run here: packages, files, gold labels. Asked before anything is spent.

    Raises MissingExtra, DataError, ModelError.
    """
    for name, options in spec.chosen.items():
        SUITES[name].check(spec, options)


def refuse_without_weights(spec: SuitesSpec, remote: Sequence[str], *, everyone: bool) -> None:
    """Refuse suites that ask more of models behind an API than text; `everyone`: there is no other model.

    Raises ModelError.
    """
    needs = {
        "fidelity": "the distributions of weights on this machine",
        "calibration": "the probabilities of given options, which a chat API does not say",
    }
    if everyone:
        needs["efficiency"] = "weights on this machine, which it times and measures"
    wanted = [name for name in spec.chosen if name in needs]
    if wanted:
        other = ", ".join(name for name in SUITES if name not in needs)
        raise ModelError(
            f"the suite `{wanted[0]}` needs {needs[wanted[0]]}, and {remote[0]} is behind an API, which gives text "
            f"alone; leave it out ({other} can be asked of it), or name the model's weights"
        )
    if spec.tasks is not None and spec.tasks.hub:
        raise ModelError(
            f"suites.tasks.hub asks lm-eval for likelihoods, and {remote[0]} is behind an API, which gives text alone; "
            "without hub, all models write the letter of an option"
        )


def run_suite(name: SuiteName, bench: Bench) -> SuiteResult:
    """One suite of the bench's recipe. Raises what is in `lmdistill.errors`."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        own = replace(bench, folder=Path(folder))
        outcomes = SUITES[name].run(own, bench.suites.chosen[name])
    return SuiteResult(
        suite=name,
        sets=summarise(outcomes, bench),
        correction=bench.suites.correction,
        seconds=round(time.monotonic() - started, 3),
    )


def run_suites(bench: Bench) -> list[SuiteResult]:
    """Every suite that the recipe names, in the order of `SuitesSpec`."""
    return [run_suite(name, bench) for name in bench.suites.chosen]  # type: ignore[arg-type]
