"""How long the student may write: a guard against length inflation, and a budget by effective length.

Rewards that are summed over a text, and students that never learnt to stop, drive texts up to the limit, where they
repeat themselves: time goes into tokens that teach nothing. The budget follows the idea of ShortOPD (2607.13124); how
the effective length is found is ours.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from lmdistill.recipe import LengthSpec
from lmdistill.trajectories.types import Trajectory

RECENT = 256
"""Texts that the effective length is taken from."""
QUANTILE = 0.9
ROOM = 1.25
"""The budget is this much above the quantile, so that it can grow again when texts do."""
LONGEST_PERIOD, REPEATS = 8, 3


class LengthBudget:
    """The limit of new tokens, window by window."""

    def __init__(self, spec: LengthSpec, max_new_tokens: int, reference: float | None) -> None:
        """`reference` is the mean length of the answers in the data, None where there are none."""
        self.spec = spec
        self.longest = max_new_tokens
        if spec.inflation is not None and reference is not None:
            self.longest = max(1, min(max_new_tokens, math.ceil(spec.inflation * reference)))
        self._effective: deque[int] = deque(maxlen=RECENT)

    @property
    def limit(self) -> int:
        """The most tokens that the next texts may have."""
        if not self.spec.effective or not self._effective:
            return self.longest
        ordered = sorted(self._effective)
        wanted = math.ceil(ROOM * ordered[min(len(ordered) - 1, int(QUANTILE * len(ordered)))])
        return max(min(self.spec.shortest, self.longest), min(self.longest, wanted))

    def saw(self, trajectories: Sequence[Trajectory]) -> None:
        """Learn from texts of the student."""
        self._effective.extend(effective_length(text.answer_ids) for text in trajectories)

    def state(self) -> dict[str, Any]:
        """What `restore` needs."""
        return {"effective": list(self._effective)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        self._effective.clear()
        self._effective.extend(state["effective"])


def effective_length(ids: Sequence[int]) -> int:
    """Tokens before a text begins to repeat itself until its end; all of them where it does not.

    A text repeats itself where its end is at least `REPEATS` copies of one piece of at most `LONGEST_PERIOD` tokens;
    the first copy counts as said.
    """
    shortest = len(ids)
    for period in range(1, min(LONGEST_PERIOD, len(ids) // REPEATS) + 1):
        start = len(ids) - period
        while start > 0 and ids[start - 1] == ids[start - 1 + period]:
            start -= 1
        if len(ids) - start >= REPEATS * period:
            shortest = min(shortest, start + period)
    return shortest
