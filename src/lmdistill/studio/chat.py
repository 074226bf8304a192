"""The same conversation with two models side by side, token by token.

Both draw with the same random numbers at the same places, as in an evaluation: they differ by what they believe and not
by their luck.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from markupsafe import Markup

from lmdistill.data import Document, RowEncoder
from lmdistill.errors import LmdistillError
from lmdistill.evaluation.answers import end_tokens
from lmdistill.recipe import GenerationSpec
from lmdistill.studio import page
from lmdistill.studio.shelf import Choice, Loaded, Shelf
from lmdistill.trajectories.decode import advance_plainly, begin, check_room, limits_of
from lmdistill.trajectories.reader import Reader
from lmdistill.trajectories.types import Author

_EVERY = 0.15
"""Seconds between two looks at answers in the making."""
_CONTINUED = 2**20
T = TypeVar("T")


@dataclass(frozen=True)
class ChatSettings:
    """How answers are drawn."""

    temperature: float = 0.7
    max_new_tokens: int = 128
    seed: int = 0


@dataclass
class Answer:
    """What one model answered to one question."""

    model: str
    text: str = ""
    tokens: int = 0
    seconds: float = 0.0
    state: str = "waits"
    """waits, is loaded, writes, ended, cut, stopped or failed."""
    error: str = ""
    plain: bool = False
    """Whether it has no chat template, so that the text is only continued."""


@dataclass
class Turn:
    """A question and an answer of each side."""

    prompt: str
    answers: list[Answer] = field(default_factory=list)


class Writer:
    """One model at its answer."""

    def __init__(self, loaded: Loaded, conversation: Sequence[tuple[str, str]], prompt: str, how: ChatSettings) -> None:
        """`conversation` holds earlier questions with this model's answers. Raises DataError for one too long."""
        spec = GenerationSpec(max_new_tokens=how.max_new_tokens, temperature=how.temperature)
        self.tokenizer = loaded.tokenizer
        ids, self.plain = prompt_ids(loaded, conversation, prompt)
        limits = limits_of(spec, end_tokens(loaded.tokenizer, [loaded.model]))
        self._spec, self._reader = spec, Reader(loaded.model, len(loaded.tokenizer))
        (self._text,) = begin([ids], [loaded.label], how.seed, spec, limits)
        check_room([self._text], self._reader.context, loaded.label)
        self._reader.admit([ids[:-1]])

    def step(self) -> bool:
        """One more token; whether there may be another."""
        if self._text.open:
            advance_plainly([self._text], self._reader, self._spec, Author.STUDENT, step=None)
        if not self._text.open:
            self._reader.clear()
        return self._text.open

    def tell(self, answer: Answer) -> None:
        """Put what there is so far into the answer."""
        answer.text = str(self.tokenizer.decode(self._text.answer_ids, skip_special_tokens=True)).strip()
        answer.tokens = len(self._text.answer_ids)
        if not self._text.open:
            answer.state = "ended" if self._text.finished else "cut"


def prompt_ids(loaded: Loaded, conversation: Sequence[tuple[str, str]], prompt: str) -> tuple[list[int], bool]:
    """What the model reads, in its own tokenizer's chat template; whether there was none, so that text is continued."""
    encoder = RowEncoder(loaded.tokenizer)
    if encoder.template is None:
        before = "".join(f"{asked}{answered}\n" for asked, answered in conversation)
        return encoder.prompt(Document(text=before + prompt, origin="chat"), _CONTINUED), True
    messages = []
    for asked, answered in conversation:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    messages.append({"role": "user", "content": prompt})
    return encoder.prompt(Document(messages=messages, origin="chat"), _CONTINUED), False


def converse(
    shelf: Shelf, choices: Sequence[Choice], turns: Sequence[Turn], prompt: str, how: ChatSettings
) -> Iterator[Turn]:
    """Let every side answer, and say every moment how far they are; what fails on one side leaves the other alone."""
    turn = Turn(prompt, [Answer(choice.label) for choice in choices])
    writers: list[Writer | None] = []
    for side, (choice, answer) in enumerate(zip(choices, turn.answers, strict=True)):
        answer.state = "is loaded"
        yield turn
        earlier = [(old.prompt, old.answers[side].text) for old in turns if not old.answers[side].error]
        writers.append(_guarded(answer, lambda c=choice, e=earlier: Writer(shelf.get(c), e, prompt, how)))  # type: ignore[misc]
        if (writer := writers[-1]) is not None:
            answer.state, answer.plain = "writes", writer.plain
    began = told = time.monotonic()
    live = [(writer, answer) for writer, answer in zip(writers, turn.answers, strict=True) if writer is not None]
    while live:
        for writer, answer in list(live):
            more = _guarded(answer, writer.step)
            answer.seconds = time.monotonic() - began
            if not more:
                _guarded(answer, lambda w=writer, a=answer: w.tell(a))  # type: ignore[misc]
                live.remove((writer, answer))
        if time.monotonic() - told >= _EVERY:
            for writer, answer in live:
                writer.tell(answer)
            told = time.monotonic()
            yield turn
    yield turn


def _guarded(answer: Answer, work: Callable[[], T]) -> T | None:
    """What the work returns; an error becomes the answer's."""
    try:
        return work()
    except LmdistillError as error:
        answer.state, answer.error = "failed", str(error)
    except (RuntimeError, ValueError, OSError, MemoryError) as error:
        answer.state, answer.error = "failed", f"{type(error).__name__}: {error}"
    return None


def side(turns: Sequence[Turn], number: int, label: str | None) -> str:
    """The conversation with one side."""
    parts: list[Markup] = [page.heading(label or "No model chosen", 2)]
    for turn in turns:
        parts.append(Markup('<p class="asked"><b>You</b>{}</p>').format(page.shown(turn.prompt)))
        parts.append(_answer(turn.answers[number]))
    if not turns:
        parts.append(page.note("Nothing was asked yet."))
    return page.whole(*parts)


def _answer(answer: Answer) -> Markup:
    if answer.error:
        return page.problem(answer.error)
    said = {"ended": "", "cut": ", cut by the limit", "stopped": ", stopped"}
    if answer.state in said:
        rate = answer.tokens / answer.seconds if answer.seconds > 0 else 0.0
        state = f"{answer.tokens} tokens, {rate:.1f} a second{said[answer.state]}"
    else:
        state = f"{answer.state} …"
    if answer.plain:
        state += "; it has no chat template, so it continues the text"
    text = answer.text or ("(it ended at once)" if answer.state == "ended" else "")
    return Markup('<div class="answer" data-state="{}"><b>{}</b><p>{}</p><small>{}</small></div>').format(
        answer.state.split()[-1], page.shown(answer.model), page.shown(text), state
    )
