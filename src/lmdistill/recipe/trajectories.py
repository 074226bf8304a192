"""Whose text is trained on, and how text is sampled."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lmdistill.recipe.base import Count, NonNegative, Section, Share


class GenerationSpec(Section):
    """How text is sampled."""

    max_new_tokens: Count = 128
    """Longest answer in tokens."""
    temperature: NonNegative = 1.0
    """Sampling temperature; 0 decodes greedily."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Nucleus: sample from the smallest set of tokens with this probability."""
    num_beams: Count = 1
    """Beams; above 1 the most likely sequence is searched for (SeqKD as published uses 5)."""
    samples_per_prompt: Count = 1
    """Answers to each prompt."""
    batch_size: Count = 8
    """Prompts answered at a time."""
    prompt_tokens: Count = 32
    """For plain text, the length of the beginning that the teacher continues."""

    @model_validator(mode="after")
    def _check(self) -> GenerationSpec:
        if self.temperature == 0 and self.samples_per_prompt > 1 and self.num_beams == 1:
            raise ValueError(
                f"{self.samples_per_prompt} greedy samples of one prompt are the same text; "
                "raise temperature above 0 or ask for 1"
            )
        return self


class AnswerSpec(GenerationSpec):
    """How models answer the prompts of the report: greedily and briefly where the recipe does not say."""

    max_new_tokens: Count = 48
    """Longest answer in tokens."""
    temperature: NonNegative = 0.0
    """Sampling temperature; 0 decodes greedily."""


class ShareSchedule(Section):
    """A share of the samples, and how it changes as training goes on."""

    start: Share = 1.0
    """Share at the first step."""
    end: Share | None = None
    """Share at the last step; the same as at the first where absent."""
    shape: Literal["linear", "cosine"] = "linear"
    """How it goes from one to the other."""

    def at(self, progress: float) -> float:
        """The share at this progress of training, 0 to 1."""
        if self.end is None:
            return self.start
        way = progress if self.shape == "linear" else 0.5 - 0.5 * math.cos(math.pi * progress)
        return self.start + (self.end - self.start) * way


class ReplaySpec(Section):
    """DistiLLM's adaptive replay of text that the student wrote earlier (2402.03898, section 3.2; released code).

    A sample is the student's with probability phi, which rises from `start` by `rise` whenever the held-out loss
    (`training.eval_strategy`) exceeds that of the last rise by `tolerance`. It is written anew with probability
    phi * (1 - progress) and while the buffer is not full, else taken from the buffer.
    """

    capacity: Count = 1000
    """Texts that the buffer holds; the oldest leave."""
    start: Share = 0.0
    """phi at the beginning."""
    rise: Share = 0.1
    """How much phi rises."""
    tolerance: NonNegative = 0.1
    """Rise of the held-out loss (nats a token) that is answered."""


class InterleavedSpec(Section):
    """Speculative distillation (SKD, 2410.11325): the student drafts, the teacher replaces what it finds unlikely."""

    top_k: Count = 25
    """A drafted token stays if it is among the teacher's k likeliest."""
    draft_tokens: Count = 8
    """Tokens that the student drafts before the teacher looks at them."""
    replacement: Literal["sample", "likeliest"] = "sample"
    """What stands in for a refused token: a draw from the teacher, or its likeliest token."""


class RolloutsSpec(Section):
    """How text is written during training."""

    engine: Literal["local", "server"] = "local"
    """In this process, or by a vLLM server that takes over the student's weights."""
    base_url: str | None = None
    """Address of a running server (`engine: server`), for example http://127.0.0.1:8000/v1."""
    served_folder: str | None = None
    """Folder that the server reads the student's weights from; lmdistill writes them there."""
    refresh_steps: Count = 1
    """The writer takes over the student's weights every so many optimiser steps."""
    reuse: Count = 1
    """Optimiser steps that are taken on the same texts (MiniLLM's PPO epochs)."""
    max_staleness: Count | None = None
    """Texts of the replay buffer that were written more than so many steps ago are not used."""
    kept_share: Share = 0.05
    """Share of the texts that is kept in the run's `rollouts.jsonl` for reading."""


