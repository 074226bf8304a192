"""A judge: another model says which of two answers to an instruction is better, asked in both orders.

A verdict that is not in the format is counted and is nobody's win or loss; a pair counts where both orders gave one.
Judges favour the first place and the longer answer (2306.05685, section 3.3), so the agreement between the orders, the
share of longer winners, and a win rate at equal length stand beside the win rate:

    P(win) = sigmoid(a + b * (length of the student's answer - length of the other's) / spread),   reported: sigmoid(a)

which is AlpacaEval's length control (2404.04475) without its terms for the instruction. Ties are half a win.

Shape legend: I instructions, R one estimate and its resamplings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lmdistill.evaluation.api_speaker import ApiSpeaker
from lmdistill.evaluation.speakers import LocalSpeaker, Speaker, Told, Writing
from lmdistill.evaluation.statistics import Draws, Floats
from lmdistill.evaluation.suites.columns import Mean, OneSeed
from lmdistill.evaluation.suites.types import Column
from lmdistill.models import load_model, load_tokenizer
from lmdistill.progress import Progress
from lmdistill.recipe import JudgeSpec
from lmdistill.teachers.api import ApiTeacher

_VERDICT = re.compile(r"\W*(?:verdict\W+)?(?:answer\s+|assistant\s+)?(A|B|tie|T)\b(?!['’])", re.IGNORECASE)
_ROUNDS = 30
_RIDGE = 0.05
"""Weight of b² in the fit: without it b is infinite where length decides every pair."""
_PROMPT = """Two answers to one instruction are compared.

Instruction:
{instruction}

Answer A:
{first}

Answer B:
{second}

Which answer follows the instruction better? Length and order are no merit. Reply with one word: A, B or tie.
Verdict:"""


@dataclass(frozen=True)
class Judgement:
    """What became of one pair."""

    forward: float | None
    """The student's points with its answer first: 1 win, 0.5 tie, 0 loss; None: no verdict in the format."""
    backward: float | None
    """The same with its answer second."""

    @property
    def readable(self) -> bool:
        """Whether both orders gave a verdict."""
        return self.forward is not None and self.backward is not None

    @property
    def points(self) -> float:
        """The mean of both orders; 0 where it does not count."""
        return (self.forward + self.backward) / 2 if self.forward is not None and self.backward is not None else 0.0


def read_verdict(text: str) -> float | None:
    """Points of answer A: 1, 0.5 for a tie, 0; None where the reply does not begin with a verdict."""
    found = _VERDICT.match(text)
    if found is None:
        return None
    word = found[1].upper()
    if word == "A" and re.match(r"\s+(?!is\b|wins\b|follows\b)[a-z]", text[found.end() :]):
        return None  # "A good answer would ...": an article, no verdict
    return {"A": 1.0, "B": 0.0}.get(word, 0.5)


def judge_pairs(
    judge: Speaker,
    instructions: Sequence[str],
    ours: Sequence[str],
    others: Sequence[str],
    spec: JudgeSpec,
    told: Told,
) -> list[Judgement]:
    """Ask about each pair in both orders, greedily."""
    how = Writing(spec.max_new_tokens, chat=not isinstance(judge, LocalSpeaker) or judge.template is not None)
    pairs = list(zip(instructions, ours, others, strict=True))
    prompts = [_PROMPT.format(instruction=i, first=a, second=b) for i, a, b in pairs]
    prompts += [_PROMPT.format(instruction=i, first=b, second=a) for i, a, b in pairs]
    said = [read_verdict(reply.text) for reply in judge.write(prompts, how, told)]
    half = len(pairs)
    return [
        Judgement(first, None if second is None else 1 - second)
        for first, second in zip(said[:half], said[half:], strict=True)
    ]


@dataclass(frozen=True)
class LengthControlled(OneSeed):
    """The win rate at equal length; for the other side, what is left of it."""

    points_I: Floats
    difference_I: Floats
    counts_I: Floats
    is_other: bool = False

    def values(self, draws: Draws) -> Floats:
        """sigmoid(a) of each resampling's fit, (R,); NaN where nothing counts."""
        weights_RI = draws.items_RI * self.counts_I
        known = self.counts_I > 0
        spread = float(self.difference_I[known].std()) if known.any() else 0.0
        x_I = self.difference_I / spread if spread > 0 else np.zeros_like(self.difference_I)
        a_R = fit_intercepts(weights_RI, x_I, self.points_I)
        rate_R: Floats = np.where(weights_RI.sum(1) > 0, 1 / (1 + np.exp(-a_R)), np.nan)
        return 1 - rate_R if self.is_other else rate_R


