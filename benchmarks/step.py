"""Whole training steps side by side, in one run: what the loss costs once a model is around it.

    .venv/bin/python benchmarks/step.py [--json FILE] [--batch 4] [--length 256] [--repeats 5]

One step is the student's forward and backward pass, the teacher's forward pass where there is one, and AdamW, on
SmolLM2's shapes (random weights: speed does not depend on them): a teacher of 30 layers, a student of 12. Cases:

    no head     the same step with the mean of the student's last hidden state for a loss (teacher included)
    ours        forward KL through lmdistill's engine
    naive       forward KL on the full logits of both models, as one would write it
    sft         cross-entropy alone through the engine, no teacher

Cases take turns, so that a drift of the machine's speed hits all alike; medians of seconds and of ratios are printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lmdistill.models import last_hidden, output_head
from lmdistill.objectives import distillation_loss
from lmdistill.signals import HiddenSignal


def make(layers: int, dtype: torch.dtype) -> LlamaForCausalLM:
    """SmolLM2-135M's shape with another depth."""
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).to(dtype)


def cases(batch: int, length: int) -> dict[str, Callable[[], None]]:
    """One function a case, each a whole step on the same models and tokens."""
    torch.manual_seed(0)
    teacher, student = make(30, torch.bfloat16).eval(), make(12, torch.float32)
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(0, 49152, (batch, length))
    inputs, labels = {"input_ids": ids}, torch.randint(0, 49152, (batch * length,))

    def student_hidden() -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return last_hidden(student, inputs).flatten(0, 1)

    def teacher_hidden() -> torch.Tensor:
        with torch.no_grad():
            return last_hidden(teacher, inputs).flatten(0, 1)

    def finish(loss: torch.Tensor) -> None:
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    def no_head() -> None:
        teacher_hidden()
        finish(student_hidden().float().mean())

    def ours() -> None:
        signal = HiddenSignal(teacher_hidden(), teacher.lm_head.weight)
        head = output_head(student).weight_VH
        finish(distillation_loss(student_hidden(), head, signal, compute_dtype=torch.bfloat16).loss)

    def naive() -> None:
        hidden = student_hidden()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            student_logits = student.lm_head(hidden)
        with torch.no_grad():
            teacher_logits = teacher.lm_head(teacher_hidden())
        log_s, log_t = student_logits.float().log_softmax(-1), teacher_logits.float().log_softmax(-1)
        finish((log_t.exp() * (log_t - log_s)).sum(-1).mean())

    def sft() -> None:
        head = output_head(student).weight_VH
        finish(
            distillation_loss(
                student_hidden(), head, None, labels_N=labels, label_weight=1.0, compute_dtype=torch.bfloat16
            ).loss
        )

    return {"no head": no_head, "ours": ours, "naive": naive, "sft": sft}


def main() -> None:
    """Time the cases in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    steps = cases(arguments.batch, arguments.length)
    for step in steps.values():
        step()  # compiles, and lets the optimiser make its state
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(arguments.repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    tokens = arguments.batch * arguments.length
    rows = []
    for name, taken in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(seconds["ours"], taken, strict=True))
        rows.append({"case": name, "seconds": statistics.median(taken), "ours / this": ratio})
        middle = statistics.median(taken)
        print(f"{name:10s} {middle:8.3f} s {tokens / middle:8.0f} tokens/s   ours / this {ratio:.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows, "tokens": tokens}, indent=1))


if __name__ == "__main__":
    main()
