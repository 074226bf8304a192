"""Tasks: questions with options, scored by lm-eval (Biderman et al. 2405.14782).

The tasks are files of ours (`evaluation/task_files/`) over data that installed packages ship, so that they run without
a network; their prompts are not lm-eval's, and their figures are comparable among models here, not with published ones.
With `hub: true` they are lm-eval's own tasks with the hub's data.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lmdistill.errors import DataError
from lmdistill.evaluation.rouge import RougeL
from lmdistill.evaluation.speakers import Writing
from lmdistill.evaluation.suites.choices import letter_prompt, named_option
from lmdistill.evaluation.suites.columns import Mean
from lmdistill.evaluation.suites.fitting import is_remote, uses_chat
from lmdistill.evaluation.suites.harness import Sample, check_harness, measure
from lmdistill.evaluation.suites.items import Found, Item
from lmdistill.evaluation.suites.sets import SETS, find_set, load_set
from lmdistill.evaluation.suites.types import Bench, Column, Outcome, Suite, Table
from lmdistill.io import write_lines
from lmdistill.recipe import SuitesSpec, TasksSpec
from lmdistill.yamltext import read_yaml

TASK_FILES = Path(__file__).parent.parent / "task_files"
_FREE_TOKENS = 64
"""Longest answer to a question without options, in writing."""
_SCORES = ("acc_norm", "acc", "exact_match", "mc2", "f1", "em")
"""Scores of a single item that are a mean; the first that a task has is its main one."""


def run(bench: Bench, spec: TasksSpec) -> list[Outcome]:
    """Every task, on every model."""
    if spec.hub:
        return _from_hub(bench, spec)
    return [_local(bench, spec, name) for name in spec.sets]


def _local(bench: Bench, spec: TasksSpec, name: str) -> Outcome:
    found = load_set(name, bench.suites.paths, bench.limit(spec.limit), bench.seed)
    if any(is_remote(speaker) for speaker in bench.speakers):
        return _written(bench, spec, name, found)
    task = configuration(name, found.items, bench.folder)
    with bench.progress.task(f"{name} by lm-eval", total=len(bench.speakers), unit="models") as shown:
        tables = []
        for speaker in bench.speakers:
            samples = measure(speaker, [task], limit=None, batch_size=spec.batch_size, online=False)
            tables.append(Table(speaker, _columns(samples[str(task["task"])], found.items)))
            shown.advance()
    return _outcome(name, tables, found.items, found.notes)


def _written(bench: Bench, spec: TasksSpec, name: str, found: Found) -> Outcome:
    """The same items, answered in writing by all models alike: one of them gives no likelihoods."""
    items, chat_said = found.items, uses_chat(bench)
    chat, said = chat_said
    choice = bool(items[0].options)
    prompts = [letter_prompt(item) if choice else f"Question: {item.question}\nAnswer:" for item in items]
    tables = []
    how = Writing(spec.max_new_tokens if choice else _FREE_TOKENS, 0.0, bench.seed, spec.batch_size, chat)
    with bench.progress.task(f"{name} in writing", total=len(prompts) * len(bench.speakers), unit="answers") as task:
        for speaker in bench.speakers:
            texts = [one.text for one in speaker.write(prompts, how, task.advance)]
            tables.append(Table(speaker, _letters(items, texts) if choice else _nearest(items, texts)))
    note = "a model behind an API gives no likelihoods, so all models wrote their answer"
    outcome = _outcome(name, tables, items, [*found.notes, note, *said])
    return replace(outcome, lower_is_better={**outcome.lower_is_better, "unanswered": None}) if choice else outcome


def _letters(items: Sequence[Item], texts: Sequence[str]) -> dict[str, Column]:
    """Right where the answer names the right option."""
    named = [named_option(item, text) for item, text in zip(items, texts, strict=True)]
    right = [place == item.gold for place, item in zip(named, items, strict=True)]
    return {"acc": Mean.of(right), "unanswered": Mean.of([place < 0 for place in named])}


def _nearest(items: Sequence[Item], texts: Sequence[str]) -> dict[str, Column]:
    rouge = RougeL()
    return {"rouge_l": Mean.of([rouge.score(text, item.answers) for text, item in zip(texts, items, strict=True)])}


def configuration(name: str, items: Sequence[Item], folder: Path) -> dict[str, Any]:
    """lm-eval's configuration of a set, whose items are written into the folder as it wants them."""
    file = TASK_FILES / f"{name}.yaml"
    if not file.is_file():
        file = TASK_FILES / ("choices.yaml" if items[0].options else "truthfulqa.yaml")
    data = folder / f"{name}.jsonl"
    write_lines(data, (json.dumps(_row(item), ensure_ascii=True) for item in items))
    task = read_yaml(file.read_text(encoding="utf-8"))
    return {
        **task,
        "task": f"lmdistill_{name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "num_fewshot": 0,
    }


