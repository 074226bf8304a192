"""Checks that compare rows: MinHash against the exact similarity, ROUGE-L against the package, rationales of a seed."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generation.rows import only, row, split
from lmdistill.generation.checks.likeness import NearDuplicateCheck, NoveltyCheck, bands
from lmdistill.generation.checks.similarity import (
    jaccard,
    lcs_length,
    rouge_l,
    rouge_l_bound,
    rouge_words,
    shingles,
)
from lmdistill.generation.filters import apply_filters
from lmdistill.generation.types import Example
from lmdistill.recipe.generation_filters import NearDuplicateFilter, NoveltyFilter

WORDS = st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), max_size=12)


@given(WORDS, WORDS)
def test_the_bit_parallel_subsequence_is_the_longest(a: list[str], b: list[str]) -> None:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    assert lcs_length(a, b) == table[-1][-1]
    assert rouge_l(a, b) <= rouge_l_bound(Counter(a), Counter(b), len(a) + len(b))


@settings(max_examples=60, deadline=None)
@given(st.text("ab1 .-Éß", max_size=30), st.text("ab1 .-Éß", max_size=30))
def test_rouge_l_is_that_of_the_package(a: str, b: str) -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=False)
    expected = scorer.score(a, b)["rougeL"].fmeasure
    cut = [rouge_words(text) if re.search("[a-z0-9]", text.lower()) else [] for text in (a, b)]
    assert rouge_l(*cut) == pytest.approx(expected, abs=1e-12)


@given(st.sets(st.integers(0, 9)), st.sets(st.integers(0, 9)))
def test_jaccard(a: set[int], b: set[int]) -> None:
    assert jaccard(a, b) == jaccard(b, a)
    assert jaccard(a, b) == (len(a & b) / len(a | b) if a | b else 1.0)


def similarity(a: Example, b: Example, size: int) -> float:
    one, other = (
        {f"{side}:{part}" for side in ("prompt", "response") for part in shingles(getattr(each, side), size)}
        for each in (a, b)
    )
    return jaccard(one, other)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.5, 0.7, 0.9]))
def test_minhash_agrees_with_the_exact_similarity(seed: int, threshold: float) -> None:
    """No drop below the threshold, ever; at most one miss far above it in a small set."""
    draws = random.Random(seed)
    base = [f"w{number}" for number in range(30)]
    rows = []
    for number in range(15):
        words = [word if draws.random() > 0.06 else f"x{draws.randrange(99)}" for word in base]
        rows.append(row(" ".join(words), name=str(number)))
    spec = NearDuplicateFilter(threshold=threshold)
    kept: list[Example] = []
    missed = 0
    check = NearDuplicateCheck(spec)
    for each in rows:
        exact = max((similarity(each, other, spec.shingle) for other in kept), default=0.0)
        finding = check.look(each)
        if finding is not None:
            assert exact >= threshold
            matched = next(other for other in kept if other.id == finding.matched)
            assert similarity(each, matched, spec.shingle) >= threshold
            continue
        missed += exact >= min(1.0, threshold + 0.1)
        check.keep(each)
        kept.append(each)
    assert missed <= 1


@given(st.floats(0.05, 1.0), st.integers(16, 256))
def test_bands_fit_and_find_nineteen_of_twenty_at_the_threshold(threshold: float, permutations: int) -> None:
    number, rows = bands(threshold, permutations)
    assert number * rows <= permutations
    assert rows == 1 or 1 - (1 - threshold**rows) ** number >= 0.95


def test_near_duplicates_are_named_and_different_rows_stay() -> None:
    text = " ".join(f"word{number}" for number in range(60))
    rows = [
        row(text, name="a"),
        row(text.upper() + "!", name="b"),
        row(text[::-1], name="c"),
        row(text + " x", name="d"),
    ]
    kept, drops = split(list(apply_filters(rows, only(near_duplicate={}), {})))
    assert [each.id for each in kept] == ["a", "c"]
    assert [(drop.example.id, drop.by, drop.matched) for drop in drops] == [
        ("b", "near_duplicate", "a"),
        ("d", "near_duplicate", "a"),
    ]
    assert "1.00 of the runs of 3 words are those of a" in drops[0].reason


def test_the_same_answer_to_other_questions_is_no_duplicate() -> None:
    rows = [row("yes", prompt=f"Is the number {number} larger than four?", name=str(number)) for number in range(9)]
    assert len(split(list(apply_filters(rows, only(near_duplicate={}), {})))[0]) == 9
    assert len(split(list(apply_filters(rows, only(near_duplicate={"side": "response"}), {})))[0]) == 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["ab", "cd", "ef", "gh", "ij", "kl"]), min_size=1, max_size=7), max_size=9))
def test_novelty_is_the_naive_rule(texts: list[list[str]]) -> None:
    rows = [row("x", prompt=" ".join(text), name=str(number)) for number, text in enumerate(texts)]
    check, pool = NoveltyCheck(NoveltyFilter(), pool=["ab cd ef"]), ["ab cd ef"]
    for each in rows:
        scores = [rouge_l(rouge_words(each.prompt), rouge_words(other)) for other in pool]
        finding = check.look(each)
        assert (finding is None) == all(score < 0.7 for score in scores)
        if finding is None:
            check.keep(each)
            pool.append(each.prompt)
        else:
            assert f"ROUGE-L {max(scores):.2f} with" in finding.reason


def test_several_answers_to_one_new_question_all_stay() -> None:
    rows = [row(f"answer {number}", prompt="How deep is the sea?", name=str(number), seed="s") for number in range(3)]
    rows.append(row("answer", prompt="How deep is the sea?", name="other", seed="t"))
    kept, drops = split(list(apply_filters(rows, only(novelty={}), {})))
    assert [each.id for each in kept] == ["0", "1", "2"]
    assert [drop.matched for drop in drops] == ["0"]


def test_rationales_are_compared_within_their_seed() -> None:
    words = ["first", "we", "add", "the", "two", "numbers", "and", "then", "halve", "the", "sum"]
    near, far = [*words[:-1], "total"], ["multiply", *words[:3], "by", "nine"]
    rows = [
        row(" ".join(words), name="a", seed="s"),
        row(" ".join(reversed(near)), name="b", seed="s"),
        row(" ".join(far), name="c", seed="s"),
        row(" ".join(words), name="d", seed="t"),
    ]
    kept, drops = split(list(apply_filters(rows, only(rationale={}), {})))
    assert [each.id for each in kept] == ["a", "c", "d"]
    assert [(drop.by, drop.matched) for drop in drops] == [("rationale", "a")]
    assert drops[0].reason.startswith(f"{jaccard(set(words), set(near)):.2f} of the words")
