"""Methods across tokenizers as their recipes build them, against their formulas: loss and gradient, from full logits.

Which tokens of both models cover the same text is taken from the translation (tests/teachers); probabilities come from
plain forward passes over single texts, and everything behind them is written out.

Shape legend: L length of a text, V the student's vocabulary, U the teacher's.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from lmdistill.data import Collator
from lmdistill.recipe import Recipe, resolve_recipe
from lmdistill.stages.teaching import AlignedTeacher
from lmdistill.teachers.translated_batch import TranslatedBatch, translate_batch
from lmdistill.training.groups import IGNORED, next_labels
from lmdistill.training.objective import Objective

# The small tokenizers live beside the tests of the data layer, which pytest puts on the path only when it runs them.
sys.path.append(str(Path(__file__).parents[1] / "data"))
from tokenizers_for_tests import make_tokenizer

TEXTS = (
    "The river runs to the sea.",
    "Two people walked on the moon in 1969!",
    "Bread, water and salt.",
    "A book is read.",
)


def net(tokenizer: PreTrainedTokenizerBase, seed: int, hidden: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        initializer_range=0.3,
    )
    made: LlamaForCausalLM = LlamaForCausalLM(config).double().eval()
    return made


@dataclass
class Scene:
    """Both models, their tokenizers, and the distance that the recipe names."""

    recipe: Recipe

    def __post_init__(self) -> None:
        self.own, self.foreign = make_tokenizer("chatml"), make_tokenizer("gemma")
        self.student, self.main = net(self.own, 0, 16), net(self.foreign, 1, 20)
        context: Any = SimpleNamespace(
            teacher=self.main, teacher_tokenizer=lambda: self.foreign, recipe=self.recipe.model_copy()
        )
        context.recipe.machine.compile = False
        spec = self.recipe.objective.cross_tokenizer
        assert spec is not None
        torch.manual_seed(5)
        student: Any = SimpleNamespace(tokenizer=self.own)
        self.aligned = AlignedTeacher(context, spec, student, self.student, mixed=False)
        if self.aligned.projectors is not None:
            self.aligned.projectors.double()

    @property
    def leaves(self) -> list[Tensor]:
        """What is trained."""
        beside = self.aligned.projectors
        return [*self.student.parameters(), *([] if beside is None else beside.parameters())]

    def row(self, text: str) -> dict[str, Any]:
        """A text whose first token is not trained."""
        ids = [*self.own(text)["input_ids"], int(self.own.eos_token_id)]
        labels = [IGNORED, *ids[1:]]
        return {"input_ids": ids, "labels": labels, "position_ids": list(range(len(ids))), "row_ids": [text]}

    def step(self, cut: int) -> tuple[Tensor, list[Tensor]]:
        """The loss of one optimiser step over so many micro-batches, and its gradient."""
        objective = Objective(
            self.recipe.objective, teacher=None, vocabulary_size=len(self.own), compiled=False, aligned=self.aligned
        )
        rows = [self.row(text) for text in TEXTS]
        batches = [Collator()(rows[first::cut]) for first in range(cut)]
        items = torch.stack([(next_labels(batch["labels"]) != IGNORED).sum() for batch in batches]).sum()
        loss = torch.stack([objective(self.student, self.student, batch, items).loss for batch in batches]).sum()
        return loss.detach(), list(torch.autograd.grad(loss, self.leaves))

    def read(self, text: str) -> Read:
        """One text by itself."""
        batch = Collator()([self.row(text)])
        told = translate_batch(self.aligned.teacher.translator, batch)
        ids_L = batch["input_ids"][0]
        student = self.student(ids_L[None], output_hidden_states=True)
        with torch.no_grad():
            teacher = self.main(told.teacher_ids[None], output_hidden_states=True)
        return Read(
            ids_L,
            student.logits[0],
            told,
            teacher.logits[0],
            student.hidden_states[-1][0],
            teacher.hidden_states[-1][0],
        )


@dataclass
class Read:
    """What both models make of a text; row i - 1 predicts token i."""

    ids_L: Tensor
    logits_LV: Tensor
    told: TranslatedBatch
    teacher_logits_LU: Tensor
    hidden_LH: Tensor
    teacher_hidden_LK: Tensor

    @property
    def groups(self) -> list[tuple[int, int, int, int]]:
        """Trained tokens that cover the same text: the student's first and end, the teacher's first and end."""
        kept = self.told.trained()
        ends = (kept.student_first_G, kept.student_end_G, kept.teacher_first_G, kept.teacher_end_G)
        return list(zip(*(each.tolist() for each in ends), strict=True))

    def cross_entropy(self) -> Tensor:
        """Summed over the text's trained tokens."""
        logs_LV = self.logits_LV.log_softmax(-1)
        return -sum((logs_LV[i - 1, self.ids_L[i]] for i in range(1, len(self.ids_L))), torch.zeros(()))


