"""Programs in place of rationales: an interpreter says which of them reason rightly, and does the sums.

PaD (Zhu et al., arXiv 2305.13888): the teacher writes a program that computes the answer; what does not run, or comes
to another result, is left out; the student learns programs, and is judged by what they print. They run in
`lmdistill.generation.programs`, never in Python itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lmdistill.generation.desk import Desk, asked, chat, failed, filled, sampling_of
from lmdistill.generation.final_answer import find_programs
from lmdistill.generation.judging import Judge
from lmdistill.generation.types import Drop, Example, Seed, Verdict
from lmdistill.generation.waves import in_waves
from lmdistill.recipe import VerifySpec
from lmdistill.teachers.api_types import Answer, Request

TEMPLATE = (
    "Write a short Python program that solves the problem and prints the answer. Write nothing but the program.\n\n"
    "Problem: {prompt}"
)


def make_programs(desk: Desk, seeds: Sequence[Seed]) -> Iterator[Example | Drop]:
    """Each program that comes to the seed's answer as a row of the task `program`; any, where none is known."""
    with Judge((desk.spec.verify or VerifySpec()).model_copy(update={"answer": "program"})) as judge:

        def wave(wanted: Sequence[Seed], samples: range) -> Iterator[tuple[str, Verdict, Example | Drop]]:
            pairs = [(seed, _request(desk, seed, sample)) for seed in wanted for sample in samples]
            for seed, _, answer in asked(desk, pairs):
                found = _row(desk, judge, seed, answer)
                verdict = None if isinstance(found, Drop) and found.by == "answer" else _example(found).verdict
                yield seed.id, verdict or "unverifiable", found

        yield from in_waves(desk, seeds, wave)


def _row(desk: Desk, judge: Judge, seed: Seed, answer: Answer) -> Example | Drop:
    """A program as a row, or why it is none."""
    if not answer.good or answer.text is None:
        return failed(seed, answer, desk, "program")
    sources = find_programs(answer.text)
    source = sources[-1].strip() if sources else answer.text.strip()
    checked = judge.check(f"```python\n{source}\n```", seed)
    example = Example(
        id=f"{seed.id}-{answer.request.sample}",
        prompt=seed.prompt,
        response=source,
        task="program",
        seed=seed.id,
        answer=checked.answer,
        verdict=checked.verdict,
        provenance=desk.came_from(answer),
    )
    if not sources:
        return Drop(example, by="program", reason="the answer holds no program")
    if checked.answer is None:
        return Drop(example, by="program", reason=checked.reason)
    unlike = checked.verdict == "incorrect" or (checked.verdict == "unverifiable" and seed.answer is not None)
    if unlike and not desk.spec.programs.keep_wrong:
        return Drop(example, by="verdict", reason=checked.reason)
    return example


def _example(found: Example | Drop) -> Example:
    return found.example if isinstance(found, Drop) else found


def _request(desk: Desk, seed: Seed, sample: int) -> Request:
    ask = desk.spec.ask
    text = filled(ask.template or TEMPLATE, prompt=seed.prompt)
    return Request(chat(ask, text), sampling_of(ask, desk.seed), sample=sample, tag=seed.id)
