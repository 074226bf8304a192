"""Text that student and teacher write together, token by token.

Shape legend: B texts, g tokens of a draft, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmdistill.recipe import GenerationSpec, InterleavedSpec
from lmdistill.trajectories.decode import Text, draws_at, last_tokens, next_token
from lmdistill.trajectories.reader import Reader
from lmdistill.trajectories.sampling import NextToken
from lmdistill.trajectories.types import Author


class TeacherMixed:
    """Each token from alpha p + (1 - alpha) q, p the teacher's distribution, q the student's (MiniLLM 2306.08543, 2.2).

    Who draws a token is decided first (the teacher with probability alpha), which gives the same mixture and says who
    wrote what. Temperature and nucleus shape both distributions before they are mixed; the publication uses neither.
    `logprobs` are log q, `behaviour_logprobs` the mixture's: the importance weight is exp of their difference, with
    the student's later log-probability in place of the first where it has been trained since.
    """

    def __init__(self, teacher: Reader, alpha: float) -> None:
        """`alpha` is the teacher's part: 0.2 in the publication and its code."""
        self.teacher = teacher
        self.alpha = alpha

    def readers(self, student: Reader) -> list[Reader]:
        """Both."""
        return [student, self.teacher]

    def advance(self, texts: Sequence[Text], readers: Sequence[Reader], spec: GenerationSpec, step: int) -> None:
        """One token more. Raises TrainingError where the logits of either model are NaN or infinite."""
        new_B1, device = last_tokens(texts), readers[0].model.device
        own, taught = (next_token(reader.read(new_B1)[:, 0].to(device), texts, spec, step) for reader in readers)
        by_teacher_B = draws_at(texts, 1, device) < self.alpha
        chosen_BV = torch.where(by_teacher_B[:, None], taught.logits_BV, own.logits_BV)
        chosen = NextToken(chosen_BV, temperature=spec.temperature, top_p=spec.top_p)
        ids_B = chosen.draw(draws_at(texts, 0, device))
        parts_B2 = torch.stack([own.shaped_logprobs(ids_B), taught.shaped_logprobs(ids_B)], -1).double()
        weights_2 = torch.tensor([1 - self.alpha, self.alpha], dtype=torch.float64, device=device).log()
        mixed_B = (parts_B2 + weights_2).logsumexp(-1)
        rows = zip(
            texts,
            ids_B.tolist(),
            by_teacher_B.tolist(),
            own.logprobs(ids_B).tolist(),
            mixed_B.tolist(),
            strict=True,
        )
        for text, token, teacher, logprob, mixed in rows:
            text.add(token, Author.TEACHER if teacher else Author.STUDENT, logprob, mixed)


class Speculative:
    """Speculative knowledge distillation (SKD, 2410.11325, algorithm 1).

    The student drafts a few tokens, the teacher reads them in one pass; the first that is not among the teacher's k
    likeliest is replaced by a token of the teacher's, and drafting goes on behind it. The text is the one that asking
    the teacher after every token would give: a position has one draw for the student and one for the teacher, whether
    or not it is drafted again.
    """

    def __init__(self, teacher: Reader, spec: InterleavedSpec) -> None:
        """The publication's k is 25, and the replacement a draw from the teacher's whole distribution, which here is
        shaped by the temperature and nucleus that the student drafts with."""
        self.teacher = teacher
        self.spec = spec

    def readers(self, student: Reader) -> list[Reader]:
        """Both."""
        return [student, self.teacher]

    def advance(self, texts: Sequence[Text], readers: Sequence[Reader], spec: GenerationSpec, step: int) -> None:
        """One token or more to each text. Raises TrainingError where the logits of either model are NaN or infinite."""
        student, teacher = readers
        draft = self._draft(texts, student, spec, step)
        read_Bg = torch.cat([last_tokens(texts), draft.ids_Bg[:, :-1].cpu()], 1)
        taught_BgV = teacher.read(read_Bg).to(student.model.device)
        verdicts = [self._judge(texts, draft, taught_BgV[:, at], at, spec, step) for at in range(draft.length)]
        added = [_accept(text, [verdict[row] for verdict in verdicts]) for row, text in enumerate(texts)]
        for reader in readers:  # what was read behind the last token that stays; that one is not read yet
            reader.take_back([draft.length - count for count in added])

    def _draft(self, texts: Sequence[Text], student: Reader, spec: GenerationSpec, step: int) -> _Draft:
        """The student's own continuation of every text."""
        longest = max(text.limits.max_new_tokens - len(text.answer_ids) for text in texts)
        new_B1, drafted, found = last_tokens(texts), [], []
        for ahead in range(min(self.spec.draft_tokens, longest)):
            found.append(next_token(student.read(new_B1)[:, 0], texts, spec, step))
            drafted.append(found[-1].draw(draws_at(texts, 0, student.model.device, ahead)))
            new_B1 = drafted[-1][:, None]
        return _Draft(torch.stack(drafted, 1), found)

    def _judge(
        self, texts: Sequence[Text], draft: _Draft, taught_BV: Tensor, at: int, spec: GenerationSpec, step: int
    ) -> list[_Token]:
        """What stands at one position of the draft, supposed that all before it stays."""
        taught, own, drafted_B = next_token(taught_BV, texts, spec, step), draft.found[at], draft.ids_Bg[:, at]
        kept_B = taught.among_likeliest(drafted_B, self.spec.top_k)
        if self.spec.replacement == "likeliest":
            other_B = taught.likeliest()
        else:
            other_B = taught.draw(draws_at(texts, 1, drafted_B.device, at))
        ids_B = torch.where(kept_B, drafted_B, other_B)
        return [
            _Token(token, Author.STUDENT if kept else Author.TEACHER, logprob)
            for token, kept, logprob in zip(ids_B.tolist(), kept_B.tolist(), own.logprobs(ids_B).tolist(), strict=True)
        ]


@dataclass(frozen=True)
class _Draft:
    """What the student drafted, (B, g), and the distributions that it drew from."""

    ids_Bg: Tensor
    found: list[NextToken]

    @property
    def length(self) -> int:
        return len(self.found)


@dataclass(frozen=True)
class _Token:
    id: int
    author: Author
    logprob: float


def _accept(text: Text, tokens: Sequence[_Token]) -> int:
    """Add tokens up to the first of the teacher's or the text's end; how many."""
    for count, token in enumerate(tokens, start=1):
        text.add(token.id, token.author, token.logprob, None)
        if token.author == Author.TEACHER or not text.open:
            return count
    return len(tokens)
