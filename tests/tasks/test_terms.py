"""The terms that methods add, against independent float64 formulas, in value and gradient, on tiny real encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lmdistill.errors import RecipeError
from lmdistill.recipe import HintSpec, ModelSpec, ObjectiveSpec
from lmdistill.recipe.task import BilevelSpec, LogitsSpec, MixSpec, ReaugSpec
from lmdistill.tasks.bilevel import quiz_loss, split_quiz, two_sided
from lmdistill.tasks.filters import FilterLearning, FilterMatching, make_filters
from lmdistill.tasks.hints import HintTerms
from lmdistill.tasks.mix import MixedRows, mixed_cross_entropy
from lmdistill.tasks.models import load_task_model, outputs
from lmdistill.tasks.objective import Said, TaskObjective, distance_of, similarities
from lmdistill.tasks.retrieval import ContrastLearning, Memory, Projection, Relations, relation_kl, supervised_contrast
from small_task import tiny_encoder

CLASSES = ["a", "b", "c"]


def model(tmp_path: Path, seed: int, layers: int = 4) -> Any:
    """A tiny classifier in float64, without dropout."""
    spec = ModelSpec(model=str(tiny_encoder(tmp_path, layers)), attention="eager")
    found, _ = load_task_model(
        spec, "sequence_classification", CLASSES, dtype=torch.float64, device=torch.device("cpu"), seed=seed
    )
    with torch.no_grad():  # the two models shall differ, and say something
        generator = torch.Generator().manual_seed(seed)
        for parameter in found.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return found


def batch(rows: int = 4, length: int = 6, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 20, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": torch.zeros_like(ids),
        "labels": torch.tensor([0, 1, 2, 1][:rows]),
        "row_ids": [[str(row)] for row in range(rows)],
    }


def said(student: Any, teacher: Any, given: dict[str, Any], extra: Any = None) -> Said:
    if extra is not None:
        extra.before(given, student, teacher)
    with torch.no_grad():
        theirs = outputs(teacher, given, "sequence_classification")
    own = outputs(student, given, "sequence_classification")
    if extra is not None:
        extra.after()
    return Said(given, student, student, own, teacher, theirs, own.sum() * 0)


def states(model: Any, given: dict[str, Any]) -> list[Tensor]:
    """All hidden states, by transformers' own means."""
    inputs = {name: given[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    return list(model.bert(**inputs, output_hidden_states=True).hidden_states)


def gradients(value: Tensor, model: Any) -> list[Tensor]:
    names = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(value, names, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(names, found, strict=True)]


def same(own: Tensor, wanted: Tensor, model: Any, rtol: float = 1e-6) -> None:
    torch.testing.assert_close(own.double(), wanted.double(), rtol=rtol, atol=1e-8)
    for mine, right in zip(gradients(own, model), gradients(wanted, model), strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-7)


def test_pkd_is_the_published_formula(tmp_path: Path) -> None:
    """(1 - a) CE + a tau² KL + b mean over layers and width of the squared difference of [CLS] directions."""
    student, teacher, given = model(tmp_path, 1, 2), model(tmp_path, 2), batch()
    spec = ObjectiveSpec.model_validate(
        {
            "divergence": {"weight": 0.5, "temperature": 5.0, "temperature_squared": True},
            "cross_entropy": {"weight": 0.5},
            "hints": [{"kind": "hidden_normalised_mse", "map": "skip", "positions": "first", "weight": 100.0}],
        }
    )
    hints = HintTerms(spec.hints, "sequence_classification", student, teacher, batch=given)
    objective = TaskObjective(spec, "sequence_classification", LogitsSpec(), teacher=teacher, extras=(hints,))
    found = objective(student, student, given, len(given["labels"])).loss
    hints.close()

    own, other = states(student, given), states(teacher, given)
    s, t = outputs(student, given, "sequence_classification"), outputs(teacher, given, "sequence_classification")
    p, q = (t / 5).softmax(-1).detach(), (s / 5).softmax(-1)
    kl = (p * (p.log() - q.log())).sum(-1).mean()
    ce = -(s.softmax(-1).log()[range(4), given["labels"]]).mean()
    patience = 0.0
    for mine, theirs in ((1, 2),):  # skip: the student's first of two layers learns the teacher's second of four
        h, g = own[mine][:, 0], other[theirs][:, 0].detach()
        unit = h / h.norm(dim=-1, keepdim=True) - g / g.norm(dim=-1, keepdim=True)
        patience = patience + unit.pow(2).mean()
    wanted = 0.5 * ce + 0.5 * 25 * kl + 100 * patience
    same(found, wanted, student)


def test_tinyberts_inside_is_the_published_formula(tmp_path: Path) -> None:
    student, teacher, given = model(tmp_path, 1, 2), model(tmp_path, 2), batch()
    specs = [
        HintSpec.model_validate({"kind": "attention_scores_mse", "over_layers": "sum", "positions": "all"}),
        HintSpec.model_validate(
            {"kind": "hidden_mse", "over_layers": "sum", "positions": "all", "student": [1, 2], "teacher": [2, 4]}
        ),
    ]
    terms = HintTerms(specs, "sequence_classification", student, teacher, batch=given)
    found = terms(said(student, teacher, given, terms))
    terms.close()

    def scores(model: Any) -> list[Tensor]:
        """Q K' / sqrt(d) + mask of every layer, from its own weights."""
        inside = states(model, given)
        blocked = (1 - given["attention_mask"])[:, None, None].double() * torch.finfo(torch.float64).min
        result = []
        for layer, state in zip(model.bert.encoder.layer, inside, strict=False):
            attention = layer.attention.self
            q, k = (
                part(state).view(*state.shape[:2], 4, 12).transpose(1, 2) for part in (attention.query, attention.key)
            )
            result.append(q @ k.transpose(-1, -2) / 12**0.5 + blocked)
        return result

    kept = given["attention_mask"].bool()
    wanted = torch.zeros((), dtype=torch.float64)
    own, other = scores(student), scores(teacher)
    for mine, theirs in ((0, 1), (1, 3)):
        s = torch.where(own[mine] <= -100, 0.0, own[mine])
        t = torch.where(other[theirs] <= -100, 0.0, other[theirs]).detach()
        by_query = (s - t).pow(2).mean((1, 3))  # over heads and keys
        wanted = wanted + by_query[kept].mean()
    h, g = states(student, given), states(teacher, given)
    for mine, theirs in ((1, 2), (2, 4)):
        wanted = wanted + (h[mine] - g[theirs].detach())[kept].pow(2).mean()
    same(found, wanted, student)


def test_the_attribution_term_is_the_published_formula(tmp_path: Path) -> None:
    """AD-KD with one step: gradient times input of every class, the norm of the largest K entries of each token."""
    student, teacher, given = model(tmp_path, 1, 2), model(tmp_path, 2), batch()
    spec = HintSpec.model_validate({"kind": "attribution", "parameters": {"steps": 1, "top": 20}})
    terms = HintTerms([spec], "sequence_classification", student, teacher, batch=given)
    found = terms(said(student, teacher, given))

    def maps(model: Any, graph: bool) -> list[Tensor]:
        embeds = model.get_input_embeddings()(given["input_ids"]).detach().requires_grad_()
        logits = outputs(model, given, "sequence_classification", embeds=embeds)
        views = []
        for number in range(len(CLASSES)):
            (gradient,) = torch.autograd.grad(logits[:, number].sum(), embeds, create_graph=graph, retain_graph=True)
            product = gradient * embeds.detach()
            largest = product.abs().topk(20, dim=-1).values
            views.append(
                [
                    row[kept].pow(2).sum(-1).sqrt()
                    for row, kept in zip(largest, given["attention_mask"].bool(), strict=True)
                ]
            )
        rows = [torch.cat(parts) for parts in zip(*views, strict=True)]
        return [row / row.norm() for row in rows]

    pairs = zip(maps(student, True), maps(teacher, False), strict=True)
    wanted = torch.stack([(own - other.detach()).pow(2).sum() for own, other in pairs]).mean()
    same(found, wanted, student)


def test_mixed_rows_are_the_published_formula(tmp_path: Path) -> None:
    student, teacher, given = model(tmp_path, 1, 2), model(tmp_path, 2), batch()
    spec = MixSpec(student_weight=0.7, teacher_weight=0.3)
    distance = distance_of(ObjectiveSpec(), LogitsSpec(kind="logits_mse", over_classes=True))
    torch.manual_seed(5)
    found = MixedRows(spec, "sequence_classification", distance)(said(student, teacher, given))
    torch.manual_seed(5)
    share = float(torch.distributions.Beta(0.4, 0.4).sample())
    other = torch.randperm(4)

    def mixed(model: Any) -> Tensor:
        table = model.bert.embeddings.word_embeddings.weight
        embeds = share * table[given["input_ids"]] + (1 - share) * table[given["input_ids"][other]]
        mask = ((given["attention_mask"] + given["attention_mask"][other]) > 0).long()
        found: Tensor = model(inputs_embeds=embeds, attention_mask=mask, token_type_ids=given["token_type_ids"]).logits
        return found

    s, t = mixed(student), mixed(teacher).detach()
    log = s.softmax(-1).log()
    labels = given["labels"]
    ce = -(share * log[range(4), labels] + (1 - share) * log[range(4), labels[other]]).mean()
    same(found, 0.7 * ce + 0.3 * (s - t).pow(2).mean(), student)


def test_rows_without_a_label_count_in_no_mixture_of_labels() -> None:
    logits = torch.randn(3, 2)
    labels = torch.tensor([0, -100, 1])
    found = mixed_cross_entropy(logits, labels, torch.tensor([2, 0, 1]), 0.25)  # row 0 with 2 alone has both
    wanted = 0.25 * F.cross_entropy(logits[:1], labels[:1]) + 0.75 * F.cross_entropy(logits[:1], labels[2:])
    torch.testing.assert_close(found, wanted)
    assert float(mixed_cross_entropy(logits, torch.full((3,), -100), torch.tensor([2, 0, 1]), 0.5)) == 0.0


def test_filters_learn_with_the_model_frozen_and_then_match(tmp_path: Path) -> None:
    student, teacher, given = model(tmp_path, 1, 2), model(tmp_path, 2), batch()
    filters = make_filters(teacher, 10, 3, seed=0).double()
    learning = FilterLearning(filters, teacher)
    found = learning(said(teacher, teacher, given, learning))
    learning.close()
    inside = states(teacher, given)[1:]
    wanted = torch.stack(
        [
            F.cross_entropy(head(torch.tanh(pooler(each(state.detach())[:, 0]))), given["labels"])
            for each, pooler, head, state in zip(filters.maps, filters.poolers, filters.heads, inside, strict=True)
        ]
    ).mean()
    same(found, wanted, filters)
    assert all(not gradient.any() for gradient in gradients(found, teacher))

    own, other = make_filters(student, 10, 3, seed=1).double(), make_filters(teacher, 10, 3, seed=2).double()
    term = FilterMatching(2.0, own, other, student, teacher)
    found = term(said(student, teacher, given, term))
    term.close()
    kept = given["attention_mask"].bool()
    h, g = states(student, given), states(teacher, given)
    parts = [
        (own.maps[m - 1](h[m]) - other.maps[n - 1](g[n]).detach())[kept].pow(2).mean() for m, n in ((1, 2), (2, 4))
    ]
    same(found, 2.0 * torch.stack(parts).mean(), student)


@pytest.mark.parametrize("kind", ["softmax_mse", "divergence"])
def test_the_gradient_of_the_quiz_is_that_of_finite_differences(kind: str, tmp_path: Path) -> None:
    """Through the tried step of the student: the teacher's gradient against the quiz loss at moved teachers."""
    student, teacher, given, quiz = model(tmp_path, 1, 2), model(tmp_path, 2, 2), batch(), batch(seed=9)
    spec = ObjectiveSpec.model_validate(
        {
            "divergence": {"weight": 0.5, "temperature": 2.0, "temperature_squared": True},
            "cross_entropy": {"weight": 0.5},
        }
    )
    distance = two_sided(spec, LogitsSpec.model_validate({"kind": kind}))

    def wide(s: Tensor, t: Tensor) -> Tensor:
        """The distance in float64: the differences are small."""
        p, q = ((x / 2).softmax(-1) for x in (t, s))
        return 4 * ((q - p).pow(2).mean(-1) if kind == "softmax_mse" else (p * (p.log() - q.log())).sum(-1))

    torch.testing.assert_close(
        distance(*(x := (torch.randn(3, 3).double(), torch.randn(3, 3).double()))), wide(*x), check_dtype=False
    )

    def loss() -> Tensor:
        return quiz_loss(student, teacher, given, quiz, rate=0.5, distance=wide, weights=(0.5, 0.5))

    weight = teacher.classifier.weight
    (gradient,) = torch.autograd.grad(loss(), [weight])
    assert float(gradient.abs().max()) > 0
    for place in ((0, 3), (2, 7)):
        values = []
        for step in (1e-3, -1e-3):
            with torch.no_grad():
                weight[place] += step
            values.append(float(by_hand(student, teacher, given, quiz, wide)))
            with torch.no_grad():
                weight[place] -= step
        slope = (values[0] - values[1]) / 2e-3
        assert float(gradient[place]) == pytest.approx(slope, rel=2e-2, abs=1e-8)


def by_hand(student: Any, teacher: Any, given: dict[str, Any], quiz: dict[str, Any], distance: Any) -> Tensor:
    """The quiz after a step that is really taken, and taken back."""
    s, t = outputs(student, given, "sequence_classification"), outputs(teacher, given, "sequence_classification")
    inner = 0.5 * distance(s, t.detach()).mean() + 0.5 * F.cross_entropy(s, given["labels"])
    parameters = list(student.parameters())
    slopes = torch.autograd.grad(inner, parameters, allow_unused=True)
    before = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter, slope in zip(parameters, slopes, strict=True):
            if slope is not None:
                parameter -= 0.5 * slope
        logits = outputs(student, quiz, "sequence_classification")
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value)
    return F.cross_entropy(logits, quiz["labels"])


def test_a_distance_without_gradient_for_the_teacher_is_refused() -> None:
    with pytest.raises(RecipeError, match="logits_mse with forward_kl"):
        two_sided(ObjectiveSpec(), LogitsSpec(kind="logits_mse"))


def test_a_quiz_needs_rows_and_leaves_some() -> None:
    import datasets

    rows = datasets.Dataset.from_dict({"a": list(range(10))})
    train, quiz = split_quiz(rows, 0.2, seed=1)
    assert sorted([*train["a"], *quiz["a"]]) == list(range(10))
    assert len(quiz) == 2
    with pytest.raises(RecipeError, match=r"0.01 of 10 rows are 0"):
        split_quiz(rows, 0.01, seed=1)
    assert BilevelSpec().quiz_share == 0.1


@pytest.mark.parametrize("reverse", [False, True])
def test_relations_are_the_published_formula(reverse: bool) -> None:
    torch.manual_seed(0)
    s, t = torch.randn(4, 5, dtype=torch.float64, requires_grad=True), torch.randn(4, 5, dtype=torch.float64)
    found = relation_kl(s, t, 0.1, reverse=reverse)
    total = torch.zeros((), dtype=torch.float64)
    unit = [x / x.norm(dim=-1, keepdim=True) for x in (s, t)]
    for i in range(4):
        others = [j for j in range(4) if j != i]
        mine = torch.stack([unit[0][i] @ unit[1][j] / 0.1 for j in others]).softmax(0)
        theirs = torch.stack([unit[1][i] @ unit[1][j] / 0.1 for j in others]).softmax(0)
        p, q = (mine, theirs) if reverse else (theirs, mine)
        total = total + (p * (p.log() - q.log())).sum() / 4
    torch.testing.assert_close(found.double(), total, rtol=1e-5, atol=1e-7)
    own, wanted = torch.autograd.grad(found, s)[0], torch.autograd.grad(total, s)[0]
    torch.testing.assert_close(own, wanted, rtol=1e-3, atol=1e-6)
    assert float(relation_kl(s[:1], t[:1], 0.1).detach()) == 0.0


def test_contrast_of_labels_is_the_published_formula() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 0, -100, 0, 2])
    found = supervised_contrast(F.normalize(x, dim=-1), labels, 0.1)
    unit, rows = x / x.norm(dim=-1, keepdim=True), [0, 1, 2, 4, 5]
    terms = []
    for i in rows:
        others = [j for j in rows if j != i]
        below = torch.stack([(unit[i] @ unit[j] / 0.1).exp() for j in others]).sum()
        alike = [p for p in others if labels[p] == labels[i]]
        if alike:
            terms.append(-torch.stack([((unit[i] @ unit[p] / 0.1).exp() / below).log() for p in alike]).mean())
    assert len(terms) == 3
    wanted = torch.stack(terms).mean()
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(torch.autograd.grad(found, x)[0], torch.autograd.grad(wanted, x)[0])
    assert float(supervised_contrast(x.detach(), torch.arange(6), 0.1)) == 0.0


