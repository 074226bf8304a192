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
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from lmdistill.errors import LmdistillError, MissingExtra, ModelError, TrainingError
from lmdistill.recipe import SignalSpec
from lmdistill.signals.store import TrainingSequence
from lmdistill.signals.teller import Payload

RETRIES = 6
TIMEOUT_SECONDS = 600.0


class ServerEngine:
    """Asks a server; nothing of the teacher is loaded here."""

    def __init__(self, spec: SignalSpec, base_url: str, model: str, vocabulary_size: int) -> None:
        """The key comes from the variable LMDISTILL_API_KEY or OPENAI_API_KEY, where the server wants one."""
        try:
            import openai
        except ImportError as error:
            raise MissingExtra("asking a server needs the openai package: pip install 'lmdistill[api]'") from error
        key = os.environ.get("LMDISTILL_API_KEY") or os.environ.get("OPENAI_API_KEY") or "none"
        self.spec = spec
        self.model = model
        self.base_url = base_url
        self.vocabulary_size = vocabulary_size
        self._openai = openai
        self._client = openai.OpenAI(base_url=base_url, api_key=key, max_retries=RETRIES, timeout=TIMEOUT_SECONDS)
        self.asked = 1 if spec.kind == "token" else min(spec.k, vocabulary_size)

    def tell(
        self,
        sequences: Sequence[TrainingSequence],
        seeds: Sequence[int],
        told: Callable[[int], None] = lambda tokens: None,
    ) -> list[Payload]:
        """What the teacher says at the labelled positions. Raises ModelError, TrainingError with the server's words."""

        def one(sequence: TrainingSequence) -> Payload:
            payload = self._sequence(sequence)
            told(len(sequence.input_ids_L))
            return payload

        with ThreadPoolExecutor(self.spec.requests) as pool:
            return list(pool.map(one, sequences))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _sequence(self, sequence: TrainingSequence) -> Payload:
        starts = [*sequence.row_starts_R.tolist(), len(sequence.input_ids_L)]
        labelled_L = sequence.labelled_L
        parts = []
        for first, end in itertools.pairwise(starts):
            ids = sequence.input_ids_L[first:end].tolist()
            # Position t of the text predicts token t + 1, whose log-probabilities the server gives at t + 1.
            wanted = [place - first for place in range(first, end - 1) if labelled_L[place]]
            if wanted:
                answer = self._ask(ids, sequence.row_ids)
                parts += [self._position(answer, place + 1, ids[place + 1], sequence.row_ids) for place in wanted]
        if len(parts) != sequence.positions:
            raise TrainingError(
                f"{sequence.row_ids}: a trained token stands at the beginning of a packed row; build the data set anew"
            )
        return self._payload(parts, sequence)

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
            raise ModelError(
                f"{self.base_url} refused the prompt of {', '.join(row_ids[:3])} ({error.status_code}: "
                f"{str(error.message)[:300]}). {self._advice(error.status_code)}"
            ) from error
        except self._openai.OpenAIError as error:
            raise LmdistillError(
                f"{self.base_url} cannot be asked ({type(error).__name__}: {str(error)[:200]}); is the server running? "
                "What is labelled is kept: run the same command again"
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

    def _position(
        self, answer: list[Any], place: int, target: int, row_ids: Sequence[str]
    ) -> tuple[list[tuple[int, float]], float]:
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

    def _payload(self, parts: Sequence[tuple[list[tuple[int, float]], float]], sequence: TrainingSequence) -> Payload:
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
