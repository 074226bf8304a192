"""Learnt maps between the widths of two models: trained with the student, saved apart, never part of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lmdistill.recipe import ProjectorSpec


def make_projector(spec: ProjectorSpec, given: int, wanted: int) -> nn.Module:
    """A map from vectors of width `given` to width `wanted`, in float32, drawn from torch's present random state.

    `linear` W x + b, the identity at first where widths are equal (TinyBERT's W_h has no bias in the paper and one in
    the code); `orthogonal` a matrix whose rows (or columns, where it widens) stay orthonormal, so that lengths and
    angles of what it keeps are kept; `low_rank` U V x + b; `mlp` two layers with GELU between them.
    """
    if spec.kind == "linear":
        made = nn.Linear(given, wanted, bias=spec.bias)
        if given == wanted:  # a student cut from its teacher is near it already
            nn.init.eye_(made.weight)
            if spec.bias:
                nn.init.zeros_(made.bias)
        return made
    if spec.kind == "orthogonal":
        return parametrizations.orthogonal(nn.Linear(given, wanted, bias=False))
    if spec.kind == "low_rank":
        rank = spec.rank or max(1, min(given, wanted) // 4)
        return nn.Sequential(nn.Linear(given, rank, bias=False), nn.Linear(rank, wanted, bias=spec.bias))
    width = spec.width or max(given, wanted)
    return nn.Sequential(nn.Linear(given, width, bias=spec.bias), nn.GELU(), nn.Linear(width, wanted, bias=spec.bias))


def project(projector: nn.Module, states: Tensor) -> Tensor:
    """What a projector makes of states of any leading shape, in its own number format or autocast's."""
    weight = next(projector.parameters())
    found: Tensor = projector(states if torch.is_autocast_enabled(states.device.type) else states.to(weight.dtype))
    return found
