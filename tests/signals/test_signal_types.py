"""Signals check themselves when they are made."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lmdistill.signals import (
    DenseSignal,
    HeadExpectationSignal,
    HiddenSignal,
    SampledSignal,
    Signal,
    TokenSignal,
    TopKSignal,
)

IDS = torch.zeros(3, 2, dtype=torch.long)
LOG = torch.full((3, 2), -1.0)

CASES: list[tuple[Callable[[], Signal], str]] = [
    (
        lambda: HiddenSignal(torch.zeros(2, 3, 4), torch.zeros(9, 4)),
        r"hidden_NK must have shape \(N, K\), not \(2, 3, 4",
    ),
    (lambda: HiddenSignal(torch.zeros(3, 4), torch.zeros(9)), r"head_VK must have shape \(V, K\), not \(9,\)"),
    (lambda: HiddenSignal(torch.zeros(3, 4), torch.zeros(9, 5)), "are 4 wide but its head takes 5"),
    (lambda: DenseSignal(torch.zeros(3)), r"logits_NV must have shape \(N, V\), not \(3,\)"),
    (lambda: TopKSignal(IDS, LOG[:, :1]), r"ids_Nk has shape \(3, 2\) but logprobs_Nk \(3, 1\)"),
    (lambda: TopKSignal(IDS[0], LOG), r"ids_Nk must have shape \(N, k\), not \(2,\)"),
    (lambda: TopKSignal(LOG, LOG), "ids_Nk holds torch.float32 values; token ids are integers"),
    (lambda: TopKSignal(IDS, LOG, "rest"), "tail='rest' is not known; use 'bucket'"),  # type: ignore[arg-type]
    (lambda: SampledSignal(IDS, IDS[:2]), r"ids_Nk has shape \(3, 2\) but counts_Nk \(2, 2\)"),
    (lambda: SampledSignal(IDS, IDS, LOG[:, :1]), r"\(3, 2\) but logprobs_Nk \(3, 1\)"),
    (lambda: TokenSignal(IDS, LOG), r"ids_N must have shape \(N,\), not \(3, 2\)"),
    (lambda: TokenSignal(IDS[:, 0], LOG[:2, 0]), r"ids_N has \(3,\) entries but logprobs_N \(2,\)"),
    (lambda: HeadExpectationSignal(torch.zeros(3)), r"expected_row_NH must have shape \(N, H\), not \(3,\)"),
]


@pytest.mark.parametrize(("make", "message"), CASES, ids=[message for _, message in CASES])
def test_refuses(make: Callable[[], Signal], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_length_is_the_number_of_tokens() -> None:
    signals: list[Signal] = [
        HiddenSignal(torch.zeros(3, 4), torch.zeros(9, 4)),
        DenseSignal(torch.zeros(3, 9)),
        TopKSignal(IDS, LOG),
        SampledSignal(IDS, IDS),
        TokenSignal(IDS[:, 0], LOG[:, 0]),
        HeadExpectationSignal(torch.zeros(3, 4)),
    ]
    assert [len(signal) for signal in signals] == [3] * 6
