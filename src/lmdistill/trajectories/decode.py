"""Writing many texts with few slots: whoever is done makes room for the next prompt.

Prompts come longest first, so that those that are read together are alike in length, and a later one never needs more
columns than there are. A slot does not wait for its batch: `generate` runs a batch until its longest answer ends.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmdistill.errors import DataError, TrainingError
from lmdistill.recipe import GenerationSpec
from lmdistill.trajectories.reader import Reader
from lmdistill.trajectories.sampling import NextToken, uniform_draws
from lmdistill.trajectories.types import Author, Trajectory

_STREAMS = 2
"""Kinds of draws that a text has at each position: one for the token, one for what else is drawn there."""


@dataclass(frozen=True)
class Limits:
    """Where texts end."""

    end_ids: frozenset[int]
    """Tokens after which a text is finished."""
    max_new_tokens: int


@dataclass
class Text:
    """A text in the making. Every reader has read all of it but its last token."""

    prompt_ids: list[int]
    place: int
    """Its place among the prompts."""
    row_id: str
    limits: Limits
    draws: NDArray[np.float64]
    """Numbers in [0, 1), (streams, positions of the answer)."""
    answer_ids: list[int] = field(default_factory=list)
    authors: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    behaviour_logprobs: list[float] | None = field(default_factory=list)
    finished: bool = False

    @property
    def last(self) -> int:
        """The token that is to be read next."""
        return self.answer_ids[-1] if self.answer_ids else self.prompt_ids[-1]

    @property
    def open(self) -> bool:
        """Whether it goes on."""
        return not self.finished and len(self.answer_ids) < self.limits.max_new_tokens

    def add(self, token: int, author: Author, logprob: float, behaviour_logprob: float | None) -> None:
        """One more token; None where the probability that it was drawn with is not known."""
        self.answer_ids.append(token)
        self.authors.append(int(author))
        self.logprobs.append(logprob)
        if self.behaviour_logprobs is None or behaviour_logprob is None:
            self.behaviour_logprobs = None
        else:
            self.behaviour_logprobs.append(behaviour_logprob)
        self.finished = token in self.limits.end_ids

    def trajectory(self, step: int) -> Trajectory:
        """What became of it."""
        return Trajectory(
            prompt_ids=self.prompt_ids,
            answer_ids=self.answer_ids,
            authors=self.authors,
            logprobs=self.logprobs,
            finished=self.finished,
            step=step,
            row_id=self.row_id,
            behaviour_logprobs=self.behaviour_logprobs,
        )


Advance = Callable[[Sequence[Text]], None]
"""Adds one token or more to each of these texts, which the readers hold in the same order."""


def begin(
    prompts: Sequence[Sequence[int]], row_ids: Sequence[str], seed: int, spec: GenerationSpec, limits: Limits
) -> list[Text]:
    """The texts that these prompts begin. Raises DataError for an empty prompt."""
    texts = []
    for place, (prompt, row_id) in enumerate(zip(prompts, row_ids, strict=True)):
        if not prompt:
            raise DataError(f"{row_id}: its prompt has no tokens; give it at least the beginning of a chat or text")
        draws = np.stack([uniform_draws(seed, place, stream, spec.max_new_tokens) for stream in range(_STREAMS)])
        texts.append(Text(list(prompt), place, row_id, limits, draws))
    return texts


def check_room(texts: Sequence[Text], context: int | None, whose: str) -> None:
    """Raises DataError for a prompt whose answer might not fit into the context of a model that reads it."""
    for text in texts:
        room = text.limits.max_new_tokens
        if context is not None and len(text.prompt_ids) + room > context:
            raise DataError(
                f"{text.row_id}: a prompt of {len(text.prompt_ids)} tokens and up to {room} new ones do not fit into "
                f"the {context} tokens of {whose}; lower generation.max_new_tokens, or leave out prompts that long"
            )


def write_all(
    texts: Sequence[Text],
    readers: Sequence[Reader],
    advance: Advance,
    *,
    slots: int,
    told: Callable[[int], None] = lambda tokens: None,
) -> None:
    """Write all texts to their end, so many at a time; `told` hears of each finished text's tokens."""
    for reader in readers:
        check_room(texts, reader.context, type(reader.model).__name__)
    waiting = sorted(texts, key=lambda text: (len(text.prompt_ids), -text.place))
    live: list[Text] = []
    for reader in readers:
        reader.clear()
    try:
        while waiting or live:
            new = _next(waiting, slots, len(live))
            if new:
                for reader in readers:
                    reader.admit([text.prompt_ids[:-1] for text in new])
                live += new
            advance(live)
            for number in reversed(range(len(live))):
                if not live[number].open:
                    told(len(live[number].answer_ids))
                    live[number] = live[-1]
                    live.pop()
                    for reader in readers:
                        reader.leave(number)
    finally:
        for reader in readers:
            reader.clear()


