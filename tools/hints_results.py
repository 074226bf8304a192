"""What hints add: runs studies/hints.yaml and writes docs/results/hints.md.

    .venv/bin/python tools/hints_results.py [--study studies/hints.yaml] [--write-only]     (make results-hints)

all-MiniLM-L6-v2 learns a task once; then students of 3 and of 2 layers are made of it in several ways, each by as many
optimiser steps, once for each seed. Then SmolLM2 is pruned and distilled with and without hidden-state terms, for the
same wall-clock time. Every cell is an ordinary run of lmdistill; finished ones are not done again, so the command can
be stopped and repeated. The machine should do nothing else during the second part: its budget is time.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from on_policy_results import folder_of, is_done

from lmdistill.accounting import describe_machine
from lmdistill.evaluation.results import Evaluation, Interval
from lmdistill.io import read_json, write_text
from lmdistill.models import fastest_dtype, pick_device
from lmdistill.pipeline import run_recipe
from lmdistill.recipe import merge, resolve_recipe
from lmdistill.yamltext import read_yaml

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results" / "hints.md"
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
"""Two-sided 95 % quantiles of Student's t, by degrees of freedom."""
MEASURES = {
    "accuracy": ("accuracy, %", 100.0, 1, True),
    "macro_f1": ("F1, mean over classes, %", 100.0, 1, True),
    "agreement": ("agreement with the teacher, %", 100.0, 1, True),
    "forward_kl": ("KL(teacher‖student), nats", 1.0, 3, False),
    "calibration_error": ("calibration error, %", 100.0, 1, False),
}
"""Title, factor, digits, and whether higher is better."""
BASE = "fine-tuning"
Scores = Mapping[tuple[str, int, int], Mapping[str, float]]


def main() -> None:
    """Run what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=ROOT / "studies" / "hints.yaml")
    parser.add_argument("--write-only", action="store_true")
    arguments = parser.parse_args()
    study: Any = read_yaml(arguments.study.read_text(encoding="utf-8"))
    cells = {
        (way, size, seed): cell_of(study, way, size, seed)
        for seed in study["seeds"]  # seed by seed: a study that is cut short still compares all ways
        for size in study["sizes"]
        for way in study["ways"]
    }
    decoders = {
        (way, seed): decoder_of(study, way, seed) for seed in study["seeds"] for way in study["decoder"]["recipes"]
    }
    if not arguments.write_only:
        starts = [start_of(study, size) for size in study["sizes"]]
        for recipe in (teacher_of(study), *starts, *cells.values(), *decoders.values()):
            carry_out(recipe)
    scores = {cell: scores_of(recipe) for cell, recipe in cells.items() if is_done(recipe)}
    write_text(PAGE, page(study, scores, {cell: recipe for cell, recipe in decoders.items() if is_done(recipe)}))
    sys.stdout.write(f"{PAGE}\n")


# -- runs -------------------------------------------------------------------------------------------------------------


def teacher_of(study: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe that fine-tunes the teacher: a student that keeps all layers, by labels alone."""
    return {**merge(study["encoder"], study["teacher"]), "name": "teacher", "runs": study["runs"], "seed": 0}


def cell_of(study: Mapping[str, Any], way: str, size: int, seed: int) -> dict[str, Any]:
    """The recipe of one way, student and seed."""
    teacher = str(folder_of(teacher_of(study)) / "student")
    own = {
        "name": f"{way.lower().replace(' ', '-')}-{size}-{seed}",
        "runs": study["runs"],
        "seed": seed,
        "teacher": {"model": teacher},
        # The teacher before fine-tuning, cut to its layers.
        "student": {
            "start": "pretrained",
            "model": {"model": str(ROOT / study["runs"] / f"start-{size}" / "student-initial")},
            "depth": None,
        },
        "training": {"max_steps": study["steps"]},
    }
    return merge(merge(study["encoder"], study["ways"][way]), own)


def start_of(study: Mapping[str, Any], size: int) -> dict[str, Any]:
    """The recipe that cuts the student out of the teacher as it was before it learnt the task."""
    cut = {
        "name": f"start-{size}",
        "student": {"depth": {"keep": size, "importance": "uniform"}},
        "training": {"max_steps": 1},
        "evaluation": {"baselines": [], "speed": {"repeats": 5}},
    }
    return merge(teacher_of(study), cut)


def decoder_of(study: Mapping[str, Any], way: str, seed: int) -> dict[str, Any]:
    """The recipe of one way and seed of a pruned SmolLM2."""
    spec = study["decoder"]
    values: Any = read_yaml((ROOT / spec["recipes"][way]).read_text(encoding="utf-8"))
    own: dict[str, Any] = {
        "name": f"decoder-{way.replace(' ', '-')}-{seed}",
        "runs": study["runs"],
        "seed": seed,
        "budget": {"minutes": spec["minutes"]},
    }
    if way in spec["without"]:
        own["objective"] = {"hints": []}
    return merge(merge(values, spec["set"]), own)


