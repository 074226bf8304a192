"""Maps of layers as published, their limits, and the search by CKA; projectors and their shapes."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lmdistill.errors import RecipeError
from lmdistill.recipe import ProjectorSpec
from lmdistill.training.layer_maps import checked_layers, cka_pairs, cka_similarity, mapped_layers
from lmdistill.training.projectors import make_projector, project


def test_published_maps() -> None:
    # TinyBERT, 4 of 12 layers: g(m) = 3 m; embeddings learn from embeddings.
    assert mapped_layers("uniform", 4, 12) == [(1, 3), (2, 6), (3, 9), (4, 12)]
    assert mapped_layers("uniform", 4, 12, [0, 2]) == [(0, 0), (2, 6)]
    # PKD, 6 of 12: skip {2, 4, 6, 8, 10}, last {7, 8, 9, 10, 11}.
    assert mapped_layers("skip", 6, 12) == [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10)]
    assert mapped_layers("last", 6, 12) == [(1, 7), (2, 8), (3, 9), (4, 10), (5, 11)]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40))
def test_uniform_maps_rise_and_end_with_the_last_layer(student: int, teacher: int) -> None:
    pairs = mapped_layers("uniform", student, teacher)
    layers = [layer for _, layer in pairs]
    assert [own for own, _ in pairs] == [*range(1, student + 1)]
    assert layers == sorted(layers)
    assert layers[-1] == teacher
    assert layers[0] >= 1
    assert len(set(layers)) == min(student, teacher) or student > teacher


def test_limits() -> None:
    with pytest.raises(RecipeError, match=r"student's 5 layers.*there are 3"):
        mapped_layers("last", 5, 3)
    with pytest.raises(RecipeError, match="student has 1"):
        mapped_layers("skip", 1, 3)
    assert checked_layers([0, -1, 2], 4, "teacher") == [0, 4, 2]
    with pytest.raises(RecipeError, match="layer 5 of the teacher, which has the layers 0 to 4"):
        checked_layers([5], 4, "teacher")
    with pytest.raises(RecipeError, match="layer 0 of the student, which has the layers 1 to 4"):
        checked_layers([0], 4, "student", lowest=1)
    with pytest.raises(RecipeError, match="layer -6"):
        checked_layers([-6], 4, "student")


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 1000))
def test_the_search_finds_the_best_map_in_order(S: int, T: int, seed: int) -> None:
    similarity = torch.rand(S, T, generator=torch.Generator().manual_seed(seed))
    pairs = cka_pairs(similarity, [*range(1, S + 1)])

    def worth(layers: tuple[int, ...]) -> float:
        return sum(float(similarity[row, layer]) for row, layer in enumerate(layers))

    best = max((layers for layers in itertools.combinations_with_replacement(range(T), S)), key=worth)
    assert worth(tuple(layer - 1 for _, layer in pairs)) == pytest.approx(worth(best))


def test_similar_states_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = [torch.randn(50, 12, generator=generator) for _ in range(5)]
    turned = torch.linalg.qr(torch.randn(12, 12, generator=generator)).Q
    student = [teacher[1] @ turned * 3, teacher[3] @ turned]
    similarity = cka_similarity(student, teacher, rows=40)
    assert similarity.shape == (2, 5)
    assert cka_pairs(similarity, [1, 2]) == [(1, 2), (2, 4)]
    torch.testing.assert_close(similarity[0, 1], torch.tensor(1.0))


@pytest.mark.parametrize("kind", ["linear", "orthogonal", "low_rank", "mlp"])
@pytest.mark.parametrize("widths", [(4, 6), (6, 4), (5, 5)])
def test_projectors(kind: str, widths: tuple[int, int]) -> None:
    projector = make_projector(ProjectorSpec(kind=kind), *widths)  # type: ignore[arg-type]
    x = torch.randn(2, 3, widths[0], dtype=torch.bfloat16)
    found = project(projector, x)
    assert found.shape == (2, 3, widths[1])
    assert found.dtype == torch.float32
    found.sum().backward()
    assert all(p.grad is not None for p in projector.parameters())
    if kind == "orthogonal" and widths[0] <= widths[1]:
        length: Tensor = x.float().norm(dim=-1)
        torch.testing.assert_close(project(projector, x).norm(dim=-1), length)


def test_low_rank_has_that_rank() -> None:
    projector = make_projector(ProjectorSpec(kind="low_rank", rank=2, bias=False), 8, 6)
    matrix = project(projector, torch.eye(8))
    assert torch.linalg.matrix_rank(matrix) == 2
    assert len(list(make_projector(ProjectorSpec(kind="mlp", width=7), 3, 4).parameters())) == 4
