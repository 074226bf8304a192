"""What a run cost: tokens, floating-point operations and minutes by stage, and on what machine."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from pydantic import BaseModel, ConfigDict
from torch import nn


class StageCost(BaseModel):
    """One stage of a run."""

    model_config = ConfigDict(extra="forbid")

    name: str
    seconds: float
    tokens: int = 0
    """Tokens that went through the student, or that the teacher wrote."""
    flops: float = 0.0
    """Floating-point operations of the matrix products, student and teacher together."""
    skipped: bool = False
    """Whether an earlier run of the same recipe had done it; its cost then counts as that run's."""


class Accounting(BaseModel):
    """All stages and the machine."""

    model_config = ConfigDict(extra="forbid")

    stages: list[StageCost]
    machine: dict[str, Any]


def forward_flops(model: nn.Module, tokens: int, context_length: int) -> float:
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


def describe_machine(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Processor, cores, memory and versions."""
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "accelerator": accelerator,
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "lmdistill": version("lmdistill"),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
