"""What a suite asks of a model: how likely continuations are, and text. A model in this process, or one behind an API.

Everything is text: each model cuts it with its own tokenizer, so that models of different vocabularies answer the same
questions.

Shape legend: B rows of a batch, L length, N scored positions, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lmdistill.errors import DataError
from lmdistill.evaluation.answers import end_tokens
from lmdistill.evaluation.records import Role
from lmdistill.models import last_hidden, output_head
from lmdistill.objectives.rows import LogitsView
from lmdistill.recipe import GenerationSpec
from lmdistill.trajectories.decode import advance_plainly, begin, limits_of, write_all
from lmdistill.trajectories.reader import Reader, context_of
from lmdistill.trajectories.types import Author

_CHUNK_LOGITS = 1 << 23


@dataclass(frozen=True)
class Likelihood:
    """How a model sees one continuation of one text."""

    logprob: float
    """Natural logarithm of the probability of all its tokens."""
    tokens: int
    greedy: bool
    """Whether it is what greedy decoding would write."""


@dataclass(frozen=True)
class Written:
    """One answer."""

    text: str
    """Without special tokens."""
    tokens: int
    finished: bool
    """Whether it ended by itself."""
    logprob: float | None = None
    """Of all its tokens, where the model says it."""


@dataclass(frozen=True)
class Writing:
    """How answers are drawn."""

    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    """Answers of one seed share their draws between models: place in the list and position decide them."""
    batch_size: int = 16
    chat: bool = False
    """Put the prompt into the model's own chat template, as a user's message."""


class Speaker(Protocol):
    """A model as a suite sees it."""

    @property
    def role(self) -> Role:
        """What it is in the comparison."""

    @property
    def label(self) -> str:
        """Its name in tables."""

    @property
    def template(self) -> str | None:
        """Its chat template; None where it has none."""

    def likelihoods(self, asked: Sequence[tuple[str, str]], batch_size: int, told: Told = ...) -> list[Likelihood]:
        """Of each (text, continuation), in order. Raises ModelError where the model gives none."""

    def write(self, prompts: Sequence[str], how: Writing, told: Told = ...) -> list[Written]:
        """One answer to each prompt, in order."""


Told = Callable[[int], None]
"""Hears of finished items."""


def _silent(items: int) -> None:
    pass


class LocalSpeaker:
    """A model in this process."""

    def __init__(self, role: Role, label: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.role: Role = role
        self.label = label
        self.model = model
        self.tokenizer = tokenizer
        self.context = context_of(model)

    @property
    def template(self) -> str | None:
        """Its chat template."""
        found = self.tokenizer.chat_template
        return None if found is None else str(found)

    @torch.no_grad()
    def likelihoods(self, asked: Sequence[tuple[str, str]], batch_size: int, told: Told = _silent) -> list[Likelihood]:
        """Of each (text, continuation); a text that is too long for the model loses its beginning.

        Continuations of one token share the pass over their text. Raises DataError for an empty continuation.
        """
        pairs = [self._pair(text, continuation) for text, continuation in asked]
        wanted: dict[tuple[int, ...], list[int]] = {}
        for place, (before, after) in enumerate(pairs):
            wanted.setdefault((*before, *after[:-1]), []).append(place)
        found: dict[int, Likelihood] = {}
        inputs = sorted(wanted, key=len, reverse=True)
        for start in range(0, len(inputs), batch_size):
            batch = inputs[start : start + batch_size]
            for row, hidden_LH in zip(batch, self._hidden(batch), strict=True):
                afters = [pairs[place][1] for place in wanted[row]]
                places = wanted[row]
                found |= dict(zip(places, self._score(hidden_LH[: len(row)], afters), strict=True))
                told(len(places))
        return [found[place] for place in range(len(asked))]

    def write(self, prompts: Sequence[str], how: Writing, told: Told = _silent) -> list[Written]:
        """One answer to each prompt. Raises DataError where a prompt and its answer do not fit into the model."""
        if not prompts:
            return []
        drawing = GenerationSpec(
            max_new_tokens=how.max_new_tokens, temperature=how.temperature, batch_size=how.batch_size
        )
        reader = Reader(self.model, len(self.tokenizer))
        ends = end_tokens(self.tokenizer, [self.model])
        asked = [self._prompt_ids(prompt, how) for prompt in prompts]
        texts = begin(
            asked, [f"prompt {n + 1}" for n in range(len(asked))], how.seed, drawing, limits_of(drawing, ends)
        )
        write_all(
            texts,
            [reader],
            lambda live: advance_plainly(live, reader, drawing, Author.STUDENT, step=None),
            slots=how.batch_size,
            told=lambda tokens: told(1),
        )
        return [
            Written(
                text=str(self.tokenizer.decode(text.answer_ids, skip_special_tokens=True)),
                tokens=len(text.answer_ids),
                finished=text.finished,
                logprob=sum(text.logprobs),
            )
            for text in texts
        ]

    def _prompt_ids(self, prompt: str, how: Writing) -> list[int]:
        if how.chat:
            message = [{"role": "user", "content": prompt}]
            text = self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
            ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            ids = self.tokenizer(prompt)["input_ids"]
        room = None if self.context is None else max(1, self.context - how.max_new_tokens)
        return ids if room is None or len(ids) <= room else ids[-room:]

    def _pair(self, text: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of both, cut where the whole text's tokens are nearest to the border: at the end of the text's own."""
        text, continuation = text[: len(text.rstrip())], text[len(text.rstrip()) :] + continuation
        before: list[int] = self.tokenizer(text)["input_ids"] or [self._start()]
        whole: list[int] = self.tokenizer(text + continuation)["input_ids"]
        after = whole[len(before) :] if whole[: len(before)] == before else self._alone(continuation)
        if not after:
            raise DataError(f"{continuation!r}: a continuation without tokens has no likelihood; remove empty options")
        if self.context is not None:
            after = after[-(self.context - 1) :]
            before = before[-(self.context + 1 - len(after)) :]
        return before, after

    def _alone(self, continuation: str) -> list[int]:
        """The continuation's own ids, where the border lies inside a token of the whole."""
        ids: list[int] = self.tokenizer(continuation, add_special_tokens=False)["input_ids"]
        return ids

    def _start(self) -> int:
        found = self.tokenizer.bos_token_id
        return int(found if found is not None else self.tokenizer.eos_token_id)

    def _hidden(self, rows: Sequence[tuple[int, ...]]) -> Tensor:
        """The last hidden states, (B, L, H); padded behind, where nothing of it is seen."""
        ids_BL = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for place, row in enumerate(rows):
            ids_BL[place, : len(row)] = torch.tensor(row)
        return last_hidden(self.model, {"input_ids": ids_BL.to(self.model.device)})

    def _score(self, hidden_LH: Tensor, afters: Sequence[Sequence[int]]) -> list[Likelihood]:
        """The continuations of one row; they differ in their last token alone, so they have one length."""
        count = len(afters[0])
        logs_NV = self.log_probabilities(hidden_LH[-count:])
        best_N = logs_NV.argmax(-1)
        found = []
        for after in afters:
            ids_N = torch.tensor(after, device=logs_NV.device)
            logprob = float(logs_NV.gather(1, ids_N[:, None]).sum())
            found.append(Likelihood(logprob, count, bool((best_N == ids_N).all())))
        return found

    def log_probabilities(self, hidden_NH: Tensor) -> Tensor:
        """Of all real ids, (N, V), in float32."""
        head = output_head(self.model, len(self.tokenizer))
        weight_VH = head.weight_VH[: head.vocabulary_size]
        bias_V = None if head.bias_V is None else head.bias_V[: head.vocabulary_size]
        step = max(1, _CHUNK_LOGITS // head.vocabulary_size)
        view = LogitsView(head.logit_scale, head.softcap)
        parts = [
            view.logits(F.linear(hidden_NH[start : start + step], weight_VH, bias_V)).log_softmax(-1)
            for start in range(0, len(hidden_NH), step)
        ]
        return torch.cat(parts)
