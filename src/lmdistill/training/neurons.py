"""The MLP neurons of each block: which slices of which parameters they are, and how to leave some of them out.

Shape legend: I neurons of a block, k those that stay.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lmdistill.errors import ModelError
from lmdistill.training.anatomy import bare, blocks_of

_AXES = (
    (r"(^|\.)mlp\.(gate_proj|up_proj|fc1)\.(weight|bias)$", 0),
    (r"(^|\.)mlp\.(down_proj|fc2)\.weight$", 1),
    (r"(^|\.)mlp\.c_fc\.weight$", 1),  # GPT-2's matrices are transposed
    (r"(^|\.)mlp\.c_fc\.bias$", 0),
    (r"(^|\.)mlp\.c_proj\.weight$", 0),
    (r"(^|\.)intermediate\.dense\.(weight|bias)$", 0),
    (r"(^|\.)(?<!attention\.)output\.dense\.weight$", 1),
    (r"(^|\.)ffn\.lin1\.(weight|bias)$", 0),
    (r"(^|\.)ffn\.lin2\.weight$", 1),
)
_SIZES = ("intermediate_size", "n_inner", "hidden_dim")
"""What configurations call the number of neurons."""


def neuron_axes(block: nn.Module) -> dict[str, int]:
    """The parameters of a block that hold neurons, and along which dimension. Raises ModelError where none is known."""
    found = {}
    for name, _ in block.named_parameters():
        axis = next((axis for pattern, axis in _AXES if re.search(pattern, name)), None)
        if axis is not None:
            found[name] = axis
    if len(found) < 2:
        raise ModelError(
            f"pruning does not know the neurons of a {type(block).__name__}; it knows the MLPs of Llama-, Qwen-, "
            "Gemma-, GPT-2-, BERT-, DistilBERT- and ViT-type models"
        )
    return found


def neuron_count(block: nn.Module) -> int:
    """I of a block."""
    name, axis = next(iter(neuron_axes(block).items()))
    return int(block.get_parameter(name).shape[axis])


@torch.no_grad()
def narrow_neurons(model: nn.Module, kept: Sequence[Tensor]) -> None:
    """Leave each block of a model these neurons alone, as many in each, in place; the configuration says so afterwards.

    Raises ModelError where the numbers differ or the configuration does not say how many neurons there are.
    """
    inner: Any = bare(model)
    counts, blocks = {len(numbers_k) for numbers_k in kept}, blocks_of(inner)
    if len(counts) != 1 or len(kept) != len(blocks):
        raise ModelError(f"{sorted(counts)} neurons in {len(kept)} blocks; each of {len(blocks)} must keep as many")
    config = getattr(inner, "config", None)
    name = next((name for name in _SIZES if hasattr(config, name)), None)
    if name is None:
        raise ModelError(f"the configuration of {type(inner).__name__} does not say how many neurons a block has")
    for block, numbers_k in zip(blocks, kept, strict=True):
        for path, axis in neuron_axes(block).items():
            owner, _, last = path.rpartition(".")
            module: Any = block.get_submodule(owner)
            weight = getattr(module, last)
            setattr(module, last, nn.Parameter(weight.index_select(axis, numbers_k.to(weight.device))))
            _tell_sizes(module)
    setattr(config, name, counts.pop())


def _tell_sizes(module: Any) -> None:
    """What a matrix says of its own size."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif hasattr(module, "nf"):  # GPT-2's
        module.nf = module.weight.shape[1]
