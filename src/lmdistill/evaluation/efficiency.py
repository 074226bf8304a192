"""How large and how fast a model is on this machine, in the number format in which it is loaded."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch
from transformers import PreTrainedModel

from lmdistill.errors import ModelError
from lmdistill.evaluation.decoding import decode_greedily, speed_prompt
from lmdistill.evaluation.results import Efficiency
from lmdistill.models import count_parameters, quiet_transformers
from lmdistill.recipe import SpeedSpec


def measure_efficiency(model: PreTrainedModel, spec: SpeedSpec) -> Efficiency:
    """Parameters, bytes, tokens/s (medians) and the peak memory of a fresh process that uses the model."""
    prefill, decode = _speed(model, spec)
    plain: Any = model
    table, head = plain.get_input_embeddings().weight, plain.get_output_embeddings().weight
    parameters = list(model.parameters())
    return Efficiency(
        parameters=count_parameters(model),
        embedding_parameters=table.numel() + (0 if head is table else head.numel()),
        bytes=sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        prefill_tokens_per_second=prefill,
        decode_tokens_per_second=decode,
        peak_memory_bytes=peak_memory(model, spec),
        dtype=str(parameters[0].dtype).removeprefix("torch."),
    )


def peak_memory(model: PreTrainedModel, spec: SpeedSpec) -> int:
    """Peak resident bytes of a process of its own that loads these weights and generates as in the speed test."""
    with tempfile.TemporaryDirectory() as folder:
        with quiet_transformers():
            model.save_pretrained(folder)
        command = [sys.executable, "-m", "lmdistill.evaluation.memory_probe", folder]
        command += [str(spec.prompt_tokens), str(spec.new_tokens), str(model.dtype).removeprefix("torch.")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"
        raise ModelError(f"the process that measures memory failed: {last}")
    return int(done.stdout.split()[-1])


def _speed(model: PreTrainedModel, spec: SpeedSpec) -> tuple[float, float]:
    """Prompt tokens read and new tokens written a second; batch of one, greedy, with a key-value cache."""
    prompt = speed_prompt(model, spec)
    prefill, decode = [], []
    for repeat in range(spec.repeats + 1):
        start = _now(model.device)
        tokens = decode_greedily(model, prompt, spec.new_tokens)
        next(tokens)
        middle = _now(model.device)
        for _ in tokens:
            pass
        end = _now(model.device)
        if repeat:  # the first one warms up
            prefill.append(prompt.shape[1] / (middle - start))
            decode.append(spec.new_tokens / (end - middle))
    return statistics.median(prefill), statistics.median(decode)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
