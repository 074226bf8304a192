"""The kinds of signal on disk: how each is packed into bytes, unpacked, and given to the loss engine.

A kind is one class: `pack` and `unpack` turn what the teacher said (see `teller`) into bytes and back, and `signal`
makes what the loss engine takes. None of it needs the teacher: the tables hold what was learnt of it.

Shape legend: N positions, V vocabulary, K teacher hidden, H student hidden, k slots of a position, r kept directions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import constriction
import numpy as np
import torch
from torch import Tensor

from lmdistill.models import OutputHead
from lmdistill.objectives.rows import LogitsView
from lmdistill.recipe import SignalSpec
from lmdistill.signals.codec import Array, SetCodec, Sets, compress, decompressor
from lmdistill.signals.teller import Payload
from lmdistill.signals.types import (
    HeadExpectationSignal,
    HiddenSignal,
    SampledSignal,
    Signal,
    TokenSignal,
    TopKSignal,
)

_LEVEL_CENTRES = 64
_GAUSSIAN = constriction.stream.model.QuantizedGaussian(-127, 127)


class Kind(Protocol):
    """One kind of signal, ready to pack and unpack."""

    tables: dict[str, Array]

    def pack(self, payload: Payload) -> bytes:
        """The bytes of a sequence's signal."""

    def unpack(self, data: bytes, positions: int) -> Payload:
        """What `pack` packed, as exactly as the kind keeps it."""

    def signal(self, payload: Mapping[str, Tensor]) -> Signal:
        """What the loss engine takes, for tensors of the unpacked arrays."""

    def blank(self) -> dict[str, float]:
        """What the arrays hold at positions without a signal."""


class TopKind:
    """`top_k` and `top_p`: probabilities in steps of `resolution`; what rounds to none joins the tail."""

    def __init__(self, spec: SignalSpec, tables: Mapping[str, Array]) -> None:
        self.spec = spec
        self.tables = dict(tables)
        self.codec = SetCodec(_sub(tables, "set."))

    @classmethod
    def learn(cls, spec: SignalSpec, examples: Sequence[Payload], vocabulary_size: int) -> TopKind:
        """Learn the tables on payloads of calibration text."""
        sets = [_levels(payload["ids"], np.exp(payload["logprobs"]), spec.resolution) for payload in examples]
        codec = SetCodec.learn(sets, vocabulary_size, max(1, *(payload["ids"].shape[1] for payload in examples)))
        centres = _centres(sets, [np.exp(payload["logprobs"]) for payload in examples], spec.resolution)
        return cls(spec, {**_named("set.", codec.tables), "centre": centres})

    def sets(self, payload: Payload) -> Sets:
        """Levels of probability."""
        return _levels(payload["ids"], np.exp(payload["logprobs"]), self.spec.resolution)

    def pack(self, payload: Payload) -> bytes:
        """Entropy-coded levels of probability."""
        return compress(self.codec.steps(self.sets(payload)))

    def unpack(self, data: bytes, positions: int) -> Payload:
        """Ids with log-probabilities; -inf in empty slots."""
        sets = self.codec.read(decompressor(data), positions)
        probabilities_Nk = _values(sets.numbers_Nk, self.tables["centre"], self.spec.resolution)
        total_N1 = probabilities_Nk.sum(1, keepdims=True)
        # Rounding may lift the sum to 1 and above, but something is always left to the tail: a tail of 0 would make
        # every student that keeps one infinitely wrong.
        probabilities_Nk = probabilities_Nk * np.minimum(1.0, (1 - self.spec.resolution / 16) / total_N1.clip(1e-30))
        with np.errstate(divide="ignore"):
            return {"ids": sets.ids_Nk.astype(np.int32), "logprobs": np.log(probabilities_Nk).astype(np.float32)}

    def signal(self, payload: Mapping[str, Tensor]) -> Signal:
        """A `TopKSignal` with the spec's tail."""
        temperature = self.spec.temperature
        return TopKSignal(payload["ids"], payload["logprobs"], tail=self.spec.tail, temperature=temperature)

    def blank(self) -> dict[str, float]:
        """No id."""
        return {"ids": 0, "logprobs": -np.inf}


