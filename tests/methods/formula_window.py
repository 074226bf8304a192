"""A small optimiser step of a recipe, and the texts in it as plain lists, for formulas written out in full.

Shape legend: T tokens of an answer, V vocabulary, P parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from lmdistill.data import Collator, PromptRow
from lmdistill.recipe import Recipe
from lmdistill.stages.rollouts import rewards_of
from lmdistill.teachers import LocalTeacher, MixedTeachers, RoutedTeachers, SelfTeacher, Teacher
from lmdistill.training.groups import IGNORED, next_labels
from lmdistill.training.objective import Objective
from lmdistill.training.policy import Policy
from lmdistill.training.windows import Windows
from lmdistill.trajectories.length import LengthBudget
from lmdistill.trajectories.types import Author, Trajectory
from lmdistill.trajectories.window import ROLLOUTS, Trajectories

V = 29
Net = LlamaForCausalLM


def net(seed: int, layers: int = 1, hidden: int = 16) -> Net:
    """A random Llama in float64, with an output head of its own."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=hidden,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        initializer_range=0.5,
    )
    made: Net = LlamaForCausalLM(config).double().eval()
    return made


@dataclass(frozen=True)
class Text:
    """One answer to a prompt, as a formula reads it."""

    prompt: list[int]
    answer: list[int]
    own: bool
    """Whether the student wrote it."""
    group: int
    """Texts of one prompt share it."""
    context: list[int] = field(default_factory=list)
    """What the teacher reads in place of the prompt."""
    teacher: str = "main"
    reference: list[int] = field(default_factory=list)
    """The data set's answer."""
    written: Tensor = field(default_factory=lambda: torch.zeros(0))
    """Log-probability of each token under the student that wrote it, (T,)."""


def logs(model: Net, text: Text, *, privileged: bool = False) -> Tensor:
    """Log-probabilities of all tokens at each place of the answer, (T, V), by a plain forward pass over one text."""
    prompt = text.context if privileged and text.context else text.prompt
    ids = torch.tensor([[*prompt, *text.answer]])
    found: Tensor = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return found


def of_answer(logs_TV: Tensor, text: Text) -> Tensor:
    """Those of the answer's own tokens, (T,)."""
    return logs_TV.gather(1, torch.tensor(text.answer)[:, None])[:, 0]


class TruthfulWriter:
    """Writes random tokens and reports what a model really finds of them: which text it is does not matter here.

    Every second token is the teacher's where texts are interleaved. `mixed` is the teacher that takes `share` of each
    draw.
    """

    def __init__(self, model: Net, mixed: Net | None = None, share: float = 0.0) -> None:
        self.model, self.mixed, self.share = model, mixed, share

    @torch.no_grad()
    def write(
        self, prompts: Sequence[Sequence[int]], *, seed: int, step: int, row_ids: Sequence[str], **_: Any
    ) -> list[Trajectory]:
        chance = torch.Generator().manual_seed(7)
        made = []
        for prompt, name in zip(prompts, row_ids, strict=True):
            length = int(torch.randint(1, 6, (), generator=chance))
            answer = torch.randint(0, V, (length,), generator=chance).tolist()
            text = Text(list(prompt), answer, own=True, group=0)
            own_T = of_answer(logs(self.model, text), text)
            drawn_T = own_T
            if self.mixed is not None:
                taught_T = of_answer(logs(self.mixed, text), text)
                drawn_T = (self.share * taught_T.exp() + (1 - self.share) * own_T.exp()).log()
            authors = [int(Author.TEACHER if n % 2 else Author.STUDENT) for n in range(length)]
            written, drawn = own_T.tolist(), drawn_T.tolist()
            made.append(Trajectory(list(prompt), answer, authors, written, True, step, name, drawn))
        return made

    def refresh(self, model: Any, step: int) -> None:
        pass

    def close(self) -> None:
        pass


def prompts() -> list[PromptRow]:
    """Six prompts of unequal lengths, with answers of the data set and of the teacher, contexts and teachers."""
    chance = torch.Generator().manual_seed(3)

    def ids(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (), generator=chance))
        return torch.randint(0, V, (length,), generator=chance).tolist()

    return [
        PromptRow(ids(1, 5), ids(2, 6), f"row{n}", ["main", "other"][n % 2], ids(3, 9), ids(1, 7)) for n in range(6)
    ]


