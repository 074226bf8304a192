"""The suites by name, and running them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

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
