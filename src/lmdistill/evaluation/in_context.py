"""How well a model answers behind demonstrations: k of n are drawn m times, and the majority of its answers counts.

So are in-context learners judged by Huang et al. (arXiv 2212.10670). A question with options is answered by the
likeliest one a token; another by what the model writes, up to the end of the line.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from lmdistill.errors import DataError
from lmdistill.evaluation.speakers import Speaker, Writing
from lmdistill.generation.demonstrations import in_one_text
from lmdistill.generation.votes import Vote, vote
from lmdistill.recipe import DemonstrationSpec


@dataclass(frozen=True)
class Question:
    """A question whose answer is known."""

    prompt: str
    answer: str
    options: tuple[str, ...] = ()
    """All answers that can be given, where they are named; the right one among them."""


@dataclass(frozen=True)
class InContext:
    """What came of a set of questions."""

    votes: tuple[Vote, ...]
    """The majority of each question, in order; without an answer where two are even."""
    right: tuple[bool, ...]
    """Whether the majority is right."""
    single: tuple[float, ...]
    """The share of right answers of each draw of demonstrations: how much they depend on what is shown."""

    @property
    def accuracy(self) -> float:
        """Share of questions whose majority is right."""
        return fmean(self.right)

    @property
    def mean_single(self) -> float:
        """Mean share of right answers without a vote."""
        return fmean(self.single)


def same_words(one: str, other: str) -> bool:
    """Whether two answers are one, white space, case and a full stop aside."""
    return _plain(one) == _plain(other)


def vote_in_context(
    speaker: Speaker,
    questions: Sequence[Question],
    pool: Sequence[tuple[str, str]],
    *,
    count: int,
    draws: int,
    seed: int = 0,
    spec: DemonstrationSpec | None = None,
    same: Callable[[str, str], bool] = same_words,
    max_new_tokens: int = 24,
    batch_size: int = 16,
) -> InContext:
    """Ask each question behind `count` demonstrations (question, answer) of the pool, drawn `draws` times.

    `spec` says how they are written. Of an even number of draws, two answers can be even: nobody wins then. Raises
    DataError for a pool that holds less than `count` other questions, and for an answer that is not among the options.
    """
    spec = spec or DemonstrationSpec()
    asked = [_asked(spec, question, pool, count, draws, seed) for question in questions]
    answers: list[list[str]] = [[] for _ in questions]
    listed = [place for place, question in enumerate(questions) if question.options]
    free = [place for place, question in enumerate(questions) if not question.options]
    for place, choice in _chosen(speaker, questions, asked, listed, batch_size):
        answers[place].append(choice)
    written = [(place, text) for place in free for text in asked[place]]
    how = Writing(max_new_tokens=max_new_tokens, seed=seed, batch_size=batch_size)
    for (place, _), found in zip(written, speaker.write([text for _, text in written], how), strict=True):
        answers[place].append(found.text.strip().partition("\n")[0].strip())
    votes = [vote([answer or None for answer in found], same) for found in answers]
    right = [_is(found.answer, question, same) for found, question in zip(votes, questions, strict=True)]
    single = [
        fmean(_is(found[draw], question, same) for found, question in zip(answers, questions, strict=True))
        for draw in range(draws)
    ]
    return InContext(tuple(votes), tuple(right), tuple(single))


def _asked(
    spec: DemonstrationSpec, question: Question, pool: Sequence[tuple[str, str]], count: int, draws: int, seed: int
) -> list[str]:
    """The texts that a question is asked in. Raises DataError."""
    if question.options and question.answer not in question.options:
        raise DataError(f"the answer {question.answer!r} of {question.prompt[:60]!r} is not among its options")
    others = [pair for pair in pool if pair[0] != question.prompt]
    if len(others) < count:
        raise DataError(
            f"{count} demonstrations are wanted before {question.prompt[:60]!r}, but the pool holds {len(others)} "
            "other questions; give more, or lower count"
        )
    texts = []
    for draw in range(draws):
        shown = random.Random(repr((seed, draw, question.prompt))).sample(others, count)
        texts.append(in_one_text(spec, shown, question.prompt))
    return texts


def _chosen(
    speaker: Speaker, questions: Sequence[Question], asked: Sequence[Sequence[str]], listed: list[int], batch_size: int
) -> list[tuple[int, str]]:
    """The likeliest option a token of each question in each context."""
    rows = [(place, text, option) for place in listed for text in asked[place] for option in questions[place].options]
    found = speaker.likelihoods([(text, option) for _, text, option in rows], batch_size) if rows else []
    choices, at = [], 0
    for place in listed:
        options = questions[place].options
        for _ in asked[place]:
            scores = [each.logprob / each.tokens for each in found[at : at + len(options)]]
            choices.append((place, options[max(range(len(options)), key=scores.__getitem__)]))
            at += len(options)
    return choices


def _is(answer: str | None, question: Question, same: Callable[[str, str], bool]) -> bool:
    return bool(answer) and same(answer or "", question.answer)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")
