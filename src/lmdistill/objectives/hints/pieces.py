"""Sums over many rows, a piece at a time; and the number format in which hints are computed.

Shape legend: n rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

NUMBERS = 2**24
"""Numbers of one temporary tensor; more are taken in pieces (64 MiB in float32)."""


def wide(values: Tensor) -> Tensor:
    """Values in at least float32: squares and sums of 16-bit numbers would lose what distances are made of."""
    return values if values.dtype == torch.float64 else values.float()


def exact(values: Tensor) -> Any:
    """A context without autocast, which would multiply matrices of float32 in 16 bits."""
    return torch.autocast(values.device.type, enabled=False)


def piecewise_sum(
    function: Callable[..., Tensor], student_n: Tensor, *others_n: Tensor, numbers_a_row: int, limit: int | None = None
) -> Tensor:
    """The sum of `function(student, *others)` over pieces of the first dimension; gradient for the student alone.

    `function` returns the sum over the rows that it is given, as a scalar. What fits is one call, which autograd
    follows as usual (twice, too). What does not is taken in pieces, each with its gradient at once, so that no more
    than a piece of the temporary tensors and a gradient of the student's size exist.
    """
    rows = max(1, (limit or NUMBERS) // max(1, numbers_a_row))
    if len(student_n) <= rows:
        return function(student_n, *others_n)
    pieces: Any = _Pieces
    return cast(Tensor, pieces.apply(function, rows, student_n, *others_n))


class _Pieces(torch.autograd.Function):
    """A sum whose gradient is found in the forward pass."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], rows: int, student_n: Tensor, *others_n: Tensor) -> Tensor:
        wanted = ctx.needs_input_grad[2]
        total = student_n.new_zeros((), dtype=torch.float64)
        gradient_n = torch.empty_like(student_n) if wanted else None
        for first in range(0, len(student_n), rows):
            place = slice(first, first + rows)
            piece_n = student_n[place].detach().requires_grad_(wanted)
            with torch.set_grad_enabled(wanted), exact(student_n):
                value = function(piece_n, *(other_n[place] for other_n in others_n))
            if gradient_n is not None:
                (gradient_n[place],) = torch.autograd.grad(value, piece_n)
            total += value.detach()
        if gradient_n is not None:
            ctx.save_for_backward(gradient_n)
        return total.to(value.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:
        none = (None,) * (len(ctx.needs_input_grad) - 3)
        if not ctx.needs_input_grad[2]:
            return (None, None, None, *none)
        (gradient_n,) = ctx.saved_tensors
        return (None, None, (gradient_n * above[0]).to(gradient_n.dtype), *none)
