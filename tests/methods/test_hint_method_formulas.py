"""Whole objectives of methods for encoders, as their defaults compose them, against float64 formulas, by loss and
gradient. Stages that change over training are in test_hint_schedule_formulas.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hint_formula import (
    CLASSES,
    Scene,
    attention_divergence,
    encoder,
    relation_of,
    scores_distance,
    state_distance,
)
from safetensors.torch import save_file
from torch import Tensor

from lmdistill.recipe.task import BiLstmSpec
from lmdistill.tasks import students
from lmdistill.tasks.filters import make_filters
from lmdistill.tasks.retrieval import Projection


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("formulas")


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def test_pkd(folder: Path) -> None:
    scene = Scene("pkd", folder)
    h, g = (scene.states(model) for model in (scene.student, scene.teacher))
    apart = unit(h[1][:, 0]) - unit(g[2][:, 0]).detach()  # skip: layer 1 of 2 learns layer 2 of 4; the last has none
    patience = (apart.pow(2).sum(-1) / 48).mean()
    scene.is_by_definition(0.5 * scene.cross_entropy() + 0.5 * 25 * scene.kl(5.0) + 100 * patience)


def test_distilbert(folder: Path) -> None:
    scene = Scene("distilbert_mlm", folder)
    h, g = scene.states(scene.student)[2], scene.states(scene.teacher)[4].detach()
    cosine = scene.mean(lambda row, place: 1 - unit(h[row, place]) @ unit(g[row, place]))
    scene.is_by_definition(5 * 4 * scene.kl(2.0) + 2 * scene.cross_entropy() + cosine)


def test_distilbilstm(folder: Path) -> None:
    teacher = encoder(folder, 2, 4, "sequence_classification")
    student, _ = students.bilstm(BiLstmSpec(hidden=8, projection=6), teacher, CLASSES, seed=0)
    scene = Scene("distilbilstm", folder, student=student.eval())  # packed sequences are float32
    s, t = scene.logits()
    scene.is_by_definition((s - t).pow(2).sum(-1).mean())


def inside_of_tinybert(scene: Scene) -> Tensor:
    """MSE of scores and states of layers 1 and 2 with 2 and 4, summed, and of embeddings; one matrix for all states."""
    h, g = (scene.states(model) for model in (scene.student, scene.teacher))
    states, embeddings = (scene.hints.projectors[name] for name in ("hidden_mse", "embedding_mse/0"))
    total = state_distance(scene, embeddings(h[0]), g[0])
    for mine, theirs in ((1, 2), (2, 4)):
        total = total + state_distance(scene, states(h[mine]), g[theirs])
        total = total + scores_distance(scene, scene.scores(scene.student, mine), scene.scores(scene.teacher, theirs))
    return total


@pytest.mark.parametrize("stage", [0, 1])
def test_tinyberts_first_stages(stage: int, folder: Path) -> None:
    scene = Scene("tinybert", folder, stage)
    assert scene.kind == ("masked_lm", "sequence_classification")[stage]
    scene.is_by_definition(inside_of_tinybert(scene))


def test_tinyberts_last_stage(folder: Path) -> None:
    scene = Scene("tinybert", folder, 2)
    s, t = scene.logits()
    scene.is_by_definition(-(t.softmax(-1) * s.softmax(-1).log()).mean())  # over classes too, as released


def test_minilm(folder: Path) -> None:
    """Attention and value relation of the last layer alone, on text without labels; then the task."""
    scene = Scene("minilm", folder)
    own, other = ((scene.scores(m, n), scene.parts(m, n)[2]) for m, n in ((scene.student, 2), (scene.teacher, 4)))
    wanted = attention_divergence(scene, own[0], other[0]) + relation_of(scene, own[1], other[1], 4)
    turned = attention_divergence(scene, other[0], own[0]) + relation_of(scene, other[1], own[1], 4)
    assert abs(float(wanted.detach()) - float(turned.detach())) > 1e-3 * float(wanted.detach())
    scene.is_by_definition(wanted)
    last = Scene("minilm", folder, 1)
    last.is_by_definition(last.cross_entropy())


def test_minilmv2(folder: Path) -> None:
    """Relations of queries, keys and values of the last layer, 48 relation heads whatever the attention's are."""
    scene = Scene("minilmv2", folder)
    pairs = zip(scene.parts(scene.student, 2), scene.parts(scene.teacher, 4), strict=True)
    scene.is_by_definition(sum((relation_of(scene, own, other, 48) for own, other in pairs), torch.zeros(()).double()))


def test_minilmv2_of_a_chosen_layer(folder: Path) -> None:
    """The last but one of a large teacher, in fewer relation heads."""
    hints = [
        {"kind": f"{part}_relation", "student": [-1], "teacher": [3], "positions": "all"}
        for part in ("query", "key", "value")
    ]
    hints = [{**hint, "parameters": {"relation_heads": 6}} for hint in hints]
    scene = Scene("minilmv2", folder, changes={"objective": {"hints": hints}})
    pairs = zip(scene.parts(scene.student, 2), scene.parts(scene.teacher, 3), strict=True)
    scene.is_by_definition(sum((relation_of(scene, own, other, 6) for own, other in pairs), torch.zeros(()).double()))


def test_ted(folder: Path) -> None:
    """The second stage: filtered states of layers 1 and 2 with 2 and 4, beside labels and predictions."""
    kept = {}
    for name, seed, layers in (("student", 5, 2), ("teacher", 6, 4)):
        kept[name] = make_filters(encoder(folder, 1, layers, "sequence_classification"), 10, 3, seed).double()
        save_file(kept[name].state_dict(), folder / f"filters-{name}.safetensors")
    scene = Scene("ted", folder, changes={"task": {"filters": {"width": 10}}})
    own: Any = scene.beside[0]  # the student's maps, moved since
    h, g = (scene.states(model) for model in (scene.student, scene.teacher))
    apart = [state_distance(scene, own[m - 1](h[m]), kept["teacher"].maps[n - 1](g[n])) for m, n in ((1, 2), (2, 4))]
    scene.is_by_definition(scene.cross_entropy() + 20 * scene.kl() + 20 * torch.stack(apart).mean())


