"""Puzzles of reasoning-gym and their own verifiers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from lmdistill.errors import RecipeError
from lmdistill.generation.puzzles import PUZZLE, make_puzzles
from lmdistill.generation.types import Seed
from lmdistill.generation.verify import Verifier
from lmdistill.recipe.generation_verify import PuzzleSpec, VerifySpec

pytest.importorskip("reasoning_gym")
WORD_PROBLEMS = ["basic_arithmetic", "gsm_symbolic", "simple_equations", "chain_sum", "leg_counting"]
RUNS_ANSWERS = ["countdown", "spiral_matrix", "polynomial_multiplication"]
SPEC = PuzzleSpec(names=WORD_PROBLEMS + RUNS_ANSWERS, size=3, seed=7, config={"chain_sum": {"max_terms": 3}})


@pytest.fixture(scope="module")
def seeds() -> list[Seed]:
    return make_puzzles(SPEC)


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier(VerifySpec(answer="whole", kind="text", timeout_seconds=30)) as verifier:
        yield verifier


def of(seeds: list[Seed], name: str) -> list[Seed]:
    return [seed for seed in seeds if seed.fields[PUZZLE]["dataset"] == name]


def test_the_same_settings_make_the_same_puzzles_in_any_process(seeds: list[Seed]) -> None:
    assert make_puzzles(SPEC) == seeds
    assert len({seed.id for seed in seeds}) == len(seeds) == 24
    assert all(json.loads(json.dumps(seed.fields)) == seed.fields for seed in seeds)


@pytest.mark.parametrize("name", WORD_PROBLEMS)
def test_the_puzzles_own_verifier_decides(seeds: list[Seed], verifier: Verifier, name: str) -> None:
    for seed in of(seeds, name):
        assert seed.answer is not None
        right = verifier.verify_seed(seed.answer, seed)
        assert (right.verdict, right.answer) == ("correct", seed.answer)
        assert verifier.verify_seed(f"{float(seed.answer):,}", seed).verdict == "correct"
        wrong = verifier.verify_seed(f"{seed.answer}7", seed)
        assert wrong.verdict == "incorrect"
        assert "of 1 point" in wrong.reason


def test_a_part_of_the_points_is_incorrect(seeds: list[Seed], verifier: Verifier) -> None:
    seed = of(seeds, "chain_sum")[0]
    checked = verifier.verify_seed(f"perhaps {seed.answer}", seed)
    assert checked.verdict == "incorrect"
    assert "has 0." in checked.reason


@pytest.mark.parametrize("name", RUNS_ANSWERS)
def test_answers_are_never_run(seeds: list[Seed], verifier: Verifier, name: str, tmp_path: Path) -> None:
    seed = of(seeds, name)[0]
    assert seed.answer is not None
    assert verifier.verify_seed(seed.answer, seed).verdict == "correct"
    touched = tmp_path / "touched"
    for answer in (f"__import__('os').mkdir('{touched}')", f"[__import__('os').mkdir('{touched}')]"):
        checked = verifier.verify_seed(answer, seed)
        assert checked.verdict == "unverifiable"
        assert "would run the answer as a program" in checked.reason
    assert not touched.exists()


def test_another_puzzle_than_the_one_answered_is_noticed(seeds: list[Seed], verifier: Verifier) -> None:
    checked = verifier.verify_seed("5", replace(seeds[0], prompt="What is 2 + 3?"))
    assert checked.verdict == "unverifiable"
    assert "another puzzle" in checked.reason


def test_a_seed_that_is_no_puzzle_is_compared(verifier: Verifier) -> None:
    assert verifier.verify_seed("Paris", Seed("1", "Capital of France?", "paris")).verdict == "correct"


def test_mistakes_in_the_settings_are_named(verifier: Verifier) -> None:
    with pytest.raises(RecipeError, match=r"no setting 'max_term'; did you mean 'max_terms'"):
        make_puzzles(PuzzleSpec(names=["chain_sum"], config={"chain_sum": {"max_term": 3}}))
    made = {"do": "make", "index": 0}  # what `make_puzzles` asks of its child
    unknown = verifier._ask({**made, "dataset": "chain_sums", "config": {}})
    assert "did you mean 'chain_sum'" in unknown["wrong"]
    impossible = verifier._ask({**made, "dataset": "chain_sum", "config": {"max_terms": 0}})
    assert "chain_sum does not take these settings" in impossible["wrong"]
    with pytest.raises(ValidationError, match="not among names"):
        PuzzleSpec(names=["chain_sum"], config={"leg_counting": {}})
    with pytest.raises(ValidationError, match="sets seed"):
        PuzzleSpec(names=["chain_sum"], config={"chain_sum": {"seed": 3}})
