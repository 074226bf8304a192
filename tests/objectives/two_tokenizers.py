"""Small problems of two models over two vocabularies, and their losses by definition, in float64 with autograd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmdistill.objectives.alignment import Alignment, align_spans
from lmdistill.objectives.grouped import GroupLoss
from lmdistill.signals import HiddenSignal


@dataclass(frozen=True)
class Pair:
    """Student and teacher over tokens of their own, in float64."""

    hidden_NH: Tensor
    head_VH: Tensor
    bias_V: Tensor | None
    ids_N: Tensor
    teacher: HiddenSignal
    teacher_ids_M: Tensor
    alignment: Alignment
    logit_scale: float = 1.0
    softcap: float | None = None
    vocab_size: int | None = None
    teacher_vocab_size: int | None = None

    @property
    def view(self) -> dict[str, Any]:
        """How the student's head is read."""
        return {"logit_scale": self.logit_scale, "softcap": self.softcap, "vocab_size": self.vocab_size}

    def student_logits(self, hidden_NH: Tensor, head_VH: Tensor, bias_V: Tensor | None) -> Tensor:
        """By definition, (N, V)."""
        return logits(hidden_NH, head_VH, bias_V, self.logit_scale, self.softcap)[:, : self.vocab_size]

    @property
    def teacher_logits(self) -> Tensor:
        """By definition, (M, U)."""
        signal = self.teacher
        found = logits(signal.hidden_NK, signal.head_VK, signal.bias, signal.logit_scale, signal.softcap)
        return found[:, : self.teacher_vocab_size]


def logits(hidden: Tensor, head: Tensor, bias: Tensor | None, scale: float, softcap: float | None) -> Tensor:
    """softcap * tanh(scale * (hidden @ head.T + bias) / softcap)."""
    z = hidden @ head.T
    if bias is not None:
        z = z + bias
    z = z * scale
    return z if softcap is None else softcap * torch.tanh(z / softcap)


# Bytes of tokens: groups of 1-1, 2-1, 1-2, 2-3, 1-1 and 3-1 tokens behind a first token on either side.
STUDENT_BYTES, TEACHER_BYTES = [1, 2, 1, 1, 4, 3, 2, 3, 1, 1, 1], [1, 2, 2, 1, 3, 1, 3, 1, 3, 3]


def make_pair(seed: int = 0, *, plain: bool = True, v: int = 11, u: int = 17) -> Pair:
    """A random problem; not plain: with biases, scales, caps and padded rows on either side."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    n, m = len(STUDENT_BYTES), len(TEACHER_BYTES)
    student_bytes, teacher_bytes = torch.tensor(STUDENT_BYTES), torch.tensor(TEACHER_BYTES)
    alignment = align_spans(student_bytes, teacher_bytes)
    assert len(alignment) == 7
    real = (v, u) if plain else (v - 2, u - 3)
    return Pair(
        hidden_NH=normal(n, 5),
        head_VH=normal(v, 5) * 0.7,
        bias_V=None if plain else normal(v),
        ids_N=torch.randint(0, real[0], (n,), generator=g),
        teacher=HiddenSignal(normal(m, 4), normal(u, 4) * 0.7)
        if plain
        else HiddenSignal(normal(m, 4), normal(u, 4) * 0.7, bias=normal(u), logit_scale=1.3, softcap=6.0),
        teacher_ids_M=torch.randint(0, real[1], (m,), generator=g),
        alignment=alignment,
        logit_scale=1.0 if plain else 0.8,
        softcap=None if plain else 4.0,
        vocab_size=None if plain else real[0],
        teacher_vocab_size=None if plain else real[1],
    )


MASK = torch.tensor([False, True, True, False, True, True, True])
WEIGHT = torch.tensor([9.0, 0.5, 2.0, 9.0, 1.0, 0.25, 3.0], dtype=torch.float64)
ROW_LOSS = Callable[[Tensor, Tensor, tuple[int, int, int, int]], Tensor]


def by_definition(pair: Pair, group_loss: ROW_LOSS, *, mask: Tensor, weight: Tensor, num_items: float) -> list[Tensor]:
    """Loss, losses of groups, and gradients by hidden states, head and bias, over whole logits.

    `group_loss` gets the student's and the teacher's logits of all places and the ends of a group.
    """
    hidden = pair.hidden_NH.clone().requires_grad_()
    head = pair.head_VH.clone().requires_grad_()
    bias = None if pair.bias_V is None else pair.bias_V.clone().requires_grad_()
    student, teacher = pair.student_logits(hidden, head, bias), pair.teacher_logits
    losses = []
    a = pair.alignment
    for group in range(len(a)):
        ends = [int(side[group]) for side in (a.student_first_G, a.student_end_G, a.teacher_first_G, a.teacher_end_G)]
        one = group_loss(student, teacher, tuple(ends)) if mask[group] else student.new_zeros(())  # type: ignore[arg-type]
        losses.append(one * weight[group])
    loss = torch.stack(losses).sum() / num_items
    loss.backward()
    assert hidden.grad is not None
    assert head.grad is not None
    found = [loss.detach(), torch.stack(losses).detach(), hidden.grad, head.grad]
    return found if bias is None else [*found, bias.grad]  # type: ignore[list-item]


def outcome(pair: Pair, call: Callable[..., GroupLoss], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """The same of the code under test; `call` gets hidden states, head and bias."""
    hidden = pair.hidden_NH.to(dtype, copy=True).requires_grad_()
    head = pair.head_VH.to(dtype, copy=True).requires_grad_()
    bias = None if pair.bias_V is None else pair.bias_V.to(dtype, copy=True).requires_grad_()
    found = call(hidden, head, bias)
    found.loss.backward()
    assert hidden.grad is not None
    assert head.grad is not None
    made = [found.loss.detach(), found.group_loss_G, hidden.grad, head.grad]
    return made if bias is None else [*made, bias.grad]  # type: ignore[list-item]


def assert_equal(found: list[Tensor], expected: list[Tensor], rtol: float = 1e-9, atol: float = 1e-11) -> None:
    """Loss, losses of groups and all gradients."""
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=rtol, atol=atol)