def by_size(p: Tensor, q: Tensor) -> Tensor:
    """Sum of |p_(i) - q_(i)| of sorted probabilities, the shorter filled up with zeros."""
    size = max(len(p), len(q))
    one, other = (torch.cat([x.sort(descending=True).values, x.new_zeros(size - len(x))]) for x in (p, q))
    return (one - other).abs().sum()


def uld(scene: Scene, read: Read) -> Tensor:
    """2402.12030: the n-th trained token of either text, whatever it covers."""
    mine = [i for first, end, _, _ in read.groups for i in range(first, end)]
    theirs = [j for _, _, first, end in read.groups for j in range(first, end)]
    pairs = zip(mine, theirs, strict=False)
    found = [by_size(read.teacher_logits_LU[j - 1].softmax(-1), read.logits_LV[i - 1].softmax(-1)) for i, j in pairs]
    return torch.stack(found).sum()


def gold(scene: Scene, read: Read) -> Tensor:
    """TRL's hybrid: shared tokens exactly, weighted by their share of the teacher's vocabulary, the rest by size."""
    match = scene.aligned.teacher.match(len(scene.own))
    shared = len(match.student_ids_C) / len(scene.foreign)
    assert 0 < shared < 1
    total = torch.zeros((), dtype=torch.float64)
    for i0, i1, j0, j1 in read.groups:
        q, p = read.logits_LV[i0 - 1].softmax(-1), read.teacher_logits_LU[j0 - 1].softmax(-1)
        for i in range(i0 + 1, i1):
            q = q * read.logits_LV[i - 1].softmax(-1)[read.ids_L[i]]
        for j in range(j0 + 1, j1):
            p = p * read.teacher_logits_LU[j - 1].softmax(-1)[read.told.teacher_ids[j]]
        a, b = p[match.teacher_ids_C], q[match.student_ids_C]
        m = 0.5 * a + 0.5 * b
        exact = 0.5 * (a * (a / m).log()).sum() + 0.5 * (b * (b / m).log()).sum()
        rest_p, rest_q = torch.ones(len(p), dtype=torch.bool), torch.ones(len(q), dtype=torch.bool)
        rest_p[match.teacher_ids_C] = False
        rest_q[match.student_ids_C] = False
        total = total + shared * exact + (1 - shared) * by_size(p[rest_p], q[rest_q])
    return total


def alm(scene: Scene, read: Read) -> Tensor:
    """2503.20083: binary cross-entropy of chunk likelihoods at temperature 100."""
    total = torch.zeros((), dtype=torch.float64)
    log_q, log_p = read.logits_LV.log_softmax(-1), read.teacher_logits_LU.log_softmax(-1)
    for i0, i1, j0, j1 in read.groups:
        mine = torch.stack([log_q[i - 1, read.ids_L[i]] for i in range(i0, i1)]).sum()
        theirs = torch.stack([log_p[j - 1, read.told.teacher_ids[j]] for j in range(j0, j1)]).sum()
        q, p = (mine / 100 - 1e-6).exp(), (theirs / 100 - 1e-6).exp()
        total = total - p * q.log() - (1 - p) * (1 - q).log()
    return total


