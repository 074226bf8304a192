"""What a teacher says at some positions, taken from its last hidden states as plain arrays, a few positions at a time.

Shape legend: N positions, n of one chunk, V vocabulary, K teacher hidden, H student hidden, k slots, m draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmdistill.models import OutputHead
from lmdistill.objectives.rows import LogitsView, log_normaliser
from lmdistill.recipe import SignalSpec

Array = NDArray[Any]
Payload = dict[str, Array]
"""Named arrays whose first dimension counts positions."""

_CHUNK_LOGITS = {"top_k": 1 << 26, "top_p": 1 << 26, "token": 1 << 26}
"""Logits of one chunk where they stay in the head's number format; kinds that need float32 copies take fewer."""
_CHUNK_FLOATS = 1 << 24


@dataclass(frozen=True)
class Speech:
    """What the teacher holds at some positions of one sequence."""

    hidden_NK: Tensor
    targets_N: Tensor
    """The text's own next token."""
    seed: int
    """For kinds that sample: the same sequence always draws the same."""


class Teller:
    """Takes payloads from a teacher's head, a few positions at a time."""

    def __init__(self, spec: SignalSpec, head: OutputHead, tables: Mapping[str, Array] | None = None) -> None:
        """`tables` are the kind's own where it projects hidden states (`hidden`, `head_expectation`)."""
        self.spec = spec
        self.head = head
        self.view = LogitsView(head.logit_scale, head.softcap)
        self.tables = tables

    def logits(self, hidden_NK: Tensor) -> Tensor:
        """The teacher's logits at the spec's temperature, float32, real ids only."""
        return self._softened(self._raw(hidden_NK))

    def _raw(self, hidden_NK: Tensor) -> Tensor:
        """The head's products, in its own number format."""
        weight_VK = self.head.weight_VH[: self.head.vocabulary_size]
        bias_V = None if self.head.bias_V is None else self.head.bias_V[: self.head.vocabulary_size]
        return torch.nn.functional.linear(hidden_NK.to(weight_VK.dtype), weight_VK, bias_V)

    def _softened(self, raw: Tensor) -> Tensor:
        return self.view.logits(raw.float()) / self.spec.temperature

    def _normaliser(self, raw_nV: Tensor) -> Tensor:
        """log of the sum of exponentials, (n, 1): one pass over the products, nothing of their size is made."""
        inverse_t = torch.tensor(1 / self.spec.temperature, dtype=torch.float32, device=raw_nV.device)
        return log_normaliser(raw_nV, inverse_t, view=self.view, compiled=True)[:, None]

    def __call__(self, speech: Speech) -> Payload:
        """The payload of one sequence's positions, chunk by chunk: memory does not depend on the sequence."""
        step = max(1, _CHUNK_LOGITS.get(self.spec.kind, _CHUNK_FLOATS) // self.head.vocabulary_size)
        random = torch.Generator(speech.hidden_NK.device).manual_seed(speech.seed)
        parts = [
            self._chunk(speech.hidden_NK[first : first + step], speech.targets_N[first : first + step], random)
            for first in range(0, len(speech.hidden_NK), step)
        ]
        return {name: _stacked([part[name] for part in parts]) for name in parts[0]}

    def _chunk(self, hidden_nK: Tensor, targets_n: Tensor, random: torch.Generator) -> Payload:
        kind = self.spec.kind
        if kind == "hidden":
            return {"hidden": hidden_nK.float().cpu().numpy()}
        raw_nV = self._raw(hidden_nK)
        normaliser_n1 = self._normaliser(raw_nV)
        if kind == "token":
            chosen_n1 = self._softened(raw_nV.gather(1, targets_n[:, None].to(raw_nV.device))) - normaliser_n1
            return {"ids": targets_n.cpu().numpy(), "logprobs": chosen_n1[:, 0].cpu().numpy()}
        if kind in ("top_k", "top_p"):
            return self._top(raw_nV, normaliser_n1, self.spec.p if kind == "top_p" else None)
        logits_nV = self._softened(raw_nV)
        if kind == "sampled":
            return self._sampled((logits_nV - normaliser_n1).exp_(), random, "")
        if kind == "top_and_sampled":
            return self._top_and_sampled(logits_nV, normaliser_n1, random)
        assert self.tables is not None
        return self._expectation(logits_nV, normaliser_n1)

    def _top(self, raw_nV: Tensor, normaliser_n1: Tensor, p: float | None) -> Payload:
        # Scaling, capping and softening keep the order of positive scales, so the products themselves are ranked.
        values_nk, ids_nk = raw_nV.topk(min(self.spec.k, raw_nV.shape[1]), dim=-1)
        logprobs_nk = self._softened(values_nk) - normaliser_n1
        if p is not None:  # a token stays while what stands before it is less than p, so that the nucleus holds p
            before_nk = logprobs_nk.exp().cumsum(-1) - logprobs_nk.exp()
            logprobs_nk = logprobs_nk.masked_fill(before_nk >= p, -torch.inf)
        return {"ids": ids_nk.to(torch.int32).cpu().numpy(), "logprobs": logprobs_nk.cpu().numpy()}

    def _sampled(self, probabilities_nV: Tensor, random: torch.Generator, prefix: str) -> Payload:
        """Draws with counts (RS-KD, 2503.16870); with another proposal, self-normalised importance weights."""
        proposal_nV = probabilities_nV
        if self.spec.proposal_temperature != 1:
            proposal_nV = probabilities_nV.pow(1 / self.spec.proposal_temperature)
        drawn_nm = torch.multinomial(proposal_nV, self.spec.samples, replacement=True, generator=random)
        ids_nm, _ = drawn_nm.sort(-1)
        first_nm = torch.ones_like(ids_nm, dtype=torch.bool)
        first_nm[:, 1:] = ids_nm[:, 1:] != ids_nm[:, :-1]
        group_nm = first_nm.cumsum(-1) - 1
        counts_nm = torch.zeros_like(ids_nm).scatter_add_(1, group_nm, torch.ones_like(ids_nm))
        distinct_nm = torch.zeros_like(ids_nm).scatter_(1, group_nm, ids_nm)
        slots = int(group_nm.max()) + 1
        ids_nk, counts_nk = distinct_nm[:, :slots], counts_nm[:, :slots]
        found = {f"{prefix}ids": ids_nk.to(torch.int32).cpu().numpy(), f"{prefix}counts": counts_nk.cpu().numpy()}
        if self.spec.proposal_temperature != 1:
            ratio_nk = (probabilities_nV / proposal_nV).gather(1, ids_nk)
            weights_nk = counts_nk * ratio_nk
            found[f"{prefix}weights"] = (weights_nk / weights_nk.sum(-1, keepdim=True)).cpu().numpy()
        return found

    def _top_and_sampled(self, logits_nV: Tensor, normaliser_n1: Tensor, random: torch.Generator) -> Payload:
        """The likeliest tokens exactly, the rest by draws from what remains: unbiased, and exact where it matters."""
        rest_nV = (logits_nV - normaliser_n1).exp_()
        top_nk, ids_nk = rest_nV.topk(min(self.spec.exact, rest_nV.shape[1]), dim=-1)
        rest_nV.scatter_(1, ids_nk, 0.0)
        # Where float32 leaves nothing, some token must still be drawable; its weight, the tail's mass, is 0 there.
        rest_nV.clamp_min_(torch.finfo(torch.float32).tiny)
        # Rounded up or down at random, so that the mean over many is the probability itself.
        dither_nk = torch.rand(top_nk.shape, generator=random, device=top_nk.device)
        levels_nk = (top_nk / self.spec.resolution + dither_nk).floor().long()
        found = {"ids": ids_nk.to(torch.int32).cpu().numpy(), "levels": levels_nk.cpu().numpy()}
        return {**found, **self._sampled(rest_nV, random, "tail_")}

    def _expectation(self, logits_nV: Tensor, normaliser_n1: Tensor) -> Payload:
        assert self.tables is not None
        probabilities_nV = (logits_nV - normaliser_n1).exp()
        student_VH = torch.as_tensor(self.tables["student_head"], device=logits_nV.device, dtype=torch.float32)
        entropy_n = -(probabilities_nV * (logits_nV - normaliser_n1)).sum(-1)
        found = {"rows": (probabilities_nV @ student_VH).cpu().numpy(), "entropy": entropy_n.cpu().numpy()}
        if "student_bias" in self.tables:
            bias_V = torch.as_tensor(self.tables["student_bias"], device=logits_nV.device, dtype=torch.float32)
            found["bias"] = (probabilities_nV @ bias_V).cpu().numpy()
        return found


def _stacked(parts: Sequence[Array]) -> Array:
    """Parts of one array, with as many slots as the widest has."""
    if parts[0].ndim == 1:
        return np.concatenate(parts)
    slots = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, slots - part.shape[1]))) for part in parts])