def attributions(scene: Scene, model: Any) -> list[Tensor]:
    """Gradient times embedding of each class's logit, its length by token, all classes of a row of length 1."""
    embeds = model.get_input_embeddings()(scene.batch["input_ids"]).detach().requires_grad_()
    inputs = {name: value for name, value in scene.inputs().items() if name != "input_ids"}
    logits = model(inputs_embeds=embeds, **inputs).logits
    views = []
    for number in range(len(CLASSES)):
        (slope,) = torch.autograd.grad(logits[:, number].sum(), embeds, create_graph=True)
        views.append(slope * embeds.detach())
    return [unit(torch.cat([view[row][scene.real[row]].norm(dim=-1) for view in views])) for row in range(4)]


def test_ad_kd(folder: Path) -> None:
    scene = Scene("ad_kd", folder)
    pairs = zip(attributions(scene, scene.student), attributions(scene, scene.teacher), strict=True)
    term = torch.stack([(own - other.detach()).pow(2).sum() for own, other in pairs]).mean()
    scene.is_by_definition(0.1 * scene.cross_entropy() + 0.9 * 16 * scene.kl(4.0) + term)


def test_metadistil(folder: Path) -> None:
    """The student's own step; the teacher's is in tests/tasks/test_terms.py."""
    scene = Scene("metadistil", folder)
    q, p = ((x / 5).softmax(-1) for x in scene.logits())
    scene.is_by_definition(0.5 * scene.cross_entropy() + 0.5 * 25 * (p - q).pow(2).mean())


def test_metadistil_with_kl(folder: Path) -> None:
    scene = Scene("metadistil", folder, changes={"task": {"logits": {"kind": "divergence"}}})
    scene.is_by_definition(0.5 * scene.cross_entropy() + 0.5 * 25 * scene.kl(5.0))


def test_reaugkd(folder: Path) -> None:
    projection = Projection(48, 48, seed=4).double()
    save_file(projection.state_dict(), folder / "retrieval-projection.safetensors")
    encoder(folder, 1, 2, "sequence_classification").save_pretrained(folder / "student-initial")
    scene = Scene("reaugkd", folder)
    term: Any = scene.extras[0]
    term.projection.double()
    s = unit(scene.states(scene.student)[2][:, 0])
    z = unit(scene.states(scene.teacher)[4][:, 0].detach() @ projection.map.weight.detach().T)
    rows = []
    for i in range(4):
        others = [j for j in range(4) if j != i]
        own, taught = (torch.stack([x[i] @ z[j] / 0.1 for j in others]).softmax(0) for x in (s, z))
        rows.append((own * (own.log() - taught.log())).sum())
    scene.is_by_definition(scene.cross_entropy() + scene.kl() + torch.stack(rows).mean())


def test_mixkd(folder: Path) -> None:
    scene = Scene("mixkd", folder)
    s, t = scene.logits()
    wanted = scene.cross_entropy() + (s - t).pow(2).mean()
    torch.manual_seed(5)
    share = float(torch.distributions.Beta(0.4, 0.4).sample())
    other = torch.randperm(4)

    def mixed(model: Any) -> Tensor:
        table, ids = model.get_input_embeddings().weight, scene.batch["input_ids"]
        mask = ((scene.batch["attention_mask"] + scene.batch["attention_mask"][other]) > 0).long()
        embeds = share * table[ids] + (1 - share) * table[ids[other]]
        found: Tensor = model(inputs_embeds=embeds, attention_mask=mask).logits
        return found

    s, t, labels = mixed(scene.student), mixed(scene.teacher).detach(), scene.labels()
    logs = s.softmax(-1).log()
    both = share * logs[range(4), labels] + (1 - share) * logs[range(4), labels[other]]
    wanted = wanted - both.mean() + (s - t).pow(2).mean()
    torch.manual_seed(5)
    scene.is_by_definition(wanted)


def test_pd(folder: Path) -> None:
    """Masked tokens, the teacher's predictions, labels: one after the other."""
    for stage, kind in enumerate(("masked_lm", "sequence_classification", "sequence_classification")):
        scene = Scene("pd_encoder", folder, stage)
        assert scene.kind == kind
        s, t = scene.logits()
        soft = -(t.softmax(-1) * F.log_softmax(s, -1)).sum(-1).mean()
        scene.is_by_definition(soft if stage == 1 else scene.cross_entropy())


def test_textbrewer(folder: Path) -> None:
    scene = Scene("textbrewer", folder)
    s, t = scene.logits()
    wanted = -64 * ((t / 8).softmax(-1) * (s / 8).softmax(-1).log()).sum(-1).mean()
    h, g = (scene.states(model) for model in (scene.student, scene.teacher))
    for number, (mine, theirs) in enumerate(((1, 2), (2, 4))):
        projected = scene.hints.projectors[f"hidden_mse/{number}"](h[mine])
        wanted = wanted + state_distance(scene, projected, g[theirs]) / 2
        rows = []
        for row in range(4):
            x, y = h[mine][row][scene.real[row]], g[theirs][row][scene.real[row]].detach()
            rows.append((x @ x.T / 48 - y @ y.T / 48).pow(2).mean())
        wanted = wanted + torch.stack(rows).mean() / 2
    scene.is_by_definition(wanted)
