"""What each hint weighs in the loss: a constant, a line over training, or by the size of its gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lmdistill.recipe import HintSpec


def scheduled_weight(spec: HintSpec, progress: float) -> float:
    """The weight at a share of training that is done, 0 to 1; for `gradient_magnitude` the ratio of gradients."""
    if spec.weight_schedule != "linear" or spec.weight_end is None:
        return spec.weight
    return spec.weight + (spec.weight_end - spec.weight) * min(1.0, max(0.0, progress))


def size_factor(rest: Tensor, value: Tensor) -> float:
    """What makes a hint as large as the rest of the loss (Minitron, 2407.14679, section 2.3); 1 where either is 0."""
    own, aim = float(value.detach()), float(rest.detach())
    return aim / own if own > 0 and aim > 0 else 1.0


def gradient_factors(rest: Tensor, hints: Mapping[str, Tensor], shared: Sequence[nn.Parameter]) -> dict[str, float]:
    """For each hint the factor that makes its gradient on shared parameters as long as that of the rest of the loss.

    After GradNorm (1711.02257), whose rates of training are left out: gradients are measured now and again and the
    factor stays between. Where the rest has no gradient there, the mean length over the hints takes its place. A hint
    without a gradient keeps the factor 1. Costs a backward pass for each hint and one for the rest, down to the shared
    parameters; none of them is added to `.grad`.
    """
    own = {name: _length(value, shared) for name, value in hints.items()}
    aim = _length(rest, shared)
    if aim == 0.0 and own:
        aim = sum(own.values()) / len(own)
    return {name: aim / length if length > 0 else 1.0 for name, length in own.items()}


def _length(loss: Tensor, shared: Sequence[nn.Parameter]) -> float:
    trained = [parameter for parameter in shared if parameter.requires_grad]
    if not loss.requires_grad or not trained:
        return 0.0
    gradients = torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True)
    found = [gradient for gradient in gradients if gradient is not None]
    return float(torch.nn.utils.get_total_norm(found)) if found else 0.0
