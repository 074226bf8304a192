"""Which way of going on pays: runs studies/on_policy.yaml and writes docs/results/on_policy.md.

    .venv/bin/python tools/on_policy_results.py [--study studies/on_policy.yaml] [--write-only]

One student is warm-started; then every way trains it for the same wall-clock time, once for each seed, one run after
the other, each an ordinary `lmdistill run`. Two steps of each way come first, not counted: they compile its kernels,
which every later process finds ready. Finished runs are not done again, so the command can be stopped and repeated. The
machine should do nothing else meanwhile: the budget is time.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmdistill.accounting import describe_machine
from lmdistill.evaluation.results import Evaluation
from lmdistill.io import read_json, write_text
from lmdistill.models import fastest_dtype, pick_device
from lmdistill.recipe import merge
from lmdistill.yamltext import read_yaml, write_yaml

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results" / "on_policy.md"
# Two-sided 95 % quantiles of Student's t, by degrees of freedom.
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


@dataclass(frozen=True)
class Measure:
    """One column of the table."""

    name: str
    title: str
    digits: int
    lower_is_better: bool
    factor: float = 1.0


MEASURES = (
    Measure("forward_kl", "KL(teacher‖student), nats", 3, True),
    Measure("reverse_kl", "KL(student‖teacher), nats", 3, True),
    Measure("agreement", "agreement, %", 1, False, 100),
    Measure("forward_kl_own", "KL(teacher‖student) on its own text, nats", 3, True),
    Measure("reverse_kl_own", "KL(student‖teacher) on its own text, nats", 3, True),
    Measure("rouge_teacher", "ROUGE-L to the teacher's answers, %", 1, False, 100),
    Measure("exposure", "exposure bias at the last length, %", 1, True),
    Measure("calibration_error", "calibration error, %", 2, True, 100),
    Measure("likelihood", "the teacher's NLL of what it writes, nats", 3, True),
    Measure("repetition", "repeated 4-grams, %", 1, True, 100),
)


def main() -> None:
    """Run what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=ROOT / "studies" / "on_policy.yaml")
    parser.add_argument("--write-only", action="store_true")
    arguments = parser.parse_args()
    study: Any = read_yaml(arguments.study.read_text(encoding="utf-8"))
    cells = {
        (way, seed): recipe_of(study, way, seed) for seed in study["seeds"] for way in study["ways"]
    }  # seed by seed: a study that is cut short still compares all ways
    warm = warm_recipe(study)
    if not arguments.write_only:
        carry_out(warm)
        for way in study["ways"]:
            carry_out(primer_of(study, way))
        for recipe in cells.values():
            carry_out(recipe)
    scores = {cell: scores_of(recipe) for cell, recipe in cells.items() if is_done(recipe)}
    write_text(PAGE, page(study, scores_of(warm), scores, arguments.study))
    sys.stdout.write(f"{PAGE}\n")


def warm_recipe(study: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of the student that all ways start from."""
    return {**merge(study["base"], study["warm"]), "name": "warm", "seed": study["seeds"][0]}


def recipe_of(study: Mapping[str, Any], way: str, seed: int) -> dict[str, Any]:
    """The recipe of one cell."""
    start = {"start": "pretrained", "model": {"model": str(folder_of(warm_recipe(study)) / "student")}}
    cell = {"name": f"{slug(way)}-{seed}", "seed": seed, "student": start, "budget": {"minutes": study["minutes"]}}
    steps = {"training": {"max_steps": 100_000}}
    return merge(merge(merge(study["base"], steps), study["ways"][way]), cell)


def primer_of(study: Mapping[str, Any], way: str) -> dict[str, Any]:
    """Two steps of a way, so that its kernels are compiled before any clock runs."""
    short = {"training": {"max_steps": 2}, "evaluation": {"responses": None, "max_tokens": 256}}
    return {**merge(recipe_of(study, way, study["seeds"][0]), short), "name": f"prime-{slug(way)}"}


def slug(way: str) -> str:
    """A way as part of a folder's name."""
    return "".join(character if character.isalnum() else "-" for character in way.lower())


def folder_of(recipe: Mapping[str, Any]) -> Path:
    """Where a recipe's run lies."""
    return ROOT / recipe["runs"] / recipe["name"]


def is_done(recipe: Mapping[str, Any]) -> bool:
    """Whether the run came to its report."""
    return (folder_of(recipe) / "report.html").is_file()


def carry_out(recipe: Mapping[str, Any]) -> None:
    """`lmdistill run` of a recipe in a process of its own; ends the study where it fails."""
    if is_done(recipe):
        return
    file = folder_of(recipe).with_suffix(".yaml")
    write_text(file, write_yaml(dict(recipe)))
    sys.stdout.write(f"{recipe['name']} ...\n")
    sys.stdout.flush()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "lmdistill", "run", str(file), "--quiet"], cwd=ROOT, env=environment, check=False
    )
    if done.returncode != 0:
        sys.exit(f"{file}: lmdistill run ended with {done.returncode}; run this command again to go on")


