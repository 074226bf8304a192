"""ROUGE-L against cases counted by hand, its definition, and the package's own scorer."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmdistill.errors import MissingExtra
from lmdistill.evaluation.rouge import RougeL


@pytest.mark.parametrize(
    ("text", "references", "expected"),
    [
        # "cats" and "cat" have one stem; the subsequence is "the cat" (2): P = 2/3, R = 2/6
        ("the cats sitting", ["the cat sat on the mat"], 2 * (2 / 3) * (2 / 6) / (2 / 3 + 2 / 6)),
        # order counts, neighbourhood does not: "a c e" (3) of 5 and 4 words
        ("a b c d e", ["a c x e"], 2 * (3 / 5) * (3 / 4) / (3 / 5 + 3 / 4)),
        # words of three letters and fewer keep their s: "gas" is not "ga"
        ("gas", ["ga"], 0.0),
        # case and punctuation say nothing, digits do
        ("In 1969, WALKED!", ["in 1969 walking"], 1.0),
        ("in 1969", ["in 1968"], 0.5),
        # the nearest reference counts: "one two" of 2 and 3 words
        ("one two", ["nothing", "one two three"], 0.8),
        ("", ["something"], 0.0),
        ("something", [""], 0.0),
        ("", [""], 0.0),
        # no a-z and no digits: no words, as the module says
        ("日本語のテキスト", ["日本語のテキスト"], 0.0),
    ],
)
def test_cases_counted_by_hand(text: str, references: list[str], expected: float) -> None:
    assert RougeL().score(text, references) == pytest.approx(expected)


def subsequence_by_definition(left: list[str], right: list[str]) -> int:
    """Length of the longest common subsequence: every subsequence of the shorter one is tried."""
    left, right = sorted((left, right), key=len)
    best = 0
    for choice in range(2 ** len(left)):
        words = [word for place, word in enumerate(left) if choice >> place & 1]
        rest = iter(right)
        if len(words) > best and all(word in rest for word in words):
            best = len(words)
    return best


WORDS = st.lists(st.sampled_from(["tree", "trees", "was", "1969", "running", "run", "the", "Ünïcödé"]), max_size=8)


@settings(max_examples=60, deadline=None)
@given(WORDS, WORDS)
def test_it_is_its_definition_and_the_packages_own_score(left: list[str], right: list[str]) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    rouge = RougeL()
    text, reference = " ".join(left), " ".join(right)
    words, wanted = rouge.tokenize(text), rouge.tokenize(reference)
    common = subsequence_by_definition(words, wanted)
    expected = 2 * common / (len(words) + len(wanted)) if common else 0.0  # the harmonic mean of P and R
    assert rouge.score(text, [reference]) == pytest.approx(expected)
    package = RougeScorer(["rougeL"], use_stemmer=True).score(reference, text)["rougeL"].fmeasure
    assert rouge.score(text, [reference]) == pytest.approx(package)


def test_a_missing_package_names_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(MissingExtra, match=r"pip install 'lmdistill\[eval\]'"):
        RougeL()
