"""Merged, matched and sorted distributions (GOLD, ULD) against their definition in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from two_tokenizers import MASK, WEIGHT, Pair, assert_equal, by_definition, make_pair, outcome

from lmdistill.objectives import find_divergence
from lmdistill.objectives.alignment import pair_positions
from lmdistill.objectives.gold import PROBABILITY_FLOOR, VocabularyMatch, gold_loss, sorted_distance
from lmdistill.objectives.uld import uld_loss
from lmdistill.signals import DenseSignal

MATCH = VocabularyMatch(torch.tensor([1, 3, 4, 8]), torch.tensor([7, 0, 12, 3]))


def merged(z: Tensor, ids: Tensor, first: int, end: int, merge: str, temperature: float) -> Tensor:
    """Base distribution times the probabilities of the group's other tokens; row i - 1 predicts token i."""
    base = first if merge == "first" else end - 1
    found = (z[base - 1] / temperature).softmax(-1)
    for i in range(first, end):
        if i != base:
            found = found * (z[i - 1] / temperature).softmax(-1)[ids[i]].clamp_min(PROBABILITY_FLOOR)
    return found


def l1_of_sorted(x: Tensor, y: Tensor) -> Tensor:
    size = max(len(x), len(y))
    a, b = (torch.cat([side.sort(descending=True).values, side.new_zeros(size - len(side))]) for side in (x, y))
    return (a - b).abs().sum()


def jsd_as_in_trl(s: Tensor, t: Tensor, beta: float) -> Tensor:
    """Pointwise KL terms of clamped probabilities, beta the teacher's weight; the ends are the KLs."""
    s, t = s.clamp_min(PROBABILITY_FLOOR), t.clamp_min(PROBABILITY_FLOOR)
    if beta == 0:
        return (t * (t / s).log()).sum()
    if beta == 1:
        return (s * (s / t).log()).sum()
    m = beta * t + (1 - beta) * s
    return (beta * t * (t / m).log() + (1 - beta) * s * (s / m).log()).sum()


def expected(
    pair: Pair,
    match: VocabularyMatch | None,
    *,
    beta: float = 0.5,
    merge: str = "first",
    temperature: float = 1.0,
    weights: tuple[float, float] | None = None,
    **options: Any,
) -> list[Tensor]:
    u = pair.teacher_logits.shape[1]
    if weights is None:
        share = 0.0 if match is None else len(match) / u
        weights = (share, 1 - share)

    def group_loss(student: Tensor, teacher: Tensor, ends: tuple[int, int, int, int]) -> Tensor:
        i0, i1, j0, j1 = ends
        s = merged(student, pair.ids_N, i0, i1, merge, temperature)
        t = merged(teacher, pair.teacher_ids_M, j0, j1, merge, temperature)
        if match is None:
            return weights[1] * l1_of_sorted(s, t)
        rest_s = torch.tensor([i for i in range(len(s)) if i not in match.student_ids_C.tolist()])
        rest_t = torch.tensor([i for i in range(len(t)) if i not in match.teacher_ids_C.tolist()])
        matched = jsd_as_in_trl(s[match.student_ids_C], t[match.teacher_ids_C], beta)
        return weights[0] * matched + weights[1] * l1_of_sorted(s[rest_s], t[rest_t])

    return by_definition(pair, group_loss, **options)


def run(pair: Pair, match: VocabularyMatch | None, dtype: torch.dtype = torch.float64, **options: Any) -> list[Tensor]:
    beta = options.pop("beta", 0.5)
    kind = find_divergence({0: "forward_kl", 1: "reverse_kl"}.get(beta, "jsd"))
    if beta not in (0, 1):
        kind = find_divergence("jsd", teacher_weight=beta)
    return outcome(
        pair,
        lambda hidden, head, bias: gold_loss(
            hidden,
            head,
            pair.ids_N,
            options.get("signal", pair.teacher),
            pair.teacher_ids_M,
            pair.alignment,
            match,
            kind,
            mask_G=MASK,
            weight_G=WEIGHT,
            num_items=11,
            student_bias=bias,
            teacher_vocab_size=pair.teacher_vocab_size,
            **pair.view,
            **{key: value for key, value in options.items() if key != "signal"},
        ),
        dtype,
    )


