"""The replay buffer of the student's texts, and DistiLLM's adaptive share of them (2402.03898, section 3.2)."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from lmdistill.recipe import ReplaySpec
from lmdistill.trajectories.types import Trajectory


class ReplayBuffer:
    """The last texts of the student, first in, first out."""

    def __init__(self, capacity: int, max_staleness: int | None = None) -> None:
        """Texts that were written more than `max_staleness` steps ago are never given out."""
        self._texts: deque[Trajectory] = deque(maxlen=capacity)
        self.max_staleness = max_staleness

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def full(self) -> bool:
        """Whether the next text drives out an older one."""
        return len(self._texts) == self._texts.maxlen

    def add(self, trajectories: Iterable[Trajectory]) -> None:
        """Put texts in; the oldest leave where there is no room."""
        self._texts.extend(trajectories)

    def draw(self, count: int, step: int, chance: random.Random) -> list[Trajectory]:
        """`count` texts that are fresh enough at this step, with repetition; none where there is none."""
        fresh = [text for text in self._texts if self.max_staleness is None or step - text.step <= self.max_staleness]
        return chance.choices(fresh, k=count) if fresh else []

    def state(self) -> list[dict[str, Any]]:
        """What `restore` needs, as plain values."""
        return [asdict(text) for text in self._texts]

    def restore(self, state: Iterable[Mapping[str, Any]]) -> None:
        """Take over what `state` gave."""
        self._texts.clear()
        self._texts.extend(Trajectory(**values) for values in state)


class AdaptiveShare:
    """phi: the probability that a sample is the student's; rises when the held-out loss does."""

    def __init__(self, spec: ReplaySpec) -> None:
        self.spec = spec
        self.phi = spec.start
        self._loss: float | None = None

    def heard(self, loss: float) -> None:
        """A held-out loss was measured. As released, it is compared with the one at the last rise, or the first one."""
        if self._loss is None:
            self._loss = loss
        elif loss >= self._loss + self.spec.tolerance:
            self.phi = min(1.0, self.phi + self.spec.rise)
            self._loss = loss

    def written_anew(self, progress: float) -> float:
        """The probability that a sample is written now; up to phi, it comes from the buffer."""
        return self.phi * (1.0 - progress)

    def state(self) -> dict[str, float | None]:
        """What `restore` needs."""
        return {"phi": self.phi, "loss": self._loss}

    def restore(self, state: Mapping[str, float | None]) -> None:
        """Take over what `state` gave."""
        self.phi, self._loss = float(state["phi"] or 0.0), state["loss"]
