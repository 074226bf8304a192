"""The row-wise definitions: bounds, limits, symmetries, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from problems import KINDS, NAMES
from torch import Tensor

from lmdistill.objectives import DIVERGENCES, find_divergence
from lmdistill.objectives.divergences import TAID, head_border
from lmdistill.objectives.rows import LogitsView, _head_of_rows, _largest

kinds = pytest.mark.parametrize(("kind", "parameters"), KINDS, ids=NAMES)
logits = arrays(np.float64, (4, 9), elements=st.floats(-12, 12))


def value_of(kind: str, log_s_NC: Tensor, log_t_NC: Tensor, **parameters: float) -> Tensor:
    """The divergence of each row."""
    definition = find_divergence(kind, **parameters)
    f_NC, _ = definition.summands(log_s_NC, log_t_NC, *definition.context(log_s_NC, log_t_NC))
    return f_NC.sum(-1)


def log_probabilities(*z: np.ndarray) -> list[Tensor]:
    return [torch.from_numpy(x).log_softmax(-1) for x in z]


@kinds
@settings(max_examples=40, deadline=None)
@given(z=logits, y=logits)
def test_never_negative_and_zero_at_equality(
    kind: str, parameters: dict[str, float], z: np.ndarray, y: np.ndarray
) -> None:
    log_s_NC, log_t_NC = log_probabilities(z, y)
    scale = 1 + value_of(kind, log_s_NC, log_t_NC, **parameters).abs()
    assert (value_of(kind, log_s_NC, log_t_NC, **parameters) >= -1e-12 * scale).all()
    assert value_of(kind, log_s_NC, log_s_NC, **parameters).abs().max() < 1e-10


@settings(max_examples=100, deadline=None)
@given(z=logits, y=logits, w=st.floats(0.01, 0.99))
def test_bounds(z: np.ndarray, y: np.ndarray, w: float) -> None:
    log_s_NC, log_t_NC = log_probabilities(z, y)
    entropy = -w * math.log(w) - (1 - w) * math.log(1 - w)
    assert (value_of("jsd", log_s_NC, log_t_NC, teacher_weight=w) <= entropy + 1e-12).all()
    assert (value_of("total_variation", log_s_NC, log_t_NC) <= 1 + 1e-12).all()
    for kind in ("skew_forward_kl", "skew_reverse_kl"):
        assert (value_of(kind, log_s_NC, log_t_NC, alpha=w) <= -math.log(w) + 1e-12).all()


@settings(max_examples=50, deadline=None)
@given(z=logits, y=logits)
def test_direction_and_symmetry(z: np.ndarray, y: np.ndarray) -> None:
    """Reverse is forward with the arguments exchanged; JSD exchanges its weight, alpha-beta its two powers."""
    log_s_NC, log_t_NC = log_probabilities(z, y)
    pairs = [
        ("forward_kl", {}, "reverse_kl", {}),
        ("jsd", {"teacher_weight": 0.3}, "jsd", {"teacher_weight": 0.7}),
        ("skew_forward_kl", {"alpha": 0.2}, "skew_reverse_kl", {"alpha": 0.2}),
        ("total_variation", {}, "total_variation", {}),
        ("alpha_beta", {"alpha": 0.2, "beta": 0.7}, "alpha_beta", {"alpha": 0.7, "beta": 0.2}),
    ]
    for kind, parameters, mirrored, others in pairs:
        one = value_of(kind, log_s_NC, log_t_NC, **parameters)
        other = value_of(mirrored, log_t_NC, log_s_NC, **others)
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_known_values() -> None:
    """By hand: t = (1/2, 1/2), s = (1/4, 3/4)."""
    log_s_NC, log_t_NC = torch.tensor([[0.25, 0.75]]).double().log(), torch.tensor([[0.5, 0.5]]).double().log()
    assert value_of("forward_kl", log_s_NC, log_t_NC).item() == pytest.approx(0.5 * math.log(4 / 3))
    assert value_of("reverse_kl", log_s_NC, log_t_NC).item() == pytest.approx(0.75 * math.log(1.5) - 0.25 * math.log(2))
    assert value_of("total_variation", log_s_NC, log_t_NC).item() == pytest.approx(0.25)
    # alpha = beta = 1: half the squared Euclidean distance
    assert value_of("alpha_beta", log_s_NC, log_t_NC, alpha=1, beta=1).item() == pytest.approx(0.5 * 2 * 0.0625)


LIMITS = [
    ({"alpha": 1.0, "beta": 1e-6}, {"alpha": 1.0, "beta": 0.0}),
    ({"alpha": 1e-6, "beta": 1.0}, {"alpha": 0.0, "beta": 1.0}),
    ({"alpha": 0.6, "beta": -0.6 + 1e-6}, {"alpha": 0.6, "beta": -0.6}),
    ({"alpha": 1e-3, "beta": 1e-3}, {"alpha": 0.0, "beta": 0.0}),
]


@pytest.mark.parametrize(("near", "limit"), LIMITS)
def test_alpha_beta_is_continuous_at_its_limits(near: dict[str, float], limit: dict[str, float]) -> None:
    log_s_NC, log_t_NC = log_probabilities(np.random.default_rng(0).normal(size=(3, 8)), np.eye(8)[:3])
    close = value_of("alpha_beta", log_s_NC, log_t_NC, **near)
    torch.testing.assert_close(close, value_of("alpha_beta", log_s_NC, log_t_NC, **limit), rtol=5e-3, atol=1e-4)


def test_kl_divergences_are_members_of_the_families() -> None:
    log_s_NC, log_t_NC = log_probabilities(np.random.default_rng(1).normal(size=(2, 3, 8))[0], np.eye(8)[:3])
    forward, reverse = (value_of(kind, log_s_NC, log_t_NC) for kind in ("forward_kl", "reverse_kl"))
    same = torch.testing.assert_close
    same(value_of("alpha_beta", log_s_NC, log_t_NC, alpha=1, beta=0), forward)
    same(value_of("alpha_beta", log_s_NC, log_t_NC, alpha=0, beta=1), reverse)
    w = 1e-6
    same(value_of("jsd", log_s_NC, log_t_NC, teacher_weight=w) / w, forward, rtol=1e-4, atol=1e-5)
    same(value_of("jsd", log_s_NC, log_t_NC, teacher_weight=1 - w) / w, reverse, rtol=1e-4, atol=1e-5)
    same(value_of("skew_forward_kl", log_s_NC, log_t_NC, alpha=1e-9), forward, rtol=1e-6, atol=1e-6)
    same(value_of("skew_reverse_kl", log_s_NC, log_t_NC, alpha=1e-9), reverse, rtol=1e-6, atol=1e-6)


def test_taid_at_the_end_is_forward_kl_and_at_0_pulls_nowhere() -> None:
    log_s_NC, log_t_NC = log_probabilities(*np.random.default_rng(2).normal(size=(2, 3, 8)))
    forward = value_of("forward_kl", log_s_NC, log_t_NC)
    torch.testing.assert_close(value_of("taid", log_s_NC, log_t_NC, start=1.0), forward)
    assert value_of("taid", log_s_NC, log_t_NC, start=0.0).abs().max() < 1e-12


def test_taid_interpolation_moves_without_a_new_definition() -> None:
    taid = find_divergence("taid", start=0.2)
    assert isinstance(taid, TAID)
    assert taid.setting == pytest.approx(0.2)
    taid.interpolation.fill_(0.75)
    log_s_NC, log_t_NC = log_probabilities(*np.random.default_rng(3).normal(size=(2, 3, 8)))
    f_NC, _ = taid.summands(log_s_NC, log_t_NC, *taid.context(log_s_NC, log_t_NC))
    torch.testing.assert_close(f_NC.sum(-1), value_of("taid", log_s_NC, log_t_NC, start=0.75))
    assert find_divergence("taid", start=0.2).setting == pytest.approx(0.2)  # every one has its own


@kinds
def test_derivative_sum_is_what_it_says(kind: str, parameters: dict[str, float]) -> None:
    definition = find_divergence(kind, **parameters)
    log_s_NC, log_t_NC = log_probabilities(*np.random.default_rng(4).normal(size=(2, 5, 8)))
    _, v_NC = definition.summands(log_s_NC, log_t_NC, *definition.context(log_s_NC, log_t_NC))
    sums_N = v_NC.sum(-1)
    if definition.derivative_sum is not None:
        torch.testing.assert_close(sums_N, torch.full_like(sums_N, definition.derivative_sum))
    else:
        assert sums_N.std() > 1e-6  # else it could be declared, and save a pass


@settings(max_examples=200, deadline=None)
@given(
    t=arrays(np.float64, (3, 7), elements=st.sampled_from([0.05, 0.1, 0.2, 0.3, 0.4, 1.0])), mu=st.floats(0.02, 0.98)
)
def test_adaptive_head_with_ties(t: np.ndarray, mu: float) -> None:
    """The head is the reference's, wherever the cumulated mass does not meet mu within rounding."""
    t = t / t.sum(-1, keepdims=True)
    s = reference.softmax(np.random.default_rng(5).normal(size=t.shape))
    cumulated = np.cumsum(-np.sort(-t, -1), -1)
    if np.abs(cumulated - mu).min() < 1e-9:
        return
    border_N1 = head_border(torch.from_numpy(np.log(t)).sort(-1, descending=True).values, mu)
    head = np.log(t) > border_N1.numpy()
    gap = np.abs(t - s)
    np.testing.assert_allclose((gap * head).sum(-1) / gap.sum(-1), reference.adaptive_weight(s, t, mu)[:, 0], rtol=1e-9)


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 1023, 3000, 9000, 20001])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_adaptive_head_of_any_vocabulary_size(size: int, temperature: float) -> None:
    """Flat and peaked teachers: heads of one token up to nearly all, found without sorting the vocabulary."""
    rng = np.random.default_rng(6)
    order = rng.permutation(size)
    z = np.stack([np.zeros(size), np.linspace(0, 0.01, size), np.linspace(0, 30, size), rng.normal(size=size) * 4])
    z = z[:, order]
    for mu in (0.01, 0.5, 0.99):
        t = reference.softmax(z / temperature)
        view, inverse = LogitsView(), torch.tensor(1 / temperature, dtype=torch.float64)
        border_N1 = _head_of_rows(torch.from_numpy(z), view, inverse, mu, compiled=False)
        head = np.log(t) > border_N1.numpy()
        assert head[0].all()  # all are equally likely
        for row in (1, 2, 3):
            expected = max(1, int((np.cumsum(np.sort(t[row])[::-1]) <= mu).sum()))
            assert head[row].sum() == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 64, 300])
