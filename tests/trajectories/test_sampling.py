"""The draw of one token: its distribution, its edges, and what it says of probabilities."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TopPLogitsWarper
from writing import pick, shaped

from lmdistill.trajectories.sampling import NextToken, uniform_draws


def evenly(count: int) -> torch.Tensor:
    """Numbers that fill [0, 1) evenly."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


@pytest.mark.parametrize("vocabulary", [5, 256, 300, 5000])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.0, 0.8), (2.0, 0.95)])
def test_draws_fill_the_distribution(vocabulary: int, temperature: float, top_p: float) -> None:
    torch.manual_seed(vocabulary)
    logits_V = 2 * torch.randn(vocabulary)
    count = 20_000 if vocabulary < 1000 else 4000
    found = NextToken(logits_V.expand(count, -1)[:50], temperature=temperature, top_p=top_p)
    ids = torch.cat([found.draw(part) for part in evenly(count).split(50)])
    expected = shaped(logits_V.double().log_softmax(-1).numpy(), temperature, top_p)
    counted = np.bincount(ids.numpy(), minlength=vocabulary)
    # Evenly spaced numbers leave at most one draw at each end of an id's interval.
    assert np.abs(counted - expected * count).max() <= 1.5
    assert counted[expected == 0].sum() == 0


def test_random_draws_pass_a_chi_square_test() -> None:
    logits_V = torch.tensor([0.3, -1.0, 2.0, 0.0, 1.1, -2.5])
    uniform = torch.from_numpy(np.concatenate([uniform_draws(7, place, 0, 50) for place in range(400)]))
    found = NextToken(logits_V.expand(len(uniform), -1))
    counted = torch.bincount(found.draw(uniform), minlength=6).double()
    expected = logits_V.double().softmax(-1) * len(uniform)
    chi_square = float(((counted - expected) ** 2 / expected).sum())
    assert chi_square < 20.5  # exceeded by chance once in 1,000 with 5 degrees of freedom


@settings(max_examples=60, deadline=None)
@given(
    logits=st.lists(st.floats(-30, 30), min_size=1, max_size=700),
    uniform=st.floats(0, 1, exclude_max=True),
    temperature=st.sampled_from([0.3, 1.0, 3.0]),
    top_p=st.sampled_from([0.1, 0.9, 1.0]),
)
def test_a_draw_is_where_the_cumulated_probability_passes_it(
    logits: list[float], uniform: float, temperature: float, top_p: float
) -> None:
    logits_1V = torch.tensor([logits], dtype=torch.float32)
    found = NextToken(logits_1V, temperature=temperature, top_p=top_p)
    token = int(found.draw(torch.tensor([uniform], dtype=torch.float64)))
    probs = (logits_1V / temperature).double().softmax(-1)[0].numpy()
    assert probs[token] > 0
    if top_p == 1.0:
        ends = np.cumsum(probs)
        assert ends[token] - probs[token] - 1e-6 <= uniform <= ends[token] + 1e-6
    else:
        assert probs[probs > probs[token] * (1 + 1e-5)].sum() < top_p + 1e-6


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53, 1.0])
@pytest.mark.parametrize("top_p", [1.0, 0.5])
def test_impossible_tokens_are_never_drawn(uniform: float, top_p: float) -> None:
    logits_BV = torch.full((3, 1000), -torch.inf)
    logits_BV[0, 0] = logits_BV[1, 999] = logits_BV[2, 500] = -4.0
    found = NextToken(logits_BV, top_p=top_p)
    assert found.draw(torch.full((3,), uniform, dtype=torch.float64)).tolist() == [0, 999, 500]
    assert found.broken_rows() == []


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("vocabulary", [20, 6000])
def test_the_nucleus_is_the_one_of_transformers(top_p: float, vocabulary: int) -> None:
    torch.manual_seed(1)
    logits_BV = torch.randn(4, vocabulary)
    theirs_BV = TopPLogitsWarper(top_p)(torch.empty(0), logits_BV.clone()).softmax(-1)
    found = NextToken(logits_BV, top_p=top_p)
    order_BV = logits_BV.argsort(descending=True)
    for place in {*range(20), *range(0, vocabulary, 29)}:  # from the likeliest on
        ids_B = order_BV[:, place]
        theirs_B = theirs_BV.gather(1, ids_B[:, None])[:, 0]
        torch.testing.assert_close(found.shaped_logprobs(ids_B).exp(), theirs_B, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 0.7), (0.0, 1.0), (0.0, 0.5)])
def test_log_probabilities(temperature: float, top_p: float) -> None:
    torch.manual_seed(2)
    logits_BV = torch.randn(3, 11).bfloat16()
    found = NextToken(logits_BV, temperature=temperature, top_p=top_p)
    plain_BV = logits_BV.double().log_softmax(-1)
    for token in range(11):
        ids_B = torch.full((3,), token)
        torch.testing.assert_close(found.logprobs(ids_B).double(), plain_BV[:, token], atol=1e-5, rtol=0)
        expected = [np.log(max(shaped(row.numpy(), temperature, top_p)[token], 1e-300)) for row in plain_BV]
        given_B = found.shaped_logprobs(ids_B).clamp_min(float(np.log(1e-300)))
        np.testing.assert_allclose(given_B.numpy(), expected, atol=1e-5, rtol=1e-6)


def test_ranks_count_ties_as_inside() -> None:
    found = NextToken(torch.tensor([[3.0, 2.0, 2.0, 1.0]]))
    inside = [[bool(found.among_likeliest(torch.tensor([token]), k)) for token in range(4)] for k in (1, 2, 4)]
    assert inside == [[True, False, False, False], [True, True, True, False], [True, True, True, True]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_that_are_no_distribution_are_named(bad: float) -> None:
    logits_BV = torch.zeros(3, 9)
    logits_BV[1, 4] = bad
    assert NextToken(logits_BV).broken_rows() == [1]
    assert NextToken(logits_BV, temperature=0.5, top_p=0.9).broken_rows() == [1]


def test_draws_belong_to_a_text() -> None:
    assert uniform_draws(3, 4, 0, 9).tolist() == uniform_draws(3, 4, 0, 30)[:9].tolist()
    keys = itertools.product((0, 1), repeat=3)
    assert len({tuple(uniform_draws(*key, 5).tolist()) for key in keys}) == 8
    assert uniform_draws(-1, 0, 0, 1).shape == (1,)  # any seed will do


def test_the_naive_pick_of_the_tests_is_right_on_an_example() -> None:
    assert [pick(np.array([0.2, 0.0, 0.8]), uniform) for uniform in (0.0, 0.19, 0.2, 0.99)] == [0, 0, 2, 2]
