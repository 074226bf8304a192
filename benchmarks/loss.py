"""The loss engine against its matrix products, the naive loss and TRL's: time and peak memory, side by side.

    make bench-env                                             (once: .venv-trl with torch and trl)
    .venv-trl/bin/python benchmarks/loss.py                    (everything; about half an hour on 2 cores)
    .venv-trl/bin/python benchmarks/loss.py --only jsd --shapes smollm2 --json loss.json

What is timed is one loss with its gradients: hidden states and heads of both models in, d(hidden) and d(head) of the
student out. `products` is the least that can be: the student's and the teacher's projections, d(hidden) and d(head),
each as one matrix product. `naive` is what users write (benchmarks/naive.py). `trl` is the chunked divergence of TRL's
DistillationTrainer, called as its `_compute_loss` calls it. All four run in one process, in turn, and ratios are taken
within a turn; printed are their medians, because other work on the machine changes slowly compared with a turn.

Memory is the peak of the process (VmHWM) above that of a process that holds only the inputs and the student's
gradients: those exist in any training step. Each figure has a process of its own; libraries are loaded, and kernels
compiled on a small batch, in all of them, so that neither is counted.

Shape legend: N tokens, V vocabulary, H student hidden, K teacher hidden.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

import torch  # noqa: E402
from naive import NAIVE, naive_loss  # noqa: E402
from torch import Tensor  # noqa: E402

MIB = 2**20
# goal: (measure, peer or None for an absolute limit, at most or at least)
PRODUCTS_LIMIT, TRL_GOAL, NAIVE_GOAL, MEMORY_LIMIT = 1.15, 2.5, 1.2, 256 * MIB
TRL_BETA = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": 0.5}


@dataclass(frozen=True)
class Shape:
    """Sizes of one pair of models and a batch."""

    name: str
    tokens: int
    vocabulary: int
    student: int
    teacher: int


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("smollm2", 1024, 49152, 576, 576),
        Shape("qwen", 512, 151936, 896, 1536),
    )
}


@dataclass
class Inputs:
    """Hidden states and heads of both models; the student's are leaves."""

    student_NH: Tensor
    student_VH: Tensor
    teacher_NK: Tensor
    teacher_VK: Tensor

    @classmethod
    def random(cls, shape: Shape, tokens: int, dtype: torch.dtype) -> Inputs:
        """Logits with a spread of 4: entropies of two to three nats, as language models have."""
        g = torch.Generator().manual_seed(0)

        def pair(width: int) -> tuple[Tensor, Tensor]:
            hidden = torch.randn(tokens, width, generator=g, dtype=torch.float32).to(dtype)
            head = torch.empty(shape.vocabulary, width, dtype=dtype)
            for rows in head.split(8192):  # a float32 copy of a whole head would be in the peak
                rows.copy_(torch.randn(rows.shape, generator=g) * (4 / width**0.5))
            return hidden, head

        (student_NH, student_VH), (teacher_NK, teacher_VK) = pair(shape.student), pair(shape.teacher)
        return cls(student_NH.requires_grad_(), student_VH.requires_grad_(), teacher_NK, teacher_VK)

    def clear(self) -> None:
        """Drop the gradients."""
        self.student_NH.grad = self.student_VH.grad = None


def ours(kind: str, x: Inputs) -> float:
    """lmdistill's engine."""
    from lmdistill.objectives import divergence
    from lmdistill.signals import HiddenSignal

    loss = divergence(x.student_NH, x.student_VH, HiddenSignal(x.teacher_NK, x.teacher_VK), kind)
    loss.backward()
    return float(loss.detach())


def naive(kind: str, x: Inputs) -> float:
    """Whole logits and autograd."""
    loss = naive_loss(kind, x.student_NH, x.student_VH, x.teacher_NK, x.teacher_VK)
    loss.backward()
    return float(loss.detach())


def trl(kind: str, x: Inputs) -> float:
    """TRL's, as DistillationTrainer._compute_loss calls it: (1, N, H) hidden states and a mask of ones."""
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    mask = torch.ones(1, len(x.student_NH), dtype=torch.long)
    loss, _, _ = _chunked_divergence_loss(
        x.student_NH[None],
        x.teacher_NK[None],
        x.student_VH,
        x.teacher_VK,
        mask,
        TRL_BETA[kind],
        num_items_in_batch=mask.sum(),
    )
    loss.backward()
    return float(loss.detach())


