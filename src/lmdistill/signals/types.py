"""What a teacher said about some tokens, in memory. Depends on torch alone.

Each signal describes N tokens row by row; the loss engine (`lmdistill.objectives`) takes any of them.

Shape legend: N tokens, V vocabulary, K the teacher's hidden width, H the student's, k kept entries a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

TailMode = Literal["bucket", "renormalise", "drop"]


@dataclass(frozen=True)
class HiddenSignal:
    """The teacher's last hidden state and its head: the exact distribution, rebuilt chunk by chunk.

    The cheapest exact signal to move: K numbers a token in place of V.
    """

    hidden_NK: Tensor
    head_VK: Tensor
    bias: Tensor | None = None
    logit_scale: float = 1.0
    softcap: float | None = None

    def __post_init__(self) -> None:
        _expect(self.hidden_NK.ndim == 2, "hidden_NK", self.hidden_NK, "(N, K)")
        _expect(self.head_VK.ndim == 2, "head_VK", self.head_VK, "(V, K)")
        if self.hidden_NK.shape[1] != self.head_VK.shape[1]:
            raise ValueError(
                f"the teacher's hidden states are {self.hidden_NK.shape[1]} wide but its head takes "
                f"{self.head_VK.shape[1]}; pass the hidden state and the head of one model"
            )

    def __len__(self) -> int:
        return self.hidden_NK.shape[0]


@dataclass(frozen=True)
class DenseSignal:
    """The teacher's logits over the whole vocabulary."""

    logits_NV: Tensor

    def __post_init__(self) -> None:
        _expect(self.logits_NV.ndim == 2, "logits_NV", self.logits_NV, "(N, V)")

    def __len__(self) -> int:
        return self.logits_NV.shape[0]


@dataclass(frozen=True)
class TopKSignal:
    """The teacher's k likeliest tokens and their log-probabilities under its whole distribution.

    `tail` says what becomes of the rest of the probability: `bucket` makes it one class more (a true divergence of
    the coarser distributions); `renormalise` conditions both models on the k ids (blind to the tail); `drop` leaves it
    out of the sum while the student keeps its whole softmax (not a divergence: the value can be negative).
    A slot that holds no token has log-probability -inf; its id may be any valid id. The log-probabilities are those at
    `temperature`; only `renormalise` can be softened further.
    """

    ids_Nk: Tensor
    logprobs_Nk: Tensor
    tail: TailMode = "bucket"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        _expect_pair("ids_Nk", self.ids_Nk, "logprobs_Nk", self.logprobs_Nk)
        if self.tail not in ("bucket", "renormalise", "drop"):
            raise ValueError(f"tail={self.tail!r} is not known; use 'bucket', 'renormalise' or 'drop'")

    def __len__(self) -> int:
        return self.ids_Nk.shape[0]


@dataclass(frozen=True)
class SampledSignal:
    """Ids drawn from the teacher with their counts: an unbiased picture of its distribution (RS-KD, 2503.16870).

    The empirical distribution counts / sum(counts) has the teacher's as its mean, so the forward-KL gradient
    p_s - counts / sum(counts) is unbiased. Counts may be weights (importance sampling); a slot with count 0 is empty.
    Without `logprobs_Nk` (the teacher's own log-probabilities of the ids) the loss value is the cross-entropy
    estimate, which exceeds the KL by the teacher's entropy; with them it is an unbiased estimate of the KL.
    """

    ids_Nk: Tensor
    counts_Nk: Tensor
    logprobs_Nk: Tensor | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        _expect_pair("ids_Nk", self.ids_Nk, "counts_Nk", self.counts_Nk)
        if self.logprobs_Nk is not None:
            _expect_pair("ids_Nk", self.ids_Nk, "logprobs_Nk", self.logprobs_Nk)

    def __len__(self) -> int:
        return self.ids_Nk.shape[0]


@dataclass(frozen=True)
class TokenSignal:
    """The teacher's log-probability of one token at each place, the one that the text holds.

    Forward KL estimated from it is unbiased where the teacher wrote the text; reverse KL (the score-function gradient
    of on-policy distillation) where the student did. Other divergences cannot be estimated from it.
    """

    ids_N: Tensor
    logprobs_N: Tensor

    def __post_init__(self) -> None:
        _expect(self.ids_N.ndim == 1, "ids_N", self.ids_N, "(N,)")
        if self.ids_N.shape != self.logprobs_N.shape:
            raise ValueError(
                f"ids_N has {tuple(self.ids_N.shape)} entries but logprobs_N {tuple(self.logprobs_N.shape)}; "
                "give one log-probability a token"
            )

    def __len__(self) -> int:
        return self.ids_N.shape[0]


@dataclass(frozen=True)
class HeadExpectationSignal:
    """The mean row of the student's frozen head under the teacher: sum_v p_t(v) W_s[v], H numbers a token.

    With the student's head frozen this is all that the exact forward KL at temperature 1 needs. `entropy_N` is the
    teacher's entropy; without it the loss value is the cross-entropy, which exceeds the KL by that entropy.
    `bias_N` is sum_v p_t(v) b_s[v], needed where the student's head has a bias.
    """

    expected_row_NH: Tensor
    entropy_N: Tensor | None = None
    bias_N: Tensor | None = None

    def __post_init__(self) -> None:
        _expect(self.expected_row_NH.ndim == 2, "expected_row_NH", self.expected_row_NH, "(N, H)")

    def __len__(self) -> int:
        return self.expected_row_NH.shape[0]


Signal = HiddenSignal | DenseSignal | TopKSignal | SampledSignal | TokenSignal | HeadExpectationSignal


def _expect(holds: bool, name: str, tensor: Tensor, shape: str) -> None:
    if not holds:
        raise ValueError(f"{name} must have shape {shape}, not {tuple(tensor.shape)}")


def _expect_pair(first: str, first_Nk: Tensor, second: str, second_Nk: Tensor) -> None:
    _expect(first_Nk.ndim == 2, first, first_Nk, "(N, k)")
    if first_Nk.shape != second_Nk.shape:
        raise ValueError(
            f"{first} has shape {tuple(first_Nk.shape)} but {second} {tuple(second_Nk.shape)}; they go in pairs"
        )
    if first_Nk.dtype.is_floating_point:
        raise ValueError(f"{first} holds {first_Nk.dtype} values; token ids are integers")
