"""The plain maker: the teacher answers each question, and the student learns its answers.

So are the data of Alpaca's successors made that keep the instructions and renew the answers: Instruction Tuning with
GPT-4 (Peng et al., arXiv 2304.03277).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lmdistill.generation.desk import Desk, asked, failed, requests_of
from lmdistill.generation.types import Drop, Example, Seed


def make_answers(desk: Desk, seeds: Sequence[Seed]) -> Iterator[Example | Drop]:
    """Each answer of the teacher as an example of the task `answer`."""
    for seed, request, answer in asked(desk, requests_of(desk, seeds, "{prompt}")):
        if not answer.good or answer.text is None:
            yield failed(seed, answer, desk)
            continue
        yield Example(
            id=f"{seed.id}-{request.sample}",
            prompt=seed.prompt,
            response=answer.text.strip(),
            seed=seed.id,
            answer=seed.answer,
            provenance=desk.came_from(answer),
        )