@dataclass
class Scene:
    """The models of a recipe, and the recipe."""

    recipe: Recipe
    student: Net = field(default_factory=lambda: net(0))
    main: Net = field(default_factory=lambda: net(1, 2, 12))
    other: Net = field(default_factory=lambda: net(2, 1, 20))
    score: Callable[[Text], float] | None = None
    """What a discriminator would say."""
    writer_noise: float = 0.0
    """How far the student has moved since it wrote."""

    def __post_init__(self) -> None:
        self.start = copy.deepcopy(self.student)
        self.reference = SelfTeacher(self.student, V, weights="fixed")
        self.teacher = self._teacher()
        _move(self.student, 0.1)  # training has gone on since the start
        if isinstance(self.teacher, SelfTeacher):
            self.teacher.update(self.student)
        self.writer = copy.deepcopy(self.student)
        _move(self.writer, self.writer_noise)

    def _teacher(self) -> Teacher:
        spec = self.recipe.teaching
        if spec.kind == "self":
            return SelfTeacher(self.student, V, weights=spec.self_weights, ema_rate=spec.ema_rate)
        main, other = LocalTeacher(self.main, V), LocalTeacher(self.other, V)
        if spec.kind == "routed":
            return RoutedTeachers({"main": main, "other": other})
        if spec.kind == "mixed":
            names = ["main", *spec.models]
            return MixedTeachers([main, other], [spec.weights.get(name, 1.0) for name in names], compiled=False)
        return main

    def average(self) -> Net:
        """What the moving average must be after one step."""
        made, rate = copy.deepcopy(self.start), self.recipe.teaching.ema_rate
        with torch.no_grad():
            for mine, theirs in zip(made.parameters(), self.student.parameters(), strict=True):
                mine.copy_((1 - rate) * mine + rate * theirs)
        return made

    def objective(self) -> Objective:
        """As `lmdistill.stages.jobs` makes it."""
        recipe, spec = self.recipe, self.recipe.objective
        score: Any = None
        if spec.policy.kind == "reward":
            score = rewards_of(spec, recipe.trajectories, None)  # type: ignore[arg-type]
        elif spec.policy.kind == "discriminator":
            score = self._scores
        policy = None
        if spec.policy.weight > 0:
            policy = Policy(spec.policy, reuse=recipe.trajectories.rollouts.reuse, score=score)
        return Objective(
            spec,
            teacher=self.teacher if spec.needs_teacher else None,
            vocabulary_size=V,
            compiled=False,
            policy=policy,
            reference=self.reference,
        )

    def batches(self, objective: Objective, cut: int, progress: float) -> list[dict[str, Any]]:
        """The micro-batches of one step, cut into so many."""
        spec = self.recipe.trajectories
        rows = prompts()
        if not spec.on_policy:
            answers = [row.teacher_answer_ids if spec.source == "teacher" else row.answer_ids for row in rows]
            columns = [_columns(row, ids) for row, ids in zip(rows, answers, strict=True)]
            return [Collator()(columns[first::cut]) for first in range(cut)]
        share = spec.teacher_mixing
        writer = TruthfulWriter(self.writer, self.main if share else None, share)
        policy = self.recipe.objective.policy
        texts = Trajectories(
            spec,
            writer,
            seed=1,
            budget=LengthBudget(spec.length, 32, None),
            samples_per_prompt=policy.samples_per_prompt if policy.weight > 0 else 1,
        )
        windows = Windows(texts, objective, contexts=self.recipe.teaching.context is not None)
        size = -(-len(rows) // cut)
        return windows(
            [rows[first : first + size] for first in range(0, len(rows), size)],
            step=0,
            progress=progress,
            model=self.student,
            place=lambda batch: batch,
            total=lambda sums: sums,
        )

    def step(self, cut: int = 2, progress: float = 0.25) -> tuple[Tensor, list[Tensor], list[Text]]:
        """The loss of one optimiser step over its micro-batches, its gradient, and its texts."""
        objective = self.objective()
        batches = self.batches(objective, cut, progress)
        assert len(batches) == cut
        # As the Trainer counts: the trained tokens of the whole accumulated batch.
        items = torch.stack([(next_labels(batch["labels"]) != IGNORED).sum() for batch in batches]).sum()
        loss = torch.stack([objective(self.student, self.student, batch, items).loss for batch in batches]).sum()
        gradient = torch.autograd.grad(loss, list(self.student.parameters()))
        return loss.detach(), list(gradient), [text for batch in batches for text in texts_of(batch)]

    def _scores(self, batches: Sequence[dict[str, Any]]) -> list[Tensor]:
        assert self.score is not None
        return [torch.tensor([self.score(text) for text in texts_of(batch)]) for batch in batches]


def texts_of(batch: dict[str, Any]) -> Iterator[Text]:
    """The rows of a batch."""
    for row, labels_L in enumerate(batch["labels"]):
        places = (labels_L != IGNORED).nonzero()[:, 0].tolist()
        prompt, end = places[0], places[-1] + 1
        ids = batch["input_ids"][row].tolist()
        own = ROLLOUTS in batch and bool(batch[ROLLOUTS][row])
        yield Text(
            prompt=ids[:prompt],
            answer=ids[prompt:end],
            own=own,
            group=int(batch["groups"][row]) if "groups" in batch else row,
            context=list(batch["contexts"][row]) if "contexts" in batch else [],
            teacher=batch["teacher"][row][0] if "teacher" in batch else "main",
            reference=list(batch["references"][row]) if "references" in batch else [],
            written=batch["logprobs"][row, prompt:end].double() if own else torch.zeros(0),
        )


@torch.no_grad()
def _move(model: Net, size: float) -> None:
    """Random steps of all weights."""
    for number, parameter in enumerate(model.parameters()):
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
        parameter.add_(size * noise)


def _columns(row: PromptRow, answer: list[int]) -> dict[str, Any]:
    ids = [*row.prompt_ids, *answer]
    labels = [IGNORED] * len(row.prompt_ids) + answer
    return {"input_ids": ids, "labels": labels, "position_ids": list(range(len(ids))), "row_ids": [row.row_id]}