def _next(waiting: list[Text], slots: int, live: int) -> list[Text]:
    """The prompts that are read now: several at once, since one alone makes slow matrix products."""
    free = slots - live
    if live and free < min(len(waiting), max(1, slots // 4)):
        return []
    return [waiting.pop() for _ in range(min(free, len(waiting)))]


def advance_plainly(
    texts: Sequence[Text], reader: Reader, spec: GenerationSpec, author: Author, step: int | None
) -> None:
    """Draw each text's next token from one model. Raises TrainingError where its logits are NaN or infinite."""
    found = next_token(reader.read(last_tokens(texts))[:, 0], texts, spec, step)
    ids_B = found.draw(draws_at(texts, 0, found.logits_BV.device))
    logprobs_B, shaped_B = found.logprobs(ids_B), found.shaped_logprobs(ids_B)
    rows = zip(texts, ids_B.tolist(), logprobs_B.tolist(), shaped_B.tolist(), strict=True)
    for text, token, logprob, shaped in rows:
        text.add(token, author, logprob, shaped)


def last_tokens(texts: Sequence[Text]) -> Tensor:
    """What the readers have not read yet, (B, 1)."""
    return torch.tensor([[text.last] for text in texts])


def draws_at(texts: Sequence[Text], stream: int, device: torch.device, ahead: int = 0) -> Tensor:
    """The draws of each text for its next position, or one so many further; beyond its end any."""
    limit = texts[0].draws.shape[1] - 1
    places = [min(len(text.answer_ids) + ahead, limit) for text in texts]
    values = [text.draws[stream, place] for text, place in zip(texts, places, strict=True)]
    return torch.tensor(values, dtype=torch.float64).to(device)


def next_token(logits_BV: Tensor, texts: Sequence[Text], spec: GenerationSpec, step: int | None) -> NextToken:
    """The next token's distributions; `step` None: outside training.

    Raises TrainingError naming the rows whose logits are none.
    """
    found = NextToken(logits_BV, temperature=spec.temperature, top_p=spec.top_p)
    broken = found.broken_rows()
    if broken:
        names, token = ", ".join(texts[row].row_id for row in broken[:8]), len(texts[broken[0]].answer_ids)
        advice = "what was written before is intact. Load the model in float32, or leave these rows out"
        if step is not None:
            advice = (
                "nothing was trained on them and the last checkpoint is intact. Lower training.learning_rate, or write "
                "in float32"
            )
        raise TrainingError(
            f"{'' if step is None else f'step {step}: '}the logits that text is drawn from are NaN or infinite for "
            f"{len(broken)} of {len(texts)} rows ({names}), at answer token {token}; {advice}"
        )
    return found


def limits_of(spec: GenerationSpec, end_ids: Collection[int], max_new_tokens: int | None = None) -> Limits:
    """The limits of a call: `max_new_tokens` lowers that of the recipe."""
    longest = spec.max_new_tokens if max_new_tokens is None else min(max_new_tokens, spec.max_new_tokens)
    return Limits(frozenset(end_ids), max(1, longest))
