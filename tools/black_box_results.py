"""Run every recipe whose teacher answers through an API, small and for real, and write docs/results/black_box.md.

    python tools/black_box_results.py             all recipes, those that are done already left as they are
    python tools/black_box_results.py pad kard    these alone; the page is written of all that are done
    python tools/black_box_results.py --data      makes data alone, which a later run takes over
    python tools/black_box_results.py --table     runs nothing

The server is llama.cpp with SmolLM2-135M-Instruct, as the recipes say; SMALLER makes questions and training few. The
runs lie in runs/black_box; a run that was stopped goes on, and no answer is paid for twice.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lmdistill.accounting import describe_machine
from lmdistill.errors import LmdistillError
from lmdistill.generation.escape import escape_markdown
from lmdistill.generation.makers import ASKS_THE_STUDENT
from lmdistill.io import read_json, write_text
from lmdistill.methods import find_method
from lmdistill.models import fastest_dtype, load_model, load_tokenizer, pick_device, save_model
from lmdistill.progress import Progress
from lmdistill.recipe import ModelSpec, Recipe, load_recipe
from lmdistill.run_folder import RunFolder
from lmdistill.stages.context import Context
from lmdistill.stages.generate import make_data
from lmdistill.stages.prepare import read_sources
from lmdistill.training.callbacks import stop_flag

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "black_box"
PAGE = ROOT / "docs" / "results" / "black_box.md"
SEEDS, STEPS = 12, 4
SMALLER = [
    f"training.max_steps={STEPS}",
    "evaluation.baselines=[none]",
    "evaluation.speed=null",
    "evaluation.max_tokens=1000",
    "evaluation.bootstrap_samples=100",
    "evaluation.prompts=[]",
    "machine.compile=false",
    "api.llamacpp.threads=1",
    "machine.threads=1",
]
"""What is taken off every recipe, beside the seeds of each source beyond the first so many."""


def main() -> None:
    """Run what is asked for, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", help="names of recipes; all where absent")
    parser.add_argument("--data", action="store_true", help="make the data alone, where no student is asked")
    parser.add_argument(
        "--table", action="store_true", help="write the page of the runs that are done, and run nothing"
    )
    wanted = parser.parse_args()
    found = {path.stem: load_recipe(path) for path in sorted((ROOT / "recipes").glob("*.yaml"))}
    found = {name: recipe for name, recipe in found.items() if recipe.generation is not None}
    unknown = sorted(set(wanted.recipes) - set(found))
    if unknown:
        sys.exit(f"no recipe with generation is named {', '.join(unknown)}; there are {', '.join(found)}")
    names = [] if wanted.table else wanted.recipes or list(found)
    act = make_the_data if wanted.data else carry_out
    failed = []
    for name in names:
        failed += [] if act(name, found[name]) else [name]
        write_text(PAGE, page({each: recipe for each, recipe in found.items() if read_rounds(each)}))
    done = {name: recipe for name, recipe in found.items() if read_rounds(name)}
    write_text(PAGE, page(done))
    sys.stdout.write(f"{PAGE.relative_to(ROOT)}: {len(done)} of {len(found)} recipes\n")
    if failed:
        sys.exit(f"ended with an error, see runs/black_box/NAME.log: {', '.join(failed)}")


def changes_of(name: str, recipe: Recipe) -> list[str]:
    """What makes a recipe small."""
    assert recipe.generation is not None
    seeds = [
        f"generation.seeds.{place}.limit={min(SEEDS, source.limit or SEEDS)}"
        for place, source in enumerate(recipe.generation.seeds)
    ]
    smaller = [change for change in SMALLER if recipe.api is not None or not change.startswith("api.")]
    return [*smaller, *seeds, *weights(recipe), f"runs={RUNS}", f"name={name}"]


def weights(recipe: Recipe) -> list[str]:
    """The teacher's weights, where they are on this machine, taken out of their GGUF file once for all runs."""
    teacher = recipe.teacher
    if recipe.api is None or recipe.api.serve != "llamacpp" or teacher.gguf_file is None:
        return []
    folder = RUNS / "weights" / teacher.gguf_file.removesuffix(".gguf")
    if not (folder / "model.safetensors").is_file():
        loaded = load_model(teacher, dtype=torch.bfloat16, device=torch.device("cpu"))
        folder.parent.mkdir(parents=True, exist_ok=True)
        save_model(loaded, load_tokenizer(ModelSpec(model=teacher.model, gguf_file=teacher.gguf_file)), folder)
    served = {"serve": "llamacpp", "model": recipe.api.model}
    return [f"teacher={{model: {folder}}}", *(f"api.{key}={value}" for key, value in served.items())]


def make_the_data(name: str, recipe: Recipe) -> bool:
    """The data of a recipe alone, as its run makes them; whether there are any."""
    assert recipe.generation is not None
    if recipe.generation.maker in ASKS_THE_STUDENT:
        sys.stdout.write(f"{name}: its student is asked, so it is not made apart\n")
        return True
    small = load_recipe(ROOT / "recipes" / f"{name}.yaml", changes_of(name, recipe))
    sys.stdout.write(f"{name}: data ...\n")
    sys.stdout.flush()
    try:
        with stop_flag() as stop:
            context = Context(recipe=small, folder=RunFolder(small.folder), progress=Progress(), stop=stop)
            make_data(context, 1, None, read_sources(context).heldout)
    except LmdistillError as error:
        sys.stdout.write(f"{name}: {error}\n")
        return False
    return True


