"""Run as a process of its own: load a model, read a prompt, write some tokens, print the peak resident bytes.

python -m lmdistill.evaluation.memory_probe FOLDER PROMPT_TOKENS NEW_TOKENS DTYPE
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

from lmdistill.evaluation.decoding import decode_greedily, speed_prompt
from lmdistill.models import load_model
from lmdistill.recipe import ModelSpec, SpeedSpec


def main(folder: str, prompt_tokens: int, new_tokens: int, dtype: str) -> int:
    """The peak resident memory of this process in bytes."""
    spec = SpeedSpec(prompt_tokens=prompt_tokens, new_tokens=new_tokens)
    model = load_model(ModelSpec(model=folder), dtype=getattr(torch, dtype), device=torch.device("cpu"))
    for _ in decode_greedily(model, speed_prompt(model, spec), spec.new_tokens):
        pass
    return _peak()


def _peak() -> int:
    # Linux counts the memory of the process that started this one into ru_maxrss; VmHWM begins anew with exec.
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes elsewhere, bytes on macOS


if __name__ == "__main__":
    sys.stdout.write(f"{main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])}\n")
