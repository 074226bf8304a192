"""Methods of encoders as their recipes compose them, on tiny models in float64, for formulas written out in full.

Shape legend: B rows, L length, H width, A heads, D head size, C classes, V vocabulary, n masked tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lmdistill.methods import METHODS
from lmdistill.recipe import ModelSpec, Recipe, StageSpec, recipe_stages, resolve_recipe
from lmdistill.recipe.task import TaskKind
from lmdistill.stages.task_extras import extras_of
from lmdistill.stages.task_train import TaskJob
from lmdistill.tasks.models import load_task_model
from lmdistill.tasks.objective import Extra, TaskObjective
from small_task import tiny_encoder

CLASSES = ["a", "b", "c"]


def encoder(folder: Path, seed: int, layers: int, kind: TaskKind) -> Any:
    """A tiny BERT in float64 without dropout, 48 wide, with 4 heads of 12; two seeds are two models."""
    spec = ModelSpec(model=str(tiny_encoder(folder, layers)), attention="eager")
    classes = CLASSES if kind == "sequence_classification" else []
    made, _ = load_task_model(spec, kind, classes, dtype=torch.float64, device=torch.device("cpu"), seed=seed)
    return noisy(made, seed)


@torch.no_grad()
def noisy(module: Any, seed: int) -> Any:
    """Every parameter moved, so that none is 0 or 1 by chance."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return module