class SampledKind:
    """`sampled`: draws with counts, without any loss; with another proposal, weights in steps of `resolution`."""

    def __init__(self, spec: SignalSpec, tables: Mapping[str, Array]) -> None:
        self.spec = spec
        self.tables = dict(tables)
        self.codec = SetCodec(_sub(tables, "set."))

    @classmethod
    def learn(cls, spec: SignalSpec, examples: Sequence[Payload], vocabulary_size: int) -> SampledKind:
        """Learn the tables on payloads of calibration text."""
        sets = [_drawn(payload, spec.resolution) for payload in examples]
        codec = SetCodec.learn(sets, vocabulary_size, min(spec.samples, vocabulary_size))
        return cls(spec, _named("set.", codec.tables))

    def pack(self, payload: Payload) -> bytes:
        """Entropy-coded counts."""
        return compress(self.codec.steps(_drawn(payload, self.spec.resolution)))

    def unpack(self, data: bytes, positions: int) -> Payload:
        """Ids with counts (or weights in units of `resolution`); 0 in empty slots."""
        sets = self.codec.read(decompressor(data), positions)
        return {"ids": sets.ids_Nk.astype(np.int32), "counts": sets.numbers_Nk.astype(np.float32)}

    def signal(self, payload: Mapping[str, Tensor]) -> Signal:
        """A `SampledSignal`."""
        return SampledSignal(payload["ids"], payload["counts"], temperature=self.spec.temperature)

    def blank(self) -> dict[str, float]:
        """No draw."""
        return {"ids": 0, "counts": 0}


class TopAndSampledKind:
    """`top_and_sampled`: the likeliest in steps of `resolution`, the rest by draws that carry the rest's mass.

    Unbiased: the likeliest were rounded up or down at random, and the draws stand for exactly what those leave.
    """

    def __init__(self, spec: SignalSpec, tables: Mapping[str, Array]) -> None:
        self.spec = spec
        self.tables = dict(tables)
        self.top = SetCodec(_sub(tables, "top."))
        self.tail = SetCodec(_sub(tables, "tail."))

    @classmethod
    def learn(cls, spec: SignalSpec, examples: Sequence[Payload], vocabulary_size: int) -> TopAndSampledKind:
        """Learn the tables on payloads of calibration text."""
        levels = [Sets(payload["ids"], payload["levels"]) for payload in examples]
        draws = [Sets(payload["tail_ids"], payload["tail_counts"]) for payload in examples]
        top = SetCodec.learn(levels, vocabulary_size, min(spec.exact, vocabulary_size))
        tail = SetCodec.learn(draws, vocabulary_size, min(spec.samples, vocabulary_size))
        return cls(spec, {**_named("top.", top.tables), **_named("tail.", tail.tables)})

    def pack(self, payload: Payload) -> bytes:
        """Both sets in one stream."""
        levels, draws = Sets(payload["ids"], payload["levels"]), Sets(payload["tail_ids"], payload["tail_counts"])
        return compress([*self.top.steps(levels), *self.tail.steps(draws)])

    def unpack(self, data: bytes, positions: int) -> Payload:
        """One list of ids with weights that sum to 1."""
        coder = decompressor(data)
        top, tail = self.top.read(coder, positions), self.tail.read(coder, positions)
        exact_Nk = top.numbers_Nk * self.spec.resolution
        rest_N1 = np.maximum(1.0 - exact_Nk.sum(1, keepdims=True), 0.0)
        share_Nm = tail.numbers_Nk / np.maximum(tail.numbers_Nk.sum(1, keepdims=True), 1)
        return {
            "ids": np.concatenate([top.ids_Nk, tail.ids_Nk], 1).astype(np.int32),
            "counts": np.concatenate([exact_Nk, rest_N1 * share_Nm], 1).astype(np.float32),
        }

    def signal(self, payload: Mapping[str, Tensor]) -> Signal:
        """A `SampledSignal` whose counts are weights."""
        return SampledSignal(payload["ids"], payload["counts"], temperature=self.spec.temperature)

    def blank(self) -> dict[str, float]:
        """Nothing."""
        return {"ids": 0, "counts": 0}


