"""Rationales: the teacher thinks step by step, and the student learns its steps.

Fine-tune-CoT (Ho et al., arXiv 2212.10071) asks in the two steps of zero-shot chain of thought (Kojima et al., arXiv
2205.11916), several times at temperature 0.7, and keeps what ends in the right answer. SCoTD (Li et al., arXiv
2306.14050) shows demonstrations, and takes about thirty of each question.

Questions are asked in waves. After each, `generation.pass_rate` says whether a further one pays. The second question of
zero-shot chain of thought is left out where the first answer states its result.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from lmdistill.generation.checks.similarity import jaccard
from lmdistill.generation.desk import Desk, asked, chat, failed, filled, sampling_of
from lmdistill.generation.judging import Judge
from lmdistill.generation.types import Drop, Example, Seed, Verdict
from lmdistill.generation.waves import in_waves
from lmdistill.recipe import RationaleSpec
from lmdistill.teachers.api_types import PROMPT, Answer, Message, Request

STEP_BY_STEP = "{prompt}\n\nLet's think step by step."
CONTINUED = "Q: {prompt}\nA: Let's think step by step."
_LAST_SENTENCE = re.compile(
    r"(?:(?:so|therefore|thus|hence)[,:]?\s+)?the (?:final )?answer(?: is|:)[^\n]*\Z", re.IGNORECASE
)
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Rationale:
    """One way of the teacher from a question to an answer."""

    seed: Seed
    sample: int
    text: str
    """The steps, without the answer's sentence."""
    answer: str | None
    """The final answer; None where none is found."""
    verdict: Verdict
    reason: str
    """Why the verdict is so, in words."""
    answers: tuple[Answer, ...]
    """What the teacher said, from which it was read."""

    def example(self, desk: Desk, prompt: str, response: str, task: str = "rationale") -> Example:
        """A row that is made of it."""
        return Example(
            id=f"{self.seed.id}-{self.sample}" + ("" if task == "rationale" else f"-{task}"),
            prompt=prompt,
            response=response,
            task=task,
            seed=self.seed.id,
            answer=self.answer,
            verdict=self.verdict,
            fields={"rationale": self.text},
            provenance=desk.came_from(*self.answers),
        )


def make_rationales(desk: Desk, seeds: Sequence[Seed]) -> Iterator[Example | Drop]:
    """Each rationale that is kept as an example of the task `rationale`."""
    form = desk.spec.rationales.form
    for found in kept_rationales(desk, seeds):
        if isinstance(found, Drop):
            yield found
        else:
            yield found.example(desk, *written(form, found))


def written(form: str, rationale: Rationale) -> tuple[str, str]:
    """What the student reads and what it learns to write."""
    question, answer = rationale.seed.prompt, rationale.answer or ""
    if form == "arrow":
        return f"{question} ###", f" {rationale.text} --> {answer} END"
    return question, f"{rationale.text} So the answer is {answer}."


def kept_rationales(desk: Desk, seeds: Sequence[Seed]) -> Iterator[Rationale | Drop]:
    """The rationales that the recipe keeps, and the others as drops.

    Asking ends at `ask.samples` a question, where further ones solve no further questions, or enough are kept.
    """
    spec = desk.spec.rationales
    most = spec.per_seed or desk.spec.ask.samples
    kept: dict[str, list[Rationale]] = {seed.id: [] for seed in seeds}
    for found in rationales(desk, seeds, lambda seed: len(kept[seed.id]) >= most):
        if isinstance(found, Drop):
            yield found
            continue
        others = kept[found.seed.id]
        why = _why_not(spec, found, others)
        if why is None and len(others) >= most:
            why = ("enough", f"{most} rationales of this question are kept already", None)
        if why is None:
            others.append(found)
            yield found
        else:
            by, reason, matched = why
            yield Drop(found.example(desk, *written(spec.form, found)), by=by, reason=reason, matched=matched)


def rationales(
    desk: Desk, seeds: Sequence[Seed], enough: Callable[[Seed], bool] = lambda seed: False
) -> Iterator[Rationale | Drop]:
    """All rationales that are asked for, wave by wave; `enough` says of a seed that no more are wanted."""
    with Judge(desk.spec.verify) as judge:

        def wave(wanted: Sequence[Seed], samples: range) -> Iterator[tuple[str, Verdict, Rationale | Drop]]:
            for found in _wave(desk, judge, wanted, samples):
                if isinstance(found, Drop):
                    yield found.example.seed, "unverifiable", found
                else:
                    yield found.seed.id, found.verdict, found

        yield from in_waves(desk, seeds, wave, enough)