class Products:
    """The four matrix products. Logits go into buffers that exist already; the gradients are new tensors, as always
    where an optimiser has set them to None.
    """

    def __init__(self, x: Inputs) -> None:
        self.student_NV = x.student_NH.new_empty(len(x.student_NH), len(x.student_VH))
        self.teacher_NV = torch.empty_like(self.student_NV)

    @torch.no_grad()
    def __call__(self, kind: str, x: Inputs) -> float:
        """All four; there is no loss to return."""
        torch.mm(x.student_NH, x.student_VH.T, out=self.student_NV)
        torch.mm(x.teacher_NK, x.teacher_VK.T, out=self.teacher_NV)
        x.student_NH.grad = self.student_NV @ x.student_VH
        x.student_VH.grad = self.student_NV.T @ x.student_NH
        return 0.0


CONTENDERS: dict[str, Callable[[str, Inputs], float]] = {"ours": ours, "naive": naive, "trl": trl}


def measure_time(shape: Shape, kinds: list[str], repeats: int, dtype: torch.dtype) -> dict[str, dict[str, list[float]]]:
    """Seconds of every turn: kind -> contender -> one entry a turn."""
    x = Inputs.random(shape, shape.tokens, dtype)
    products = Products(x)
    seconds: dict[str, dict[str, list[float]]] = {}
    for kind in kinds:
        entrants = {"products": products, **{n: f for n, f in CONTENDERS.items() if n != "trl" or kind in TRL_BETA}}
        losses = {}
        for name, contender in entrants.items():  # first calls compile
            x.clear()
            losses[name] = contender(kind, x)
        spread = max(abs(losses[name] / losses["naive"] - 1) for name in losses if name != "products")
        if spread > 0.05:
            raise SystemExit(f"{shape.name} {kind}: the losses differ, so the times mean nothing: {losses}")
        seconds[kind] = {name: [] for name in entrants}
        for _ in range(repeats):
            for name, contender in entrants.items():
                x.clear()
                gc.collect()
                started = time.perf_counter()
                contender(kind, x)
                seconds[kind][name].append(time.perf_counter() - started)
    return seconds


def measure_memory(shape: Shape, kind: str, contender: str, dtype: torch.dtype) -> int:
    """Peak bytes of this process with the inputs and either the gradients alone or one call."""
    for name in ("ours", "naive", *(["trl"] if kind in TRL_BETA else [])):
        CONTENDERS[name](kind, Inputs.random(shape, 112, dtype))  # enough rows to compile the kernels
    x = Inputs.random(shape, shape.tokens, dtype)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the warm-up left in the heap would hide what is used now
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is held now (man 5 proc)
    if contender == "inputs":
        x.student_NH.grad, x.student_VH.grad = torch.ones_like(x.student_NH), torch.ones_like(x.student_VH)
    else:
        CONTENDERS[contender](kind, x)
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def in_fresh_process(arguments: argparse.Namespace, **job: Any) -> Any:
    """Run a worker and return what it printed last."""
    command = [sys.executable, __file__, "--worker", json.dumps({**job, "dtype": arguments.dtype})]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the worker for {job} failed (exit code {done.returncode}); its message is above")
    return json.loads(done.stdout.splitlines()[-1])


def work(job: dict[str, Any]) -> Any:
    """The worker's side."""
    shape, dtype = Shape(**job["shape"]), getattr(torch, job["dtype"])
    if job["measure"] == "time":
        return measure_time(shape, job["kinds"], job["repeats"], dtype)
    return measure_memory(shape, job["kind"], job["contender"], dtype)


