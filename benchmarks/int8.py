"""One linear layer of SmolLM2's size with weights of 8 bits, beside a plain one: which product is the faster one?

    .venv/bin/python benchmarks/int8.py                  (a minute on 2 cores)
    .venv/bin/python benchmarks/int8.py --json int8.json

For 1, 4, 16 and 64 rows in bfloat16 and float32: torch's product with numbers of 8 bits (`_weight_int8pack_mm`), and
the matrix made anew at every call, each as a multiple of the plain product's time. Runs of the three alternate, so that
whatever else the machine does meets all of them; medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from lmdistill.export.int8 import quantize_rows

OUTPUTS, INPUTS, REPEATS = 1536, 576, 15


def seconds(work: Callable[[], object], times: int) -> float:
    """What one call takes, over a few calls in a row."""
    start = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - start) / times


@torch.no_grad()
def measure(rows: int, dtype: torch.dtype) -> dict[str, float | int | str]:
    """One line of the table."""
    weight = torch.randn(OUTPUTS, INPUTS)
    numbers, scale = quantize_rows(weight)
    x, plain, scale = torch.randn(rows, INPUTS).to(dtype), weight.to(dtype), scale.to(dtype)
    ways: dict[str, Callable[[], object]] = {
        "plain": lambda: F.linear(x, plain),
        "fused": lambda: torch._weight_int8pack_mm(x, numbers, scale),
        "anew": lambda: F.linear(x, numbers.to(dtype)) * scale,
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(REPEATS + 1):
        for name, work in ways.items():
            spent = seconds(work, 20)
            if repeat:
                found[name].append(spent)
    middle = {name: statistics.median(times) for name, times in found.items()}
    ratios = {name: round(middle[name] / middle["plain"], 2) for name in ("fused", "anew")}
    return {
        "rows": rows,
        "dtype": str(dtype).removeprefix("torch."),
        "plain_us": round(1e6 * middle["plain"], 1),
        **ratios,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    table = [measure(rows, dtype) for dtype in (torch.bfloat16, torch.float32) for rows in (1, 4, 16, 64)]
    print(f"{'format':>9} {'rows':>5} {'plain, us':>10} {'8 bits, fused':>14} {'made anew':>10}")
    for row in table:
        print(f"{row['dtype']:>9} {row['rows']:>5} {row['plain_us']:>10} {row['fused']:>13}x {row['anew']:>9}x")
    if options.json is not None:
        options.json.write_text(json.dumps({"rows": table}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
