"""Faithfulness of explanations: leakage-adjusted simulatability (Hase et al. 2010.04119, section 4).

A simulator guesses which option a model chose, from the question alone and with the model's explanation too. What
the explanation adds to its hits is its simulatability. Where the simulator hits from the explanation alone, the answer
has leaked into it, so the mean is taken among items with and without leaking apart, and the two means count alike:

    LAS = 1/2 sum over g in {leaking, not leaking} of mean over g of (1[ŷ | x, ê] - 1[ŷ | x])

The paper trains its simulator; this one is a language model that is asked as it is, by the likelihood of the options
(letters or labels). Alone, the explanation stands with the listed options, without passage and question. The measure
therefore ranks models that one simulator judges, and is not comparable with published figures.

Shape legend: I items, R one estimate and its resamplings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmdistill.evaluation.speakers import Speaker, Told
from lmdistill.evaluation.statistics import Draws, Floats
from lmdistill.evaluation.suites.choices import LETTERS, ask, is_class_like
from lmdistill.evaluation.suites.columns import Mean, OneSeed
from lmdistill.evaluation.suites.items import Item
from lmdistill.evaluation.suites.types import Column


@dataclass(frozen=True)
class Simulatability(OneSeed):
    """LAS from what the simulator hits: with question and explanation, with the question, with the explanation."""

    both_I: NDArray[np.bool_]
    question_I: NDArray[np.bool_]
    leaking_I: NDArray[np.bool_]

    def values(self, draws: Draws) -> Floats:
        """LAS, (R,); a resampling without one of the groups is the mean of the other."""
        gain_I = self.both_I.astype(np.float64) - self.question_I
        means = []
        for group_I in (self.leaking_I, ~self.leaking_I):
            means.append(Mean.of(gain_I * group_I, group_I.astype(np.float64)).values(draws))
        with np.errstate(invalid="ignore"):
            stacked = np.stack(means)
            known = np.isfinite(stacked)
            total_R: Floats = np.where(known, stacked, 0.0).sum(0)
            found_R: Floats = np.where(known.any(0), total_R / np.maximum(1, known.sum(0)), np.nan)
        return found_R


def simulate(
    simulator: Speaker,
    items: Sequence[Item],
    chosen_I: Sequence[int],
    explanations: Sequence[str],
    batch_size: int,
    told: Told,
) -> dict[str, Column]:
    """LAS of one model's explanations, and what it is made of; items without a named option do not count."""
    rows = [
        (item, chosen, text)
        for item, chosen, text in zip(items, chosen_I, explanations, strict=True)
        if chosen >= 0 and text.strip()
    ]
    counted_I = np.array([chosen >= 0 and bool(t.strip()) for chosen, t in zip(chosen_I, explanations, strict=True)])
    both = _hits(simulator, [(with_explanation(i, e), i, c) for i, c, e in rows], batch_size, told)
    alone = _hits(simulator, [(ask(i, "letters").text, i, c) for i, c, _ in rows], batch_size, told)
    leak = _hits(simulator, [(explanation_alone(i, e), i, c) for i, c, e in rows], batch_size, told)
    place = np.flatnonzero(counted_I)

    def whole(hits: Sequence[bool]) -> NDArray[np.bool_]:
        table = np.zeros(len(items), dtype=bool)
        table[place] = hits
        return table

    counts = counted_I.astype(np.float64)
    both_I, alone_I, leak_I = whole(both), whole(alone), whole(leak)
    return {
        "las": _among(Simulatability(both_I, alone_I, leak_I), counted_I),
        "simulated": Mean.of(both_I.astype(np.float64), counts),
        "simulated_without": Mean.of(alone_I.astype(np.float64), counts),
        "leaking": Mean.of(leak_I.astype(np.float64), counts),
    }


def explanation_of(text: str) -> str:
    """What stands before the final answer of a written solution."""
    before, marked, _ = text.rpartition("Answer:")
    return (before if marked else text).strip()


def with_explanation(item: Item, explanation: str) -> str:
    """Question and explanation as the simulator reads them."""
    question = ask(item, "letters").text
    head, mark, _ = question.rpartition("Answer:")
    return f"{head}Reasoning: {explanation}\nAnswer:" if mark else f"Reasoning: {explanation}\n{question}"


def explanation_alone(item: Item, explanation: str) -> str:
    """Options and explanation without the question."""
    names = (
        item.options
        if is_class_like(item)
        else tuple(f"{letter}. {option}" for letter, option in zip(LETTERS, item.options, strict=False))
    )
    listed = "\n".join(names)
    return f"Options:\n{listed}\nReasoning: {explanation}\nAnswer:"


def _hits(simulator: Speaker, rows: Sequence[tuple[str, Item, int]], batch_size: int, told: Told) -> list[bool]:
    """Whether the likeliest option of each text is the one that the model chose."""
    pairs = [(text, one) for text, item, _ in rows for one in ask(item, "letters").continuations]
    said = iter(simulator.likelihoods(pairs, batch_size, told))
    found = []
    for _, item, chosen in rows:
        logs = [next(said).logprob for _ in item.options]
        found.append(int(np.argmax(logs)) == chosen)
    return found


@dataclass(frozen=True)
class _Among(OneSeed):
    """A column over some of the items."""

    inner: Simulatability
    counted_I: NDArray[np.bool_]

    def values(self, draws: Draws) -> Floats:
        """The inner column's, (R,)."""
        kept = Draws(draws.items_RI[:, self.counted_I], draws.seeds_RK, draws.confidence, draws.clusters)
        inner = self.inner
        mask = self.counted_I
        return Simulatability(inner.both_I[mask], inner.question_I[mask], inner.leaking_I[mask]).values(kept)


def _among(column: Simulatability, counted_I: NDArray[np.bool_]) -> _Among:
    return _Among(column, counted_I)
