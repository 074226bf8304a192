"""A teacher behind a server, asked as training goes on, and how far what such a server can say is from the truth.

Every packed row of a batch is one request. Nothing of the teacher is loaded here.

Shape legend: N = B * L positions of the student's text, M of the text that the server reads, k kept ids.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lmdistill.errors import TrainingError
from lmdistill.signals.server import PromptServer, Told
from lmdistill.signals.types import TailMode, TokenSignal, TopKSignal
from lmdistill.teachers.base import Part, Speech
from lmdistill.teachers.reading import gather, packed_rows, text_of, trained_positions

ServedKind = Literal["top_k", "token"]


class ServedTeacher:
    """A server that returns prompt log-probabilities (vLLM's, or another behind the OpenAI-compatible API)."""

    def __init__(
        self,
        base_url: str,
        model: str,
        vocabulary_size: int,
        *,
        kind: ServedKind = "top_k",
        k: int = 20,
        tail: TailMode = "bucket",
        requests: int = 8,
    ) -> None:
        """`model` is the teacher's name on the server, `requests` how many wait for it at a time.

        `top_k`: its k likeliest tokens and the text's own; `token`: the text's own alone.
        """
        self.vocabulary_size = vocabulary_size
        self.kind = kind
        self.k = 1 if kind == "token" else min(k, vocabulary_size)
        self.tail: TailMode = tail
        self.requests = requests
        resume = "The last checkpoint is intact: run the same command again when the server is back"
        self.server = PromptServer(base_url, model, self.k, resume=resume)

    def speak(self, batch: Mapping[str, Any]) -> Speech:
        """What the server says of the trained positions; of the others nothing is asked.

        Raises ServerLost where it is away after all retries, ModelError for an answer that will not change.
        """
        inputs, places_N = text_of(batch)
        wanted_N = trained_positions(batch).flatten()
        if places_N is not None:
            wanted_N = wanted_N & (places_N >= 0)
        wanted_M = wanted_N
        if places_N is not None:
            wanted_M = torch.zeros(inputs["input_ids"].numel(), dtype=torch.bool, device=wanted_N.device)
            wanted_M[places_N[wanted_N]] = True
        told = self._ask(_requests(inputs, wanted_M.view(inputs["input_ids"].shape), batch))
        signal = self._token(batch, told, places_N) if self.kind == "token" else self._top_k(inputs, told, places_N)
        return Speech((Part(signal, wanted_N),))

    def close(self) -> None:
        """Close the connections."""
        self.server.close()

    def measure(self, texts: Sequence[Sequence[int]]) -> KeptMass:
        """How much of its probability the server's k likeliest tokens hold on some texts, given as ids.

        Raises what `speak` raises, ValueError where no text has two tokens.
        """
        asked = [_Request(list(ids), list(range(len(ids) - 1)), [], ["probe"]) for ids in texts if len(ids) > 1]
        if not asked:
            raise ValueError("no text of at least two tokens to measure on")
        with ThreadPoolExecutor(self.requests) as pool:
            found = [told for row in pool.map(self._tell, asked) for told in row]
        mass = np.array([min(1.0, math.fsum(math.exp(value) for _, value in best)) for best, _ in found])
        return KeptMass(self.k, len(mass), float(mass.mean()), float(np.quantile(mass, 0.05)))

    def _tell(self, request: _Request) -> list[Told]:
        return self.server.tell(request.ids, request.wanted, request.row_ids)

    def _ask(self, requests: Sequence[_Request]) -> list[tuple[int, Told]]:
        """Answers by their position in the text that was read."""
        with ThreadPoolExecutor(self.requests) as pool:
            answers = list(pool.map(self._tell, requests))
        return [
            pair
            for request, answer in zip(requests, answers, strict=True)
            for pair in zip(request.places, answer, strict=True)
        ]

    def _top_k(
        self, inputs: Mapping[str, Tensor], told: Sequence[tuple[int, Told]], places_N: Tensor | None
    ) -> TopKSignal:
        ids_MK = np.zeros((inputs["input_ids"].numel(), self.k + 1), dtype=np.int64)
        logprobs_MK = np.full(ids_MK.shape, -np.inf, dtype=np.float32)
        own_M = inputs["input_ids"].flatten().roll(-1).tolist()
        for place, (best, own) in told:
            kept = dict(best)
            kept[own_M[place]] = own
            # Rows of padding of the teacher's head are no tokens; what they hold joins the tail.
            slots = [(token, value) for token, value in kept.items() if token < self.vocabulary_size]
            ids_MK[place, : len(slots)] = [token for token, _ in slots]
            logprobs_MK[place, : len(slots)] = [value for _, value in slots]
        device = inputs["input_ids"].device
        ids_Nk, _ = gather(torch.from_numpy(ids_MK).to(device), places_N)
        logprobs_Nk, _ = gather(torch.from_numpy(logprobs_MK).to(device), places_N)
        return TopKSignal(ids_Nk, logprobs_Nk, tail=self.tail)

    def _token(
        self, batch: Mapping[str, Any], told: Sequence[tuple[int, Told]], places_N: Tensor | None
    ) -> TokenSignal:
        own_M = torch.zeros(text_of(batch).inputs["input_ids"].numel())
        for place, (_, own) in told:
            own_M[place] = own
        logprobs_N, _ = gather(own_M.to(batch["input_ids"].device), places_N)
        return TokenSignal(batch["input_ids"].roll(-1, 1).flatten(), logprobs_N)


@dataclass(frozen=True)
class KeptMass:
    """How much probability the likeliest tokens of a server hold, measured on some texts."""

    k: int
    positions: int
    mean: float
    low: float
    """What 95 % of the positions have at least."""


def served_bias(
    k: int, *, kind: ServedKind = "top_k", tail: TailMode = "bucket", measured: KeptMass | None = None
) -> str:
    """What a loss from a server's answers lacks of the exact one, in words, with figures where it was measured.

    With the rest as one bucket, KL(teacher‖student) is short by m KL(teacher in the tail‖student in the tail), m being
    the teacher's mass beyond the k tokens, and its gradient by the student's logits is off by m times the difference
    of those two distributions: by 2 m at most, summed over the vocabulary. KL(student‖teacher) and the others have the
    same terms with the student's own mass beyond them, which nobody knows before training.
    """
    if kind == "token":
        return (
            "the server gives the log-probability of the text's own token alone: forward KL has no bias where the "
            "teacher wrote the text, reverse KL none where the student did, and nothing else can be had from it; at "
            "temperature 1, in the server's number format"
        )
    words = {
        "bucket": "the rest is one bucket: forward KL is a lower bound, and how the tail is spread is not learned",
        "renormalise": "the rest is left out and both models are conditioned on the k tokens: the tail is not seen at "
        "all, so that the student may put any mass there",
        "drop": "the rest is left out of the sum, which then is not a divergence: the student is pushed to give the "
        "tail no mass",
    }[tail]
    if measured is None:
        figures = "how much they hold was not measured: the server was not asked"
    else:
        rest = 1 - measured.mean
        figures = (
            f"they hold {measured.mean:.1%} of its probability on average, at least {measured.low:.1%} at 95 % of "
            f"{measured.positions} positions of probe texts"
        )
        if tail == "bucket":
            figures += (
                f"; the gradient of forward KL is off by at most {2 * rest:.3f} a token, of 2 that are possible, "
                "summed over the vocabulary"
            )
    return (
        f"the server gives its {k} likeliest tokens and the text's own; {figures}; {words}; divergences that weigh by "
        "the student (reverse KL, JSD, skew) are blind in the same way to the student's own mass outside the k tokens; "
        "at temperature 1, in the server's number format"
    )


class _Request(NamedTuple):
    """One packed row to be asked about."""

    ids: list[int]
    wanted: list[int]
    """Places in `ids`."""
    places: list[int]
    """The same as flat positions of the whole text."""
    row_ids: list[str]


def _requests(inputs: Mapping[str, Tensor], wanted_BL: Tensor, batch: Mapping[str, Any]) -> list[_Request]:
    ids_BL = inputs["input_ids"].tolist()
    seen_BL = inputs["attention_mask"].tolist() if "attention_mask" in inputs else None
    length = wanted_BL.shape[1]
    found = []
    for rows in packed_rows(inputs["position_ids"]):
        for row in rows:
            number = row.batch_row
            name = ", ".join(batch["row_ids"][number]) if "row_ids" in batch else f"row {number} of the batch"
            text = [p for p in range(row.first, row.end) if seen_BL is None or seen_BL[number][p]]
            wanted = [place for place, p in enumerate(text) if wanted_BL[number, p]]
            if wanted and wanted[-1] == len(text) - 1:
                raise TrainingError(f"{name}: a trained token stands at the beginning of a packed row; mask it")
            if wanted:
                ids = [ids_BL[number][p] for p in text]
                found.append(_Request(ids, wanted, [number * length + text[place] for place in wanted], [name]))
    return found