def rows_of(kind: TaskKind) -> dict[str, Any]:
    """Four rows of six tokens, of which the first has four; with a class each, or some tokens masked."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(5, 20, (4, 6), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    labels = torch.tensor([0, 1, 2, 1])
    if kind == "masked_lm":
        labels = torch.full_like(ids, -100)
        for row, place in ((0, 1), (0, 3), (1, 2), (2, 5), (3, 0), (3, 4)):
            labels[row, place], ids[row, place] = ids[row, place], 4
    types = torch.zeros_like(ids)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": types,
        "labels": labels,
        "row_ids": [[str(row)] for row in range(4)],
    }


@dataclass
class Scene:
    """One stage of a method, with a student of two layers (or another) and a teacher of four."""

    method: str
    folder: Path
    stage: int = 0
    layers: int = 2
    student: Any = None
    changes: dict[str, Any] = field(default_factory=dict)
    """What is laid over the recipe."""

    def __post_init__(self) -> None:
        values: dict[str, Any] = {
            "method": self.method,
            "teacher": {"model": str(tiny_encoder(self.folder, 4))},
            "data": {"train": [{"path": "d"}], "evaluation": {}},
            **self.changes,
        }
        if "depth" in METHODS[self.method].fragment.get("student", {}):
            values["student"] = {"depth": {"keep": 2}}
        self.recipe: Recipe = resolve_recipe(values)
        assert self.recipe.task is not None
        self.spec: StageSpec = recipe_stages(self.recipe)[self.stage]
        self.kind: TaskKind = self.spec.task or self.recipe.task.kind
        self.batch = rows_of(self.kind)
        if self.student is None:
            self.student = encoder(self.folder, 1, self.layers, self.kind)
        self.teacher = encoder(self.folder, 2, 4, self.kind).requires_grad_(False)
        assert self.spec.objective is not None
        job = TaskJob("job", self.kind, self.spec.objective, {}, [0], lambda rows: self.batch)  # type: ignore[arg-type]
        context: Any = SimpleNamespace(
            recipe=self.recipe,
            device=torch.device("cpu"),
            note=print,
            folder=SimpleNamespace(file=lambda name: self.folder / name),
        )
        data: Any = SimpleNamespace(task=self.recipe.task, classes=CLASSES)
        own = self.kind == self.recipe.task.kind
        needs = self.spec.objective.needs_teacher or (own and self.recipe.task.retrieval is not None)
        teacher = self.teacher if needs else None
        self.extras: Sequence[Extra] = extras_of(context, data, job, own)(self.student, teacher)
        for module in self.beside:
            noisy(module.double(), 3)
        self.objective = TaskObjective(
            self.spec.objective, self.kind, self.recipe.task.logits, teacher=teacher, extras=tuple(self.extras)
        )

    @property
    def beside(self) -> list[Any]:
        """What is trained beside the student."""
        return [extra.modules for extra in self.extras if extra.modules is not None]

    @property
    def hints(self) -> Any:
        """The set of hints of layers."""
        return next(extra.set for extra in self.extras if extra.name == "hints")  # type: ignore[attr-defined]

    def loss(self) -> Tensor:
        """As the Trainer takes it of a batch."""
        labels = self.batch["labels"]
        items = int((labels != -100).sum()) if self.kind == "masked_lm" else len(labels)
        return self.objective(self.student, self.student, self.batch, items).loss

    def is_by_definition(self, wanted: Tensor, more: bool = False) -> set[str]:
        """The loss and its gradients by all that is trained are those of a formula; returns what has a gradient of the
        student, by name. `more` leaves the hooks where they are."""
        found = self.loss()
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-8)
        leaves = [p for module in (self.student, *self.beside) for p in module.parameters() if p.requires_grad]
        one, other = (
            torch.autograd.grad(value, leaves, allow_unused=True, retain_graph=True) for value in (found, wanted)
        )
        moved = 0
        names = {id(parameter): name for name, parameter in self.student.named_parameters()}
        assert all(bool(slope.isfinite().all()) for slope in (*one, *other) if slope is not None)
        for leaf, mine, right in zip(leaves, one, other, strict=True):
            # What the formula does not reach must not be reached either.
            reached = [each for each in (mine, right) if each is not None and bool(each.abs().max() > 1e-12)]
            moved += bool(reached)
            if len(reached) == 2:
                torch.testing.assert_close(reached[0], reached[1], rtol=1e-3, atol=1e-7)
            elif reached:
                assert float(reached[0].abs().max()) < 1e-7, names.get(id(leaf), "a module beside the student")
        assert moved
        if not more:
            for extra in self.extras:
                extra.close()
        return {
            names[id(leaf)] for leaf, slope in zip(leaves, one, strict=True) if id(leaf) in names and slope is not None
        }

    # -- what formulas are made of ------------------------------------------------------------------------------------

    @property
    def real(self) -> Tensor:
        """All positions but padding, (B, L)."""
        found: Tensor = self.batch["attention_mask"].bool()
        return found

    def inputs(self) -> dict[str, Tensor]:
        return {name: self.batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}

    def said(self, model: Any) -> Tensor:
        """Class logits (B, C), or logits of the masked tokens (n, V), by transformers' own means."""
        logits: Tensor = model(**self.inputs()).logits
        return logits[self.batch["labels"] != -100] if self.kind == "masked_lm" else logits

    def logits(self) -> tuple[Tensor, Tensor]:
        """The student's and the teacher's."""
        return self.said(self.student), self.said(self.teacher).detach()

    def states(self, model: Any) -> list[Tensor]:
        """Embeddings, and what each block returns."""
        return list(model.base_model(**self.inputs(), output_hidden_states=True).hidden_states)

    def parts(self, model: Any, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of a block, counted from 1, from its own weights; (B, L, A D)."""
        state, block = self.states(model)[layer - 1], model.bert.encoder.layer[layer - 1].attention.self
        return block.query(state), block.key(state), block.value(state)

    def scores(self, model: Any, layer: int) -> Tensor:
        """Q K' / sqrt(D) of each head, (B, A, L, L), without a mask."""
        q, k, _ = (part.unflatten(-1, (4, 12)) for part in self.parts(model, layer))
        return torch.einsum("bqad,bkad->baqk", q, k) / math.sqrt(12)

    def labels(self) -> Tensor:
        labels: Tensor = self.batch["labels"]
        return labels[labels != -100]

    def cross_entropy(self) -> Tensor:
        """The mean of -log q of the right class, or of masked tokens."""
        q, labels = self.said(self.student).softmax(-1), self.labels()
        return -torch.stack([q[row, label].log() for row, label in enumerate(labels.tolist())]).mean()

    def kl(self, temperature: float = 1.0) -> Tensor:
        """KL(p ‖ q) of softened distributions, the mean over rows or masked tokens."""
        q, p = ((x / temperature).softmax(-1) for x in self.logits())
        return (p * (p.log() - q.log())).sum(-1).mean()

    def mean(self, value: Callable[[int, int], Tensor]) -> Tensor:
        """The mean of a value over all positions but padding."""
        return torch.stack([value(row, place) for row, place in self.real.nonzero().tolist()]).mean()


def relation_of(scene: Scene, own: Tensor, other: Tensor, heads: int) -> Tensor:
    """KL(teacher ‖ student) of softmax(x x' / sqrt(d)) over the real positions of a text, mean over heads and
    positions; (B, L, width) of both."""

    def logs(x: Tensor, row: int, place: int) -> Tensor:
        """By head and key."""
        cut = x[row].unflatten(-1, (heads, -1))
        products = (cut[place] * cut[scene.real[row]]).sum(-1).T
        return (products / math.sqrt(cut.shape[-1])).softmax(-1).log()

    def divergence(row: int, place: int) -> Tensor:
        q, p = logs(own, row, place), logs(other.detach(), row, place)
        return (p.exp() * (p - q)).sum(-1).mean()

    return scene.mean(divergence)


def attention_divergence(scene: Scene, own: Tensor, other: Tensor) -> Tensor:
    """KL(teacher ‖ student) of attention over real keys, mean over heads and real queries; scores of both."""

    def divergence(row: int, query: int) -> Tensor:
        q, p = (x[row, :, query][:, scene.real[row]].softmax(-1) for x in (own, other.detach()))
        return (p * (p.log() - q.log())).sum(-1).mean()

    return scene.mean(divergence)


def scores_distance(scene: Scene, own: Tensor, other: Tensor) -> Tensor:
    """TinyBERT's as released: squared difference of scores, 0 at masked keys, mean over heads and all keys."""
    blocked = ~scene.real[:, None, None].expand_as(own)
    apart = own.masked_fill(blocked, 0.0) - other.detach().masked_fill(blocked, 0.0)
    return scene.mean(lambda row, query: apart[row, :, query].pow(2).mean())


def state_distance(scene: Scene, own: Tensor, other: Tensor) -> Tensor:
    """Squared difference of states, mean over the width and real positions."""
    return scene.mean(lambda row, place: (own[row, place] - other.detach()[row, place]).pow(2).mean())
