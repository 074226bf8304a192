"""Reasoning: written solutions whose final answer is verified, and whether the reasoning says why.

    pass@k   the chance that one of k solutions is right                  (2107.03374, eq. 1, without bias)
    maj@k    the chance that the majority of k solutions is right          (2203.11171)
    LAS      what the explanation tells of the answer, leaking aside       (2010.04119)

Numbers and puzzles are verified by `lmdistill.generation.verify`. What holds no answer that can be read is not right,
and is counted apart (`unanswered`): a model that lacks the format shows there, not as one that cannot count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lmdistill.errors import DataError
from lmdistill.evaluation.speakers import LocalSpeaker, Speaker, Writing, Written
from lmdistill.evaluation.suites.choices import LETTERS, is_class_like, named_option, written_prompt
from lmdistill.evaluation.suites.columns import Mean
from lmdistill.evaluation.suites.faithfulness import explanation_of, simulate
from lmdistill.evaluation.suites.fitting import uses_chat
from lmdistill.evaluation.suites.items import Found, Item
from lmdistill.evaluation.suites.sets import draw_items, find_set, load_set
from lmdistill.evaluation.suites.types import Bench, Column, Outcome, Suite, Table
from lmdistill.generation.numbers import parse_quantity
from lmdistill.generation.puzzles import make_puzzles
from lmdistill.generation.types import Seed
from lmdistill.generation.verify import Verifier
from lmdistill.generation.votes import majority_at_k, pass_at_k
from lmdistill.recipe import ReasoningSpec, SuitesSpec
from lmdistill.recipe.generation_verify import PuzzleSpec, VerifySpec

GYM = "gym:"
_PUZZLES = 100
_MARKED = VerifySpec(answer="marked", kind="number", several="last")
_LAST = VerifySpec(answer="last_number", kind="number")
_WHOLE = VerifySpec(answer="marked", kind="text", several="last")


@dataclass(frozen=True)
class Solved:
    """One written solution, read."""

    answer: str | None
    """None where it holds none."""
    right: bool


@dataclass(frozen=True)
class Problem:
    """A problem, how it is asked, and how its solutions are read and compared."""

    item: Item
    prompt: str
    read: Callable[[str], Solved]
    same: Callable[[str, str], bool]


def run(bench: Bench, spec: ReasoningSpec) -> list[Outcome]:
    """Every set of the suite."""
    with Verifier(_MARKED) as marked, Verifier(_LAST) as last, Verifier(_WHOLE) as whole:
        readers = Readers(marked, last, whole)
        return [_one(bench, spec, name, readers) for name in spec.sets]


@dataclass(frozen=True)
class Readers:
    """Reads answers where they are marked, else the last number; a puzzle's answer is text."""

    marked: Verifier
    last: Verifier
    whole: Verifier

    def number(self, text: str, item: Item) -> Solved:
        """A solution whose answer is a number."""
        verifier = self.marked if self.marked.answer(text) is not None else self.last
        checks = [verifier.verify(text, gold) for gold in item.answers]
        return Solved(checks[0].answer, any(check.verdict == "correct" for check in checks))

    def puzzle(self, text: str, seed: Seed) -> Solved:
        """A solution of a puzzle: what is marked, the last number where the answer is one, or the whole text."""
        verifier, said = self.whole, text
        if self.whole.answer(text) is None:
            numeric = parse_quantity(seed.answer or "") is not None
            verifier = self.last if numeric else self.whole
            said = text if numeric else f"The answer is {text.strip().splitlines()[-1] if text.strip() else ''}"
        checked = verifier.verify_seed(said, seed)
        return Solved(checked.answer, checked.verdict == "correct")

    def same_number(self, one: str, other: str) -> bool:
        """Whether two final answers are one number."""
        return self.marked.compare(one, other).verdict == "correct"

    def same_text(self, one: str, other: str) -> bool:
        """Whether two final answers are one text."""
        return self.whole.compare(one, other).verdict == "correct"


def option_reader(item: Item) -> Callable[[str], Solved]:
    """A solution that ends in an option."""

    def read(text: str) -> Solved:
        place = named_option(item, text)
        if place < 0:
            return Solved(None, False)
        name = item.options[place] if is_class_like(item) else LETTERS[place]
        return Solved(name, place == item.gold)

    return read