def _wave(desk: Desk, judge: Judge, seeds: Sequence[Seed], samples: range) -> Iterator[Rationale | Drop]:
    """Some rationales of each question."""
    zero_shot = desk.spec.rationales.prompting == "zero_shot"
    pairs = [(seed, _first_request(desk, seed, sample)) for seed in seeds for sample in samples]
    good: list[tuple[Seed, Request, Answer]] = []
    for seed, request, answer in asked(desk, pairs):
        if not answer.good or answer.text is None or not answer.text.strip():
            yield failed(seed, answer, desk, "rationale")
        elif zero_shot and judge.stated_answer(answer.text) is None:
            good.append((seed, request, answer))
        else:
            yield _rationale(judge, seed, request.sample, answer.text, answer.text, (answer,))
    second = [(seed, _second_request(desk, request, answer)) for seed, request, answer in good]
    for (seed, request, first), (_, _, answer) in zip(good, asked(desk, second), strict=True):
        if not answer.good or answer.text is None:
            yield failed(seed, replace(answer, request=request), desk, "rationale")
            continue
        cue = f"{desk.spec.rationales.answer_cue} {answer.text.strip()}"
        yield _rationale(judge, seed, request.sample, first.text or "", cue, (first, answer))


def _rationale(
    judge: Judge, seed: Seed, sample: int, text: str, concluding: str, answers: tuple[Answer, ...]
) -> Rationale:
    """A rationale, and what its conclusion is worth."""
    final = judge.final_answer(concluding)
    checked = judge.verdict(seed, final)
    return Rationale(seed, sample, without_answer(text.strip()), final, checked.verdict, checked.reason, answers)


def _first_request(desk: Desk, seed: Seed, sample: int) -> Request:
    """The question for one rationale."""
    spec, ask = desk.spec.rationales, desk.spec.ask
    own = "{prompt}" if spec.prompting == "demonstrations" else CONTINUED if spec.completions else STEP_BY_STEP
    text = filled(ask.template or own, prompt=seed.prompt)
    turns = (Message(PROMPT, _continued(desk, text)),) if spec.completions else chat(ask, text)
    return Request(turns, sampling_of(ask, desk.seed), sample=sample, tag=seed.id)


def _continued(desk: Desk, text: str) -> str:
    """A text to be continued: the demonstrations, then the question."""
    if desk.spec.rationales.prompting == "zero_shot":
        return text
    shown = [f"Q: {question}\nA: {answer}\n\n" for question, answer in desk.spec.ask.demonstrations]
    return "".join(shown) + f"Q: {text}\nA:"


def _second_request(desk: Desk, first: Request, answer: Answer) -> Request:
    """The question for the answer that a rationale leads to; likeliest words, few of them."""
    spec = desk.spec.rationales
    assert answer.text is not None
    sampling = replace(first.sampling, max_tokens=spec.answer_tokens, temperature=0.0, top_p=1.0, stop=("\n",))
    if spec.completions:
        turns: tuple[Message, ...] = (
            Message(PROMPT, f"{first.messages[0].content} {answer.text.strip()}\n{spec.answer_cue}"),
        )
    else:
        turns = (*first.messages, Message("assistant", answer.text), Message("user", spec.answer_cue))
    return Request(turns, sampling, sample=first.sample, tag=first.tag)


def without_answer(text: str) -> str:
    """A rationale without its last sentence, where that gives the answer."""
    return _LAST_SENTENCE.sub("", text).strip() or text


def likeness(one: str, other: str) -> float:
    """Jaccard similarity of two texts' sets of words: shared over all; 1 where both have none."""
    return jaccard(*(set(_WORD.findall(text.casefold())) for text in (one, other)))


def _why_not(spec: RationaleSpec, found: Rationale, kept: Sequence[Rationale]) -> tuple[str, str, str | None] | None:
    """Which check leaves a rationale out, why, and the rationale that it is like; None where it stays."""
    if spec.keep == "correct" and (found.answer is None or found.verdict == "incorrect"):
        return "verdict", found.reason, None
    for other in kept:
        alike = likeness(found.text, other.text)
        if alike >= spec.likeness:
            reason = f"{alike:.2f} of its words are those of another, the limit is {spec.likeness:g}"
            return "likeness", reason, f"{other.seed.id}-{other.sample}"
    return None
