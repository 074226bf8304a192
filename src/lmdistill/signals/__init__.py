"""What a teacher said: in memory (`types`); on disk in a later release."""

from lmdistill.signals.types import (
    DenseSignal,
    HeadExpectationSignal,
    HiddenSignal,
    SampledSignal,
    Signal,
    TailMode,
    TokenSignal,
    TopKSignal,
)

__all__ = [
    "DenseSignal",
    "HeadExpectationSignal",
    "HiddenSignal",
    "SampledSignal",
    "Signal",
    "TailMode",
    "TokenSignal",
    "TopKSignal",
]