def problems_of(name: str, bench: Bench, spec: ReasoningSpec, readers: Readers) -> tuple[list[Problem], list[str]]:
    """The problems of a set. Raises what `load_set` and `make_puzzles` raise."""
    limit = bench.limit(spec.limit)
    if name.startswith(GYM):
        size = limit or _PUZZLES
        seeds = make_puzzles(puzzles_of(name, spec, size, bench.seed))
        return [_puzzle(seed, spec, readers) for seed in seeds], [f"{size:,} puzzles made with seed {bench.seed}"]
    found = load_set(name, bench.suites.paths, None, bench.seed)
    items = [item for item in found.items if item.options or _is_number(item)]
    if not items:
        raise DataError(f"{name}: no answer of {len(found.items)} is a number or an option, so none can be verified")
    left = len(found.items) - len(items)
    notes = [*found.notes, f"{left:,} answers are no numbers and were left out"] if left else found.notes
    drawn: Found = draw_items(items, limit, bench.seed)
    return [_problem(item, spec, readers) for item in drawn.items], [*notes, *drawn.notes]


def puzzles_of(name: str, spec: ReasoningSpec, size: int, seed: int) -> PuzzleSpec:
    """The puzzles of a set `gym:NAME`."""
    task = name.removeprefix(GYM)
    config = {task: spec.puzzles[task]} if task in spec.puzzles else {}
    return PuzzleSpec(names=[task], size=size, seed=seed, config=config)


def _asked(question: str, usual: str, spec: ReasoningSpec) -> str:
    return usual if spec.template is None else spec.template.replace("{question}", question)


def _is_number(item: Item) -> bool:
    return any(parse_quantity(answer) is not None for answer in item.answers)


def _problem(item: Item, spec: ReasoningSpec, readers: Readers) -> Problem:
    if item.options:
        return Problem(item, written_prompt(item), option_reader(item), str.__eq__)
    prompt = f'{item.question}\nSolve this step by step, then end with "The answer is" and the number.\n'
    prompt = _asked(item.question, prompt, spec)
    return Problem(item, prompt, lambda text: readers.number(text, item), readers.same_number)


def _puzzle(seed: Seed, spec: ReasoningSpec, readers: Readers) -> Problem:
    item = Item(seed.id, seed.prompt, answers=(seed.answer or "",))
    prompt = f'{seed.prompt}\nThink step by step, then end with "The answer is" and the answer.\n'
    prompt = _asked(seed.prompt, prompt, spec)
    return Problem(item, prompt, lambda text: readers.puzzle(text, seed), readers.same_text)


def _one(bench: Bench, spec: ReasoningSpec, name: str, readers: Readers) -> Outcome:
    problems, notes = problems_of(name, bench, spec, readers)
    chat, said = uses_chat(bench)
    tables: list[Table] = []
    solutions: list[list[list[Solved]]] = []
    written: list[list[Written]] = []
    total = len(problems) * spec.samples * len(bench.speakers)
    with bench.progress.task(f"solutions of {name}", total=total, unit="answers") as task:
        for speaker in bench.speakers:
            texts = [
                speaker.write([p.prompt for p in problems], _how(spec, bench.seed + sample, chat), task.advance)
                for sample in range(spec.samples)
            ]
            read = [[problem.read(sample[n].text) for sample in texts] for n, problem in enumerate(problems)]
            solutions.append(read)
            written.append(texts[0])
            tables.append(Table(speaker, solution_columns(problems, read, texts[0])))
    with_teacher = [
        replace(table, columns={**table.columns, **_agreement(problems, read, solutions[0])})
        if bench.teacher is not None and table.speaker.role != "teacher"
        else table
        for table, read in zip(tables, solutions, strict=True)
    ]
    if spec.faithfulness and problems[0].item.options:
        with_teacher = [
            replace(table, columns={**table.columns, **_faithfulness(bench, spec, problems, speaker, texts_of)})
            for table, speaker, texts_of in zip(with_teacher, bench.speakers, written, strict=True)
        ]
    measures = [f"pass@{k}" for k in _powers(spec.samples)] + [f"maj@{k}" for k in _powers(spec.samples)[1:]]
    return Outcome(
        name=name,
        tables=with_teacher,
        clusters=[problem.item.cluster for problem in problems],
        main="pass@1",
        lower_is_better={**dict.fromkeys([*measures, "agreement", "las"], False), "unanswered": None},
        texts=[problem.item.text for problem in problems],
        ceiling=_ceiling(bench, problems, solutions[0]),
        notes=[*notes, *said],
    )