def carry_out(name: str, recipe: Recipe) -> bool:
    """`lmdistill run` of one recipe in a process of its own; whether it came to its report."""
    if is_done(name):
        return True
    changes = changes_of(name, recipe)
    command = [sys.executable, "-m", "lmdistill", "run", f"recipes/{name}.yaml", "--quiet"]
    command += [part for change in changes for part in ("--set", change)]
    sys.stdout.write(f"{name} ...\n")
    sys.stdout.flush()
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False, capture_output=True, text=True
    )
    write_text(RUNS / f"{name}.log", done.stdout + done.stderr)
    return done.returncode == 0


def is_done(name: str) -> bool:
    """Whether the run came to its report."""
    return (RUNS / name / "report.html").is_file()


def page(recipes: Mapping[str, Recipe]) -> str:
    """The page in Markdown."""
    device = pick_device("auto")
    machine = describe_machine(device, fastest_dtype(device))
    lines = [
        "# Black-box methods on a real local server",
        "",
        "Made by `make results-black-box`: each recipe runs from its seeds to a trained and evaluated student; the "
        "last column says where the data alone were made. The teacher is SmolLM2-135M-Instruct behind a llama.cpp "
        "server, which costs nothing but time; a teacher so small is often wrong, and that shows in what verification "
        f"leaves out. At most {SEEDS} seeds of each source and {STEPS} optimiser steps: this says that the methods run "
        "and what their data cost, not which is best. Seconds are those of making the data, server start included. "
        f"Machine: {machine['processor']}, {machine['cores']} cores, shared with other work.",
        "",
        "| recipe | answers | tokens | seconds | rows made | dropped | answers a row | tokens a row | seconds a row | "
        "student |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    cards = {name: read_rounds(name) for name in recipes}
    for name in recipes:
        lines.append(table_row(name, cards[name]))
    for name, recipe in recipes.items():
        lines += section(name, recipe, cards[name])
    return "\n".join(lines) + "\n"


def read_rounds(name: str) -> list[dict[str, Any]]:
    """The data cards of a run's rounds."""
    return [read_json(path) for path in sorted((RUNS / name / "generated").glob("round-*/data_card.json"))]


def table_row(name: str, cards: Sequence[Mapping[str, Any]]) -> str:
    """One line of figures, rounds together."""
    costs = [card["costs"] for card in cards]
    answers = sum(cost["calls"] for cost in costs)
    tokens = sum(cost["prompt_tokens"] + cost["output_tokens"] for cost in costs)
    seconds = sum(60 * (cost["minutes"] or 0.0) for cost in costs)
    made, dropped = (sum(card[field] for card in cards) for field in ("accepted", "dropped"))
    each = [
        f"{figure / made:.{digits}f}" if made else "–" for figure, digits in ((answers, 1), (tokens, 0), (seconds, 1))
    ]
    student = "trained, evaluated" if is_done(name) else "not run"
    cells = [f"[{name}](#{name})", answers, f"{tokens:,}", f"{seconds:.0f}", made, dropped, *each, student]
    return f"| {' | '.join(map(str, cells))} |"


def section(name: str, recipe: Recipe, cards: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was made and left out by one recipe, and one row of it."""
    method = find_method(recipe.method) if recipe.method else None
    lines = ["", f"## {name}", ""]
    if method is not None:
        lines += [f"{method.summary} ({method.paper.citation})", ""]
    lines.append(f"- Rows by task: {counted(cards, 'by_task')}; by verdict: {counted(cards, 'by_verdict')}.")
    for card in cards:
        for check, dropped in card["drops"].items():
            first = dropped["examples"][0][1] if dropped["examples"] else ""
            lines.append(f"- Dropped by `{check}`: {dropped['count']}, the first for: {escape_markdown(first[:160])}")
    lines += critic_lines(RUNS / name / "generated" / "round-1" / "critic.json")
    file = RUNS / name / "generated" / f"round-{len(cards)}" / "examples.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for task in dict.fromkeys(row.get("task", "answer") for row in rows):
        row = next(row for row in rows if row.get("task", "answer") == task)
        lines += ["", f"A row of the task `{task}`:", "", *quoted(row.get("prompt", ""))]
        lines += [">", *quoted(row["response"], "→ ")]
    return lines


def counted(cards: Sequence[Mapping[str, Any]], field: str) -> str:
    """Counts by name, rounds together."""
    found: dict[str, int] = {}
    for card in cards:
        for name, count in card[field].items():
            found[name] = found.get(name, 0) + count
    return ", ".join(f"{count} {name}" for name, count in found.items()) or "none"


def critic_lines(file: Path) -> list[str]:
    """What a critic's thresholds keep and how precise that is, where there is a critic."""
    if not file.is_file():
        return []
    found = read_json(file)
    points = [f"{point['kept']:.0%} kept: {point['precision']:.0%} valid" for point in found["curve"]]
    return [f"- The critic on {found['labelled']} labelled rows that it did not see: {'; '.join(points)}."]


def quoted(text: str, before: str = "") -> list[str]:
    """A text of a model as a quotation that is nothing but text."""
    return [
        f"> {before if place == 0 else ''}{escape_markdown(line)}  " for place, line in enumerate(text.splitlines())
    ]


if __name__ == "__main__":
    main()
