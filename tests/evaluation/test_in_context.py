"""Votes over draws of demonstrations: against counting by hand, on a real interface and a tiny model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from lmdistill.errors import DataError
from lmdistill.evaluation.in_context import Question, same_words, vote_in_context
from lmdistill.evaluation.records import Role
from lmdistill.evaluation.speakers import Likelihood, LocalSpeaker, Writing, Written
from lmdistill.models import load_model, load_tokenizer
from lmdistill.recipe import ModelSpec

POOL = [(f"is {n} even", "yes" if n % 2 == 0 else "no") for n in range(8)]


class Copying:
    """A model that answers what most demonstrations answer: what it says depends on what is drawn, and on it alone."""

    role: Role = "student"
    label = "copying"
    template = None

    def __init__(self) -> None:
        self.asked: list[str] = []

    def likelihoods(
        self, asked: Sequence[tuple[str, str]], batch_size: int, told: Callable[[int], None] = lambda n: None
    ) -> list[Likelihood]:
        self.asked += [text for text, _ in asked]
        return [Likelihood(2.0 * text.count(f"\n{option}"), 2, False) for text, option in asked]

    def write(
        self, prompts: Sequence[str], how: Writing, told: Callable[[int], None] = lambda n: None
    ) -> list[Written]:
        self.asked += prompts
        return [Written(" Yes.\nmore" if p.count("\nyes") > p.count("\nno") else "no", 2, True) for p in prompts]


@pytest.mark.parametrize("options", [("yes", "no"), ()])
def test_the_majority_of_draws_is_counted(options: tuple[str, ...]) -> None:
    speaker = Copying()
    questions = [Question(prompt, answer, options) for prompt, answer in POOL[:4]]
    found = vote_in_context(speaker, questions, POOL, count=3, draws=5, seed=1)
    texts = speaker.asked[:: len(options) or 1]  # each text is asked once for each option
    assert len(texts) == 20
    right = []
    for place, question in enumerate(questions):
        own = texts[place * 5 : place * 5 + 5]
        said = ["yes" if text.count("\nyes") > text.count("\nno") else "no" for text in own]
        assert all(text.endswith(f"\n\n{question.prompt}\n") and text.count(question.prompt) == 1 for text in own)
        winner = Counter(said).most_common(1)[0]
        assert same_words(found.votes[place].answer or "", winner[0])
        assert found.votes[place].agreement == winner[1] / 5
        right.append(winner[0] == question.answer)
    assert found.right == tuple(right)
    assert found.accuracy == sum(right) / 4
    assert len(found.single) == 5
    assert found.mean_single == pytest.approx(sum(found.single) / 5)
    again = vote_in_context(Copying(), questions, POOL, count=3, draws=5, seed=1)
    assert again == found


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(DataError, match=r"8 demonstrations are wanted .* holds 7 other"):
        vote_in_context(Copying(), [Question(*POOL[0])], POOL, count=8, draws=1)
    with pytest.raises(DataError, match="'maybe' of 'x' is not among its options"):
        vote_in_context(Copying(), [Question("x", "maybe", ("yes", "no"))], POOL, count=1, draws=1)


def test_a_real_interface_gives_the_likeliest_option_a_token(tiny_llama_folder: Path) -> None:
    spec = ModelSpec(model=str(tiny_llama_folder))
    model = load_model(spec, dtype=torch.float32, device=torch.device("cpu"))
    speaker = LocalSpeaker("student", "tiny", model, load_tokenizer(spec))
    options = ("yes", "certainly not")
    found = vote_in_context(speaker, [Question("is 9 even", "yes", options)], POOL, count=0, draws=1)
    scores = speaker.likelihoods([("is 9 even\n", option) for option in options], 2)
    best = max(range(2), key=lambda place: scores[place].logprob / scores[place].tokens)
    assert found.votes[0].answer == options[best]