def test_the_projection_learns_with_its_teacher_frozen(tmp_path: Path) -> None:
    teacher, given = model(tmp_path, 2), batch()
    projection = Projection(48, 20, seed=0).double()
    term = ContrastLearning(ReaugSpec(), projection, teacher)
    found = term(said(teacher, teacher, given, term))
    term.close()
    z = states(teacher, given)[-1][:, 0].detach() @ projection.map.weight.T
    same(found, supervised_contrast(z / z.norm(dim=-1, keepdim=True), given["labels"], 0.1), projection)
    assert all(not gradient.any() for gradient in gradients(found, teacher))


def test_retrieval_is_a_weighed_mean_of_the_nearest() -> None:
    keys = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), dim=-1)
    memory = Memory(keys, torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]]))
    found = memory(torch.tensor([[2.0, 1.0]]), ReaugSpec(neighbours=2, temperature=0.5))
    scores = torch.tensor([2.0, 1.0]) / 5**0.5 / 0.5
    weights = scores.softmax(0)
    torch.testing.assert_close(
        found[0], weights[0] * memory.probabilities_MC[0] + weights[1] * memory.probabilities_MC[1]
    )


def test_the_student_is_compared_as_it_is_with_the_projected_teacher(tmp_path: Path) -> None:
    student, teacher, given = model(tmp_path, 1, 2), model(tmp_path, 2), batch()
    projection = Projection(48, 48, seed=0).double()
    term = Relations(ReaugSpec(relation_weight=2.0), projection, student, teacher)
    assert term.modules is None  # the projection is frozen
    found = term(said(student, teacher, given, term))
    term.close()
    h, g = states(student, given)[-1][:, 0], states(teacher, given)[-1][:, 0] @ projection.map.weight.T
    same(found, 2.0 * relation_kl(h, g, 0.1, reverse=True), student)


def test_similarities_leave_a_text_itself_out() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    found = similarities(x)
    assert found.shape == (3, 2)
    torch.testing.assert_close(found[0], torch.tensor([0.0, 0.5**0.5]) / 0.05)