class TokenKind:
    """`token`: the log-probability of the text's own token, in half precision."""

    def __init__(self, spec: SignalSpec, tables: Mapping[str, Array]) -> None:
        self.spec = spec
        self.tables = dict(tables)

    @classmethod
    def learn(cls, spec: SignalSpec, examples: Sequence[Payload], vocabulary_size: int) -> TokenKind:
        """Nothing to learn."""
        return cls(spec, {})

    def pack(self, payload: Payload) -> bytes:
        """Two bytes a position; the ids stand in the text."""
        return payload["logprobs"].astype("<f2").tobytes()

    def unpack(self, data: bytes, positions: int) -> Payload:
        """Log-probabilities; the reader adds the ids."""
        return {"logprobs": np.frombuffer(data, dtype="<f2", count=positions).astype(np.float32)}

    def signal(self, payload: Mapping[str, Tensor]) -> Signal:
        """A `TokenSignal`."""
        return TokenSignal(payload["targets"], payload["logprobs"])

    def blank(self) -> dict[str, float]:
        """Certainty."""
        return {"logprobs": 0.0}


class HiddenKind:
    """`hidden`: the last hidden state in few directions and 8 bits each: the whole vocabulary's distribution.

    The directions are those along which hidden states of calibration text change the distribution most: a singular
    value decomposition of the centred states, measured by the curvature of the KL divergence there (its Fisher metric,
    the mean over positions of the head rows' covariance under the teacher).
    """

    def __init__(self, spec: SignalSpec, tables: Mapping[str, Array]) -> None:
        self.spec = spec
        self.tables = dict(tables)
        self._head: Tensor | None = None

    @classmethod
    def learn(cls, spec: SignalSpec, examples: Sequence[Payload], head: OutputHead) -> HiddenKind:
        """Learn directions, and how far states reach along them."""
        states_NK = torch.as_tensor(np.concatenate([payload["hidden"] for payload in examples])).double()
        weight_VK = head.weight_VH[: head.vocabulary_size].detach().double().cpu()
        # To second order KL(p || q) is half of x' M x for a change x of the state: with M = L L', distances of L'x are
        # distances of distributions.
        gram_KK = _fisher(states_NK, head)
        ridge = 1e-6 * gram_KK.diagonal().mean() * torch.eye(len(gram_KK), dtype=gram_KK.dtype)
        lower_KK = torch.linalg.cholesky(gram_KK + ridge)
        mean_K = states_NK.mean(0)
        _, _, directions_KK = torch.linalg.svd((states_NK - mean_K) @ lower_KK, full_matrices=False)
        kept_rK = directions_KK[: min(spec.rank, len(directions_KK))]
        forward_Kr = lower_KK @ kept_rK.T
        backward_rK = torch.linalg.solve_triangular(lower_KK.T, kept_rK.T, upper=True).T
        codes_Nr = (states_NK - mean_K) @ forward_Kr
        spread_r = codes_Nr.std(0).clamp_min(1e-12)
        step = float(4 * spread_r.max() / 127)
        bias_V = weight_VK @ mean_K + (
            0 if head.bias_V is None else head.bias_V[: head.vocabulary_size].detach().double().cpu()
        )
        view = np.array([head.logit_scale, -1.0 if head.softcap is None else head.softcap])
        return cls(
            spec,
            {
                "mean": mean_K.float().numpy(),
                "forward": (forward_Kr / step).float().numpy(),
                "spread": (spread_r / step).numpy(),
                "head": (weight_VK @ backward_rK.T * step).half().numpy(),
                "bias": bias_V.float().numpy(),
                "view": view,
            },
        )

    def pack(self, payload: Payload) -> bytes:
        """Whole numbers from -127 to 127, coded by how widely each direction spreads."""
        codes_Nr = np.rint((payload["hidden"] - self.tables["mean"]) @ self.tables["forward"])
        codes_Nr = np.clip(codes_Nr, -127, 127).astype(np.int32)
        return compress([(codes_Nr.ravel(), _GAUSSIAN, self._parameters(len(codes_Nr)))])

    def unpack(self, data: bytes, positions: int) -> Payload:
        """The codes."""
        rank = len(self.tables["spread"])
        if positions == 0:
            return {"codes": np.zeros((0, rank), dtype=np.float32)}
        codes = decompressor(data).decode(_GAUSSIAN, *self._parameters(positions))
        return {"codes": codes.reshape(positions, rank).astype(np.float32)}

    def _parameters(self, positions: int) -> tuple[Array, Array]:
        spread = np.tile(self.tables["spread"].astype(np.float64), positions)
        return np.zeros_like(spread), spread

    def signal(self, payload: Mapping[str, Tensor]) -> Signal:
        """A `HiddenSignal`: codes in place of states, and the teacher's head seen along the kept directions."""
        codes = payload["codes"]
        if self._head is None or self._head.device != codes.device:
            self._head = torch.as_tensor(self.tables["head"].astype(np.float32)).to(codes.device)
        scale, softcap = (float(value) for value in self.tables["view"])
        bias = torch.as_tensor(self.tables["bias"], device=codes.device)
        return HiddenSignal(codes, self._head, bias=bias, logit_scale=scale, softcap=None if softcap < 0 else softcap)

    def blank(self) -> dict[str, float]:
        """The mean state."""
        return {"codes": 0.0}


