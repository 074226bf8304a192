"""Every hint equals its definition in float64, in loss and in gradient, whole and in pieces, masked and in 16 bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import hint_reference as definition
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lmdistill.objectives import hints
from lmdistill.objectives.hints import HINTS, pieces
from lmdistill.recipe import HINT_PARAMETERS


class Case(NamedTuple):
    batch: int
    length: int
    width: int
    seed: int
    share: float
    """Share of positions that count."""
    dtype: torch.dtype
    whole: bool
    """Whether everything is one piece."""


CASES = st.builds(
    Case,
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 2**16),
    st.sampled_from([0.0, 0.4, 1.0]),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    st.booleans(),
)
TOLERANCE = {torch.float64: (1e-9, 1e-9), torch.float32: (2e-4, 1e-5), torch.bfloat16: (3e-2, 1e-2)}
"""Relative and absolute, of gradients; losses are computed in float32 at least."""

ROWS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], dict[str, Any]]] = {
    "hidden_mse": (hints.hidden_mse, definition.hidden_mse, {}),
    "hidden_mse, sum": (hints.hidden_mse, definition.hidden_mse, {"reduction": "sum"}),
    "hidden_cosine": (hints.hidden_cosine, definition.hidden_cosine, {}),
    "hidden_normalised_mse": (hints.hidden_normalised_mse, definition.hidden_normalised_mse, {}),
    "hidden_normalised_mse, sum": (
        hints.hidden_normalised_mse,
        definition.hidden_normalised_mse,
        {"reduction": "sum"},
    ),
    "hidden_residual_mse": (hints.hidden_residual_mse, definition.hidden_residual_mse, {}),
    "gram": (hints.gram, definition.gram, {}),
    "contrastive": (hints.contrastive, definition.contrastive, {"temperature": 0.5}),
}
OTHER_WIDTH: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], dict[str, Any]]] = {
    "similarity": (hints.similarity, definition.similarity, {}),
    "cka": (hints.cka, definition.cka, {}),
    "rkd_distance": (hints.rkd_distance, definition.rkd_distance, {}),
    "rkd_angle": (hints.rkd_angle, definition.rkd_angle, {}),
}
MAPS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], dict[str, Any]]] = {
    "scores": (hints.attention_scores_mse, definition.attention_scores_mse, {}),
    "scores, visible": (hints.attention_scores_mse, definition.attention_scores_mse, {"reduction": "visible"}),
    "scores, mean": (hints.attention_scores_mse, definition.attention_scores_mse, {"heads": "mean"}),
    "mse": (hints.attention_mse, definition.attention_mse, {}),
    "mse, mean": (hints.attention_mse, definition.attention_mse, {"heads": "mean"}),
    "kl": (hints.attention_kl, definition.attention_kl, {}),
    "kl, mean": (hints.attention_kl, definition.attention_kl, {"heads": "mean"}),
}


@contextmanager
def in_pieces(whole: bool) -> Iterator[None]:
    before = pieces.NUMBERS
    pieces.NUMBERS = before if whole else 1
    try:
        yield
    finally:
        pieces.NUMBERS = before


def draw(case: Case, *shape: int, offset: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(case.seed + offset)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(case.dtype)


def mask_of(case: Case) -> Tensor:
    generator = torch.Generator().manual_seed(case.seed + 99)
    return torch.rand(case.batch, case.length, generator=generator) < case.share


def agree(
    case: Case, fast: Callable[[Tensor, Tensor], Tensor], slow: Callable[[Tensor, Tensor], Tensor], s: Tensor, t: Tensor
) -> None:
    own, exact = s.clone().requires_grad_(), s.double().requires_grad_()
    other = t.clone().requires_grad_()
    with in_pieces(case.whole), torch.autocast("cpu", torch.bfloat16, enabled=case.dtype == torch.float32):
        loss = fast(own, other)
    loss.backward()
    wanted = slow(exact, t.double())
    if wanted.requires_grad:
        wanted.backward()
    relative, absolute = (1e-9, 1e-9) if case.dtype == torch.float64 else (2e-4, 1e-5)
    assert loss.dtype in (torch.float32, torch.float64)
    torch.testing.assert_close(loss.detach().double(), wanted.detach(), rtol=relative, atol=absolute)
    relative, absolute = TOLERANCE[case.dtype]
    gradient = torch.zeros_like(exact) if exact.grad is None else exact.grad
    assert own.grad is not None
    torch.testing.assert_close(
        own.grad.double(), gradient, rtol=relative, atol=absolute * (1 + float(gradient.abs().max()))
    )
    assert other.grad is None


@pytest.mark.parametrize("name", ROWS)
@settings(max_examples=8, deadline=None)
@given(case=CASES)
@example(case=Case(2, 3, 3, 1, 0.0, torch.float32, False))
def test_vectors_of_one_width(name: str, case: Case) -> None:
    fast, slow, options = ROWS[name]
    mask = mask_of(case)
    shape = (case.batch, case.length, case.width)
    s, t = draw(case, *shape), draw(case, *shape, offset=1)
    agree(case, lambda s, t: fast(s, t, mask, **options), lambda s, t: slow(s, t, mask, **options), s, t)


@pytest.mark.parametrize("name", OTHER_WIDTH)
@settings(max_examples=8, deadline=None)
@given(case=CASES)
def test_vectors_of_different_widths(name: str, case: Case) -> None:
    fast, slow, options = OTHER_WIDTH[name]
    mask = mask_of(case)
    s, t = draw(case, case.batch, case.length, case.width + 1), draw(case, case.batch, case.length, 3, offset=1)
    agree(case, lambda s, t: fast(s, t, mask, **options), lambda s, t: slow(s, t, mask, **options), s, t)


@settings(max_examples=8, deadline=None)
@given(case=CASES)
def test_flows_between_two_layers(case: Case) -> None:
    mask = mask_of(case)
    s = draw(case, 2, case.batch, case.length, case.width)
    t = draw(case, 2, case.batch, case.length, case.width, offset=1)
    agree(
        case,
        lambda s, t: hints.fsp((s[0], s[1]), (t[0], t[1]), mask),
        lambda s, t: definition.fsp((s[0], s[1]), (t[0], t[1]), mask),
        s,
        t,
    )


def scores(case: Case, heads: int, offset: int = 0) -> Tensor:
    """Scores with a causal mask and padded keys as models add them."""
    found = draw(case, case.batch, heads, case.length, case.length, offset=offset)
    blocked = torch.ones(case.length, case.length, dtype=torch.bool).triu(1)
    blocked = blocked | ((torch.arange(case.length) > 1) & (torch.arange(case.length)[:, None] == 3))
    return found.masked_fill(blocked, torch.finfo(case.dtype).min)


@pytest.mark.parametrize("name", MAPS)
@settings(max_examples=8, deadline=None)
@given(case=CASES)
def test_attention_maps(name: str, case: Case) -> None:
    fast, slow, options = MAPS[name]
    mask = mask_of(case)
    s, t = scores(case, 2), scores(case, 3 if "mean" in name else 2, offset=1)
    agree(case, lambda s, t: fast(s, t, mask, **options), lambda s, t: slow(s, t, mask, **options), s, t)


@pytest.mark.parametrize("causal", [False, True])
@settings(max_examples=10, deadline=None)
@given(case=CASES, heads=st.sampled_from([1, 2, 4]))
def test_relations_of_models_with_other_heads_and_widths(causal: bool, case: Case, heads: int) -> None:
    mask = mask_of(case)
    # Two texts and padding in each row.
    segments = torch.tensor([0, 0, 1, -1])[: case.length].expand(case.batch, -1)
    s, t = draw(case, case.batch, case.length, 2, 4), draw(case, case.batch, case.length, 4, 3, offset=1)
    options: dict[str, Any] = {"relation_heads": heads, "causal": causal}
    agree(
        case,
        lambda s, t: hints.relation_kl(s, t, mask, segments_BL=segments, **options),
        lambda s, t: definition.relation_kl(s, t, mask, segments, **options),
        s,
        t,
    )


@settings(max_examples=10, deadline=None)
@given(case=CASES, top=st.integers(1, 3))
def test_attributions(case: Case, top: int) -> None:
    mask = mask_of(case)
    s, t = draw(case, case.batch, 2, case.length, case.width), draw(case, case.batch, 2, case.length, 5, offset=1)
    agree(
        case,
        lambda s, t: hints.attribution_distance(s, t, mask, top=top),
        lambda s, t: definition.attribution_distance(s, t, mask, top),
        s,
        t,
    )


HIDDEN = {
    **{name: entry[0] for name, entry in {**ROWS, **OTHER_WIDTH}.items()},
    "attributions": hints.attribution_distance,
}


@pytest.mark.parametrize("name", HIDDEN)
def test_masked_positions_leave_no_trace(name: str) -> None:
    generator = torch.Generator().manual_seed(3)
    clean_s, clean_t = torch.randn(2, 2, 5, 4, generator=generator)
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 1, 0, 1]], dtype=torch.bool)
    s = torch.where(mask[..., None], clean_s, torch.nan).requires_grad_()
    t = torch.where(mask[..., None], clean_t, torch.inf)
    loss = HIDDEN[name](s, t, mask)
    loss.backward()
    zeros_s, zeros_t = (x.masked_fill(~mask[..., None], 0.0) for x in (clean_s, clean_t))
    torch.testing.assert_close(loss.detach(), HIDDEN[name](zeros_s, zeros_t, mask))
    assert s.grad is not None
    assert torch.isfinite(s.grad).all()
    assert (s.grad[~mask] == 0).all()


def test_masked_queries_and_relations_leave_no_trace() -> None:
    generator = torch.Generator().manual_seed(3)
    mask = torch.tensor([[1, 1, 0]], dtype=torch.bool)
    s = torch.randn(1, 2, 3, 3, generator=generator)
    s[:, :, 2] = torch.nan
    s.requires_grad_()
    for distance in (hints.attention_scores_mse, hints.attention_mse, hints.attention_kl):
        s.grad = None
        distance(s, torch.randn(1, 2, 3, 3, generator=generator), mask).backward()
        assert s.grad is not None
        assert torch.isfinite(s.grad).all()
    x = torch.randn(1, 3, 2, 2, generator=generator)
    x[:, 2] = torch.nan
    x.requires_grad_()
    segments = torch.tensor([[0, 0, -1]])
    hints.relation_kl(x, torch.randn(1, 3, 2, 2, generator=generator), mask, segments_BL=segments).backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert (x.grad[:, 2] == 0).all()


def test_equal_models_are_at_distance_zero() -> None:
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for name, distance in HIDDEN.items():
        if name != "contrastive":
            assert float(distance(x, x.clone())) == pytest.approx(0.0, abs=1e-12), name
    maps = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    for distance in (hints.attention_scores_mse, hints.attention_mse, hints.attention_kl):
        assert float(distance(maps, maps.clone())) == pytest.approx(0.0, abs=1e-12)


def test_extreme_entries_give_finite_numbers() -> None:
    x = torch.tensor([[[1e30, 0.0], [0.0, 0.0], [1e-30, 1e-30]]], requires_grad=True)
    y = torch.tensor([[[1.0, 2.0], [0.0, 1.0], [0.0, 0.0]]])
    for distance in (hints.hidden_cosine, hints.hidden_normalised_mse, hints.cka, hints.rkd_angle):
        x.grad = None
        loss = distance(x, y)
        loss.backward()
        assert torch.isfinite(loss), distance
        assert x.grad is not None
        assert torch.isfinite(x.grad).all(), distance


def test_integrated_gradients_add_up_to_the_score() -> None:
    """The attributions of a function that is 0 at the baseline sum to its value (1703.01365, proposition 1)."""
    weight_HC = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def scores_of(x_BLH: Tensor) -> Tensor:
        return (x_BLH**2).sum(1) @ weight_HC

    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = hints.integrated_gradients(scores_of, x, steps=2000)
    torch.testing.assert_close(found.sum((2, 3)), scores_of(x), rtol=1e-3, atol=1e-3)
    once = hints.integrated_gradients(scores_of, x)
    torch.testing.assert_close(once, (2 * x[:, None] * weight_HC.t()[None, :, None]) * x[:, None])


def test_attributions_teach_the_student() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    x, teacher = (
        torch.randn(2, 3, 4, generator=generator, dtype=torch.float64),
        torch.randn(2, 2, 3, 5, dtype=torch.float64),
    )

    def loss(weight: Tensor) -> Tensor:
        made = hints.integrated_gradients(lambda e: (e.tanh().sum(1)) @ weight, x, steps=2, create_graph=True)
        return hints.attribution_distance(made, teacher, top=3)

    assert torch.autograd.gradcheck(loss, weight.requires_grad_())


def test_small_sums_have_second_derivatives() -> None:
    """Bilevel methods differentiate through a hint's gradient."""
    s, t = torch.randn(2, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradgradcheck(lambda s: hints.hidden_normalised_mse(s, t), s.requires_grad_())


def test_the_recipe_names_the_same_hints() -> None:
    assert set(HINT_PARAMETERS) == set(HINTS)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: hints.hidden_mse(torch.ones(2, 3), torch.ones(2, 4)), r"\(2, 3\).*\(2, 4\).*projector"),
        (lambda: hints.hidden_mse(torch.ones(2, 3), torch.ones(2, 3), torch.ones(3)), "2,.*mask.*3"),
        (lambda: hints.hidden_mse(torch.ones(2, 3), torch.ones(2, 3), reduction="max"), "max.*mean or sum"),  # type: ignore[arg-type]
        (lambda: hints.attention_kl(torch.ones(1, 2, 3, 3), torch.ones(1, 4, 3, 3)), "2 heads.*4 of the teacher.*mean"),
        (lambda: hints.attention_kl(torch.ones(1, 2, 3, 3), torch.ones(1, 2, 4, 4)), "not the same texts"),
        (
            lambda: hints.relation_kl(torch.ones(1, 2, 2, 3), torch.ones(1, 2, 4, 3), relation_heads=4),
            "4 relation heads.*student's width of 6; set relation_heads to one of 1, 2, 3, 6",
        ),
        (lambda: hints.contrastive(torch.ones(1, 2), torch.ones(1, 2), temperature=0.0), "above 0"),
        (lambda: hints.cka(torch.ones(2, 2), torch.ones(2, 2), rows=0), "rows = 0"),
        (lambda: hints.attribution_distance(torch.ones(1, 2, 2), torch.ones(1, 3, 2)), "same rows"),
        (lambda: hints.integrated_gradients(lambda x: x.sum(), torch.ones(1, 2, 3)), "must be"),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], Tensor], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        call()
