"""The matrix products of a chunk, and what is done with the gradients that they give. Depends on torch alone.

Shape legend: N tokens, n tokens of one chunk, V vocabulary, H hidden, r rows of one block.
"""

from __future__ import annotations

import torch
from torch import Tensor


def project(hidden_nH: Tensor, head_VH: Tensor, bias_V: Tensor | None, out_nV: Tensor) -> None:
    """Raw outputs of a head for a chunk, into a buffer."""
    torch.mm(hidden_nH, head_VH.t(), out=out_nV)
    if bias_V is not None:
        out_nV += bias_V


def add_product(total_VH: Tensor, gradient_nV: Tensor, hidden_nH: Tensor, factor: float, keep: bool) -> None:
    """total = factor * gradient.T @ hidden [+ total]; by blocks where the sum is more precise than the product."""
    if total_VH.dtype == gradient_nV.dtype:
        total_VH.addmm_(gradient_nV.t(), hidden_nH, alpha=factor, beta=1 if keep else 0)
        return
    for first in range(0, len(total_VH), 16384):
        rows = slice(first, first + 16384)
        product_rH = gradient_nV[:, rows].t() @ hidden_nH
        total_VH[rows] = product_rH.to(total_VH.dtype).mul_(factor).add_(total_VH[rows] if keep else 0)


def product_dtype(hidden_NH: Tensor) -> torch.dtype:
    """The precision of the products: autocast's where it is on, else that of the hidden states."""
    kind = hidden_NH.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return hidden_NH.dtype


def graph_is_kept() -> bool:
    """Whether the running backward pass was called with retain_graph=True."""
    ask = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return True if ask is None else bool(ask())


def scaled(gradient: Tensor | None, factor: Tensor, in_place: bool) -> Tensor | None:
    """A gradient times the one from outside, in the same buffer where nobody else will want it."""
    if gradient is None or not in_place:
        return None if gradient is None else gradient * factor
    if factor.device.type == "cpu" and factor.item() == 1.0:
        return gradient
    return gradient.mul_(factor)
