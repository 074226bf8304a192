"""What a student is worth as the draft of its teacher's speculative decoding (Leviathan et al. 2211.17192).

With p the teacher's next-token distribution and q the draft's, a drafted token is accepted with probability

    beta = sum over v of min(p_v, q_v)                                        (theorem 3.5)

which is taken exactly, over the whole vocabulary, at every position of text that the teacher wrote; alpha is its mean.
A block of g drafted tokens then yields (1 - alpha^(g+1)) / (1 - alpha) tokens a pass of the teacher (eq. 1), and with a
draft pass that costs c of a teacher's the decoding is (1 - alpha^(g+1)) / ((1 - alpha)(g c + 1)) times as fast
(theorem 3.8). Both take positions for independent. Greedy decoding is not estimated but counted: the draft's choices
along the teacher's greedy text are exactly what it would draft there.

Shape legend: N positions, V vocabulary, R one estimate and its resamplings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmdistill.evaluation.answers import end_tokens
from lmdistill.evaluation.speakers import LocalSpeaker
from lmdistill.evaluation.statistics import Draws, Floats
from lmdistill.evaluation.suites.columns import Mean, OneSeed
from lmdistill.evaluation.suites.types import Column
from lmdistill.models import last_hidden
from lmdistill.recipe import GenerationSpec
from lmdistill.trajectories.decode import Text, advance_plainly, begin, limits_of, write_all
from lmdistill.trajectories.reader import Reader
from lmdistill.trajectories.types import Author


@dataclass(frozen=True)
class TeacherText:
    """What the teacher wrote to one prompt."""

    prompt: list[int]
    drawn: list[int]
    greedy: list[int]


def teacher_texts(teacher: LocalSpeaker, prompts: Sequence[list[int]], tokens: int, seed: int) -> list[TeacherText]:
    """The teacher's continuation of each prompt, drawn at temperature 1 and greedy."""
    drawn, greedy = (_write(teacher, prompts, tokens, temperature, seed) for temperature in (1.0, 0.0))
    return [TeacherText(*parts) for parts in zip(prompts, drawn, greedy, strict=True)]


def _write(
    teacher: LocalSpeaker, prompts: Sequence[list[int]], tokens: int, temperature: float, seed: int
) -> list[list[int]]:
    spec = GenerationSpec(max_new_tokens=tokens, temperature=temperature, batch_size=16)
    reader = Reader(teacher.model, len(teacher.tokenizer))
    limits = limits_of(spec, end_tokens(teacher.tokenizer, [teacher.model]))
    texts: list[Text] = begin(prompts, [f"prompt {n + 1}" for n in range(len(prompts))], seed, spec, limits)
    write_all(texts, [reader], lambda live: advance_plainly(live, reader, spec, Author.TEACHER, step=None), slots=16)
    return [text.answer_ids for text in texts]


def acceptance(
    teacher: LocalSpeaker, draft: LocalSpeaker, texts: Sequence[TeacherText]
) -> tuple[Mean, list[list[bool]]]:
    """sum_v min(p_v, q_v) by prompt, and for each greedy token whether the draft would have chosen it."""
    sums, counts, matches = [], [], []
    for text in texts:
        p_NV, q_NV = (_logs(model, text.prompt, text.drawn).exp() for model in (teacher, draft))
        shared = min(p_NV.shape[1], q_NV.shape[1])
        overlap_N = torch.minimum(p_NV[:, :shared], q_NV[:, :shared]).sum(-1)
        sums.append(float(overlap_N.sum()))
        counts.append(float(len(overlap_N)))
        choice_N = _logs(draft, text.prompt, text.greedy).argmax(-1)
        matches.append([int(a) == b for a, b in zip(choice_N, text.greedy, strict=True)])
    return Mean.of(sums, np.array(counts)), matches


@torch.no_grad()
def _logs(model: LocalSpeaker, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """Log-probabilities at each position of the answer, (N, V)."""
    ids = torch.tensor([[*prompt, *answer[:-1]]], device=model.model.device)
    hidden_LH = last_hidden(model.model, {"input_ids": ids})[0]
    return model.log_probabilities(hidden_LH[-len(answer) :])


def greedy_rounds(matches: Sequence[bool], block: int) -> tuple[int, int]:
    """Accepted draft tokens and passes of the teacher for one greedy text, drafted `block` tokens at a time.

    Each pass yields what was accepted and one token of the teacher's own.
    """
    at, accepted, passes = 0, 0, 0
    while at < len(matches):
        run = 0
        while run < block and at + run < len(matches) and matches[at + run]:
            run += 1
        accepted, passes, at = accepted + run, passes + 1, at + run + 1
    return accepted, passes


def draft_columns(
    acceptance_rate: Mean, matches: Sequence[Sequence[bool]], block: int, cost: float
) -> dict[str, Column]:
    """The measures of one draft; `cost` is its pass in passes of the teacher."""
    rounds = [greedy_rounds(one, block) for one in matches]
    passes = np.array([count for _, count in rounds], dtype=np.float64)
    written = np.array([len(one) for one in matches], dtype=np.float64)
    accepted = np.array([count for count, _ in rounds], dtype=np.float64)
    return {
        "acceptance": acceptance_rate,
        "tokens_a_pass": Speedup(acceptance_rate, block, 0.0),
        "expected_speedup": Speedup(acceptance_rate, block, cost),
        "greedy_accepted_a_block": Mean.of(accepted, passes),
        "greedy_tokens_a_pass": Mean.of(written, passes),
    }


@dataclass(frozen=True)
class Speedup(OneSeed):
    """(1 - alpha^(g+1)) / ((1 - alpha)(g c + 1)) of an acceptance rate; tokens a pass where c is 0."""

    rate: Mean
    block: int
    cost: float

    def values(self, draws: Draws) -> Floats:
        """The factor, (R,)."""
        alpha_R = self.rate.values(draws)
        # The geometric sum itself: its closed form is 0 / 0 at alpha = 1.
        tokens_R: Floats = np.sum([alpha_R**power for power in range(self.block + 1)], axis=0)
        return tokens_R / (self.block * self.cost + 1)
