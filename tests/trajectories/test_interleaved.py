"""Text of two authors: equal to asking both models after every token, without any cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from writing import ENDS, VOCABULARY, log_probs, names, pick, prompts, shaped, tiny

from lmdistill.errors import DataError, TrainingError
from lmdistill.recipe import GenerationSpec, InterleavedSpec
from lmdistill.trajectories.interleaved import Speculative, TeacherMixed
from lmdistill.trajectories.reader import Reader
from lmdistill.trajectories.rollouts import LocalWriter, Method
from lmdistill.trajectories.sampling import uniform_draws
from lmdistill.trajectories.types import Author, Trajectory

LIMIT = 14


def write(student: Any, method: Method, given: list[list[int]], **fields: Any) -> list[Trajectory]:
    spec = GenerationSpec(**{"max_new_tokens": LIMIT, "batch_size": 4} | fields)
    made = LocalWriter(spec, end_ids=ENDS, vocabulary_size=VOCABULARY, method=method, dtype=torch.float64)
    made.refresh(student, 0)
    return made.write(given, seed=11, step=2, row_ids=names(len(given)))


def naively(
    prompt: list[int], place: int, one: Callable[[list[int], float, float], tuple[int, Author, float, float | None]]
) -> Trajectory:
    """Token by token: `one` gives the next token, its author, and its two log-probabilities."""
    first, second = (uniform_draws(11, place, stream, LIMIT) for stream in (0, 1))
    rows: list[tuple[int, Author, float, float | None]] = []
    for u, v in zip(first, second, strict=True):
        rows.append(one([*prompt, *[row[0] for row in rows]], u, v))
        if rows[-1][0] in ENDS:
            break
    answer, authors, logprobs, behaviour = (list(column) for column in zip(*rows, strict=True))
    drawn = None if behaviour[0] is None else behaviour
    return Trajectory(prompt, answer, authors, logprobs, answer[-1] in ENDS, 2, f"row {place}", drawn)


def assert_same(found: Trajectory, expected: Trajectory) -> None:
    assert found.answer_ids == expected.answer_ids
    assert found.authors == expected.authors
    assert (found.finished, found.row_id, found.step) == (expected.finished, expected.row_id, expected.step)
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-5)
    assert (found.behaviour_logprobs is None) == (expected.behaviour_logprobs is None)
    if found.behaviour_logprobs is not None:
        np.testing.assert_allclose(found.behaviour_logprobs, expected.behaviour_logprobs, atol=1e-5)


@pytest.mark.parametrize(
    ("replacement", "draft_tokens", "batch_size"),
    [("sample", 1, 5), ("sample", 4, 5), ("sample", 30, 1), ("likeliest", 4, 1), ("likeliest", 30, 5)],
)
def test_drafting_gives_the_text_of_asking_after_every_token(
    replacement: str, draft_tokens: int, batch_size: int
) -> None:
    student, teacher, given = tiny(seed=0), tiny(seed=1, layers=4), prompts(7)
    spec = InterleavedSpec(top_k=12, draft_tokens=draft_tokens, replacement=replacement)
    found = write(student, Speculative(Reader(teacher, VOCABULARY), spec), given, batch_size=batch_size)

    def one(ids: list[int], u: float, v: float) -> tuple[int, Author, float, None]:
        own, taught = log_probs(student, ids), log_probs(teacher, ids)
        token, author = pick(np.exp(own), u), Author.STUDENT
        if token not in np.argsort(-taught)[:12]:
            token = int(taught.argmax()) if replacement == "likeliest" else pick(np.exp(taught), v)
            author = Author.TEACHER
        return token, author, float(own[token]), None

    for place, text in enumerate(found):
        assert_same(text, naively(given[place], place, one))
    written = [author for text in found for author in text.authors]
    assert {Author.STUDENT, Author.TEACHER} == set(written)


@pytest.mark.parametrize(("student", "teacher"), [("gemma", "llama"), ("gpt2", "gemma"), ("llama", "gpt2")])
def test_taking_back_drafts_suits_windows_and_learned_positions(student: str, teacher: str) -> None:
    models, given = (tiny(student, 0), tiny(teacher, 1)), prompts(8, longest=96 - LIMIT)
    spec = InterleavedSpec(top_k=6, draft_tokens=5)
    one, many = (
        write(models[0], Speculative(Reader(models[1], VOCABULARY), spec), given, batch_size=size, top_p=0.9)
        for size in (1, 8)
    )
    for left, right in zip(one, many, strict=True):
        assert_same(left, right)
    for text in many:  # the cache held what it should: the last token's log-probability is that of a whole pass
        own = log_probs(models[0], [*text.prompt_ids, *text.answer_ids[:-1]])
        assert text.logprobs is not None
        assert text.logprobs[-1] == pytest.approx(own[text.answer_ids[-1]], abs=1e-5)


def test_a_teacher_that_accepts_all_leaves_the_student_s_text_and_one_that_accepts_none_writes_its_own() -> None:
    student, teacher, given = tiny(seed=0), tiny(seed=1), prompts(6)
    alone = LocalWriter(
        GenerationSpec(max_new_tokens=LIMIT), end_ids=ENDS, vocabulary_size=VOCABULARY, dtype=torch.float64
    )
    alone.refresh(student, 0)
    plain = alone.write(given, seed=11, step=2, row_ids=names(6))
    all_in = Speculative(Reader(teacher, VOCABULARY), InterleavedSpec(top_k=VOCABULARY))
    assert [text.answer_ids for text in write(student, all_in, given)] == [text.answer_ids for text in plain]
    strict = Speculative(Reader(teacher, VOCABULARY), InterleavedSpec(top_k=1, replacement="likeliest"))
    for text in write(student, strict, given):
        for end in range(len(text.answer_ids)):
            taught = log_probs(teacher, [*text.prompt_ids, *text.answer_ids[:end]])
            assert text.answer_ids[end] == taught.argmax()


@pytest.mark.parametrize("batch_size", [1, 6])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.9)])
def test_teacher_mixed_sampling_is_the_mixture(batch_size: int, temperature: float, top_p: float) -> None:
    student, teacher, given = tiny(seed=0), tiny(seed=1), prompts(9)
    mixed = TeacherMixed(Reader(teacher, VOCABULARY), 0.4)
    found = write(student, mixed, given, batch_size=batch_size, temperature=temperature, top_p=top_p)

    def one(ids: list[int], u: float, v: float) -> tuple[int, Author, float, float]:
        plain = log_probs(student, ids)
        own, taught = (shaped(logs, temperature, top_p) for logs in (plain, log_probs(teacher, ids)))
        author = Author.TEACHER if v < 0.4 else Author.STUDENT
        chosen = taught if author == Author.TEACHER else own
        if top_p < 1.0:  # a nucleus is gone through from its likeliest token on
            order = np.argsort(-chosen)
            token = int(order[pick(chosen[order], u)])
        else:
            token = pick(chosen, u)
        return token, author, float(plain[token]), float(np.log(0.4 * taught[token] + 0.6 * own[token]))

    for place, text in enumerate(found):
        assert_same(text, naively(given[place], place, one))


def test_the_mixture_s_tokens_are_distributed_as_published() -> None:
    student, teacher = tiny(seed=0), tiny(seed=1)
    found = write(
        student, TeacherMixed(Reader(teacher, VOCABULARY), 0.2), [[5, 9, 7]] * 3000, max_new_tokens=1, batch_size=500
    )
    probs = 0.2 * np.exp(log_probs(teacher, [5, 9, 7])) + 0.8 * np.exp(log_probs(student, [5, 9, 7]))
    counted = np.bincount([text.answer_ids[0] for text in found], minlength=VOCABULARY)
    often = probs * len(found) > 5
    statistic = ((counted - probs * len(found))[often] ** 2 / (probs * len(found))[often]).sum()
    assert statistic < often.sum() + 4 * np.sqrt(2 * often.sum())
    by_teacher = sum(text.authors[0] == Author.TEACHER for text in found)
    assert abs(by_teacher - 600) < 4 * np.sqrt(3000 * 0.2 * 0.8)
    # Importance weights q / mixture have mean 1 under the mixture.
    weights = [np.exp(text.logprobs[0] - text.behaviour_logprobs[0]) for text in found]  # type: ignore[index]
    assert abs(np.mean(weights) - 1) < 4 * np.std(weights) / np.sqrt(len(weights))


def test_both_models_are_checked() -> None:
    student, teacher = tiny("llama"), tiny("gpt2")
    teacher.config.n_positions = 40
    method = TeacherMixed(Reader(teacher, VOCABULARY), 0.2)
    with pytest.raises(DataError, match="into the 40 tokens of GPT2LMHeadModel"):
        write(student, method, [[5] * 30])
    broken: Any = tiny(seed=1)
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    for method in (TeacherMixed(Reader(broken, VOCABULARY), 0.2), Speculative(Reader(broken, 37), InterleavedSpec())):
        with pytest.raises(TrainingError, match="step 2: the logits"):
            write(student, method, [[5, 6]])
