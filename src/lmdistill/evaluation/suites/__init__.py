"""Suites: one interface for tasks, instructions, reasoning, robustness, fidelity, calibration and efficiency."""

from lmdistill.evaluation.suites.run import SUITES, check_suites, refuse_without_weights, run_suite, run_suites
from lmdistill.evaluation.suites.types import Bench, Outcome, Suite, Table

__all__ = [
    "SUITES",
    "Bench",
    "Outcome",
    "Suite",
    "Table",
    "check_suites",
    "refuse_without_weights",
    "run_suite",
    "run_suites",
]