@pytest.mark.parametrize("beta", [0, 0.1, 0.5, 1])
@pytest.mark.parametrize("merge", ["first", "last"])
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "bias-scale-cap-padding"])
@pytest.mark.parametrize("chunk_tokens", [None, 2])
def test_hybrid_equals_the_definition(beta: float, merge: str, plain: bool, chunk_tokens: int | None) -> None:
    pair = make_pair(plain=plain)
    temperature = 1.0 if plain else 1.7
    found = run(pair, MATCH, beta=beta, merge=merge, temperature=temperature, chunk_tokens=chunk_tokens)
    whole = expected(
        pair, MATCH, beta=beta, merge=merge, temperature=temperature, mask=MASK, weight=WEIGHT, num_items=11
    )
    assert_equal(found, whole)


@pytest.mark.parametrize("merge", ["first", "last"])
@pytest.mark.parametrize(("v", "u"), [(11, 17), (17, 11), (13, 13)])
def test_all_by_size_equals_the_definition(merge: str, v: int, u: int) -> None:
    """Zero padding to the larger vocabulary, whichever it is."""
    pair = make_pair(3, v=v, u=u)
    found = run(pair, None, merge=merge)
    assert_equal(found, expected(pair, None, merge=merge, mask=MASK, weight=WEIGHT, num_items=11))


def test_given_weights_and_dense_logits() -> None:
    pair = make_pair(4, plain=False)
    found = run(pair, MATCH, matched_weight=0.3, unmatched_weight=2.0, signal=DenseSignal(pair.teacher_logits))
    assert_equal(found, expected(pair, MATCH, weights=(0.3, 2.0), mask=MASK, weight=WEIGHT, num_items=11))


