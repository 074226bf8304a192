"""The peer's side of benchmarks/encoders.py: TinyBERT-type steps by TextBrewer; runs in .venv-textbrewer.

    python benchmarks/encoders_textbrewer.py FOLDER MODE THREADS        (float32 | autocast | autocast-fused)

Reads `teacher`, `student` (transformers models) and `batches.json` from the folder; for each line `go` on its standard
input it takes one step and answers with its seconds.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig
from transformers import AutoModelForSequenceClassification


def main() -> None:
    """Take steps on demand."""
    folder, mode = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(int(sys.argv[3]))
    settings = json.loads((folder / "batches.json").read_text())
    teacher, student = (
        AutoModelForSequenceClassification.from_pretrained(
            folder / name, attn_implementation="eager", output_hidden_states=True, output_attentions=True
        )
        for name in ("teacher", "student")
    )
    distiller = GeneralDistiller(
        TrainingConfig(device=torch.device("cpu"), output_dir=str(folder / "saved")),
        DistillationConfig(
            temperature=1,
            hard_label_weight=0,
            kd_loss_type="ce",
            intermediate_matches=matches(settings["pairs"], settings["widths"]),
        ),
        teacher,
        student,
        adaptor,
        adaptor,
    )
    parameters = [
        *student.parameters(),
        *(p for proj in distiller.projs if proj is not None for p in proj.parameters()),
    ]
    optimiser = torch.optim.AdamW(parameters, lr=1e-4, fused=mode.endswith("fused"))
    batches = [{name: torch.tensor(value) for name, value in batch.items()} for batch in settings["batches"]]
    amp: Any = torch.autocast("cpu", torch.bfloat16) if mode.startswith("autocast") else contextlib.nullcontext()
    teacher.eval()
    student.train()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for number, _ in enumerate(sys.stdin):
        start, cpu = time.perf_counter(), time.process_time()
        with amp:
            loss, _ = distiller.train_on_batch(batches[number % len(batches)], {})
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        sys.stdout.write(
            json.dumps([time.perf_counter() - start, time.process_time() - cpu, float(loss.detach())]) + "\n"
        )
        sys.stdout.flush()


def matches(pairs: list[list[int]], widths: list[int]) -> list[dict[str, Any]]:
    """Hidden states (embeddings among them) through a linear map, and attention of each pair of layers."""
    found: list[dict[str, Any]] = []
    for own, other in pairs:
        layers = {"layer_T": other, "layer_S": own}
        proj = ["linear", *widths]
        found.append({**layers, "feature": "hidden", "loss": "hidden_mse", "weight": 1, "proj": proj})
        if own > 0:
            places = {"layer_T": other - 1, "layer_S": own - 1}
            found.append({**places, "feature": "attention", "loss": "attention_mse", "weight": 1})
    return found


def adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
    """What TextBrewer compares."""
    return {
        "logits": outputs.logits,
        "hidden": outputs.hidden_states,
        "attention": outputs.attentions,
        "inputs_mask": batch["attention_mask"],
    }


if __name__ == "__main__":
    main()
