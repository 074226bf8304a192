"""Weights of tokens: they keep the loss's scale, leave out what they should, and equal the plain definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmdistill.objectives.rows import LogitsView
from lmdistill.objectives.weights import first_share, student_entropy, top_share


@given(st.integers(0, 40), st.floats(0.01, 1.0), st.integers(0, 1000))
def test_top_share_keeps_the_highest_and_the_scale(count: int, keep: float, seed: int) -> None:
    torch.manual_seed(seed)
    score, mask = torch.randn(count), torch.rand(count) < 0.7
    weight = top_share(score, mask, keep)
    trained = int(mask.sum())
    assert (weight[~mask] == 0).all()
    if trained:
        kept = weight > 0
        assert int(kept.sum()) == (trained if keep >= 1 else max(1, round(keep * trained)))
        assert float(weight.sum()) == pytest.approx(trained, rel=1e-5)
        left = mask & ~kept
        if left.any():
            assert score[kept].min() >= score[left].max()


def test_first_share_takes_the_beginning_of_each_packed_row() -> None:
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 3, 4, 5, 6, 7]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1, 1, 0]], dtype=torch.bool)
    weight = first_share(positions, mask, 0.5)
    assert (weight > 0).tolist() == [
        [True, True, False, False, False, True, False, False],
        [False, False, False, True, True, False, False, False],
    ]
    assert float(weight.sum()) == pytest.approx(float(mask.sum()))


def test_entropy_is_that_of_the_whole_softmax() -> None:
    torch.manual_seed(0)
    hidden, head, bias = torch.randn(30, 8), torch.randn(500, 8), torch.randn(500)
    mask = torch.rand(30) < 0.6
    view = LogitsView(0.7, 5.0)
    logits = 5.0 * torch.tanh((hidden @ head.T + bias) * 0.7 / 5.0)
    wanted = torch.distributions.Categorical(logits=logits.double()).entropy().float() * mask
    torch.testing.assert_close(student_entropy(hidden, head, mask, bias_V=bias, view=view, compiled=False), wanted)
