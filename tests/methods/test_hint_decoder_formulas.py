"""Whole objectives of methods that compare the insides of decoders, as their defaults compose them, against float64
formulas that read one text at a time, by loss and gradient.

Shape legend: L tokens of a text, H width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from formula_window import Net, V, net
from hint_formula import noisy
from torch import Tensor

from lmdistill.data import Collator
from lmdistill.models import last_hidden
from lmdistill.recipe import recipe_stages, resolve_recipe
from lmdistill.teachers import LocalTeacher
from lmdistill.teachers.base import model_inputs
from lmdistill.training.filters import FilterObjective, FilterPair, LayerFilters
from lmdistill.training.hints import HintSet
from lmdistill.training.objective import Objective

TEXTS = ([3, 14, 15, 9, 2, 6, 5, 3], [27, 1, 8, 2, 8])
"""Two texts of unequal length; the first two tokens of each are a prompt."""


def row(ids: list[int]) -> dict[str, Any]:
    labels = [-100, -100, *ids[2:]]
    return {"input_ids": ids, "labels": labels, "position_ids": list(range(len(ids))), "row_ids": ["x"]}


@dataclass
class Inside:
    """What a model makes of one text, each place by itself."""

    states: list[Tensor]
    """Embeddings, and what each block returns, (L, H); the last before the final norm."""
    parts: list[list[Tensor]]
    """Of each block queries, keys and values before rotary embedding, (L, H)."""
    logs: Tensor
    """Log-probabilities of the next token, (L, V)."""
    logits: Tensor
    final: Tensor
    """Behind the final norm, (L, H)."""


def read(model: Net, ids: list[int]) -> Inside:
    states: list[Tensor] = []
    parts: list[list[Tensor]] = []
    handles = [
        block.register_forward_hook(lambda m, a, out: states.append(out if isinstance(out, Tensor) else out[0]))
        for block in model.model.layers
    ]
    for block in model.model.layers:
        own: list[Tensor] = []
        parts.append(own)
        for part in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj):
            handles.append(part.register_forward_hook(lambda m, a, out, own=own: own.append(out[0])))
    found = model(torch.tensor([ids]), use_cache=False, output_hidden_states=True)
    logits, final = found.logits[0], found.hidden_states[-1][0]
    for handle in handles:
        handle.remove()
    embeddings = model.model.embed_tokens(torch.tensor(ids))
    return Inside([embeddings, *(state[0] for state in states)], parts, logits.log_softmax(-1), logits, final)


@dataclass
class Scene:
    """A method's stage with a student of two blocks and a teacher of four."""

    method: str
    stage: int = 0
    width: int = 16
    filters: FilterPair | None = None
    student: Net = field(init=False)
    teacher: Net = field(init=False)

    def __post_init__(self) -> None:
        self.student, self.teacher = net(0, 2, self.width), net(1, 4, 16).requires_grad_(False)
        values: dict[str, Any] = {"method": self.method, "teacher": {"model": "t"}, "data": {"train": [{"path": "d"}]}}
        if self.method == "distilbert":
            values["student"] = {"depth": {"keep": 2}}
        found = recipe_stages(resolve_recipe(values))[self.stage].objective
        assert found is not None
        self.hints = None
        if found.hints:
            self.hints = HintSet(
                found.hints,
                student=self.student,
                teacher=self.teacher,
                inputs={"input_ids": torch.ones(1, 4, dtype=torch.long)},
                block_inputs=found.block_inputs == "teacher",
                vocabulary_size=V,
                filters=self.filters,
            )
            if self.filters is None:
                noisy(self.hints.double(), 3)
        self.objective = Objective(
            found, teacher=LocalTeacher(self.teacher, V), vocabulary_size=V, compiled=False, hints=self.hints
        )

    def is_by_definition(self, wanted: Tensor) -> None:
        """Loss and gradient, by student and what is trained beside it, are those of a formula."""
        batch = Collator()([row(ids) for ids in TEXTS])
        found = self.objective(self.student, self.student, batch, sum(len(ids) - 2 for ids in TEXTS)).loss
        check(found, wanted, [self.student, *([] if self.hints is None else [self.hints])])
        if self.hints is not None:
            self.hints.close()

    def inside(self) -> list[tuple[Inside, Inside]]:
        """The student's and the teacher's, text by text."""
        return [(read(self.student, ids), read(self.teacher, ids)) for ids in TEXTS]

    def over(self, value: Callable[[Inside, Inside, int], Tensor], *, every: bool = False) -> Tensor:
        """The mean of a value over the places whose next token is trained, or over all, of both texts."""
        found = []
        for (own, other), ids in zip(self.inside(), TEXTS, strict=True):
            places = range(len(ids)) if every else range(1, len(ids) - 1)
            found += [value(own, other, place) for place in places]
        return torch.stack(found).mean()

    def cross_entropy(self) -> Tensor:
        """The mean of -log q of the next token, where it is trained."""
        found = []
        for (own, _), ids in zip(self.inside(), TEXTS, strict=True):
            found += [-own.logs[i, ids[i + 1]] for i in range(1, len(ids) - 1)]
        return torch.stack(found).mean()

    def kl(self) -> Tensor:
        return self.over(lambda own, other, i: (other.logs[i].exp() * (other.logs[i] - own.logs[i])).sum())