class LengthSpec(Section):
    """How long the student may write."""

    inflation: Annotated[float, Field(ge=1.0)] | None = 3.0
    """Guard against length inflation: at most so many times the mean length of the answers in the data (the teacher's,
    where it wrote any); null lets generation.max_new_tokens stand alone. Not used where there are no answers."""
    effective: bool = False
    """Budget by effective length (after ShortOPD 2607.13124): the limit follows the length at which 90 % of the
    student's recent texts have ended or begun to repeat themselves, from `shortest` to generation.max_new_tokens."""
    shortest: Count = 16
    """Smallest budget that `effective` goes down to, in tokens."""


class MixtureSpec(Section):
    """Whose answer each sample holds (`source: mixture`); what neither writes comes from the data set."""

    student: ShareSchedule = Field(default_factory=lambda: ShareSchedule(start=0.5))
    """Share of samples that the student answers as training goes on."""
    teacher: ShareSchedule = Field(default_factory=lambda: ShareSchedule(start=0.0))
    """Share of samples that hold the teacher's answer; the teacher writes all of them before training."""
    paired: bool = False
    """Each prompt gives two samples: the other text (the teacher's, or the data set's) and the student's; for
    contrastive and preference objectives. `student` and `teacher` then say nothing of the student; a `teacher` share
    above 0.5 takes the teacher's answer as the other text."""
    replay: ReplaySpec | None = None
    """DistiLLM's adaptive replay in place of the share `student`."""


class TrajectoriesSpec(Section):
    """Whose text is trained on."""

    source: Literal["dataset", "teacher", "student", "mixture"] = "dataset"
    """The data set's own text; text that the teacher writes from its prompts before training (sequence-level KD,
    1606.07947); text that the student writes as training goes on (on-policy); or a mixture, sample by sample."""
    generation: GenerationSpec = Field(default_factory=GenerationSpec)
    """How text is written."""
    max_prompts: Count | None = None
    """Use at most this many prompts."""
    mixture: MixtureSpec = Field(default_factory=MixtureSpec)
    """Shares of a mixture."""
    teacher_mixing: Share = 0.0
    """The student's text is drawn from this much of the teacher's distribution and the rest of its own, token by token
    (MiniLLM 2306.08543: 0.2)."""
    interleaved: InterleavedSpec | None = None
    """Speculative distillation in place of plain sampling."""
    rollouts: RolloutsSpec = Field(default_factory=RolloutsSpec)
    """Who writes the student's text, how often it is refreshed, how often it is used."""
    length: LengthSpec = Field(default_factory=LengthSpec)
    """How long the student may write."""

    @property
    def on_policy(self) -> bool:
        """Whether the student writes during training."""
        return self.source in ("student", "mixture")

    @property
    def teacher_writes(self) -> bool:
        """Whether the teacher writes answers before training."""
        shares = self.mixture.teacher
        return self.source == "teacher" or (self.source == "mixture" and max(shares.start, shares.end or 0.0) > 0)

    @model_validator(mode="after")
    def _check_writing(self) -> TrajectoriesSpec:
        rollouts = self.rollouts
        if not self.on_policy:
            return self
        if self.generation.num_beams > 1:
            raise ValueError("generation.num_beams: the student samples; beams are for source: teacher")
        if self.interleaved is not None and self.teacher_mixing > 0:
            raise ValueError("interleaved and teacher_mixing are two ways of drawing a token; keep one of them")
        if rollouts.engine == "server":
            if rollouts.base_url is None or rollouts.served_folder is None:
                raise ValueError("rollouts.engine: server needs rollouts.base_url and rollouts.served_folder")
            if self.interleaved is not None or self.teacher_mixing > 0:
                raise ValueError("a server writes the student's own text only: use rollouts.engine: local")
        if self.mixture.replay is not None and self.mixture.paired:
            raise ValueError("mixture.paired needs fresh text of the student in every sample; remove mixture.replay")
        return self
