"""Steps of AdamW, as both models of retrieval take them. Dropout stays off: a run can be repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def adamw_steps(
    parameters: Iterable[nn.Parameter],
    loss_of_step: Callable[[], Tensor],
    *,
    steps: int,
    learning_rate: float,
    told: Callable[[int, float], None],
) -> list[float]:
    """Minimise what `loss_of_step` gives at each step, without weight decay; the losses. `told` hears of each."""
    optimiser = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    losses: list[float] = []
    for step in range(steps):
        loss = loss_of_step()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
        told(step, losses[-1])
    return losses
