"""From the Trainer's batches of prompts to micro-batches of text, once an optimiser step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PreTrainedModel

from lmdistill.data import PromptRow
from lmdistill.teachers.columns import Unsaid, context_columns
from lmdistill.training.groups import COUNTS, count_tokens
from lmdistill.training.objective import PAIRS, PROGRESS, Objective
from lmdistill.training.pairs import pairs_of
from lmdistill.trajectories.window import Trajectories

Batch = dict[str, Any]


class Windows:
    """Lets the texts of a window be written, puts beside them what the objective needs of the whole window."""

    def __init__(
        self,
        trajectories: Trajectories,
        objective: Objective,
        *,
        contexts: bool,
        longest: int | None = None,
        unsaid: Unsaid | None = None,
    ) -> None:
        """`contexts`: the teacher reads each prompt's context in its place; `longest` is the teacher's own limit;
        `unsaid` what it does not speak of, where the contexts are of its own chat template."""
        self.trajectories = trajectories
        self.objective = objective
        self.contexts = contexts
        self.longest = longest
        self.unsaid = unsaid

    def __call__(
        self,
        prompts: Sequence[Sequence[PromptRow]],
        *,
        step: int,
        progress: float,
        model: PreTrainedModel,
        place: Callable[[Batch], Batch],
        total: Callable[[Tensor], Tensor],
    ) -> list[Batch]:
        """The micro-batches of an optimiser step; `place` puts one onto the device, `total` sums over all ranks."""
        written = self.trajectories.window(prompts, step=step, progress=progress, model=model)
        batches = [place(self._with_contexts(batch)) for batch in written]
        pairs = sum(len(pairs_of(batch)) for batch in batches)
        counts_3 = total(torch.cat([count_tokens(batches), torch.tensor([pairs])]))
        for batch in batches:
            batch[COUNTS], batch[PAIRS] = counts_3[:2], counts_3[2].clamp_min(1)
            batch[PROGRESS] = progress
        self.objective.prepare(batches, model, total)
        return batches

    def _with_contexts(self, batch: Batch) -> Batch:
        if not self.contexts or not any(batch.get("contexts", ())):
            return batch
        lengths = [len(prompt) for prompt in batch["prompts"]]
        columns = context_columns(batch, lengths, batch["contexts"], max_length=self.longest, unsaid=self.unsaid)
        return {**batch, **columns}


class WindowSampler(Sampler[int]):
    """Prompts in random order, each optimiser step's as often in a row as its texts are used."""

    def __init__(self, size: int, per_step: int, reuse: int, seed: int) -> None:
        self.size, self.per_step, self.reuse, self.seed = size, per_step, reuse, seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.size * self.reuse

    def set_epoch(self, epoch: int) -> None:
        """Another order for each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.size, generator=generator).tolist()
        for first in range(0, self.size, self.per_step):
            for _ in range(self.reuse):
                yield from order[first : first + self.per_step]
