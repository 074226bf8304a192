"""Several teachers: each row spoken of by the one that it names, or each token by all of them at once.

Shape legend: B batch, L length, N = B * L positions, n of a part of the batch, T teachers, K hidden of one teacher, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lmdistill.errors import DataError, ModelError
from lmdistill.models import OutputHead
from lmdistill.objectives.rows import LogitsView
from lmdistill.objectives.weights import student_entropy
from lmdistill.signals.types import HiddenSignal, Signal
from lmdistill.teachers.base import Part, Speech, Teacher
from lmdistill.teachers.local import LocalTeacher
from lmdistill.teachers.reading import IDS, PLACES, packed_rows, trained_positions

COLUMN = "teacher"
"""Column of a batch that names the teacher of each packed row, a list for each row of the batch."""

Gating = Literal["none", "confidence", "most_confident"]


class RoutedTeachers:
    """Each packed row is spoken of by the teacher that the column `teacher` names."""

    def __init__(self, teachers: Mapping[str, Teacher]) -> None:
        self.teachers = dict(teachers)

    def speak(self, batch: Mapping[str, Any]) -> Speech:
        """One part for each teacher that is needed; each reads only the rows of the batch that name it.

        Nothing is said of rows in which nothing is trained. Raises DataError for a missing or unknown name.
        """
        owned = self._owned(batch)
        positions = batch["input_ids"].numel()
        parts: list[Part] = []
        for name, mask_BL in owned.items():
            rows_b = mask_BL.any(1).nonzero()[:, 0]
            speech = self.teachers[name].speak(_rows_of_batch(batch, rows_b))
            index_n = torch.arange(positions, device=mask_BL.device).view(mask_BL.shape)[rows_b].flatten()
            for part in speech.parts:
                mask_n = mask_BL[rows_b].flatten()
                mask_n = mask_n if part.mask_N is None else mask_n & part.mask_N
                parts.append(_spread(Part(part.signal, mask_n), index_n, positions))
        return Speech(tuple(parts))

    def _owned(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The trained positions of each teacher's rows, (B, L)."""
        if COLUMN not in batch:
            raise DataError(f"the data have no column {COLUMN!r}, by which rows choose among {self._known()}; add it")
        trained_BL = trained_positions(batch)
        owned: dict[str, Tensor] = {}
        for number, rows in enumerate(packed_rows(batch["position_ids"])):
            names = batch[COLUMN][number]
            for place, row in enumerate(rows):
                wanted_L = trained_BL[number, row.first : row.end]
                if not bool(wanted_L.any()):
                    continue
                name = names[place] if place < len(names) else None
                if name not in self.teachers:
                    raise DataError(
                        f"{_row_name(batch, number, place)}: its {COLUMN} is {name!r}; known are {self._known()}"
                    )
                mask_BL = owned.setdefault(name, torch.zeros_like(trained_BL))
                mask_BL[number, row.first : row.end] = wanted_L
        return owned

    def _known(self) -> str:
        return ", ".join(sorted(self.teachers))


class MixedTeachers:
    """All teachers at once: log p is, up to a constant, the weighted mean of their log-probabilities.

    Where logits are linear in the hidden state, so is that mixture: sum_i w_i (s_i (h_i W_i + b_i)) is one product of
    the hidden states w_i s_i [h_i, 1] side by side with the heads [W_i, b_i] side by side. So the mixture is a
    `HiddenSignal` like any other, exact, for every divergence; weights may differ from token to token.
    """

    def __init__(
        self,
        teachers: Sequence[LocalTeacher],
        weights: Sequence[float] | None = None,
        *,
        gating: Gating = "none",
        gating_temperature: float = 1.0,
        compiled: bool = True,
    ) -> None:
        """`weights` count relative to their sum; alike where absent.

        `gating="confidence"`: at each token the weights are multiplied by exp(-entropy / gating_temperature), entropy
        in nats; `most_confident`: the teacher of the lowest entropy speaks alone.

        Raises ModelError for teachers of different vocabularies, or with soft-capped logits, which are not linear;
        ValueError for weights that are no weights.
        """
        weights = list(weights) if weights is not None else [1.0] * len(teachers)
        if not teachers or len(weights) != len(teachers) or min(weights) < 0 or sum(weights) <= 0:
            raise ValueError(f"{len(teachers)} teachers with weights {weights}; give each one of at least 0, not all 0")
        if not gating_temperature > 0:
            raise ValueError(f"gating_temperature = {gating_temperature} must be above 0")
        _check_heads([teacher.head for teacher in teachers])
        # One that has no weight in any gating needs not read.
        pairs = [(teacher, weight) for teacher, weight in zip(teachers, weights, strict=True) if weight > 0]
        self.teachers = [teacher for teacher, _ in pairs]
        self.weights = [weight / sum(weights) for _, weight in pairs]
        self.gating = gating
        self.gating_temperature = gating_temperature
        self.compiled = compiled
        self.head_VK = _side_by_side([teacher.head for teacher in self.teachers])
        """The heads and biases of all teachers side by side, made once."""

    @torch.no_grad()
    def speak(self, batch: Mapping[str, Any]) -> Speech:
        """The exact mixture at all positions; there is no one hidden state behind it."""
        told = [teacher.speak(batch).parts[0] for teacher in self.teachers]
        hidden = [_hidden(part.signal).to(self.head_VK.device) for part in told]
        # Masks say where the batch's own text for teachers speaks, and that is the same for all.
        mask_N = told[0].mask_N
        weight_NT = self._weights(batch, hidden)
        scaled = [
            _scaled(hidden_NK, teacher.head, weight_NT[:, place : place + 1])
            for place, (hidden_NK, teacher) in enumerate(zip(hidden, self.teachers, strict=True))
        ]
        return Speech((Part(HiddenSignal(torch.cat(scaled, 1), self.head_VK), mask_N),))

    def _weights(self, batch: Mapping[str, Any], hidden: Sequence[Tensor]) -> Tensor:
        """The teachers' weights at each position, (N, T); they sum to 1."""
        wide = torch.promote_types(hidden[0].dtype, torch.float32)
        weight_T = torch.tensor(self.weights, dtype=wide, device=self.head_VK.device)
        if self.gating == "none":
            return weight_T.expand(len(hidden[0]), -1)
        trained_N = trained_positions(batch).flatten()
        entropy_NT = torch.stack(
            [
                student_entropy(
                    hidden_NK,
                    teacher.head.weight_VH[: teacher.head.vocabulary_size],
                    trained_N,
                    bias_V=_real(teacher.head.bias_V, teacher.head),
                    view=LogitsView(teacher.head.logit_scale),
                    compiled=self.compiled,
                )
                for hidden_NK, teacher in zip(hidden, self.teachers, strict=True)
            ],
            1,
        ).to(wide)
        if self.gating == "most_confident":
            return torch.nn.functional.one_hot(entropy_NT.argmin(1), len(self.teachers)).to(wide)
        return (weight_T.log() - entropy_NT / self.gating_temperature).softmax(1)