def carry_out(recipe: Mapping[str, Any]) -> None:
    """The run of a recipe, in this process."""
    if is_done(recipe):
        return
    start = time.monotonic()
    run_recipe(resolve_recipe({**recipe, "runs": str(ROOT / recipe["runs"])}))
    sys.stdout.write(f"{recipe['name']}: {time.monotonic() - start:.0f} s\n")
    sys.stdout.flush()


def scores_of(recipe: Mapping[str, Any]) -> dict[str, float]:
    """What the tables need of one run."""
    evaluation = Evaluation.model_validate(read_json(folder_of(recipe) / "evaluation.json"))
    student = evaluation.scores("student")
    assert student is not None
    scores = next(iter(student.task.values()))
    found = {name: interval.value for name, interval in scores.metrics.items()}
    for name in ("agreement", "forward_kl", "calibration_error"):
        interval: Interval | None = getattr(scores, name)
        found[name] = math.nan if interval is None else interval.value
    records = [read_json(path) for path in sorted((folder_of(recipe) / "stages").glob("*.json"))]
    found["seconds"] = sum(float(record.get("training_seconds", 0.0)) for record in records)
    return found


# -- page -------------------------------------------------------------------------------------------------------------


def page(study: Mapping[str, Any], scores: Scores, decoders: Mapping[tuple[str, int], Mapping[str, Any]]) -> str:
    """The page in Markdown, its verdicts made from the numbers."""
    device = pick_device("auto")
    machine = describe_machine(device, fastest_dtype(device))
    seeds = sorted({seed for _, _, seed in scores})
    teacher = Evaluation.model_validate(read_json(folder_of(teacher_of(study)) / "evaluation.json")).scores("student")
    assert teacher is not None
    held = next(iter(teacher.task.values()))
    lines = [
        "# What hints add",
        "",
        "Made by `make results-hints` from `studies/hints.yaml`, which says everything about the runs. Teacher: "
        "all-MiniLM-L6-v2 (6 layers, width 384), fine-tuned to say which of four kinds of group a sentence of "
        f"StereoSet speaks of: accuracy {_shown(held.metrics['accuracy'], 100, 1)} % on {held.rows} held-out ones. "
        "Students: "
        "its layers before fine-tuning, evenly spaced, trained for "
        f"{study['steps']} steps of {study['encoder']['training']['per_device_train_batch_size']} rows in all stages "
        f"together. Seeds {', '.join(map(str, seeds))}; intervals are 95 % t-intervals over seeds, and *difference* is "
        f"that of the paired difference to {BASE} (same seed). Machine: {machine['processor']}, {machine['cores']} "
        f"cores, {machine['dtype']}.",
        "",
    ]
    for size in study["sizes"]:
        lines += [f"## {size} layers", ""]
        for measure in MEASURES:
            lines += table(study, measure, size, seeds, scores)
        lines += verdict(study, size, seeds, scores)
    lines += limits(study) + decoder_part(study, decoders)
    return "\n".join(lines) + "\n"


def table(study: Mapping[str, Any], measure: str, size: int, seeds: Sequence[int], scores: Scores) -> list[str]:
    """One measure of all ways."""
    title, factor, digits, higher = MEASURES[measure]
    lines = [f"**{title}** ({'higher' if higher else 'lower'} is better)", ""]
    lines += ["| way | mean | difference to fine-tuning | seconds of training |", "|---|---|---|---|"]
    for way in study["ways"]:
        values = [scores[way, size, seed][measure] * factor for seed in seeds if (way, size, seed) in scores]
        if not values:
            continue
        seconds = statistics.fmean(scores[way, size, seed]["seconds"] for seed in seeds if (way, size, seed) in scores)
        pairs = [factor * pair for pair in paired(measure, way, size, seeds, scores)]
        difference = "" if way == BASE else _spread(pairs, digits, sign=True)
        lines.append(f"| {way} | {_spread(values, digits)} | {difference} | {seconds:.0f} |")
    return [*lines, ""]


def paired(measure: str, way: str, size: int, seeds: Sequence[int], scores: Scores) -> list[float]:
    """Differences to plain fine-tuning, seed by seed."""
    return [
        scores[way, size, seed][measure] - scores[BASE, size, seed][measure]
        for seed in seeds
        if (way, size, seed) in scores and (BASE, size, seed) in scores
    ]


