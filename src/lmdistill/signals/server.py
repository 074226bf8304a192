"""A teacher behind a server that returns prompt log-probabilities, as vLLM does through its OpenAI-compatible API.

Each packed row of text is one request (a server knows no packing): its token ids go in as the prompt, one token is
asked for and thrown away, and `prompt_logprobs` come back: at each position the likeliest tokens and the text's own.

What such a server can return is limited: k tokens (vLLM starts with 20; `--max-logprobs` raises it), so that
the tail's mass is known but not how it is spread, and always at temperature 1.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from lmdistill.errors import MissingExtra, ModelError, ServerLost, TrainingError
from lmdistill.recipe import SignalSpec
from lmdistill.signals.engine import Ask
from lmdistill.signals.store import TrainingSequence
from lmdistill.signals.teller import Payload

RETRIES = 6
TIMEOUT_SECONDS = 600.0

Told = tuple[list[tuple[int, float]], float]
"""Of one position: the likeliest tokens with their log-probabilities, likeliest first, and the text's own token's."""

_BUSY = {408, 409, 425, 429}
"""Refusals that mean later, not never."""


class PromptServer:
    """Asks one server for the log-probabilities of prompts, one packed row at a time; safe to use from many threads."""

    def __init__(self, base_url: str, model: str, asked: int, *, resume: str = "run the same command again") -> None:
        """`asked` is the number of likeliest tokens wanted at each position, `resume` what to do when the server dies.

        The key comes from the variable LMDISTILL_API_KEY or OPENAI_API_KEY, where the server wants one. Raises
        MissingExtra without the openai package.
        """
        try:
            import openai
        except ImportError as error:
            raise MissingExtra("asking a server needs the openai package: pip install 'lmdistill[api]'") from error
        key = os.environ.get("LMDISTILL_API_KEY") or os.environ.get("OPENAI_API_KEY") or "none"
        self.model = model
        self.base_url = base_url
        self.asked = asked
        self.resume = resume
        self._openai = openai
        self._client = openai.OpenAI(base_url=base_url, api_key=key, max_retries=RETRIES, timeout=TIMEOUT_SECONDS)

    def tell(self, ids: list[int], wanted: Sequence[int], row_ids: Sequence[str]) -> list[Told]:
        """What the server says after each wanted token of one packed row; `row_ids` are for errors alone.

        Position t speaks of token t + 1, so that t must not be the last one. Raises ModelError for an answer or refusal
        that will not change, ServerLost where the server is away or overloaded after all retries, TrainingError for
        NaN.
        """
        answer = self._ask(ids, row_ids)
        # Position t of the text predicts token t + 1, whose log-probabilities the server gives at t + 1.
        return [self._position(answer, place + 1, ids[place + 1], row_ids) for place in wanted]

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _ask(self, ids: list[int], row_ids: Sequence[str]) -> list[Any]:
        """The prompt's log-probabilities; the SDK repeats what may succeed later."""
        try:
            answer = self._client.completions.create(
                model=self.model,
                prompt=ids,
                max_tokens=1,
                temperature=0,
                extra_body={"prompt_logprobs": self.asked, "add_special_tokens": False},
            )
        except self._openai.APIStatusError as error:
            said = f"{error.status_code}: {str(error.message)[:300]}"
            if error.status_code in _BUSY or error.status_code >= 500:
                raise ServerLost(
                    f"{self.base_url} failed {RETRIES + 1} times ({said}); look at its log. {self.resume}"
                ) from error
            raise ModelError(
                f"{self.base_url} refused the prompt of {', '.join(row_ids[:3])} ({said}). "
                f"{self._advice(error.status_code)}"
            ) from error
        except self._openai.OpenAIError as error:
            raise ServerLost(
                f"{self.base_url} cannot be asked ({type(error).__name__}: {str(error)[:200]}); is the server running? "
                f"{self.resume}"
            ) from error
        # vLLM puts the field beside the standard ones, where the SDK keeps what it does not know.
        found = getattr(answer.choices[0], "prompt_logprobs", None) if answer.choices else None
        if not isinstance(found, list) or len(found) != len(ids):
            count = f"{len(found)} positions for {len(ids)} tokens" if isinstance(found, list) else "no prompt_logprobs"
            raise ModelError(f"{self.base_url} gave {count}; use a server that returns them, such as vLLM")
        return found

    def _advice(self, status: int) -> str:
        if status in (401, 403):
            return "Put the server's key into LMDISTILL_API_KEY"
        if status == 404:
            return f"Is {self.model!r} the name that it serves (signals.served_model)?"
        return f"{self.asked} log-probabilities were asked for: start vLLM with --max-logprobs {self.asked}"

    def _position(self, answer: list[Any], place: int, target: int, row_ids: Sequence[str]) -> Told:
        """The likeliest tokens of one position, likeliest first, and the text's own log-probability."""
        entry = answer[place]
        try:
            given = {int(token): float(_logprob(value)) for token, value in entry.items()}
        except (AttributeError, TypeError, ValueError, KeyError) as error:
            raise ModelError(
                f"{self.base_url}: position {place} of {', '.join(row_ids[:3])} holds no log-probabilities"
            ) from error
        if target not in given:
            raise ModelError(
                f"{self.base_url}: position {place} of {', '.join(row_ids[:3])} lacks the text's own token {target}; "
                "does it cut text with another tokenizer?"
            )
        if any(math.isnan(value) for value in given.values()):
            raise TrainingError(f"{self.base_url}: NaN at position {place} of {', '.join(row_ids[:3])}")
        if len(given) < self.asked:
            raise ModelError(
                f"{self.base_url} gave {len(given)} of {self.asked} log-probabilities asked for at position {place} of "
                f"{', '.join(row_ids[:3])}; lower signals.k to what it gives, or raise its limit (vLLM: --max-logprobs)"
            )
        best = sorted(given.items(), key=lambda item: (-item[1], item[0]))[: self.asked]
        return best, given[target]