def _check_heads(heads: Sequence[OutputHead]) -> None:
    sizes = [head.vocabulary_size for head in heads]
    if len(set(sizes)) > 1:
        raise ModelError(
            f"the teachers' vocabularies have {' and '.join(map(str, sorted(set(sizes))))} ids; a mixture needs "
            "teachers of one tokenizer: leave out those of another one"
        )
    for head in heads:
        if head.weight_VH.shape[0] < sizes[0]:
            raise ModelError(f"a teacher's head has {head.weight_VH.shape[0]} rows, but the vocabulary {sizes[0]} ids")
        if head.softcap is not None:
            raise ModelError(
                f"a teacher soft-caps its logits at {head.softcap}: they are not linear in its hidden state, so that "
                "the mixture has no hidden state; route rows to it (routed) instead"
            )


def _side_by_side(heads: Sequence[OutputHead]) -> Tensor:
    """Heads of real ids, (V, sum of K), each followed by its bias where it has one."""
    dtype, device = heads[0].weight_VH.dtype, heads[0].weight_VH.device
    for head in heads:
        dtype = torch.promote_types(dtype, head.weight_VH.dtype)
    columns = []
    for head in heads:
        columns.append(head.weight_VH[: head.vocabulary_size].detach())
        bias_V = _real(head.bias_V, head)
        if bias_V is not None:
            columns.append(bias_V.detach()[:, None])
    return torch.cat([column.to(device, dtype) for column in columns], 1)


def _real(bias_V: Tensor | None, head: OutputHead) -> Tensor | None:
    return None if bias_V is None else bias_V[: head.vocabulary_size]


def _scaled(hidden_NK: Tensor, head: OutputHead, weight_N1: Tensor) -> Tensor:
    """A teacher's share of the mixture's hidden state, (N, K), and 1 for its bias where it has one, both weighted."""
    factor_N1 = weight_N1 * head.logit_scale
    scaled_NK = hidden_NK * factor_N1
    return scaled_NK if head.bias_V is None else torch.cat([scaled_NK, factor_N1], 1)


def _hidden(signal: Signal) -> Tensor:
    assert isinstance(signal, HiddenSignal)
    return signal.hidden_NK


def _rows_of_batch(batch: Mapping[str, Any], rows_b: Tensor) -> dict[str, Any]:
    """Some rows of a batch; places in the teacher's text are counted anew."""
    count = len(batch["input_ids"])
    if len(rows_b) == count:
        return dict(batch)
    found = {name: _picked(value, rows_b, count) for name, value in batch.items()}
    if PLACES in batch:
        width = batch[IDS].shape[1]
        moved_b1 = (torch.arange(len(rows_b), device=rows_b.device) - rows_b)[:, None] * width
        found[PLACES] = torch.where(found[PLACES] < 0, -1, found[PLACES] + moved_b1)
    return found


def _picked(value: Any, rows_b: Tensor, count: int) -> Any:
    if isinstance(value, Tensor):
        return value[rows_b] if value.ndim and len(value) == count else value
    if isinstance(value, Mapping):
        return {name: _picked(item, rows_b, count) for name, item in value.items()}
    if isinstance(value, list) and len(value) == count:
        return [value[row] for row in rows_b.tolist()]
    return value


def _spread(part: Part, index_n: Tensor, positions: int) -> Part:
    """A part that speaks of some rows as one of the whole batch."""
    if len(index_n) == positions:
        return part
    whole = {}
    for field in fields(part.signal):
        value = getattr(part.signal, field.name)
        if "_N" in field.name and value is not None:
            whole[field.name] = value.new_zeros(positions, *value.shape[1:]).index_copy_(0, index_n, value)
    mask_N = torch.zeros(positions, dtype=torch.bool, device=index_n.device)
    if part.mask_N is not None:
        mask_N[index_n] = part.mask_N
    return Part(replace(part.signal, **whole), mask_N)


def _row_name(batch: Mapping[str, Any], number: int, place: int) -> str:
    names = batch.get("row_ids")
    return str(names[number][place]) if names is not None and place < len(names[number]) else f"row {number}.{place}"
