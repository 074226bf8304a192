"""From numbers per token to scores with intervals, and to paired comparisons.

Shape legend: S sequences, M calibration bins, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from lmdistill.evaluation.fidelity import TokenScores
from lmdistill.evaluation.results import (
    CalibrationBin,
    Comparison,
    FrequencyBand,
    Interval,
    Role,
    TextMetric,
    TextScores,
)
from lmdistill.evaluation.statistics import Floats, Resampling, verdict

BANDS: tuple[tuple[str, int, float], ...] = (
    ("unseen", 0, 0),
    ("1-9", 1, 9),
    ("10-99", 10, 99),
    ("100-999", 100, 999),
    ("1000+", 1000, float("inf")),
)
"""How often the target token occurs in the training text."""

_LOWER_IS_BETTER: dict[TextMetric, bool] = {
    "agreement": False,
    "forward_kl": True,
    "reverse_kl": True,
    "log_perplexity": True,
    "calibration_error": True,
}


class Tally:
    """One model on one text, summed by sequence, with the bootstrap's values of every metric."""

    def __init__(self, scores: TokenScores, draws: Resampling, bins: int) -> None:
        self.scores = scores
        self.draws = draws
        sequences = draws.weights_RS.shape[1]
        self.index = np.asarray(scores.sequence, dtype=np.int64)
        self.counts_S = np.bincount(self.index, minlength=sequences).astype(np.float64)
        self.bins_SM = self._by_bin(bins)
        self.values: dict[str, Floats] = {
            "log_perplexity": self._mean("nll"),
            "accuracy": self._mean("correct"),
            "calibration_error": draws.calibration_error(*self.bins_SM),
        }
        if scores.agrees:
            self.values |= {
                "agreement": self._mean("agrees"),
                "forward_kl": self._mean("forward_kl"),
                "reverse_kl": self._mean("reverse_kl"),
            }

    def interval(self, name: str) -> Interval | None:
        """A metric with its interval; None where it was not measured."""
        return self.draws.interval(self.values[name]) if name in self.values else None

    def _mean(self, column: str) -> Floats:
        return self.draws.ratio(self._sums(self.scores.array(column)), self.counts_S)

    def _sums(self, values: NDArray[np.float64]) -> Floats:
        return np.bincount(self.index, weights=values, minlength=len(self.counts_S)).astype(np.float64)

    def _by_bin(self, bins: int) -> tuple[Floats, Floats, Floats]:
        """Tokens, summed confidence and correct answers by sequence and bin of equal width; each (S, M)."""
        confidence = self.scores.array("confidence")
        bin_of = np.minimum((confidence * bins).astype(np.int64), bins - 1)
        place = self.index * bins + bin_of
        shape = (len(self.counts_S), bins)

        def table(weights: NDArray[np.float64] | None) -> Floats:
            flat = np.bincount(place, weights=weights, minlength=shape[0] * bins)
            return flat.astype(np.float64).reshape(shape)

        return table(None), table(confidence), table(self.scores.array("correct"))


def text_scores(tally: Tally, token_bytes_V: NDArray[np.int64], counts_V: NDArray[np.int64] | None) -> TextScores:
    """Everything that is reported of one model on one text."""
    scores = tally.scores
    target = np.asarray(scores.target, dtype=np.int64)
    total_bytes = int(token_bytes_V[target].sum())
    bytes_S = np.bincount(tally.index, weights=token_bytes_V[target], minlength=len(tally.counts_S))
    nll_S = np.bincount(tally.index, weights=scores.array("nll"), minlength=len(tally.counts_S))
    bits = tally.draws.ratio(nll_S / np.log(2), bytes_S.astype(np.float64))
    return TextScores(
        tokens=len(target),
        bytes=total_bytes,
        sequences=len(tally.counts_S),
        perplexity=tally.draws.interval(np.exp(tally.values["log_perplexity"])),
        bits_per_byte=tally.draws.interval(bits),
        accuracy=_certain(tally.interval("accuracy")),
        calibration_error=_certain(tally.interval("calibration_error")),
        calibration=_reliability(tally),
        agreement=tally.interval("agreement"),
        forward_kl=tally.interval("forward_kl"),
        reverse_kl=tally.interval("reverse_kl"),
        by_frequency=_bands(scores, target, counts_V) if scores.agrees and counts_V is not None else [],
    )


class Resampled(Protocol):
    """One model on one text, with the bootstrap's values of its measures."""

    draws: Resampling
    values: dict[str, Floats]


def compare(
    student: Resampled,
    other: Resampled,
    role: Role,
    text: str,
    lower_is_better: Mapping[Any, bool | None] = _LOWER_IS_BETTER,
) -> list[Comparison]:
    """Paired differences, student minus other, on the same resamplings.

    `lower_is_better` names the measures, `TextMetric` or `ResponseMetric`; None: neither side is better.
    """
    made = []
    for metric, lower in lower_is_better.items():
        if metric in student.values and metric in other.values:
            difference = student.draws.interval(student.values[metric] - other.values[metric])
            better: Any = "neither" if lower is None else verdict(difference, lower)
            made.append(Comparison(other=role, text=text, metric=metric, difference=difference, better=better))
    return made


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> NDArray[np.int64]:
    """UTF-8 bytes that each token stands for, (V,); special tokens stand for none."""
    vocabulary = tokenizer.get_vocab()
    special = set(tokenizer.all_special_ids)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    byte_level = backend is not None and "ByteLevel" in f"{backend.pre_tokenizer} {backend.decoder}"
    sizes_V = np.zeros(max(len(tokenizer), *(i + 1 for i in vocabulary.values())), dtype=np.int64)
    for token, identity in vocabulary.items():
        if identity in special:
            continue
        if byte_level:
            sizes_V[identity] = len(token)  # the byte-level alphabet has one character for each byte
        elif len(token) == 6 and token.startswith("<0x"):
            sizes_V[identity] = 1
        else:
            sizes_V[identity] = len(token.replace("▁", " ").encode("utf-8"))
    return sizes_V


def _certain(interval: Interval | None) -> Interval:
    assert interval is not None
    return interval


def _reliability(tally: Tally) -> list[CalibrationBin]:
    tokens_M, confidence_M, correct_M = (table_SM.sum(0) for table_SM in tally.bins_SM)
    return [
        CalibrationBin(confidence=confidence / tokens, accuracy=correct / tokens, tokens=int(tokens))
        for tokens, confidence, correct in zip(tokens_M, confidence_M, correct_M, strict=True)
        if tokens
    ]


def _bands(scores: TokenScores, target: NDArray[np.int64], counts_V: NDArray[np.int64]) -> Sequence[FrequencyBand]:
    seen = counts_V[target]
    agrees, divergence = scores.array("agrees"), scores.array("forward_kl")
    bands = []
    for label, low, high in BANDS:
        inside = (seen >= low) & (seen <= high)
        if inside.any():
            bands.append(
                FrequencyBand(
                    label=label,
                    tokens=int(inside.sum()),
                    agreement=float(agrees[inside].mean()),
                    forward_kl=float(divergence[inside].mean()),
                )
            )
    return bands
