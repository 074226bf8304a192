"""Personalised distillation: the student tries first, and the teacher mends what it got wrong.

Chen et al., "Personalized Distillation", arXiv 2310.18628, section 3, published for code with unit tests as feedback.
Here the feedback is whatever the recipe verifies with: a number, a program's result, an option. What the student can do
already is not trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lmdistill.generation.desk import Desk
from lmdistill.generation.fence import FENCE_NOTE, fence
from lmdistill.generation.instructions import question
from lmdistill.generation.types import Drop, Example, Seed

_MEND = (
    "A student tried to answer the question, and the answer is wrong: {feedback}. Mend the answer: keep what is right, "
    "correct what is wrong, and give the whole answer again. {note}\n\n{question}\n\n{attempt}"
)


def make_refined(desk: Desk, seeds: Sequence[Seed]) -> Iterator[Example | Drop]:
    """Mended answers to the questions that the student failed; the others are drops that say so."""
    attempts = desk.student([seed.prompt for seed in seeds])
    failed: list[tuple[Seed, str, str]] = []
    for seed, attempt in zip(seeds, attempts, strict=True):
        verdict, reason = desk.check(attempt, seed)
        if verdict == "incorrect":
            failed.append((seed, attempt, reason))
            continue
        why = "the student can do it already" if verdict == "correct" else f"its attempt cannot be checked: {reason}"
        yield Drop(Example(id=seed.id, prompt=seed.prompt, response=attempt, seed=seed.id), by="attempt", reason=why)
    requests = [
        question(
            desk,
            _MEND.format(
                feedback=reason,
                note=FENCE_NOTE,
                question=fence(seed.prompt, "question"),
                attempt=fence(attempt, "attempt"),
            ),
            seed.id,
        )
        for seed, attempt, reason in failed
    ]
    rows = desk.spec.refine.rows
    for (seed, attempt, reason), answer in zip(failed, desk.ask(requests), strict=True):
        response = (answer.text or answer.raw or "").strip()
        facts = {"attempt": attempt, "feedback": reason}
        whence = desk.came_from(answer)
        prompts = {
            "refined": seed.prompt,
            "refine": f"{seed.prompt}\n\nThis attempt is wrong ({reason}):\n{attempt}\n\nCorrect it.",
        }
        for task, prompt in prompts.items():
            if rows not in (task, "combined"):
                continue
            checked = desk.check(response, seed) if answer.good else (None, "")
            example = Example(
                id=f"{seed.id}-{task}",
                prompt=prompt,
                response=response,
                task=task,
                seed=seed.id,
                answer=seed.answer,
                verdict=checked[0],
                fields=facts,
                provenance=whence,
            )
            if not answer.good:
                yield Drop(example, by="answer", reason=answer.error or "the answer is not whole")
            elif checked[0] == "incorrect":
                yield Drop(example, by="verify", reason=checked[1])
            else:
                yield example