class ServerEngine:
    """Lets a server label; nothing of the teacher is loaded here."""

    def __init__(self, spec: SignalSpec, base_url: str, model: str, vocabulary_size: int) -> None:
        self.spec = spec
        self.vocabulary_size = vocabulary_size
        self.asked = 1 if spec.kind == "token" else min(spec.k, vocabulary_size)
        kept = "What is labelled is kept: run the same command again"
        self.server = PromptServer(base_url, model, self.asked, resume=kept)

    def tell(
        self,
        sequences: Sequence[TrainingSequence],
        seeds: Sequence[int],
        told: Callable[[int], None] = lambda tokens: None,
    ) -> list[Payload]:
        """What the teacher says at the labelled positions. Raises what `PromptServer.tell` raises."""

        def one(sequence: TrainingSequence) -> Payload:
            payload = self._sequence(sequence)
            told(len(sequence.input_ids_L))
            return payload

        with ThreadPoolExecutor(self.spec.requests) as pool:
            return list(pool.map(one, sequences))

    def tell_all(
        self, asks: Iterable[Ask], told: Callable[[int], None] = lambda tokens: None
    ) -> Generator[list[Payload], None, None]:
        """One ask after the other, each when it is wanted."""
        for ask in asks:
            yield self.tell(ask.sequences, ask.seeds, told)

    def close(self) -> None:
        """Close the connections."""
        self.server.close()

    def _sequence(self, sequence: TrainingSequence) -> Payload:
        starts = [*sequence.row_starts_R.tolist(), len(sequence.input_ids_L)]
        labelled_L = sequence.labelled_L
        parts: list[Told] = []
        for first, end in itertools.pairwise(starts):
            wanted = [place - first for place in range(first, end - 1) if labelled_L[place]]
            if wanted:
                parts += self.server.tell(sequence.input_ids_L[first:end].tolist(), wanted, sequence.row_ids)
        if len(parts) != sequence.positions:
            raise TrainingError(
                f"{sequence.row_ids}: a trained token stands at the beginning of a packed row; build the data set anew"
            )
        return self._payload(parts, sequence)

    def _payload(self, parts: Sequence[Told], sequence: TrainingSequence) -> Payload:
        if self.spec.kind == "token":
            own = np.array([value for _, value in parts], dtype=np.float32)
            return {"ids": sequence.input_ids_L[1:][sequence.loss_mask_L[1:]], "logprobs": own}
        ids_Nk = np.array([[token for token, _ in best] for best, _ in parts], dtype=np.int32)
        logprobs_Nk = np.array([[value for _, value in best] for best, _ in parts], dtype=np.float32)
        ids_Nk, logprobs_Nk = ids_Nk.reshape(-1, self.asked), logprobs_Nk.reshape(-1, self.asked)
        if self.spec.kind == "top_p":
            before_Nk = np.exp(logprobs_Nk).cumsum(1) - np.exp(logprobs_Nk)
            logprobs_Nk = np.where(before_Nk >= self.spec.p, -np.inf, logprobs_Nk).astype(np.float32)
        return {"ids": ids_Nk, "logprobs": logprobs_Nk}


def _logprob(value: Any) -> float:
    return float(value["logprob"] if isinstance(value, Mapping) else value.logprob)
