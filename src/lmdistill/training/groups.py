"""Which tokens of a batch which divergence is taken at, and what each sum is divided by.

Without a term of its own for the student's text, all trained tokens are one group. With one there are two: the
student's tokens and the rest; each is then a mean over its own tokens, as in objectives that add two expectations
(MiniLLM, f-distill). Cross-entropy is never taken at tokens that the student wrote: it would teach the
student what it does already.

Shape legend: B batch, L length, N = B * L positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmdistill.objectives import Divergence, find_divergence
from lmdistill.recipe import DivergenceTerm, ObjectiveSpec
from lmdistill.trajectories.window import ROLLOUTS

IGNORED = -100
COUNTS = "token_counts"
"""Where a batch of a window holds the trained tokens of the whole window: the student's and the others'."""


@dataclass(frozen=True)
class Term:
    """A divergence with its definition."""

    spec: DivergenceTerm
    definition: Divergence

    @classmethod
    def of(cls, spec: DivergenceTerm) -> Term:
        """Raises ValueError where the divergence has no such parameter."""
        return cls(spec, find_divergence(spec.kind, **spec.parameters))


@dataclass(frozen=True)
class Group:
    """Tokens that one set of terms is taken at."""

    mask_N: Tensor
    term: Term
    label_weight: float
    num_items: Tensor | float | None
    """What the sums are divided by; None: the number of tokens of the mask."""
    own: bool = False
    """Whether these are the student's own tokens, at which a policy term is taken."""


def next_labels(labels_BL: Tensor) -> Tensor:
    """The label that each position predicts: the next one; the last predicts none."""
    return F.pad(labels_BL[:, 1:], (0, 1), value=IGNORED)


def student_tokens(batch: Mapping[str, Any]) -> Tensor | None:
    """Positions in texts that the student wrote in training, with the teacher's help or without, (B, L).

    None for batches of text that was there before training.
    """
    if ROLLOUTS not in batch:
        return None
    found_BL: Tensor = batch[ROLLOUTS][:, None].expand(batch["input_ids"].shape)
    return found_BL


def count_tokens(batches: Sequence[Mapping[str, Any]]) -> Tensor:
    """Trained tokens of the student, and others, over micro-batches, (2,)."""
    counts_2 = torch.zeros(2, dtype=torch.long)
    for batch in batches:
        trained_BL = next_labels(batch["labels"]) != IGNORED
        student_BL = student_tokens(batch)
        own = int((trained_BL & student_BL).sum()) if student_BL is not None else 0
        counts_2 += torch.tensor([own, int(trained_BL.sum()) - own])
    return counts_2


def groups_of(
    spec: ObjectiveSpec,
    terms: tuple[Term, Term | None],
    batch: Mapping[str, Any],
    mask_N: Tensor,
    num_items: Tensor | float | None,
) -> list[Group]:
    """The groups of a batch's trained tokens; `terms` are the divergence and that of the student's text."""
    general, own = terms
    student_BL = student_tokens(batch)
    if student_BL is None:
        return [Group(mask_N, general, spec.cross_entropy.weight, num_items)]
    student_N = mask_N & student_BL.flatten()
    if own is None and spec.policy.weight == 0:
        if spec.cross_entropy.weight == 0:
            return [Group(mask_N, general, 0.0, num_items)]
        num_items = num_items if num_items is not None else mask_N.sum().clamp_min(1)
        return [
            Group(student_N, general, 0.0, num_items),
            Group(mask_N & ~student_N, general, spec.cross_entropy.weight, num_items),
        ]
    counts_2 = batch[COUNTS] if COUNTS in batch else torch.stack([student_N.sum(), (mask_N & ~student_N).sum()])
    counts_2 = counts_2.clamp_min(1)
    return [
        Group(student_N, own or general, 0.0, counts_2[0], own=True),
        Group(mask_N & ~student_N, general, spec.cross_entropy.weight, counts_2[1]),
    ]
