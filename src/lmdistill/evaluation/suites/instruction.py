"""Instruction following by the protocol of MiniLLM (2306.08543) and its successors.

Every model answers at temperature 1 with five seeds; ROUGE-L with stemming against the nearest reference, by length of
the reference in words: [0, 5], [6, 10] and [11, ∞). Seeds are a factor: intervals are over instructions and seeds
(`lmdistill.evaluation.statistics.Draws`).

Beside the data's references stand the teacher's answers, drawn with the next seed: `rouge_teacher`. The teacher's own
row there is its agreement with itself, the ceiling of every student.

Shape legend: I instructions, K seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmdistill.errors import DataError, ModelError
from lmdistill.evaluation.rouge import RougeL
from lmdistill.evaluation.speakers import Writing, Written
from lmdistill.evaluation.suites.columns import Mean
from lmdistill.evaluation.suites.fitting import uses_chat
from lmdistill.evaluation.suites.items import Found, Item, NoGold, Row, Unreadable, read_items
from lmdistill.evaluation.suites.judge import judge_pairs, verdict_columns
from lmdistill.evaluation.suites.sets import draw_items
from lmdistill.evaluation.suites.types import Bench, Column, Outcome, Suite, Table
from lmdistill.packages import resolve_path
from lmdistill.recipe import InstructionSpec, SuitesSpec

BUCKETS: Mapping[str, tuple[int, float]] = {"0_5": (0, 5), "6_10": (6, 10), "11": (11, float("inf"))}
_ASKED = ("instruction", "prompt", "question", "text")
_INPUTS = ("input", "context")
_ANSWERS = ("output", "response", "reference", "targets", "answer")


def instruction_item(row: Row, name: str) -> Item:
    """A row of Dolly, Self-Instruct, Vicuna, S-NI or UnNI; references may be none, one or several."""
    instances = row.get("instances")
    inner: Row = instances[0] if isinstance(instances, list) and instances and isinstance(instances[0], dict) else row
    turns = row.get("turns")
    asked = next((row[key] for key in _ASKED if isinstance(row.get(key), str) and row[key].strip()), None)
    if asked is None and isinstance(turns, list) and turns:
        asked = str(turns[0])
    if asked is None:
        raise Unreadable(f"no instruction (looked for {', '.join(_ASKED)}, turns)")
    given = next((str(inner[key]) for key in _INPUTS if inner.get(key)), "")
    answers: Any = next((inner[key] for key in _ANSWERS if inner.get(key)), [])
    several = [answers] if isinstance(answers, str) else list(answers)
    return Item(name, str(asked).strip(), given.strip(), answers=tuple(str(one) for one in several if str(one).strip()))


def _with_answer(row: Row, name: str) -> Item:
    item = instruction_item(row, name)
    if not item.answers:
        raise NoGold
    return item


def load_instructions(name: str, paths: Mapping[str, str], limit: int | None, seed: int, judged: bool) -> Found:
    """Instructions of a file; without references only where a judge is asked. Raises DataError."""
    if name not in paths:
        raise DataError(f"no file for {name!r}: no package ships instructions; --set suites.paths.{name}=FILE")
    path = Path(resolve_path(paths[name])).expanduser()
    if not path.is_file():
        raise DataError(f"evaluation.suites.paths.{name}: no file {path}; give the path of a JSON-lines or CSV file")
    found = read_items(path, name, instruction_item if judged else _with_answer)
    drawn = draw_items(found.items, limit, seed)
    return Found(drawn.items, [*found.notes, *drawn.notes])


def plain_prompt(item: Item, chat: bool) -> str:
    """How an instruction is put: its own words in a chat template, headed parts in plain text."""
    if chat:
        return f"{item.question}\n\n{item.passage}" if item.passage else item.question
    given = f"Input: {item.passage}\n" if item.passage else ""
    return f"Instruction: {item.question}\n{given}Response:"


def run(bench: Bench, spec: InstructionSpec) -> list[Outcome]:
    """Every set: its ROUGE-L where it has references, and the judge's verdicts where there is one."""
    found: list[Outcome] = []
    for name in spec.sets or bench.suites.paths:
        found += _one(bench, spec, name)
    return found


def _one(bench: Bench, spec: InstructionSpec, name: str) -> list[Outcome]:
    judged = bench.judge is not None
    read = load_instructions(name, bench.suites.paths, bench.limit(spec.limit), bench.seed, judged)
    chat, said = uses_chat(bench)
    prompts = [plain_prompt(item, chat) for item in read.items]
    written: list[list[list[Written]]] = []
    total = len(prompts) * spec.seeds * len(bench.speakers)
    with bench.progress.task(f"answers to {name}", total=total, unit="answers") as task:
        for speaker in bench.speakers:
            hows = [
                Writing(spec.max_new_tokens, spec.temperature, bench.seed + k, spec.batch_size, chat)
                for k in range(spec.seeds)
            ]
            written.append([speaker.write(prompts, how, task.advance) for how in hows])
    notes = [*read.notes, *said]
    outcomes = [_scored(bench, name, read.items, written, notes)]
    if bench.judge is not None and spec.judge is not None:
        outcomes += _judged(bench, spec, name, read.items, written)
    return outcomes