def fit_intercepts(weights_RI: Floats, x_I: Floats, points_I: Floats) -> Floats:
    """Intercepts of weighted logistic regressions of `points` on x, by Newton's method, (R,)."""
    a_R, b_R = np.zeros(len(weights_RI)), np.zeros(len(weights_RI))
    for _ in range(_ROUNDS):
        chance_RI = 1 / (1 + np.exp(-np.clip(a_R[:, None] + b_R[:, None] * x_I, -30, 30)))
        error_RI = weights_RI * (points_I - chance_RI)
        curve_RI = weights_RI * chance_RI * (1 - chance_RI)
        # A little of both squares is subtracted: one-sided resamplings have no finite best fit.
        up_a, up_b = error_RI.sum(1) - _RIDGE * a_R, error_RI @ x_I - _RIDGE * b_R
        aa, ab, bb = curve_RI.sum(1) + _RIDGE, curve_RI @ x_I, curve_RI @ (x_I * x_I) + _RIDGE
        scale = aa * bb - ab * ab
        step_a, step_b = (bb * up_a - ab * up_b) / scale, (aa * up_b - ab * up_a) / scale
        a_R, b_R = a_R + np.clip(step_a, -2, 2), b_R + np.clip(step_b, -2, 2)
        if max(np.abs(step_a).max(), np.abs(step_b).max()) < 1e-8:
            break
    return a_R


def verdict_columns(
    judged: Sequence[Judgement], our_words: Sequence[int], their_words: Sequence[int]
) -> tuple[dict[str, Column], dict[str, Column]]:
    """The measures of the student and of the other model from the same verdicts."""
    points_I = np.array([one.points for one in judged])
    counts_I = np.array([one.readable for one in judged], dtype=np.float64)
    difference_I = np.array(our_words, dtype=np.float64) - np.array(their_words, dtype=np.float64)
    same_I = np.array([one.readable and one.forward == one.backward for one in judged], dtype=np.float64)
    tie_I = np.array([one.readable and one.forward == one.backward == 0.5 for one in judged], dtype=np.float64)
    longer_I, apart_I = _longer(points_I, difference_I, counts_I)
    ours: dict[str, Column] = {
        "win_rate": Mean.of(points_I * counts_I, counts_I),
        "win_rate_at_equal_length": LengthControlled(points_I, difference_I, counts_I),
        "agreement_of_orders": Mean.of(same_I, counts_I),
        "ties": Mean.of(tie_I, counts_I),
        "longer_wins": Mean.of(longer_I, apart_I),
        "unreadable": Mean.of(1 - counts_I),
    }
    theirs: dict[str, Column] = {
        "win_rate": Mean.of((1 - points_I) * counts_I, counts_I),
        "win_rate_at_equal_length": LengthControlled(points_I, difference_I, counts_I, is_other=True),
    }
    return ours, theirs


def _longer(points_I: Floats, difference_I: Floats, counts_I: Floats) -> tuple[Floats, Floats]:
    """Where the longer answer has more than half the points, and where there is a longer one and a winner."""
    apart: NDArray[np.bool_] = (difference_I != 0) & (points_I != 0.5) & (counts_I > 0)
    return ((difference_I > 0) == (points_I > 0.5)) * apart.astype(np.float64), apart.astype(np.float64)


@contextmanager
def opened_judge(
    spec: JudgeSpec | None, folder: Path, dtype: torch.dtype, device: torch.device, progress: Progress
) -> Iterator[Speaker | None]:
    """The judge of a recipe, as long as the context is open; what an API answers is kept in the folder's ledger.

    Raises what `load_model` and `ApiTeacher` raise.
    """
    if spec is None:
        yield None
    elif spec.model is not None:
        model = load_model(spec.model, dtype=dtype, device=device)
        yield LocalSpeaker("teacher", spec.model.model, model, load_tokenizer(spec.model))
    else:
        assert spec.api is not None
        with ApiTeacher(spec.api, folder=folder, run="judge", progress=progress) as teacher:
            yield ApiSpeaker("teacher", teacher)