def verdict(study: Mapping[str, Any], size: int, seeds: Sequence[int], scores: Scores) -> list[str]:
    """Who won at what, by intervals alone."""
    lines = []
    for measure, (title, _, _, higher) in MEASURES.items():
        groups: dict[str, list[str]] = {"better": [], "worse": [], "not told apart": []}
        for way in study["ways"]:
            pairs = paired(measure, way, size, seeds, scores)
            if way == BASE or not pairs:
                continue
            mean, half = spread(pairs)
            open_ = math.isnan(half) or abs(mean) <= half
            groups["not told apart" if open_ else "better" if (mean > 0) == higher else "worse"].append(way)
        said = [f"{name}: {', '.join(ways)}" for name, ways in groups.items() if ways]
        lines.append(f"- {title.split(',')[0]}, against {BASE}: {'; '.join(said)}.")
    return [*lines, ""]


def limits(study: Mapping[str, Any]) -> list[str]:
    """What the first part does not say."""
    count = len(study["sizes"]) * (len(study["ways"]) - 1) * len(MEASURES)
    return [
        f"{count} comparisons at 95 % each: about {0.05 * count:.1f} of them would look decided by chance alone. "
        "Nothing was tuned for any way; all have one step size and the published weights. TinyBERT and MiniLMv2 spend "
        "30 of "
        "their steps inside the layers, TED's filters learn for 30 steps more that are not counted, TinyBERT reads "
        "augmented rows and no labels. The teacher is one for all seeds; targets that StereoSet names occur on both "
        "sides of the split. Published gains come from far longer training: this says what holds in such a setting.",
        "",
    ]


def decoder_part(study: Mapping[str, Any], decoders: Mapping[tuple[str, int], Mapping[str, Any]]) -> list[str]:
    """SmolLM2, pruned, with and without hidden-state terms."""
    base, other = study["decoder"]["recipes"]
    seeds = sorted({seed for _, seed in decoders if all((way, seed) in decoders for way in (base, other))})
    found = {cell: decoder_scores(recipe) for cell, recipe in decoders.items() if cell[1] in seeds}
    lines = [f"## SmolLM2, pruned, for {study['decoder']['minutes']:g} minute(s) of wall-clock time", ""]
    if not seeds:
        return [*lines, "Not run yet."]
    lines += [
        f"Seeds {', '.join(map(str, seeds))}; means and 95 % t-intervals over seeds, the difference paired by seed.",
        "",
        f"| | {base} | {other} | difference |",
        "|---|---|---|---|",
    ]
    verdicts = []
    for measure in found[base, seeds[0]]:
        values = {way: [found[way, seed][measure] for seed in seeds] for way in (base, other)}
        digits = 0 if measure == "steps" else 3 if "KL" in measure else 1
        pairs = [second - first for first, second in zip(values[base], values[other], strict=True)]
        shown = [_spread(values[way], digits) for way in (base, other)]
        lines.append(f"| {measure} | {' | '.join(shown)} | {_spread(pairs, digits, sign=True)} |")
        mean, half = spread(pairs)
        if measure != "steps":
            told = not math.isnan(half) and abs(mean) > half
            better = other if (mean > 0) == ("agreement" in measure) else base
            verdicts.append(f"- {measure}: {f'{better} is better' if told else 'not told apart'}.")
    limits = "Hidden-state terms cost time, so the runs with them may take fewer steps. Nothing was tuned."
    return [*lines, "", *verdicts, "", limits]


def decoder_scores(recipe: Mapping[str, Any]) -> dict[str, float]:
    """Steps that the minutes held, and the student's scores on each text."""
    evaluation = Evaluation.model_validate(read_json(folder_of(recipe) / "evaluation.json"))
    student = evaluation.scores("student")
    assert student is not None
    found = {"steps": float(read_json(folder_of(recipe) / "stages" / "distil.json")["steps"])}
    for text, scores in student.texts.items():
        assert scores.forward_kl is not None
        assert scores.agreement is not None
        found[f"{text}: KL(teacher‖student), nats"] = scores.forward_kl.value
        found[f"{text}: agreement, %"] = 100 * scores.agreement.value
        found[f"{text}: perplexity"] = scores.perplexity.value
    return found


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of the 95 % t-interval over seeds (nan for one seed)."""
    if len(values) < 2:
        return statistics.fmean(values), math.nan
    return statistics.fmean(values), T_95[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))


def _spread(values: Sequence[float], digits: int, sign: bool = False) -> str:
    mean, half = spread(values)
    shown = f"{mean:+.{digits}f}" if sign else f"{mean:.{digits}f}"
    return shown if math.isnan(half) else f"{shown} ± {half:.{digits}f}"


def _shown(interval: Interval, factor: float, digits: int) -> str:
    low, high = factor * interval.low, factor * interval.high
    return f"{factor * interval.value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


if __name__ == "__main__":
    main()