def kl(target: Tensor, of: Tensor) -> Tensor:
    """KL(target‖of) at temperature 2, row by row."""
    a, b = (target / 2).log_softmax(-1), (of / 2).log_softmax(-1)
    return (a.exp() * (a - b)).sum(-1)


def dskd(scene: Scene, read: Read) -> Tensor:
    """2406.17328: cross-model attention, then three terms in both spaces."""
    ((s, t),) = read.told.sequences()
    project: Any = scene.aligned.projectors
    ids, their_ids = read.ids_L, read.told.teacher_ids
    models: list[Any] = [scene.student, scene.main]
    mine, theirs = (model.get_input_embeddings().weight for model in models)
    own_head, head = (model.get_output_embeddings().weight.detach() for model in models)
    target = theirs[their_ids[t]].detach()
    key = torch.cat([theirs[their_ids[t - 1]], theirs[their_ids[t]]], -1).detach()
    states = read.teacher_hidden_LK[t - 1]
    query = project.query(torch.cat([mine[ids[s - 1]], mine[ids[s]]], -1).detach())
    score = query @ (key / key.std()).T / math.sqrt(key.shape[1])
    t2s = score.softmax(-1) @ project.t2s(states / states.std() + target / target.std())
    s2t = score.T.softmax(-1) @ project.s2t(read.hidden_LH[s - 1])
    there = t2s @ own_head.T
    right = (there.argmax(-1) == ids[s]).double()
    entropy = torch.nn.functional.cross_entropy(there, ids[s], reduction="sum")
    here = (kl(there.detach(), read.logits_LV[s - 1]) * right).sum()
    back = kl(read.teacher_logits_LU[t - 1], s2t @ head.T).sum()
    total: Tensor = entropy + here + back
    return total


CASES: dict[str, tuple[Callable[[Scene, Read], Tensor], float, float]] = {
    "uld": (uld, 1.0, 1.5),
    "gold": (gold, 0.0, 1.0),
    "alm": (alm, 0.0, 1.0),
    "dskd": (dskd, 0.5, 0.5),
}


def scene_of(name: str) -> Scene:
    values = {"teacher": {"model": "t"}, "data": {"train": [{"path": "d"}]}, "method": name}
    return Scene(resolve_recipe(values))


@pytest.mark.parametrize("name", CASES)
def test_a_method_is_its_formula(name: str) -> None:
    formula, label_weight, weight = CASES[name]
    scene = scene_of(name)
    # DSKD divides by standard deviations over a micro-batch: one text in each
    loss, gradient = scene.step(cut=4 if name == "dskd" else 2)
    expected, tokens = torch.zeros((), dtype=torch.float64), 0
    for text in TEXTS:
        read = scene.read(text)
        assert len(read.groups) >= 3
        expected = expected + label_weight * read.cross_entropy() + weight * formula(scene, read)
        tokens += len(read.ids_L) - 1
    expected = expected / tokens
    true = torch.autograd.grad(expected, scene.leaves, allow_unused=True)
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=2e-6, atol=1e-7)
    size = max(float(each.abs().max()) for each in true if each is not None)
    assert size > 1e-5
    for made, wanted in zip(gradient, true, strict=True):
        torch.testing.assert_close(made, torch.zeros_like(made) if wanted is None else wanted, rtol=0, atol=5e-6 * size)


@pytest.mark.parametrize("name", ["uld", "gold", "alm"])
def test_how_a_step_is_cut_changes_nothing(name: str) -> None:
    whole, gradient = scene_of(name).step(cut=1)
    loss, parts = scene_of(name).step(cut=4)
    torch.testing.assert_close(loss, whole, rtol=1e-9, atol=0)
    for made, wanted in zip(parts, gradient, strict=True):
        torch.testing.assert_close(made, wanted, rtol=1e-6, atol=1e-12)