def _scored(
    bench: Bench, name: str, items: Sequence[Item], written: Sequence[list[list[Written]]], notes: Sequence[str]
) -> Outcome:
    rouge = RougeL()
    teacher = written[0] if bench.teacher is not None else None
    tables = []
    for number, (speaker, texts) in enumerate(zip(bench.speakers, written, strict=True)):
        columns = reference_columns(rouge, items, texts)
        if teacher is not None and (number > 0 or len(teacher) > 1):
            columns["rouge_teacher"] = _to_teacher(rouge, texts, teacher)
        columns["tokens"] = Mean.of(np.array([[float(one.tokens) for one in seed] for seed in texts]))
        columns["unfinished"] = Mean.of(np.array([[float(not one.finished) for one in seed] for seed in texts]))
        tables.append(Table(speaker, columns))
    has_references = "rouge_l" in tables[0].columns
    measures = ["rouge_l", *(f"rouge_l_{bucket}" for bucket in BUCKETS), "rouge_teacher"]
    return Outcome(
        name=name,
        tables=tables,
        clusters=[item.id for item in items],
        main="rouge_l" if has_references else "rouge_teacher",
        lower_is_better={**dict.fromkeys(measures, False), "tokens": None, "unfinished": None},
        texts=[item.text for item in items],
        ceiling=_ceiling(bench, tables[0]),
        notes=notes,
    )


def reference_columns(rouge: RougeL, items: Sequence[Item], texts: Sequence[Sequence[Written]]) -> dict[str, Column]:
    """ROUGE-L to the nearest reference, (K, I), over all instructions and by length of the reference."""
    if not all(item.answers for item in items):
        return {}
    scores_KI = np.array(
        [[rouge.score(one.text, item.answers) for one, item in zip(seed, items, strict=True)] for seed in texts]
    )
    words_I = np.array([len(rouge.tokenize(item.answers[0])) for item in items])
    columns: dict[str, Column] = {"rouge_l": Mean.of(scores_KI)}
    for bucket, (low, high) in BUCKETS.items():
        inside_KI = np.broadcast_to(((words_I >= low) & (words_I <= high)).astype(np.float64), scores_KI.shape)
        if inside_KI.any():
            columns[f"rouge_l_{bucket}"] = Mean.of(scores_KI * inside_KI, inside_KI.copy())
    return columns


def _to_teacher(rouge: RougeL, texts: Sequence[Sequence[Written]], teacher: Sequence[Sequence[Written]]) -> Mean:
    """ROUGE-L to the teacher's answer of the next seed, so that no draw is shared (of one seed: the same)."""
    seeds = len(teacher)
    return Mean.of(
        np.array(
            [
                [rouge.score(one.text, [other.text]) for one, other in zip(seed, teacher[(k + 1) % seeds], strict=True)]
                for k, seed in enumerate(texts)
            ]
        )
    )


def _ceiling(bench: Bench, teacher: Table) -> str | None:
    column: Any = teacher.columns.get("rouge_teacher")
    if bench.teacher is None or column is None:
        return None
    mean = np.mean([column.of_seed(k) for k in range(column.seeds)])
    return f"two answers of the teacher itself have a ROUGE-L of {mean:.3f} to each other (rouge_teacher)"


def _judged(
    bench: Bench, spec: InstructionSpec, name: str, items: Sequence[Item], written: Sequence[list[list[Written]]]
) -> list[Outcome]:
    """The student's first answers against each other model's."""
    assert bench.judge is not None
    assert spec.judge is not None
    roles = [speaker.role for speaker in bench.speakers]
    if "student" not in roles:
        raise ModelError("a judge compares the student with others, and there is no student")
    count = min(spec.judge.limit, len(items))
    ours = [one.text for one in written[roles.index("student")][0][:count]]
    asked = [item.text for item in items[:count]]
    found = []
    with bench.progress.task("judge", total=2 * count * (len(roles) - 1), unit="verdicts") as task:
        for speaker, texts in zip(bench.speakers, written, strict=True):
            if speaker.role == "student":
                continue
            theirs = [one.text for one in texts[0][:count]]
            judged = judge_pairs(bench.judge, asked, ours, theirs, spec.judge, task.advance)
            lengths = [len(text.split()) for text in ours], [len(text.split()) for text in theirs]
            mine, other = verdict_columns(judged, *lengths)
            student = bench.speakers[roles.index("student")]
            unread = sum(not one.readable for one in judged)
            found.append(
                Outcome(
                    name=f"{name}: judged against {speaker.label}",
                    tables=[Table(student, mine), Table(speaker, other)],
                    clusters=[item.id for item in items[:count]],
                    main="win_rate",
                    lower_is_better={"win_rate": False, "win_rate_at_equal_length": False},
                    notes=[
                        f"judge: {bench.judge.label}, each pair in both orders; ties are half a win",
                        f"{unread} of {count} pairs had a verdict that was not in the format and count for nobody",
                    ],
                )
            )
    return found


def check(suites: SuitesSpec, spec: InstructionSpec) -> None:
    """Whether ROUGE and the files are there."""
    RougeL()
    names = spec.sets or list(suites.paths)
    if not names:
        raise DataError(
            "evaluation.suites.instruction: no file of instructions is named, and no package ships one; "
            "--set suites.paths.dolly=FILE"
        )
    for name in names:
        load_instructions(name, suites.paths, 1, 0, spec.judge is not None)


SUITE = Suite("instruction", "Instruction following", run, check)
