"""Floating-point operations, counted from the models' shapes.

A forward pass takes 2 operations for each weight of a matrix product and token, a backward pass twice as many (Kaplan
et al., 2001.08361, section 2.1: C = 6 N a token of training), to which the attention scores come.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.utils import logging as transformers_logging

BACKWARD = 2
"""Operations of a backward pass by those of its forward pass: gradients of inputs and of weights."""


def forward_flops(model: nn.Module, tokens: float, context_length: float) -> float:
    """Floating-point operations of a forward pass over `tokens` tokens in sequences of `context_length`.

    Two for each weight of a matrix product and token, the head included once and the input embedding not at all, plus
    the attention scores and their use: 4 x heads x head size x (positions attended to) for each layer and token, a
    causal pass attending to half of the context on average.
    """
    config: Any = model.config.get_text_config()  # type: ignore[union-attr, operator]
    table = model.get_input_embeddings().weight  # type: ignore[operator]
    head = model.get_output_embeddings().weight  # type: ignore[operator]
    inner = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and parameter is not table and parameter is not head and "wpe" not in name
    )
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    attention = 4 * config.num_hidden_layers * heads * head_size * (context_length / 2)
    return float(tokens * (2 * (inner + head.numel()) + attention))


def training_flops_of(model: nn.Module, tokens: float, context_length: float) -> float:
    """Forward and backward passes over `tokens` trained tokens."""
    return (1 + BACKWARD) * forward_flops(model, tokens, context_length)


def meta_model(config: PreTrainedConfig) -> nn.Module:
    """A model with this configuration whose weights have shapes and no memory."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it warns of generation settings that nobody asks for here
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    finally:
        transformers_logging.set_verbosity(verbosity)
    assert isinstance(model, nn.Module)
    return model