def check(found: Tensor, wanted: Tensor, modules: list[Any]) -> None:
    torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-5, atol=1e-8)
    leaves = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    one, other = (torch.autograd.grad(value, leaves, allow_unused=True) for value in (found, wanted))
    size = max(float(slope.abs().max()) for slope in other if slope is not None)
    for mine, right in zip(one, other, strict=True):
        zero = torch.zeros(()).double()
        a, b = (zero if each is None else each.double() for each in (mine, right))
        torch.testing.assert_close(a.expand_as(b) if b.ndim else a, b.expand_as(a), rtol=1e-3, atol=1e-5 * size)


def unit(x: Tensor) -> Tensor:
    return x / x.norm()


PAIRS = ((1, 2), (2, 4))
"""Layers of the student and, evenly spaced, of the teacher."""


def test_distilbert_of_decoders() -> None:
    """5 tau² KL of softened predictions, 2 cross-entropy, 1 - cosine of the states behind the final norm."""
    scene = Scene("distilbert")

    def softened(s: Inside, t: Inside, i: int) -> Tensor:
        p, q = ((x.logits[i] / 2).softmax(-1) for x in (t, s))
        return (p * (p.log() - q.log())).sum()

    cosine = scene.over(lambda s, t, i: 1 - unit(s.final[i]) @ unit(t.final[i]))
    scene.is_by_definition(5 * 4 * scene.over(softened) + 2 * scene.cross_entropy() + cosine)


def test_minitron_with_hidden_states() -> None:
    """KL, and the states' distance through a matrix each, as large as it at this step: alpha has no gradient."""
    scene = Scene("minitron_hidden", width=8)
    assert scene.hints is not None
    kl, apart = scene.kl(), torch.zeros(()).double()
    for number, (m, n) in enumerate(PAIRS):
        w = scene.hints.projectors[f"hidden_mse/{number}"]
        apart = (
            apart + scene.over(lambda s, t, i, m=m, n=n, w=w: (w(s.states[m][i]) - t.states[n][i]).pow(2).mean()) / 2
        )
    scene.is_by_definition(kl + float((kl / apart).detach()) * apart)


def test_distillm_with_hints() -> None:
    scene = Scene("distillm_hints", width=8)
    assert scene.hints is not None

    def skew(s: Inside, t: Inside, i: int) -> Tensor:
        p, q = t.logs[i].exp(), s.logs[i].exp()
        return (p * (p / (0.1 * p + 0.9 * q)).log()).sum()

    wanted = scene.over(skew)
    for number, (m, n) in enumerate(PAIRS):
        w = scene.hints.projectors[f"hidden_cosine/{number}"]
        wanted = (
            wanted + scene.over(lambda s, t, i, m=m, n=n, w=w: 1 - unit(w(s.states[m][i])) @ unit(t.states[n][i])) / 2
        )
    scene.is_by_definition(wanted)


