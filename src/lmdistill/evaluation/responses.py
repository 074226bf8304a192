"""Every model writes to the same held-out prompts with the same draws, and what it wrote is judged.

Against the teacher's answers (ROUGE-L), the data set's (ROUGE-L), the teacher's opinion of it (likelihood), its own of
what the teacher wrote (coverage), and by how its error grows along its own text (`lmdistill.evaluation.exposure`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lmdistill.data import PromptRow
from lmdistill.errors import DataError
from lmdistill.evaluation.answers import Answers, end_tokens, held_out_prompts, scored_rows, write_answers
from lmdistill.evaluation.fidelity import Subject, TokenScores, score_tokens
from lmdistill.evaluation.narrowed import narrowed
from lmdistill.evaluation.response_tally import LOWER_IS_BETTER, Judged, ResponseTally, Rouge
from lmdistill.evaluation.results import Comparison, Generation, ResponseScores, Role
from lmdistill.evaluation.rouge import RougeL
from lmdistill.evaluation.statistics import resampling
from lmdistill.evaluation.summarise import compare
from lmdistill.progress import Progress
from lmdistill.recipe import EvaluationSpec, ResponsesSpec
from lmdistill.trajectories.reader import context_of

_REFERENCE_SEED = 2**32
"""Added to the seed for the answers that others are compared with, so that they share no draw with them."""


@dataclass
class ResponseResults:
    """Everything that was found of all models on all texts."""

    by_model: list[dict[str, ResponseScores]]
    """For each subject, its scores by text."""
    comparisons: list[Comparison] = field(default_factory=list)
    shown: list[Generation] = field(default_factory=list)


def evaluate_responses(
    subjects: Sequence[Subject],
    tokenizer: PreTrainedTokenizerBase,
    texts: Mapping[str, Dataset],
    spec: EvaluationSpec,
    *,
    seed: int,
    progress: Progress,
) -> ResponseResults:
    """Let all subjects answer prompts of the held-out texts as `spec.responses` says; the teacher, if any, comes first.

    Raises what `check_responses` raises, and DataError for a text that holds no prompt that fits.
    """
    results = ResponseResults([{} for _ in subjects])
    with _judge_of(subjects, tokenizer, texts, spec, seed, progress) as judge:
        for name in judge.responses.texts or texts:
            _add(results, judge.text(name, texts[name]), judge.subjects, name)
    return results


def judged_answers(
    subjects: Sequence[Subject],
    tokenizer: PreTrainedTokenizerBase,
    texts: Mapping[str, Dataset],
    spec: EvaluationSpec,
    *,
    seed: int,
    progress: Progress,
) -> dict[str, list[Judged]]:
    """The same answers with all that was said of them, by text, one for each subject. Raises likewise."""
    with _judge_of(subjects, tokenizer, texts, spec, seed, progress) as judge:
        return {name: judge.judged(name, texts[name])[2] for name in judge.responses.texts or texts}


@contextmanager
def _judge_of(
    subjects: Sequence[Subject],
    tokenizer: PreTrainedTokenizerBase,
    texts: Mapping[str, Dataset],
    spec: EvaluationSpec,
    seed: int,
    progress: Progress,
) -> Iterator[_Judge]:
    """What carries texts through, while a teacher is cut to the ids of a student whose vocabulary was trimmed."""
    assert spec.responses is not None
    check_responses(spec.responses, texts)
    kept_ids = next((subject.kept_ids for subject in subjects if subject.kept_ids is not None), None)
    plain = [replace(subject, kept_ids=None) for subject in subjects]
    own_ids = [subject for subject in subjects if subject.role != "teacher" or kept_ids is None]
    ends = end_tokens(tokenizer, [subject.model for subject in own_ids])
    judge = _Judge(plain, tokenizer, ends, spec, spec.responses, RougeL(), progress, seed)
    with narrowed(plain[0].model, kept_ids if judge.has_teacher else None):
        yield judge


def check_responses(spec: ResponsesSpec, texts: Collection[str]) -> None:
    """Whether answers to these held-out sets can be judged here: asked before anything is spent.

    Raises MissingExtra without `rouge-score`, DataError for a set that is not there.
    """
    RougeL()
    missing = [name for name in spec.texts or () if name not in texts]
    if missing:
        known = ", ".join(texts) or "none"
        raise DataError(f"evaluation.responses.texts: no held-out set is called {missing[0]!r}; there are: {known}")


@dataclass(frozen=True)
class _Found:
    """What was found on one text."""

    tallies: list[ResponseTally]
    length: int
    """Where ExAccErr is compared."""
    shown: list[Generation]


@dataclass(frozen=True)
class _Judge:
    """Carries one text through: prompts, answers, scores, figures."""

    subjects: Sequence[Subject]
    tokenizer: PreTrainedTokenizerBase
    end_ids: set[int]
    spec: EvaluationSpec
    responses: ResponsesSpec
    rouge: RougeL
    progress: Progress
    seed: int

    @property
    def has_teacher(self) -> bool:
        return self.subjects[0].role == "teacher"

    def judged(self, name: str, dataset: Dataset) -> tuple[Sequence[PromptRow], list[Answers], list[Judged]]:
        room = min((room for s in self.subjects if (room := context_of(s.model)) is not None), default=None)
        prompts = held_out_prompts(dataset, self.responses, self.tokenizer, room, name)
        answers, references = self._write(prompts, name)
        return prompts, answers, self._judge(prompts, answers, references, name)

    def text(self, name: str, dataset: Dataset) -> _Found:
        prompts, answers, judged = self.judged(name, dataset)
        draws = resampling(len(prompts), self.spec.bootstrap_samples, self.spec.confidence, self.seed)
        tallies = [ResponseTally(found, draws) for found in judged]
        length = min((tally.exposure.reach for tally in tallies if tally.exposure is not None), default=0)
        for tally in tallies:
            tally.set_length(length)
        return _Found(tallies, length, self._shown(prompts, answers, name))

    def _write(self, prompts: Sequence[PromptRow], name: str) -> tuple[list[Answers], Answers | None]:
        """Each subject's answers, and the further ones of the teacher that they are compared with."""
        spec = self.responses
        seed = self.seed if spec.seed is None else spec.seed
        count = len(prompts) * (len(self.subjects) * spec.samples + (spec.references if self.has_teacher else 0))
        with self.progress.task(f"answers to {name}", total=count, unit="answers") as task:

            def write(subject: Subject, samples: int, draws: int) -> Answers:
                return write_answers(
                    subject.model,
                    self.tokenizer,
                    prompts,
                    spec,
                    end_ids=self.end_ids,
                    samples=samples,
                    seed=draws,
                    told=lambda tokens: task.advance(1),
                )

            answers = [write(subject, spec.samples, seed) for subject in self.subjects]
            if not self.has_teacher:
                return answers, None
            return answers, write(self.subjects[0], spec.references, seed + _REFERENCE_SEED)

    def _judge(
        self, prompts: Sequence[PromptRow], answers: Sequence[Answers], references: Answers | None, name: str
    ) -> list[Judged]:
        scores = self._scores(prompts, answers, name)
        with self.progress.task(f"ROUGE-L on {name}", total=len(answers), unit="models") as task:
            found = []
            for written, (own, teacher, on_teacher) in zip(answers, scores, strict=True):
                judged = Judged(
                    ids=written.bare_ids,
                    prompt_A=written.prompt_A,
                    finished=written.finished,
                    own=own,
                    teacher=teacher,
                    on_teacher=on_teacher,
                    teacher_prompt_A=answers[0].prompt_A,
                    rouge_teacher=self._against_teacher(written, references),
                    rouge_reference=self._against_data(written, prompts),
                )
                found.append(judged)
                task.advance()
        return found

    def _scores(
        self, prompts: Sequence[PromptRow], answers: Sequence[Answers], name: str
    ) -> list[tuple[TokenScores, TokenScores | None, TokenScores | None]]:
        """For each subject: itself on its own answers, the teacher on them, itself on the teacher's."""
        tokens = sum(len(ids) for written in answers for ids in written.ids)
        with self.progress.task(f"score answers to {name}", total=tokens, unit="tokens") as task:

            def score(readers: Sequence[Subject], written: Answers) -> list[TokenScores]:
                return score_tokens(
                    readers,
                    scored_rows(prompts, written),
                    vocabulary_size=len(self.tokenizer),
                    max_tokens=2**62,
                    batch_size=self.spec.batch_size,
                    told=task.advance,
                )

            if not self.has_teacher:
                return [(score([s], written)[0], None, None) for s, written in zip(self.subjects, answers, strict=True)]
            on_teacher = score(self.subjects, answers[0])
            found: list[tuple[TokenScores, TokenScores | None, TokenScores | None]]
            found = [(on_teacher[0], on_teacher[0], on_teacher[0])]
            for subject, written, coverage in zip(self.subjects[1:], answers[1:], on_teacher[1:], strict=True):
                teacher, own = score([self.subjects[0], subject], written)
                found.append((own, teacher, coverage))
            return found

    def _against_teacher(self, written: Answers, references: Answers | None) -> Rouge | None:
        if references is None:
            return None
        by_prompt = [references.of(prompt) for prompt in range(int(references.prompt_A.max()) + 1)]
        return self._rouged(written, by_prompt)

    def _against_data(self, written: Answers, prompts: Sequence[PromptRow]) -> Rouge | None:
        """None where not every prompt has an answer in the data: a mean over some of them would not be comparable."""
        if not all(prompt.answer_ids for prompt in prompts):
            return None
        decode = self.tokenizer.decode
        return self._rouged(written, [[str(decode(p.answer_ids, skip_special_tokens=True))] for p in prompts])

    def _rouged(self, written: Answers, references: Sequence[Sequence[str]]) -> Rouge:
        pairs = [(text, references[prompt]) for text, prompt in zip(written.texts, written.prompt_A, strict=True)]
        scores_A = np.array([self.rouge.score(text, nearest) for text, nearest in pairs])
        words_A = np.array([len(self.rouge.tokenize(nearest[0])) for _, nearest in pairs])
        return Rouge(scores_A, words_A)

    def _shown(self, prompts: Sequence[PromptRow], answers: Sequence[Answers], name: str) -> list[Generation]:
        decode = self.tokenizer.decode
        found = []
        for number, prompt in enumerate(prompts[: self.responses.shown]):
            said: dict[Role, str] = {
                subject.role: written.of(number)[0] for subject, written in zip(self.subjects, answers, strict=True)
            }
            reference = str(decode(prompt.answer_ids, skip_special_tokens=True)) if prompt.answer_ids else None
            asked = str(decode(prompt.prompt_ids, skip_special_tokens=False))
            found.append(Generation(prompt=asked, answers=said, text=name, reference=reference))
        return found


def _add(results: ResponseResults, found: _Found, subjects: Sequence[Subject], name: str) -> None:
    for scores, tally in zip(results.by_model, found.tallies, strict=True):
        scores[name] = tally.scores(found.length)
    results.shown += found.shown
    roles = [subject.role for subject in subjects]
    if "student" not in roles:
        return
    student = found.tallies[roles.index("student")]
    for role, tally in zip(roles, found.tallies, strict=True):
        if role != "student":
            results.comparisons += compare(student, tally, role, name, LOWER_IS_BETTER)
