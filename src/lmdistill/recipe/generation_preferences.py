"""Which of several answers to a prompt is the better one, and which pairs are made of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lmdistill.recipe.base import Count, NonNegative, Positive, Section, Share


class CompositeReward(Section):
    """The reward of an answer: a weighted sum. A part with weight 0 is not looked at; one that an answer lacks makes it
    a drop, never a 0."""

    verdict: NonNegative = 1.0
    """Weight of verification: correct 1, incorrect 0."""
    unverified: Share = 0.5
    """What an answer that could not be verified counts in the verdict's place."""
    length: NonNegative = 0.0
    """Taken away for every hundred words beyond `length_free`."""
    length_free: Annotated[int, Field(ge=0)] = 0
    """Words that cost nothing."""
    judge: float = 0.0
    """Weight of the field `judge`: a judge's score, on whatever scale it has."""
    votes: float = 0.0
    """Weight of the field `votes`: the share of samples with the same final answer."""
    fields: dict[str, float] = Field(default_factory=dict)
    """Weights of further numeric fields by name."""

    @model_validator(mode="after")
    def _weighs_something(self) -> CompositeReward:
        if twice := sorted({"judge", "votes"} & set(self.fields)):
            raise ValueError(f"fields names {twice[0]!r}, which has a weight of its own; set reward.{twice[0]}")
        if not any((self.verdict, self.length, self.judge, self.votes, *self.fields.values())):
            raise ValueError("every weight is 0, so no answer is better than another; give one of them a weight")
        return self


class PreferenceSpec(Section):
    """Pairs of a better and a worse answer to the same prompt, for DPO-like methods."""

    reward: CompositeReward = Field(default_factory=CompositeReward)
    """What makes an answer good."""
    pairs: Literal["best_worst", "best_random", "all"] = "best_worst"
    """The best with the worst answer; the best with random ones of the answers that are worse by the margin; all pairs
    that differ by the margin, the widest apart first."""
    margin: Positive = 0.1
    """Smallest difference of rewards in a pair; ties never make one."""
    chosen_at_least: float | None = None
    """Smallest reward of a better answer: the best of a bad lot is no example."""
    rejected_at_most: float | None = None
    """Largest reward of a worse answer."""
    pairs_per_prompt: Count = 1
    """At most this many pairs of one prompt."""