def test_probabilities_below_the_floor_are_constants() -> None:
    """Confident models: most entries are below 1e-8, and so are some tokens' probabilities."""
    pair = make_pair(5)
    pair = replace(pair, hidden_NH=pair.hidden_NH * 12)
    for merge in ("first", "last"):
        whole = expected(pair, MATCH, merge=merge, mask=MASK, weight=WEIGHT, num_items=11)
        assert_equal(run(pair, MATCH, merge=merge), whole, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_near(dtype: torch.dtype) -> None:
    pair = make_pair()
    whole = expected(pair, MATCH, mask=MASK, weight=WEIGHT, num_items=11)
    near = 1e-5 if dtype == torch.float32 else 0.05
    for one, other in zip(run(pair, MATCH, dtype), whole, strict=True):
        assert float((one.double() - other).norm() / other.norm()) < near


@settings(max_examples=100, deadline=None)
@given(data=st.data(), a=st.integers(1, 9), b=st.integers(1, 9))
def test_sorted_distance_equals_its_twin(data: st.DataObject, a: int, b: int) -> None:
    entries = st.floats(0, 1).map(lambda value: round(value, 6))
    x = torch.tensor(data.draw(st.lists(entries, min_size=a, max_size=a, unique=True)), dtype=torch.float64)
    y = torch.tensor(data.draw(st.lists(entries, min_size=b, max_size=b, unique=True)), dtype=torch.float64)
    log_x = x.clamp_min(1e-300).log().requires_grad_()
    x = log_x.detach().exp()  # the very same numbers on both ways, or rounding decides on which side of a kink they lie
    loss, pull = sorted_distance(x[None], y[None])
    assert float(loss) == pytest.approx(float(l1_of_sorted(x, y)))
    l1_of_sorted(log_x.exp(), y).backward()
    assert log_x.grad is not None
    torch.testing.assert_close(pull[0], log_x.grad, atol=1e-12, rtol=1e-9)


def test_a_model_is_at_no_distance_from_itself() -> None:
    pair = make_pair(6, v=13, u=13)
    same = replace(pair.teacher, hidden_NK=pair.hidden_NH, head_VK=pair.head_VH)
    pairs = pair_positions(pair.alignment.select(torch.tensor([1])), torch.tensor([True]))
    loss = uld_loss(pair.hidden_NH, pair.head_VH, same, pairs).loss
    assert float(loss) == pytest.approx(0, abs=1e-12)


def test_uld_of_positions() -> None:
    """As published: the k-th place of the answer with the teacher's k-th, extra places dropped."""
    pair = make_pair(7)
    pairs = pair_positions(pair.alignment, MASK)
    assert len(pairs) > len(pair.alignment.select(MASK)) - 1
    hidden = pair.hidden_NH.clone().requires_grad_()
    found = uld_loss(hidden, pair.head_VH, pair.teacher, pairs)
    found.loss.backward()
    twin = pair.hidden_NH.clone().requires_grad_()
    s, t = pair.student_logits(twin, pair.head_VH, None).softmax(-1), pair.teacher_logits.softmax(-1)
    losses = [
        l1_of_sorted(s[i - 1], t[j - 1])
        for i, j in zip(pairs.student_first_G.tolist(), pairs.teacher_first_G.tolist(), strict=True)
    ]
    whole = torch.stack(losses).mean()
    whole.backward()
    torch.testing.assert_close(found.loss, whole)
    torch.testing.assert_close(hidden.grad, twin.grad)


def test_no_gradient_without_need() -> None:
    pair = make_pair()
    head = pair.head_VH.clone().requires_grad_(False)
    hidden = pair.hidden_NH.clone().requires_grad_()
    gold_loss(
        hidden, head, pair.ids_N, pair.teacher, pair.teacher_ids_M, pair.alignment, MATCH, mask_G=MASK
    ).loss.backward()
    assert head.grad is None
    with torch.no_grad():
        loss = gold_loss(
            hidden, head, pair.ids_N, pair.teacher, pair.teacher_ids_M, pair.alignment, MATCH, mask_G=MASK
        ).loss
    assert not loss.requires_grad


def test_refuses() -> None:
    pair = make_pair()

    def call(match: VocabularyMatch | None = MATCH, **options: Any) -> None:
        given = {"mask_G": MASK, **options}
        ids = given.pop("ids", pair.ids_N)
        gold_loss(pair.hidden_NH, pair.head_VH, ids, pair.teacher, pair.teacher_ids_M, pair.alignment, match, **given)

    with pytest.raises(ValueError, match="merge = 'middle' is not known"):
        call(merge="middle")
    with pytest.raises(ValueError, match=r"matched_weight = 1.0 and unmatched_weight = None; give both"):
        call(matched_weight=1.0)
    with pytest.raises(ValueError, match=r"matched ids reach 40 and 2 but the vocabularies have 11 and 17"):
        call(VocabularyMatch(torch.tensor([40]), torch.tensor([2])))
    with pytest.raises(ValueError, match="11 student tokens with 3 ids"):
        call(ids=pair.ids_N[:3])
    with pytest.raises(ValueError, match="teacher_vocab_size = 18 but the teacher has 17 entries"):
        call(teacher_vocab_size=18)
    with pytest.raises(ValueError, match="student's id is matched twice"):
        VocabularyMatch(torch.tensor([1, 1]), torch.tensor([2, 3]))
    with pytest.raises(ValueError, match=r"shapes \(1,\) and \(2,\)"):
        VocabularyMatch(torch.tensor([1]), torch.tensor([2, 3]))
    with pytest.raises(ValueError, match="ULD pairs single positions"):
        uld_loss(pair.hidden_NH, pair.head_VH, pair.teacher, pair.alignment)
