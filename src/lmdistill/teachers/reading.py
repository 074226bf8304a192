"""How a model reads a batch as a teacher: the student's text, or a text of its own whose positions are put in place.

A batch may hold what the teacher reads in the student's place (another prompt, another chat template; see
`lmdistill.teachers.columns`): `teacher_input_ids` and `teacher_position_ids` (B, L'), ids of the student's vocabulary,
and `teacher_places` (B, L): for each position of the student's text the flat position of the teacher's, in B * L',
that predicts the same next token; -1 where there is none, and then the teacher says nothing.

Shape legend: B batch, L length of the student's text, L' of the teacher's, N = B * L, M = B * L', K teacher hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmdistill.data.packing import IGNORED
from lmdistill.models import OutputHead, last_hidden
from lmdistill.signals.types import HiddenSignal
from lmdistill.teachers.base import model_inputs

IDS, POSITIONS, MASK, PLACES = (
    "teacher_input_ids",
    "teacher_position_ids",
    "teacher_attention_mask",
    "teacher_places",
)


class Text(NamedTuple):
    """What a teacher reads."""

    inputs: dict[str, Tensor]
    """`input_ids`, `position_ids` and where given `attention_mask`, (B, L')."""
    places_N: Tensor | None
    """Where each of the student's positions lies in it, -1 for nowhere; None: it is the student's own text."""


class PackedRow(NamedTuple):
    """One row of text inside a row of a batch."""

    batch_row: int
    first: int
    end: int


def text_of(batch: Mapping[str, Any]) -> Text:
    """What the teacher reads of a batch."""
    if PLACES not in batch:
        return Text(model_inputs(batch), None)
    inputs = {"input_ids": batch[IDS], "position_ids": batch[POSITIONS]}
    if MASK in batch:
        inputs["attention_mask"] = batch[MASK]
    return Text(inputs, batch[PLACES].flatten())


def read(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
    """The last hidden states at the student's positions, (N, K), and where there are any, (N,); None: all."""
    inputs, places_N = text_of(batch)
    return gather(last_hidden(model, inputs).flatten(0, 1), places_N)


def gather(values_MK: Tensor, places_N: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Rows of the teacher's text put at the student's positions, (N, ...), and where there are any, (N,)."""
    if places_N is None:
        return values_MK, None
    return values_MK[places_N.clamp_min(0)], places_N >= 0


def hidden_signal(hidden_NK: Tensor, head: OutputHead) -> HiddenSignal:
    """The exact distribution: hidden states and what the head holds now, without a gradient."""
    return HiddenSignal(
        hidden_NK,
        head.weight_VH.detach(),
        bias=None if head.bias_V is None else head.bias_V.detach(),
        logit_scale=head.logit_scale,
        softcap=head.softcap,
    )


@contextmanager
def as_teacher(model: nn.Module) -> Iterator[None]:
    """Let a model that is in training speak: evaluation mode and no gradient. Everything is as it was afterwards.

    Autocast's cache is off inside: it knows a weight by the tensor that holds it, not by what is in it, so that the
    student's own weights would answer in place of an average's, and what is cached here would reach the student
    without a gradient.
    """
    modes = [(module, module.training) for module in model.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    device = next(model.parameters()).device.type
    autocast = torch.autocast(
        device,
        dtype=torch.get_autocast_dtype(device),
        enabled=torch.is_autocast_enabled(device),
        cache_enabled=False,
    )
    model.eval()
    try:
        with torch.no_grad(), autocast:
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, wanted in trained:
            parameter.requires_grad_(wanted)


def trained_positions(batch: Mapping[str, Any]) -> Tensor:
    """The positions whose next token is trained, (B, L)."""
    return F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED) != IGNORED


def packed_rows(position_ids_BL: Tensor) -> list[list[PackedRow]]:
    """The rows of text in each row of a batch, in order; padding at the end is one more, never trained."""
    found = []
    for number, position_ids_L in enumerate(position_ids_BL.tolist()):
        starts = [place for place, position in enumerate(position_ids_L) if place == 0 or position == 0]
        ends = [*starts[1:], len(position_ids_L)]
        found.append([PackedRow(number, first, end) for first, end in zip(starts, ends, strict=True)])
    return found