def scores_of(recipe: Mapping[str, Any]) -> dict[str, float]:
    """What the table needs of one run."""
    folder = folder_of(recipe)
    evaluation = Evaluation.model_validate(read_json(folder / "evaluation.json"))
    student = evaluation.scores("student")
    assert student is not None
    text = next(iter(student.texts))
    scores, answers = student.texts[text], student.responses[text]
    record = read_json(folder / "stages" / "distil.json")
    found = {
        "forward_kl": _value(scores.forward_kl),
        "reverse_kl": _value(scores.reverse_kl),
        "agreement": _value(scores.agreement),
        "calibration_error": scores.calibration_error.value,
        "rouge_teacher": _value(answers.rouge_teacher),
        "forward_kl_own": _value(answers.forward_kl_own),
        "reverse_kl_own": _value(answers.reverse_kl_own),
        "likelihood": _value(answers.likelihood),
        "repetition": answers.repetition.value,
        "exposure": _value(answers.excess_error),
        "exposure_length": math.nan if answers.excess_length is None else float(answers.excess_length),
        "steps": float(record["steps"]),
        "tokens": float(record["tokens"]),
        "written": float(record.get("written_tokens", 0)),
        "seconds": float(record["training_seconds"]),
    }
    teacher = evaluation.scores("teacher")
    if teacher is not None and text in teacher.responses:
        ceiling = teacher.responses[text]
        found |= {"ceiling_rouge": _value(ceiling.rouge_teacher), "ceiling_repetition": ceiling.repetition.value}
    return found