def rows_of_times(shape: Shape, seconds: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """A row a divergence: medians, and medians of the ratios within a turn."""
    rows = []
    for kind, times in seconds.items():
        peers = {name: statistics.median(t) for name, t in times.items() if name != "ours"}
        own = times["ours"]
        row: dict[str, Any] = {"case": f"{shape.name} {kind}", "measure": "seconds", "ours": statistics.median(own)}
        row["peer"] = peers
        row["ratios"] = {
            "ours/products": _ratio(own, times["products"]),
            **{f"{name}/ours": _ratio(times[name], own) for name in times if name not in ("ours", "products")},
        }
        limit = {"naive/ours": NAIVE_GOAL, "trl/ours": TRL_GOAL}
        row["limit"] = {name: goal for name, goal in limit.items() if name in row["ratios"]}
        if kind == "forward_kl":
            row["limit"]["ours/products"] = PRODUCTS_LIMIT
        rows.append(row)
    return rows


def row_of_memory(arguments: argparse.Namespace, shape: Shape, kind: str) -> dict[str, Any]:
    """Peaks above the process that holds the inputs and gradients alone."""
    names = ["inputs", "ours", "naive", *(["trl"] if kind in TRL_BETA else [])]
    peak = {
        name: in_fresh_process(arguments, measure="memory", shape=shape.__dict__, kind=kind, contender=name)
        for name in names
    }
    above = {name: peak[name] - peak["inputs"] for name in names[1:]}
    own = above.pop("ours")
    return {
        "case": f"{shape.name} {kind}",
        "measure": "bytes",
        "ours": own,
        "peer": above,
        "ratios": {f"{name}/ours": value / own for name, value in above.items()},
        "limit": {"ours": MEMORY_LIMIT},
    }


def _ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def holds(row: dict[str, Any]) -> dict[str, bool]:
    """Goal -> whether it is met."""
    values = {"ours": row["ours"], **row["ratios"]}
    at_most = {"ours", "ours/products"}
    return {
        name: values[name] <= goal if name in at_most else values[name] >= goal for name, goal in row["limit"].items()
    }


def print_row(row: dict[str, Any]) -> None:
    """One line of the table."""
    unit, digits = (1, 2) if row["measure"] == "seconds" else (MIB, 0)
    figures = {"ours": row["ours"], **row["peer"]}
    shown = "  ".join(f"{name} {value / unit:9.{digits}f}" for name, value in figures.items())
    ratios = "  ".join(f"{name} {value:5.2f}" for name, value in row["ratios"].items())
    missed = [name for name, held in row["holds"].items() if not held]
    verdict = f"MISSED {', '.join(missed)}" if missed else "goals hold"
    print(f"{row['case']:28s} {'s  ' if unit == 1 else 'MiB'} {shown}  |  {ratios}  |  {verdict}", flush=True)


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    import trl as trl_package

    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": model[0].split(":")[1].strip() if model else platform.processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "trl": trl_package.__version__,
        "load": os.getloadavg()[0],
    }


def main() -> None:
    """Parse, measure case by case, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    parser.add_argument("--tokens", type=int, help="tokens of the batch in place of the shapes' own")
    parser.add_argument("--only", nargs="+", choices=list(NAIVE), default=list(NAIVE), help="these divergences")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--measure", nargs="+", choices=["time", "memory"], default=["time", "memory"])
    parser.add_argument("--repeats", type=int, default=5, help="turns of every case")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        print(json.dumps(work(arguments.worker)))
        return
    report: dict[str, Any] = {"machine": machine(), "dtype": arguments.dtype, "rows": []}
    print(report["machine"], arguments.dtype)
    for name in arguments.shapes:
        shape = SHAPES[name]
        if arguments.tokens:
            shape = Shape(**{**shape.__dict__, "tokens": arguments.tokens})
        print(f"\n{shape}", flush=True)
        for kind in arguments.only:
            rows = []
            if "time" in arguments.measure:
                job = {"measure": "time", "shape": shape.__dict__, "kinds": [kind], "repeats": arguments.repeats}
                rows += rows_of_times(shape, in_fresh_process(arguments, **job))
            if "memory" in arguments.measure:
                rows.append(row_of_memory(arguments, shape, kind))
            for row in rows:
                row["holds"] = holds(row)
                print_row(row)
                report["rows"].append(row)
            if arguments.json:
                arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    missed = sum(not held for row in report["rows"] for held in row["holds"].values())
    print(f"\n{sum(len(row['holds']) for row in report['rows'])} goals, {missed} missed")


if __name__ == "__main__":
    main()