def test_minilmv2_of_decoders() -> None:
    """Relations of the last blocks' queries, keys and values to what came before, in the teacher's two heads."""
    scene = Scene("minilmv2_decoder", width=8)

    def logs(x: Tensor, place: int, head: int) -> Tensor:
        size = x.shape[-1] // 2
        cut = x[:, head * size : (head + 1) * size]
        return torch.stack([cut[place] @ cut[key] / math.sqrt(size) for key in range(place + 1)]).softmax(0).log()

    def relations(s: Inside, t: Inside, i: int) -> Tensor:
        values = []
        for own, other in zip(s.parts[1], t.parts[3], strict=True):
            for head in range(2):
                q, p = logs(own, i, head), logs(other, i, head)
                values.append((p.exp() * (p - q)).sum() / 2)
        return torch.stack(values).sum()

    scene.is_by_definition(scene.kl() + scene.over(relations))


def block_alone(model: Net, number: int, state: Tensor) -> Tensor:
    """What a block, counted from 0, makes of given states of one text, (L, H)."""
    length = len(state)
    blocked = torch.full((length, length), -torch.inf, dtype=state.dtype).triu(1)[None, None]
    rotary = model.model.rotary_emb(state[None], torch.arange(length)[None])
    found: Any = model.model.layers[number](state[None], attention_mask=blocked, position_embeddings=rotary)
    made: Tensor = found if isinstance(found, Tensor) else found[0]
    return made[0]


def test_blocks_side_by_side() -> None:
    """Each block reads the teacher's state below it and learns the teacher's next one; no gradient between blocks."""
    scene = Scene("bld")
    values: list[list[Tensor]] = [[], []]
    for own, other in scene.inside():
        first = block_alone(scene.student, 0, own.states[0])  # of the student's own embeddings
        second = block_alone(scene.student, 1, other.states[2])
        for number, (made, aim) in enumerate(((first, other.states[2]), (second, other.states[4]))):
            values[number] += [(x - y).pow(2).sum() / y.pow(2).sum() for x, y in zip(made, aim, strict=True)]
    scene.is_by_definition(torch.stack([torch.stack(each).mean() for each in values]).mean())
    last = Scene("bld", 1)
    last.is_by_definition(last.kl())


def filters_of(layers: list[int], given: int, seed: int) -> LayerFilters:
    made: LayerFilters = noisy(LayerFilters(layers, given, 16, seed).double(), seed)
    return made


def test_teds_filters_learn_the_next_token() -> None:
    """The first stage: cross-entropy by the teacher's norm and head of each filtered state, mean over layers, either
    model frozen."""
    teacher = LocalTeacher(net(1, 4, 16), V)
    for model, layers in ((teacher.model, [2, 4]), (net(0, 2, 8), [1, 2])):
        filters = filters_of(layers, model.config.hidden_size, 5)
        objective = FilterObjective(
            filters, model, teacher, lambda m, batch: last_hidden(m, model_inputs(batch)), compiled=False
        )
        objective.norm.double()
        batch = Collator()([row(ids) for ids in TEXTS])
        found = objective(model, model, batch, sum(len(ids) - 2 for ids in TEXTS)).loss
        objective.close()
        terms = []
        for ids in TEXTS:
            inside = read(model, ids)
            for layer in layers:
                state = filters.at(layer)(inside.states[layer].detach())
                weight = teacher.model.model.norm.weight
                normed = weight * state / (state.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
                logs = (normed @ teacher.model.lm_head.weight.T).log_softmax(-1)
                terms += [-logs[i, ids[i + 1]] for i in range(1, len(ids) - 1)]
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        slopes = torch.autograd.grad(found, trained, allow_unused=True, retain_graph=True) if trained else ()
        assert not any(slope is not None for slope in slopes)  # the model has no part in it
        check(found, torch.stack(terms).mean(), [filters])


def test_ted_of_decoders() -> None:
    """The second stage: labels, predictions, and filtered states, the teacher's filters frozen."""
    pair = FilterPair(filters_of([1, 2], 8, 5), filters_of([2, 4], 16, 6))
    scene = Scene("ted_decoder", width=8, filters=pair)
    wanted = scene.cross_entropy() + scene.kl()
    for m, n in PAIRS:
        f, g = pair.student.at(m), pair.teacher.at(n)
        apart = scene.over(
            lambda s, t, i, m=m, n=n, f=f, g=g: (f(s.states[m][i]) - g(t.states[n][i])).pow(2).mean(), every=True
        )
        wanted = wanted + apart / 2
    assert not any(parameter.requires_grad for parameter in pair.teacher.parameters())
    scene.is_by_definition(wanted)