def test_largest_of_wide_rows(dtype: torch.dtype, k: int) -> None:
    rows = torch.randn(5, 40007, generator=torch.Generator().manual_seed(0)).to(dtype)
    rows[1, 100:200], rows[2, :] = torch.inf, 0.0
    rows[3, -3:] = 50.0  # beyond the last whole group
    assert torch.equal(_largest(rows, k), rows.topk(k, dim=1).values)


REFUSED = [
    ("jsd", {"teacher_weight": 0.0}, "teacher_weight = 0.0 must lie strictly between 0.0 and 1.0; use forward_kl"),
    ("jsd", {"teacher_weight": 1.5}, "1.5"),
    ("skew_forward_kl", {"alpha": 0.0}, "use forward_kl for alpha = 0"),
    ("skew_reverse_kl", {"alpha": 1.0}, "alpha = 1.0 must lie strictly between"),
    ("alpha_beta", {"alpha": math.nan}, "alpha = nan is not a finite number"),
    ("adaptive_kl", {"mu": 1.0}, "use forward_kl for mu = 1"),
    ("taid", {"start": -0.1}, "start = -0.1 must lie from 0.0 to 1.0"),
    ("taid", {"start": 0.8, "end": 0.5}, "end = 0.5 must lie from 0.8 to 1.0"),
    ("forward_kl", {"alpha": 1.0}, "forward_kl has no parameter 'alpha'; it takes no parameters"),
    ("jsd", {"beta": 0.5}, "jsd has no parameter 'beta'; it takes teacher_weight"),
    ("taid", {"interpolation": 0.5}, "taid has no parameter 'interpolation'"),
    ("kl", {}, "no divergence is named 'kl'; known: forward_kl, reverse_kl"),
]


@pytest.mark.parametrize(("kind", "parameters", "message"), REFUSED)
def test_refuses(kind: str, parameters: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match="(?s)" + message.replace("(", r"\(")):
        find_divergence(kind, **parameters)


def test_a_definition_stands_for_itself() -> None:
    definition = find_divergence("jsd", teacher_weight=0.25)
    assert find_divergence(definition) is definition
    assert all(cls.name == name and cls.__doc__ for name, cls in DIVERGENCES.items())