def _fisher(states_NK: Tensor, head: OutputHead, positions: int = 4096) -> Tensor:
    """Mean covariance of the head's rows under the teacher, over so many positions at most, (K, K)."""
    weight_VK = head.weight_VH[: head.vocabulary_size].detach().float().cpu()
    bias_V = None if head.bias_V is None else head.bias_V[: head.vocabulary_size].detach().float().cpu()
    view = LogitsView(head.logit_scale, head.softcap)
    chosen_nK = states_NK[:: max(1, len(states_NK) // positions)].float()
    total_V = torch.zeros(len(weight_VK))
    square_KK = torch.zeros(weight_VK.shape[1], weight_VK.shape[1], dtype=torch.float64)
    for states_mK in chosen_nK.split(128):
        p_mV = view.logits(torch.nn.functional.linear(states_mK, weight_VK, bias_V)).softmax(-1)
        total_V += p_mV.sum(0)
        mean_mK = (p_mV @ weight_VK).double()
        square_KK += mean_mK.T @ mean_mK
    moment_KK = (weight_VK * total_V[:, None]).T.double() @ weight_VK.double()
    return (moment_KK - square_KK) / len(chosen_nK)


class HeadExpectationKind:
    """`head_expectation`: the mean row of the student's frozen head under the teacher, 8 bits a number."""

    def __init__(self, spec: SignalSpec, tables: Mapping[str, Array]) -> None:
        self.spec = spec
        self.tables = dict(tables)

    @classmethod
    def learn(cls, spec: SignalSpec, examples: Sequence[Payload], student: Mapping[str, Array]) -> HeadExpectationKind:
        """Learn mean and spread of each number; `student` holds `student_head` and perhaps `student_bias`."""
        rows_NH = np.concatenate([payload["rows"] for payload in examples])
        spread_H = np.maximum(rows_NH.std(0), 1e-12)
        return cls(spec, {"mean": rows_NH.mean(0), "step": (4 * spread_H / 127).astype(np.float32), **student})

    def pack(self, payload: Payload) -> bytes:
        """Entropy-coded numbers, then entropies (and biases) in single precision."""
        codes_NH = np.clip(np.rint((payload["rows"] - self.tables["mean"]) / self.tables["step"]), -127, 127)
        data = compress([(codes_NH.astype(np.int32).ravel(), _GAUSSIAN, self._parameters(codes_NH.size))])
        extra = [payload[name].astype("<f4").tobytes() for name in ("entropy", "bias") if name in payload]
        return b"".join([len(data).to_bytes(4, "little"), data, *extra])

    def unpack(self, data: bytes, positions: int) -> Payload:
        """Rows, entropies, and biases where there are any."""
        end = 4 + int.from_bytes(data[:4], "little")
        width = len(self.tables["mean"])
        rows_NH = np.zeros((positions, width), dtype=np.float32)
        if positions:
            codes = decompressor(data[4:end]).decode(_GAUSSIAN, *self._parameters(positions * width))
            rows_NH = codes.reshape(positions, width) * self.tables["step"] + self.tables["mean"]
        rest = np.frombuffer(data[end:], dtype="<f4").reshape(-1, positions).copy() if positions else np.zeros((2, 0))
        names = ("entropy", "bias")[: len(rest)]
        return {"rows": rows_NH.astype(np.float32), **dict(zip(names, rest, strict=True))}

    def _parameters(self, count: int) -> tuple[Array, Array]:
        return np.zeros(count), np.full(count, 127 / 4)

    def signal(self, payload: Mapping[str, Tensor]) -> Signal:
        """A `HeadExpectationSignal`."""
        return HeadExpectationSignal(payload["rows"], entropy_N=payload["entropy"], bias_N=payload.get("bias"))

    def blank(self) -> dict[str, float]:
        """Zeros."""
        return {"rows": 0.0, "entropy": 0.0, "bias": 0.0}


KINDS: Mapping[str, Any] = {
    "top_k": TopKind,
    "top_p": TopKind,
    "sampled": SampledKind,
    "top_and_sampled": TopAndSampledKind,
    "token": TokenKind,
    "hidden": HiddenKind,
    "head_expectation": HeadExpectationKind,
}
"""Class of each kind in `SignalSpec.kind`."""


def learn_kind(
    spec: SignalSpec,
    examples: Sequence[Payload],
    vocabulary_size: int,
    head: OutputHead | None = None,
    student: Mapping[str, Array] | None = None,
) -> Kind:
    """A kind with tables learnt on payloads of calibration text; `hidden` needs the teacher's head."""
    if spec.kind == "hidden":
        assert head is not None
        return HiddenKind.learn(spec, examples, head)
    if spec.kind == "head_expectation":
        assert student is not None
        return HeadExpectationKind.learn(spec, examples, student)
    kind: Kind = KINDS[spec.kind].learn(spec, examples, vocabulary_size)
    return kind


def load_kind(spec: SignalSpec, tables: Mapping[str, Array]) -> Kind:
    """A kind from its stored tables."""
    kind: Kind = KINDS[spec.kind](spec, tables)
    return kind


def _levels(ids_Nk: Array, probabilities_Nk: Array, resolution: float) -> Sets:
    return Sets(ids_Nk, np.floor(probabilities_Nk / resolution + 0.5).astype(np.int64))


def _drawn(payload: Payload, resolution: float) -> Sets:
    if "weights" in payload:
        return _levels(payload["ids"], payload["weights"], resolution)
    return Sets(payload["ids"], payload["counts"].astype(np.int64))


def _centres(sets: Sequence[Sets], probabilities: Sequence[Array], resolution: float) -> Array:
    """The mean probability of each low level: small ones lie in the lower half of their step."""
    levels = np.concatenate([s.numbers_Nk[s.numbers_Nk > 0] for s in sets])
    values = np.concatenate([p[s.numbers_Nk > 0] for s, p in zip(sets, probabilities, strict=True)])
    low = levels < _LEVEL_CENTRES
    total = np.bincount(levels[low], weights=values[low], minlength=_LEVEL_CENTRES)
    count = np.bincount(levels[low], minlength=_LEVEL_CENTRES)
    middle = np.arange(_LEVEL_CENTRES) * resolution
    return np.where(count >= 20, total / np.maximum(count, 1), middle)


def _values(levels: Array, centre: Array, resolution: float) -> Array:
    low = levels < _LEVEL_CENTRES
    return np.where(low, centre[np.where(low, levels, 0)], levels * resolution) * (levels > 0)


def _sub(tables: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): table for name, table in tables.items() if name.startswith(prefix)}


def _named(prefix: str, tables: Mapping[str, Array]) -> dict[str, Array]:
    return {prefix + name: table for name, table in tables.items()}
