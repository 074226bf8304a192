"""Who answers each prompt: a choice sample by sample, by shares that may change as training goes on.

All draws are keyed by the seed, the step and the sample's place: a run that is stopped goes on as it would have.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from lmdistill.data import PromptRow
from lmdistill.recipe import TrajectoriesSpec
from lmdistill.trajectories.replay import AdaptiveShare
from lmdistill.trajectories.types import Author


@dataclass(frozen=True)
class Choice:
    """Whose answer one sample holds."""

    row: PromptRow
    author: Author
    replayed: bool = False
    """The student's text comes from the replay buffer; its prompt may be another."""


class Mixture:
    """Chooses for the rows of a window."""

    def __init__(self, spec: TrajectoriesSpec, seed: int, samples_per_prompt: int = 1) -> None:
        """`samples_per_prompt` is how many texts the student writes for each prompt that is its own."""
        self.spec = spec
        self.seed = seed
        self.samples_per_prompt = samples_per_prompt
        replay = spec.mixture.replay if spec.source == "mixture" else None
        self.adaptive = AdaptiveShare(replay) if replay is not None else None

    def choose(
        self, rows: Sequence[PromptRow], step: int, progress: float, *, buffer_full: bool = True
    ) -> list[Choice]:
        """The samples of one window; `progress` is the share of training that is done.

        As DistiLLM is released, nothing is replayed before the buffer is full: what would be is written anew.
        """
        if self.spec.source == "student":
            return [Choice(row, Author.STUDENT) for row in rows for _ in range(self.samples_per_prompt)]
        if self.spec.mixture.paired:
            return [choice for row in rows for choice in self._pair(row)]
        chance = random.Random(f"mixture-{self.seed}-{step}")
        return [self._one(row, chance.random(), progress, buffer_full) for row in rows]

    def _pair(self, row: PromptRow) -> list[Choice]:
        """The other text first, then the student's. A prompt without another text is left out."""
        wants_teacher = self.spec.mixture.teacher.start > 0.5
        if not (row.teacher_answer_ids if wants_teacher else row.answer_ids):
            return []
        other = Author.TEACHER if wants_teacher else Author.DATASET
        return [Choice(row, other), *[Choice(row, Author.STUDENT)] * self.samples_per_prompt]

    def _one(self, row: PromptRow, draw: float, progress: float, buffer_full: bool) -> Choice:
        mixture = self.spec.mixture
        if self.adaptive is not None:
            if draw < self.adaptive.written_anew(progress):
                return Choice(row, Author.STUDENT)
            if draw < self.adaptive.phi:
                return Choice(row, Author.STUDENT, replayed=buffer_full)
            student = self.adaptive.phi
        else:
            student = mixture.student.at(progress)
            if draw < student:
                return Choice(row, Author.STUDENT)
        # A row without the answer that was drawn takes the one it has; one without any is the student's.
        wanted = [Author.DATASET, Author.TEACHER]
        if draw < student + mixture.teacher.at(progress):
            wanted.reverse()
        for author in wanted:
            if row.answer_ids if author == Author.DATASET else row.teacher_answer_ids:
                return Choice(row, author)
        return Choice(row, Author.STUDENT)
