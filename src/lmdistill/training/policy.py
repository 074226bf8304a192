"""Advantages of a window's texts, made once before the step that uses them.

Shape legend: B batch, L length, N = B * L positions, S sequences (here one a row).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmdistill.objectives.advantages import (
    group_advantages,
    importance_weights,
    minillm_advantages,
    reward_advantages,
    sampled_token_advantages,
    whiten,
)
from lmdistill.objectives.surrogate import PolicyTerm as Surrogate
from lmdistill.recipe import PolicyTerm
from lmdistill.training.groups import IGNORED, next_labels, student_tokens

ADVANTAGES, IMPORTANCE, OLD = "advantages", "importance", "old_logprobs"

Batch = MutableMapping[str, Any]


class Policy:
    """The policy term of an objective."""

    def __init__(
        self,
        spec: PolicyTerm,
        *,
        reuse: int = 1,
        score: Callable[[Sequence[Batch]], list[Tensor]] | None = None,
    ) -> None:
        """`score` gives one number a row for each batch (`discriminator`, `reward`); `reuse` is the number of steps on
        the same texts: above 1 the ratio to the student that wrote them matters.

        Raises ValueError where a score is needed and none is given.
        """
        if spec.kind in ("discriminator", "reward") and score is None:
            raise ValueError(f"policy.kind: {spec.kind} needs a score for whole texts")
        self.spec = spec
        self.reuse = reuse
        self.score = score

    @property
    def asks_teacher(self) -> bool:
        """Whether advantages are made of the teacher's log-probabilities."""
        return self.spec.kind in ("sampled_token", "minillm")

    def prepare(self, batches: Sequence[Batch], teacher_logprobs: Sequence[Tensor | None]) -> None:
        """Put advantages and importance weights into the batches of a window; `teacher_logprobs` are (B, L) each."""
        masks = [own_tokens(batch) for batch in batches]
        sampled = [_shifted(batch["logprobs"]) for batch in batches]
        if self.asks_teacher:
            advantages = self._from_tokens(masks, sampled, teacher_logprobs)
        else:
            advantages = self._from_texts(batches, masks)
        for batch, mask_BL, student_BL, values_BL in zip(batches, masks, sampled, advantages, strict=True):
            behaviour_BL = _shifted(batch["behaviour_logprobs"])
            batch[ADVANTAGES] = values_BL
            batch[OLD] = student_BL
            # Text from the student's own plain distribution needs no weight: both numbers are one.
            batch[IMPORTANCE] = importance_weights(student_BL, behaviour_BL, mask_BL)

    def surrogate(self, batch: Mapping[str, Any], weight: float) -> Surrogate:
        """The term that the loss engine takes, for one batch of a prepared window."""
        clip = self.spec.clip
        mode: Any = "none" if clip is None else "product" if self.spec.kind == "minillm" else "ratio"
        return Surrogate(
            batch[ADVANTAGES].flatten(),
            batch[OLD].flatten() if self.reuse > 1 else None,
            batch[IMPORTANCE].flatten(),
            clip=mode,
            low=1 - (clip or 0.0),
            high=1 + (clip or 0.0),
            weight=weight,
        )

    def _from_tokens(
        self, masks: Sequence[Tensor], sampled: Sequence[Tensor], teacher: Sequence[Tensor | None]
    ) -> list[Tensor]:
        found = []
        for mask_BL, student_BL, teacher_BL in zip(masks, sampled, teacher, strict=True):
            assert teacher_BL is not None
            if self.spec.kind == "sampled_token":
                scale, clip = 1 / self.spec.reward_scaling, self.spec.reward_clip
                found.append(sampled_token_advantages(teacher_BL, student_BL, mask_BL, scale=scale, clip=clip))
            else:
                found.append(
                    minillm_advantages(
                        teacher_BL,
                        student_BL,
                        mask_BL,
                        reward_scaling=self.spec.reward_scaling,
                        reward_clip=self.spec.reward_clip,
                        gamma=self.spec.discount,
                        whiten_over="nothing",
                    )
                )
        return found if self.spec.kind == "sampled_token" else _whitened(found, masks)

    def _from_texts(self, batches: Sequence[Batch], masks: Sequence[Tensor]) -> list[Tensor]:
        """The score of each text against the other texts of its prompt, at all its tokens."""
        assert self.score is not None
        rows = [mask_BL.any(-1) for mask_BL in masks]
        scores_S = torch.cat([score[own] for score, own in zip(self.score(batches), rows, strict=True)])
        groups_S = torch.cat([batch["groups"][own] for batch, own in zip(batches, rows, strict=True)])
        if self.spec.kind == "discriminator":
            advantages_S = group_advantages(scores_S, groups_S)
        else:
            baseline: Any = "leave_one_out" if self.spec.samples_per_prompt > 1 else "none"
            advantages_S = reward_advantages(scores_S, baseline=baseline, groups_S=groups_S)
        found, first = [], 0
        for own, mask_BL in zip(rows, masks, strict=True):
            values_B = torch.zeros(len(own), device=mask_BL.device)
            end = first + int(own.sum())
            values_B[own] = advantages_S[first:end].to(values_B)
            found.append(values_B[:, None] * mask_BL)
            first = end
        return found


def own_tokens(batch: Mapping[str, Any]) -> Tensor:
    """Trained positions whose next token the student wrote, (B, L)."""
    own_BL = student_tokens(batch)
    trained_BL = next_labels(batch["labels"]) != IGNORED
    return trained_BL if own_BL is None else trained_BL & own_BL


def _shifted(values_BL: Tensor) -> Tensor:
    """What is said of a token, at the position before it, which predicts it."""
    return F.pad(values_BL[:, 1:], (0, 1))


def _whitened(values: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
    """Advantages whitened over the whole window, as if it were one batch."""
    flat_N = torch.cat([each.flatten() for each in values])
    over_N = torch.cat([mask_BL.flatten() for mask_BL in masks])
    whole_N = torch.where(over_N, whiten(flat_N[None], over_N[None])[0], 0.0)
    parts = whole_N.split([each.numel() for each in values])
    return [part.view(each.shape) for part, each in zip(parts, values, strict=True)]
