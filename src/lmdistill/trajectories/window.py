"""The texts of one optimiser step: who answers is chosen, the student writes, and micro-batches are made of it all.

A window holds the micro-batches of one optimiser step. Its texts are written in one go, which fills the writer's
batches, and sorted by length over the whole window, which spares padding; texts of one prompt stay in one micro-batch.

Shape legend: B batch, L length.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lmdistill.data import Collator, PromptRow
from lmdistill.recipe import TrajectoriesSpec
from lmdistill.trajectories.length import LengthBudget
from lmdistill.trajectories.mixture import Choice, Mixture
from lmdistill.trajectories.replay import ReplayBuffer
from lmdistill.trajectories.rollouts import Writer
from lmdistill.trajectories.types import Author, Trajectory

Batch = dict[str, Any]
IGNORED = -100
ROLLOUTS = "rollouts"
"""Where a batch says which of its rows the student wrote, (B,)."""


@dataclass(frozen=True)
class Sample:
    """One text of a window, and the prompt that it answers."""

    row: PromptRow
    text: Trajectory
    group: int
    """Place of its prompt in the window: samples of one prompt share it."""


class Trajectories:
    """The texts of one training, window after window."""

    def __init__(
        self,
        spec: TrajectoriesSpec,
        writer: Writer,
        *,
        seed: int,
        budget: LengthBudget,
        samples_per_prompt: int = 1,
        keep: Callable[[Sequence[Trajectory]], None] = lambda texts: None,
        tell: Callable[..., None] = lambda kind, **facts: None,
    ) -> None:
        """`keep` is given what the student wrote, for a person to read; `tell` writes an event of a kind."""
        self.spec = spec
        self.writer = writer
        self.seed = seed
        self.mixture = Mixture(spec, seed, samples_per_prompt)
        replay = spec.mixture.replay
        self.buffer = ReplayBuffer(replay.capacity if replay else 1, spec.rollouts.max_staleness)
        self.budget = budget
        self.written_tokens = 0
        """Tokens that the student wrote so far."""
        self._keep, self._tell = keep, tell
        self._collate = Collator()
        self._refreshed: int | None = None
        self._current: list[Sample] = []
        self._prompts: list[str] = []

    def window(
        self, micro_batches: Sequence[Sequence[PromptRow]], *, step: int, progress: float, model: PreTrainedModel
    ) -> list[Batch]:
        """As many micro-batches of text as there are of prompts, for the optimiser step that comes.

        `progress` is the share of training that is done, `model` the student with its present weights. Texts that are
        to be used again (`rollouts.reuse`) come in another order.
        """
        rows = [row for batch in micro_batches for row in batch]
        names = [row.row_id for row in rows]
        again = step % self.spec.rollouts.reuse
        if not again or names != self._prompts:
            self._prompts, self._current = names, self._write(rows, step, progress, model)
        return self._batches(self._current, len(micro_batches), turn=again)

    def heard(self, loss: float) -> None:
        """A held-out loss was measured."""
        if self.mixture.adaptive is not None:
            self.mixture.adaptive.heard(loss)

    def _write(self, rows: Sequence[PromptRow], step: int, progress: float, model: PreTrainedModel) -> list[Sample]:
        choices = self.mixture.choose(rows, step, progress, buffer_full=self.buffer.full)
        fresh = [at for at, choice in enumerate(choices) if choice.author is Author.STUDENT and not choice.replayed]
        limit = self.budget.limit
        written: dict[int, Trajectory] = {}
        if fresh:
            self._refresh(model, step)
            texts = self.writer.write(
                [choices[place].row.prompt_ids for place in fresh],
                # One seed a step: equal prompts of one window still differ, by their place in the call.
                seed=self.seed * 1_000_003 + step,
                step=step,
                row_ids=[choices[place].row.row_id for place in fresh],
                max_new_tokens=limit,
            )
            written = dict(zip(fresh, texts, strict=True))
            self._saw(texts, step, limit)
        return self._samples(choices, written, step)

    def _refresh(self, model: PreTrainedModel, step: int) -> None:
        if self._refreshed is None or step - self._refreshed >= self.spec.rollouts.refresh_steps:
            self.writer.refresh(model, step)
            self._refreshed = step

    def _saw(self, texts: Sequence[Trajectory], step: int, limit: int) -> None:
        self.buffer.add(texts)
        self.budget.saw(texts)
        self.written_tokens += sum(len(text.answer_ids) for text in texts)
        self._keep(texts)
        self._tell(
            "rollouts",
            step=step,
            texts=len(texts),
            tokens=sum(len(text.answer_ids) for text in texts),
            empty=sum(text.empty for text in texts),
            unfinished=sum(not text.finished for text in texts),
            limit=limit,
        )

    def _samples(self, choices: Sequence[Choice], written: Mapping[int, Trajectory], step: int) -> list[Sample]:
        chance = random.Random(f"replay-{self.seed}-{step}")
        groups: dict[int, int] = {}
        samples = []
        for place, choice in enumerate(choices):
            group = groups.setdefault(id(choice.row), len(groups))
            if place in written:
                samples.append(Sample(choice.row, written[place], group))
            elif choice.replayed:
                samples += [
                    Sample(replace(choice.row, prompt_ids=text.prompt_ids, row_id=text.row_id), text, group)
                    for text in self.buffer.draw(1, step, chance)
                ]
            else:
                samples.append(Sample(choice.row, _known(choice, step), group))
        return samples

    def _batches(self, samples: Sequence[Sample], count: int, turn: int) -> list[Batch]:
        """Micro-batches of whole groups, similar lengths together; `turn` rotates their order."""
        groups: dict[int, list[Sample]] = {}
        for sample in samples:
            groups.setdefault(sample.group, []).append(sample)
        ordered = sorted(groups.values(), key=lambda group: max(map(_length, group)))
        share, more = divmod(len(ordered), count)
        found, first = [], 0
        for number in range(count):
            end = first + share + (number < more)
            found.append(self._batch([sample for group in ordered[first:end] for sample in group]))
            first = end
        return found[turn % count :] + found[: turn % count]

    def _batch(self, samples: Sequence[Sample]) -> Batch:
        """Padded rows, one text each; see `lmdistill.teachers.base` for what a batch holds."""
        if not samples:  # nothing is trained: the number of micro-batches is the Trainer's
            one = torch.zeros(1, 1, dtype=torch.long)
            return {
                "input_ids": one,
                "labels": one + IGNORED,
                "position_ids": one,
                "row_ids": [[]],
                ROLLOUTS: one[0].bool(),
                "authors": one,
                "logprobs": one.float(),
                "behaviour_logprobs": one.float(),
                "groups": one[0] - 1,
            }
        batch = self._collate([_columns(sample) for sample in samples])
        shape = batch["input_ids"].shape
        batch["authors"] = _padded([_after_prompt(sample, sample.text.authors) for sample in samples], shape, 0)
        for name in ("logprobs", "behaviour_logprobs"):
            values = [getattr(sample.text, name) or [0.0] * len(sample.text.answer_ids) for sample in samples]
            rows = [_after_prompt(sample, row) for sample, row in zip(samples, values, strict=True)]
            batch[name] = _padded(rows, shape, 0.0)
        batch[ROLLOUTS] = torch.tensor([sample.text.logprobs is not None for sample in samples])
        batch["groups"] = torch.tensor([sample.group for sample in samples])
        batch["teacher"] = [[sample.row.teacher or "main"] for sample in samples]
        batch["prompts"] = [sample.row.prompt_ids for sample in samples]
        batch["references"] = [sample.row.answer_ids for sample in samples]
        batch["contexts"] = [sample.row.context_ids for sample in samples]
        return batch

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on bit for bit, as plain values."""
        return {
            "adaptive": None if self.mixture.adaptive is None else self.mixture.adaptive.state(),
            "buffer": self.buffer.state() if self.spec.mixture.replay is not None else [],
            "budget": self.budget.state(),
            "written_tokens": self.written_tokens,
            "prompts": self._prompts,
            "current": [asdict(sample) for sample in self._current] if self.spec.rollouts.reuse > 1 else [],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        if self.mixture.adaptive is not None and state["adaptive"] is not None:
            self.mixture.adaptive.restore(state["adaptive"])
        self.buffer.restore(state["buffer"])
        self.budget.restore(state["budget"])
        self.written_tokens = int(state["written_tokens"])
        self._current = [
            Sample(PromptRow(**sample["row"]), Trajectory(**sample["text"]), sample["group"])
            for sample in state["current"]
        ]
        self._prompts = list(state["prompts"]) if self._current else []


def _known(choice: Choice, step: int) -> Trajectory:
    """A text that was there before training."""
    ids = choice.row.answer_ids if choice.author is Author.DATASET else choice.row.teacher_answer_ids
    return Trajectory(
        prompt_ids=choice.row.prompt_ids,
        answer_ids=ids,
        authors=[int(choice.author)] * len(ids),
        logprobs=None,
        finished=True,
        step=step,
        row_id=choice.row.row_id,
    )


def _length(sample: Sample) -> int:
    return len(sample.text.prompt_ids) + len(sample.text.answer_ids)


def _columns(sample: Sample) -> dict[str, Any]:
    text = sample.text
    ids = text.prompt_ids + text.answer_ids
    return {
        "input_ids": ids,
        "labels": [IGNORED] * len(text.prompt_ids) + text.answer_ids,
        "position_ids": list(range(len(ids))),
        "row_ids": [text.row_id],
    }


def _after_prompt(sample: Sample, values: Sequence[float]) -> list[float]:
    return [0] * len(sample.text.prompt_ids) + list(values)


def _padded(rows: Sequence[Sequence[float]], shape: torch.Size, fill: float) -> Tensor:
    found_BL = torch.full(shape, fill, dtype=torch.long if isinstance(fill, int) else torch.float32)
    for number, row in enumerate(rows):
        found_BL[number, : len(row)] = torch.tensor(row, dtype=found_BL.dtype)
    return found_BL