def _row(item: Item) -> dict[str, Any]:
    shared = {"id": item.id, "question": item.question, "passage": item.passage}
    if item.options:
        return {**shared, "options": list(item.options), "gold": item.gold}
    return {**shared, "answers": list(item.answers)}


def _columns(samples: Sequence[Sample], items: Sequence[Item] | None) -> dict[str, Column]:
    """One model's scores of each item; written answers get the ROUGE-L to the nearest right one."""
    columns: dict[str, Column] = {
        name: Mean.of([float(sample[name]) for sample in samples])
        for name in _SCORES
        if all(isinstance(sample.get(name), int | float) for sample in samples)
    }
    if items is not None and items[0].answers:
        return _nearest(items, [str(sample["filtered_resps"][0]) for sample in samples])
    return columns


def _outcome(name: str, tables: Sequence[Table], items: Sequence[Item], notes: Sequence[str]) -> Outcome:
    return Outcome(
        name=name,
        tables=tables,
        clusters=[item.cluster for item in items],
        main=_main(tables[0]),
        lower_is_better=dict.fromkeys(tables[0].columns, False),
        texts=[item.text for item in items],
        notes=notes,
    )


def _main(table: Table) -> str:
    return next(name for name in ("rouge_l", *_SCORES) if name in table.columns)


def _from_hub(bench: Bench, spec: TasksSpec) -> list[Outcome]:
    """lm-eval's own tasks; a group, such as mmlu, becomes a set for each of its tasks."""
    named = [SETS[name].hub if name in SETS else name for name in spec.sets]
    tasks = [name for name in named if name is not None]
    by_task: dict[str, list[Table]] = {}
    items: dict[str, list[str]] = {}
    with bench.progress.task("lm-eval with the hub's data", total=len(bench.speakers), unit="models") as shown:
        for speaker in bench.speakers:
            limit = bench.limit(spec.limit)
            found = measure(speaker, tasks, limit=limit, batch_size=spec.batch_size, online=True)
            for task, samples in found.items():
                by_task.setdefault(task, []).append(Table(speaker, _columns(samples, None)))
                items.setdefault(task, [json.dumps(sample["doc"], default=str) for sample in samples])
            shown.advance()
    scored = {task: tables for task, tables in by_task.items() if tables[0].columns}
    if not scored:
        raise DataError(f"no score of {', '.join(by_task)} is a mean over items ({', '.join(_SCORES)} are known)")
    return [
        Outcome(
            name=task,
            tables=tables,
            clusters=range(len(items[task])),
            main=_main(tables[0]),
            lower_is_better=dict.fromkeys(tables[0].columns, False),
            texts=items[task],
            notes=["lm-eval's own task with the hub's data"],
        )
        for task, tables in scored.items()
    ]


def check(suites: SuitesSpec, spec: TasksSpec) -> None:
    """Whether lm-eval is installed and the sets are there, with gold labels."""
    check_harness()
    if spec.hub:
        missing = [name for name in spec.sets if name in SETS and SETS[name].hub is None]
        if missing:
            raise DataError(f"{missing[0]}: not among lm-eval's tasks; take hub: false, or leave it out")
        return
    for name in spec.sets:
        find_set(name, suites.paths)
        if load_set(name, suites.paths, 1, 0).items[0].answers:
            RougeL()


SUITE = Suite("tasks", "Tasks", run, check)
