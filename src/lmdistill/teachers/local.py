"""A teacher in this process, beside the student.

Shape legend: B batch, L length, N = B * L positions, K teacher hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lmdistill.models import OutputHead, last_hidden, output_head
from lmdistill.teachers.base import Part, Speech
from lmdistill.teachers.reading import gather, hidden_signal, text_of


class LocalTeacher:
    """A model in this process, asked batch by batch; it reads its own text where the batch holds one."""

    def __init__(self, model: PreTrainedModel, vocabulary_size: int, kept_ids: Tensor | None = None) -> None:
        """`kept_ids` maps the ids of a student with a trimmed vocabulary to the teacher's."""
        self.model = model.eval().requires_grad_(False)
        self.kept_ids = kept_ids
        head = output_head(model, None if kept_ids is not None else vocabulary_size)
        self.head = head if kept_ids is None else _restricted(head, kept_ids)

    @torch.no_grad()
    def hidden(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The last hidden states of `input_ids` (the student's) and their positions, (B, L, K)."""
        if self.kept_ids is not None:
            batch = {**batch, "input_ids": self.kept_ids[batch["input_ids"]]}
        return last_hidden(self.model, batch)

    @torch.no_grad()
    def speak(self, batch: Mapping[str, Any]) -> Speech:
        """The exact distribution at all positions of a batch, and the hidden states behind it."""
        text = text_of(batch)
        hidden_NK, mask_N = gather(self.hidden(text.inputs).flatten(0, 1), text.places_N)
        return Speech((Part(hidden_signal(hidden_NK, self.head), mask_N),), hidden_NK)


def _restricted(head: OutputHead, kept_ids: Tensor) -> OutputHead:
    """The head's rows of the kept ids only; the distribution is then renormalised over them."""
    return OutputHead(
        weight_VH=head.weight_VH[kept_ids],
        bias_V=None if head.bias_V is None else head.bias_V[kept_ids],
        logit_scale=head.logit_scale,
        softcap=head.softcap,
        vocabulary_size=len(kept_ids),
    )