def _how(spec: ReasoningSpec, seed: int, chat: bool) -> Writing:
    return Writing(spec.max_new_tokens, spec.temperature, seed, spec.batch_size, chat)


def solution_columns(
    problems: Sequence[Problem], read: Sequence[Sequence[Solved]], written: Sequence[Written]
) -> dict[str, Column]:
    """pass@k and maj@k for k = 1, 2, 4, ..., the share without an answer, and the length of the first solutions."""
    samples = len(read[0])
    right = [sum(one.right for one in solved) for solved in read]
    groups = [_groups(problem, solved) for problem, solved in zip(problems, read, strict=True)]
    columns: dict[str, Column] = {
        f"pass@{k}": Mean.of([pass_at_k(samples, count, k) for count in right]) for k in _powers(samples)
    }
    for k in _powers(samples)[1:]:
        columns[f"maj@{k}"] = Mean.of([majority_at_k(sizes, best, k, silent) for sizes, best, silent in groups])
    columns["unanswered"] = Mean.of([sum(one.answer is None for one in solved) / samples for solved in read])
    columns["tokens"] = Mean.of([one.tokens for one in written])
    return columns


def _powers(samples: int) -> list[int]:
    """1, 2, 4, ... up to the number of samples, which is always among them."""
    found = [2**n for n in range(samples.bit_length()) if 2**n <= samples]
    return found if found[-1] == samples else [*found, samples]


def _groups(problem: Problem, solved: Sequence[Solved]) -> tuple[list[int], int | None, int]:
    """Sizes of the groups of equal answers, the place of the right one, and how many gave none."""
    found: list[tuple[str, list[bool]]] = []
    for one in solved:
        if one.answer is None:
            continue
        for first, members in found:
            if problem.same(one.answer, first):
                members.append(one.right)
                break
        else:
            found.append((one.answer, [one.right]))
    best = next((place for place, (_, members) in enumerate(found) if any(members)), None)
    return [len(members) for _, members in found], best, sum(one.answer is None for one in solved)


def _agreement(
    problems: Sequence[Problem], read: Sequence[Sequence[Solved]], teacher: Sequence[Sequence[Solved]]
) -> dict[str, Column]:
    """How often a model's first answer is the teacher's first, right or wrong."""
    return {"agreement": Mean.of([_agree(p, a[0], b[0]) for p, a, b in zip(problems, read, teacher, strict=True)])}


def _agree(problem: Problem, one: Solved, other: Solved) -> bool:
    return one.answer is not None and other.answer is not None and problem.same(one.answer, other.answer)


def _ceiling(bench: Bench, problems: Sequence[Problem], teacher: Sequence[Sequence[Solved]]) -> str | None:
    if bench.teacher is None or len(teacher[0]) < 2:
        return None
    share = np.mean([_agree(p, solved[0], solved[1]) for p, solved in zip(problems, teacher, strict=True)])
    return f"two solutions of the teacher itself give the same answer to {share:.1%} of the problems"


def _faithfulness(
    bench: Bench, spec: ReasoningSpec, problems: Sequence[Problem], speaker: Speaker, written: Sequence[Written]
) -> dict[str, Column]:
    """LAS of a model's first solutions; nothing where the simulator is behind an API, which gives no likelihoods."""
    simulator = bench.teacher if spec.simulator == "teacher" and bench.teacher is not None else speaker
    items = [problem.item for problem in problems]
    if not isinstance(simulator, LocalSpeaker):
        return {}
    chosen = [named_option(item, one.text) for item, one in zip(items, written, strict=True)]
    explanations = [explanation_of(one.text) for one in written]
    with bench.progress.task("faithfulness", total=3 * sum(len(i.options) for i in items), unit="options") as task:
        return simulate(simulator, items, chosen, explanations, spec.batch_size, task.advance)


def check(suites: SuitesSpec, spec: ReasoningSpec) -> None:
    """Whether the sets are there, with answers, and the packages that puzzles need."""
    for name in spec.sets:
        if name.startswith(GYM):
            make_puzzles(puzzles_of(name, spec, 1, 0))
        else:
            find_set(name, suites.paths)
            load_set(name, suites.paths, 1, 0)


SUITE = Suite("reasoning", "Reasoning", run, check)
