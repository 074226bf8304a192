"""A model behind an API as a suite sees it: it writes, and gives no likelihoods."""

from __future__ import annotations

from collections.abc import Sequence

from lmdistill.errors import ModelError
from lmdistill.evaluation.records import Role
from lmdistill.evaluation.speakers import Likelihood, Told, Writing, Written
from lmdistill.teachers.api import ApiTeacher
from lmdistill.teachers.api_types import PROMPT, Message, Request, Sampling


def _silent(items: int) -> None:
    pass


class ApiSpeaker:
    """A model behind an API, whose every answer is kept in its ledger."""

    template = None
    """Its own affair."""

    def __init__(self, role: Role, teacher: ApiTeacher) -> None:
        self.role: Role = role
        self.label = teacher.spec.model
        self.teacher = teacher

    def likelihoods(self, asked: Sequence[tuple[str, str]], batch_size: int, told: Told = _silent) -> list[Likelihood]:
        """Always raises ModelError."""
        raise ModelError(
            f"{self.label}: a chat API does not say how likely a given text is; leave this model out of suites that "
            "compare options, or let it write (evaluation.suites.robustness.answer: written)"
        )

    # Suites ask it before they compare likelihoods.
    gives_likelihoods = False

    def write(self, prompts: Sequence[str], how: Writing, told: Told = _silent) -> list[Written]:
        """One answer to each prompt; an answer that did not come is an empty text that did not finish.

        Raises what `ApiTeacher.answer` raises; what was answered before is in the ledger.
        """
        sampling = Sampling(max_tokens=how.max_new_tokens, temperature=how.temperature, seed=how.seed)
        role = "user" if how.chat else PROMPT
        requests = [
            Request((Message(role, prompt),), sampling, tag=f"prompt {number + 1}")
            for number, prompt in enumerate(prompts)
        ]
        found = []
        for answer in self.teacher.answer(requests):
            found.append(Written(answer.text or "", answer.usage.output, answer.good and answer.finish == "stop"))
            told(1)
        return found
