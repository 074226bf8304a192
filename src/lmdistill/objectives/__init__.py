"""The loss engine; depends on torch alone, so that it can be used inside any trainer."""

from lmdistill.objectives.chunked import LossParts, distillation_loss, divergence
from lmdistill.objectives.divergences import DIVERGENCES, Divergence, find_divergence

__all__ = ["DIVERGENCES", "Divergence", "LossParts", "distillation_loss", "divergence", "find_divergence"]