def _value(interval: Any) -> float:
    return math.nan if interval is None else float(interval.value)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of the 95 % t-interval over seeds (nan for one seed)."""
    if len(values) < 2:
        return statistics.fmean(values), math.nan
    return statistics.fmean(values), T_95[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))


def page(
    study: Mapping[str, Any],
    warm: Mapping[str, float],
    scores: Mapping[tuple[str, int], Mapping[str, float]],
    file: Path,
) -> str:
    """The page in Markdown, its verdicts made from the numbers."""
    ways = [way for way in study["ways"] if any(cell[0] == way for cell in scores)]
    seeds = sorted({seed for _, seed in scores})
    device = pick_device("auto")
    machine = describe_machine(device, fastest_dtype(device))
    lines = [
        "# On-policy distillation: what pays for the same time",
        "",
        f"Made by `make results-on-policy` from `{file.relative_to(ROOT)}`, which says everything about the runs. One "
        "SmolLM2-135M-Instruct is cut to 12 of its 30 layers and warm-started by token-level distillation; then each "
        f"way trains that student for {study['minutes']:g} minutes of wall-clock time, rollouts, teacher and student "
        "together, with its kernels compiled before. "
        f"Seeds {', '.join(map(str, seeds))}; the interval is the 95 % t-interval over seeds, and *difference* is that "
        "of the paired difference to `more KD` (same seed, same held-out text). "
        f"Machine: {machine['processor']}, {machine['cores']} cores, {machine['dtype']}. {study.get('conditions', '')}",
        "",
    ]
    for measure in MEASURES:
        lines += table(measure, ways, seeds, warm, scores)
    lines += work_table(ways, seeds, scores)
    lines += verdict(ways, seeds, scores)
    rate = study["base"]["training"]["learning_rate"]
    lines += [
        f"All ways have one learning rate, {rate:g}, and nothing was tuned for any of them; policy gradients are "
        "published with much smaller ones (MiniLLM 5e-6) and many more steps. The warm start is one student for all "
        "seeds: what differs between seeds is the order of the data and the draws.",
    ]
    return "\n".join(lines) + "\n"


def table(
    measure: Measure,
    ways: Sequence[str],
    seeds: Sequence[int],
    warm: Mapping[str, float],
    scores: Mapping[tuple[str, int], Mapping[str, float]],
) -> list[str]:
    """One measure of all ways."""
    better = "lower" if measure.lower_is_better else "higher"
    lines = [f"## {measure.title} ({better} is better)", "", "| way | mean | difference to more KD |", "|---|---|---|"]
    lines.append(f"| warm start, before | {warm[measure.name] * measure.factor:.{measure.digits}f} | |")
    base = ways[0]
    for way in ways:
        values = [scores[way, seed][measure.name] * measure.factor for seed in seeds if (way, seed) in scores]
        mean, half = spread(values)
        cells = [way, f"{mean:.{measure.digits}f} ± {half:.{measure.digits}f}"]
        pairs = paired(measure, way, base, seeds, scores)
        cells.append("" if way == base else _difference(measure, pairs))
        lines.append("| " + " | ".join(cells) + " |")
    if measure.name == "rouge_teacher" and "ceiling_rouge" in warm:
        lines += ["", f"The teacher's own second answer reaches {100 * warm['ceiling_rouge']:.1f} %: the ceiling."]
    if measure.name == "exposure" and not math.isnan(warm["exposure_length"]):
        lines += [
            "",
            f"ExAccErr at {warm['exposure_length']:.0f} tokens: KL accumulated along the student's own prefixes over "
            "that along the teacher's, less 1. Read it beside the KL on the student's own text: a weak student leads "
            "to places where the teacher is unsure too: it turns negative, which is no merit. It counts in no verdict.",
        ]
    return [*lines, ""]


def paired(
    measure: Measure, way: str, base: str, seeds: Sequence[int], scores: Mapping[tuple[str, int], Mapping[str, float]]
) -> list[float]:
    """Differences to the baseline, seed by seed."""
    return [
        (scores[way, seed][measure.name] - scores[base, seed][measure.name]) * measure.factor
        for seed in seeds
        if (way, seed) in scores and (base, seed) in scores
    ]


def _difference(measure: Measure, pairs: Sequence[float]) -> str:
    mean, half = spread(pairs)
    return f"{mean:+.{measure.digits}f} ± {half:.{measure.digits}f}"


def work_table(
    ways: Sequence[str], seeds: Sequence[int], scores: Mapping[tuple[str, int], Mapping[str, float]]
) -> list[str]:
    """What each way did with its time."""
    lines = ["## What the time went into", "", "| way | seconds | optimiser steps | tokens trained | tokens written |"]
    lines.append("|---|---|---|---|---|")
    for way in ways:
        rows = [scores[way, seed] for seed in seeds if (way, seed) in scores]
        means = [statistics.fmean(row[name] for row in rows) for name in ("seconds", "steps", "tokens", "written")]
        lines.append(f"| {way} | {means[0]:.0f} | {means[1]:.0f} | {means[2]:,.0f} | {means[3]:,.0f} |")
    return [*lines, ""]


def verdict(
    ways: Sequence[str],
    seeds: Sequence[int],
    scores: Mapping[tuple[str, int], Mapping[str, float]],
) -> list[str]:
    """Who won at what, by intervals alone."""
    lines = ["## Verdict", ""]
    base = ways[0]
    judged = [measure for measure in MEASURES if measure.name != "exposure"]
    for measure in judged:
        better, worse, open_ = [], [], []
        for way in ways[1:]:
            mean, half = spread(paired(measure, way, base, seeds, scores))
            if math.isnan(half) or abs(mean) <= half:
                open_.append(way)
            elif (mean < 0) == measure.lower_is_better:
                better.append(way)
            else:
                worse.append(way)
        said = [
            f"better than more KD: {', '.join(better)}" if better else "",
            f"worse: {', '.join(worse)}" if worse else "",
            f"not told apart: {', '.join(open_)}" if open_ else "",
        ]
        lines.append(f"- **{measure.title}**: {'; '.join(part for part in said if part)}.")
    count = (len(ways) - 1) * len(judged)
    lines += [
        "",
        f"{count} comparisons at 95 % each: about {0.05 * count:.1f} of them would look decided by chance alone.",
        "Three seeds make wide intervals, the text is one (BoolQ passages, continued from their first 32 tokens), the "
        "student is small and the time short: this says what pays in such a setting, not what would after convergence.",
    ]
    return lines


if __name__ == "__main__":
    main()
