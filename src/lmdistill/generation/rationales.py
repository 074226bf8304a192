"""Rationales: the teacher thinks step by step, and the student learns its steps.

Fine-tune-CoT (Ho et al., arXiv 2212.10071) asks in the two steps of zero-shot chain of thought (Kojima et al., arXiv
2205.11916), several times at temperature 0.7, and keeps what ends in the right answer. SCoTD (Li et al., arXiv
2306.14050) shows demonstrations, and takes about thirty of each question.

Questions are asked in waves. After each, `generation.pass_rate` says whether a further one pays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from lmdistill.generation.desk import Desk, asked, chat, failed, filled, sampling_of
from lmdistill.generation.judging import Spending, final_answer, judge, right_answer
from lmdistill.generation.types import Drop, Example, Seed, Verdict
from lmdistill.recipe import DataGenerationSpec
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
    kept: dict[str, list[Rationale]] = {seed.id: [] for seed in seeds}
    for found in rationales(desk, seeds, lambda seed: len(kept[seed.id]) >= (spec.per_seed or desk.spec.ask.samples)):
        if isinstance(found, Drop):
            yield found
            continue
        why = _why_not(desk.spec, found, kept[found.seed.id])
        if why is None and spec.per_seed is not None and len(kept[found.seed.id]) >= spec.per_seed:
            why = ("enough", f"{spec.per_seed} rationales of this question are kept already", None)
        if why is not None:
            by, reason, matched = why
            yield Drop(found.example(desk, *written(spec.form, found)), by=by, reason=reason, matched=matched)
            continue
        kept[found.seed.id].append(found)
        yield found


def rationales(
    desk: Desk, seeds: Sequence[Seed], enough: Callable[[Seed], bool] = lambda seed: False
) -> Iterator[Rationale | Drop]:
    """All rationales that are asked for, wave by wave; `enough` says of a seed that no more are wanted."""
    most, wave = desk.spec.ask.samples, desk.spec.rationales.wave
    spending = Spending((seed.id for seed in seeds), desk.spec.pass_rate)
    wanted = list(seeds)
    for first in range(0, most, wave):
        for found in _wave(desk, wanted, range(first, min(most, first + wave))):
            if isinstance(found, Rationale):
                spending.add(found.seed.id, found.verdict)
            else:
                spending.add(found.example.seed, "unverifiable")
            yield found
        wanted = [seed for seed in wanted if not enough(seed)]
        decision = spending.decide()
        if first + wave < most and not decision.go_on:
            desk.progress.note(f"no further rationales are asked for: {decision.reason}")
            return


def _wave(desk: Desk, seeds: Sequence[Seed], samples: range) -> Iterator[Rationale | Drop]:
    """Some rationales of each question."""
    zero_shot = desk.spec.rationales.prompting == "zero_shot"
    pairs = [(seed, _first_request(desk, seed, sample)) for seed in seeds for sample in samples]
    good: list[tuple[Seed, Request, Answer]] = []
    for seed, request, answer in asked(desk, pairs):
        if not answer.good or answer.text is None or not answer.text.strip():
            yield failed(seed, answer, desk, "rationale")
        elif zero_shot:
            good.append((seed, request, answer))
        else:
            steps, text = without_answer(answer.text.strip()), final_answer(answer.text, desk.spec.verify)
            yield Rationale(seed, request.sample, steps, text, judge(seed, text, desk.spec.verify), (answer,))
    if not zero_shot:
        return
    second = [(seed, _second_request(desk, request, answer)) for seed, request, answer in good]
    for (seed, request, first), (_, _, answer) in zip(good, asked(desk, second), strict=True):
        if not answer.good or answer.text is None:
            yield failed(seed, replace(answer, request=request), desk, "rationale")
            continue
        text = final_answer(f"{desk.spec.rationales.answer_cue} {answer.text.strip()}", desk.spec.verify)
        assert first.text is not None
        yield Rationale(seed, request.sample, without_answer(first.text.strip()), text, judge(seed, text, desk.spec.verify), (first, answer))


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
    left, right = (set(_WORD.findall(text.casefold())) for text in (one, other))
    return len(left & right) / len(left | right) if left | right else 1.0


def _why_not(
    spec: DataGenerationSpec, found: Rationale, kept: Sequence[Rationale]
) -> tuple[str, str, str | None] | None:
    """Which check leaves a rationale out, why, and the rationale that it is like; None where it stays."""
    if spec.rationales.keep == "correct" and found.answer is None:
        return "verify", "no final answer is found in it", None
    if spec.rationales.keep == "correct" and found.verdict == "incorrect":
        return "verify", f"the answer is {found.answer!r}, not {right_answer(found.seed, spec.verify)!r}", None
    for other in kept:
        alike = likeness(found.text, other.text)
        if alike >= spec.rationales.likeness:
            reason = f"{alike:.2f} of its words are those of another, the limit is {spec.rationales.likeness:g}"
            return "likeness", reason, f"{other.seed.id}-{other.sample}"
    return None
