"""Methods for encoders whose objective or student changes over training: which part is trained by which loss at which
time, against float64 formulas."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hint_formula import Scene, encoder, noisy, scores_distance, state_distance
from torch import Tensor

from lmdistill.recipe.task import BottleneckSpec
from lmdistill.tasks import students
from lmdistill.training.pruning import PruneWhile
from lmdistill.training.unfreezing import Unfreezing


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("schedules")


def parts(names: set[str]) -> set[str]:
    """`embeddings`, `1` for the first block and so on, `head` for what lies behind the last."""
    found = set()
    for name in names:
        block = re.search(r"encoder\.layer\.(\d+)\.", name)
        found.add(str(int(block[1]) + 1) if block else "embeddings" if ".embeddings." in name else "head")
    return found


def mobilebert(folder: Path, **more: Any) -> Scene:
    """A student of four thin blocks that read and write the teacher's width."""
    teacher = encoder(folder, 2, 4, "masked_lm")
    spec = BottleneckSpec(width=16, embedding=16, feed_forwards=2)
    student, _ = students.bottleneck(spec, teacher.config, "masked_lm", [], seed=0)
    return Scene("mobilebert", folder, student=noisy(student.double().eval(), 1), **more)


def test_mobilebert_transfers_layer_after_layer(folder: Path) -> None:
    """While it is layer m's turn the loss is MSE of its feature maps and KL of its attention, and it alone is trained;
    embeddings with the first."""
    scene = mobilebert(folder)
    assert scene.spec.unfreeze is not None
    turns = Unfreezing(scene.spec.unfreeze, scene.student, lambda: 0.0, scene.hints)
    for progress, layer in ((0.0, 1), (0.24, 1), (0.25, 2), (0.5, 3), (0.75, 4), (0.999, 4)):
        turns.apply(progress)
        read = scene.student.base_model(**scene.inputs(), output_hidden_states=True, output_attentions=True)
        teacher = scene.states(scene.teacher)[layer]
        p = scene.scores(scene.teacher, layer).detach().masked_fill(~scene.real[:, None, None], -torch.inf).softmax(-1)
        q = read.attentions[layer - 1]

        def divergence(row: int, query: int, p: Tensor = p, q: Tensor = q) -> Tensor:
            seen = scene.real[row]
            one, other = p[row, :, query][:, seen], q[row, :, query][:, seen]
            return (one * (one.log() - other.log())).sum(-1).mean()

        wanted = state_distance(scene, read.hidden_states[layer], teacher) + scene.mean(divergence)
        reached = scene.is_by_definition(wanted, more=True)
        assert parts(reached) == ({"embeddings", "1"} if layer == 1 else {str(layer)})
    turns.apply(1.0)  # behind the last turn all are compared, and all are trained
    assert scene.hints.current is None
    assert parts(scene.is_by_definition(scene.loss())) == {"embeddings", "1", "2", "3", "4"}


def test_mobileberts_later_stages(folder: Path) -> None:
    scene = mobilebert(folder, stage=1)
    scene.is_by_definition(0.5 * scene.cross_entropy() + 0.5 * scene.kl())
    last = Scene("mobilebert", folder, 2)
    assert last.kind == "sequence_classification"
    last.is_by_definition(last.cross_entropy())


def test_xtremedistil_begins_with_representations(folder: Path) -> None:
    """The last states through a GELU network, on any text; all of the encoder is trained, the head has no loss."""
    scene = Scene("xtremedistil", folder)
    assert scene.spec.unfreeze is None
    projector = scene.hints.projectors["hidden_mse/0"]
    first, second = (projector[place] for place in (0, 2))
    h, g = scene.states(scene.student)[2], scene.states(scene.teacher)[4]
    inner = h @ first.weight.T + first.bias
    gelu = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
    reached = scene.is_by_definition(state_distance(scene, gelu @ second.weight.T + second.bias, g))
    assert parts(reached) == {"embeddings", "1", "2"}


@pytest.mark.parametrize("stage", [1, 2])
def test_xtremedistil_thaws_from_the_top(stage: int, folder: Path) -> None:
    """Logits, then labels; in each of both first the head and the last layer, then one more, then all."""
    scene = Scene("xtremedistil", folder, stage)
    assert scene.spec.unfreeze is not None
    turns = Unfreezing(scene.spec.unfreeze, scene.student, lambda: 0.0)
    everything = {"embeddings", "1", "2", "head"}
    for progress, trained in ((0.0, {"2", "head"}), (0.24, {"2", "head"}), (0.25, everything), (0.6, everything)):
        turns.apply(progress)
        s, t = scene.logits()
        wanted = (s - t).pow(2).mean() if stage == 1 else scene.cross_entropy()
        assert parts(scene.is_by_definition(wanted, more=True)) == trained


def homodistil(folder: Path) -> tuple[Scene, PruneWhile]:
    scene = Scene("homodistil", folder, layers=4)
    assert scene.spec.pruning is not None
    spec = scene.spec.pruning.model_copy(update={"intermediate": 32, "heads": 2, "hidden": 24})
    return scene, PruneWhile(spec, scene.student, lambda: 0.0)


def test_homodistils_objective(folder: Path) -> None:
    """Masked tokens, predictions, states through a matrix and attention scores of all layers, each a mean."""
    scene = Scene("homodistil", folder, layers=4)
    h, g = (scene.states(model) for model in (scene.student, scene.teacher))
    wanted = scene.cross_entropy() + scene.kl()
    for layer in range(1, 5):
        own, other = (scene.scores(model, layer) for model in (scene.student, scene.teacher))
        projected = scene.hints.projectors[f"hidden_mse/{layer - 1}"](h[layer])
        wanted = wanted + (state_distance(scene, projected, g[layer]) + scores_distance(scene, own, other)) / 4
    scene.is_by_definition(wanted)
    last = Scene("homodistil", folder, 1)
    last.is_by_definition(last.cross_entropy())


def test_homodistils_importance_and_schedule(folder: Path) -> None:
    """|sum of w dL/dw| over a unit, a moving average over steps; numbers fall on a cubic curve until 0.7."""
    scene, pruning = homodistil(folder)
    spec, arguments = pruning.spec, Any
    assert (spec.start, spec.end, spec.average) == (0.0, 0.7, 0.85)
    block = scene.student.bert.encoder.layer[1]
    table = scene.student.bert.embeddings.word_embeddings.weight
    wanted = torch.zeros(3, dtype=torch.float64)
    for _ in range(2):
        scene.student.zero_grad()
        scene.loss().backward()
        pruning.on_pre_optimizer_step(arguments, arguments, arguments)  # type: ignore[arg-type]

        def change(weight: Any, *rows: Any) -> Tensor:
            return (weight.detach()[rows] * weight.grad[rows]).sum()

        every, head = slice(None), slice(24, 36)  # the third of four heads of 12
        neuron = change(block.intermediate.dense.weight, 7) + change(block.intermediate.dense.bias, 7)
        neuron = neuron + change(block.output.dense.weight, every, 7)
        own = block.attention.self
        third = sum(change(part.weight, head) + change(part.bias, head) for part in (own.query, own.key, own.value))
        third = third + change(block.attention.output.dense.weight, every, head)
        channel = torch.zeros(()).double()
        for name, parameter in scene.student.named_parameters():
            for place, size in enumerate(parameter.shape):
                # What is 48 wide is the hidden width, but for the outputs of queries, keys and values.
                inner = place == 1 if "attention.output.dense.weight" in name else place == 0 and ".self." in name
                if size == 48 and not inner:
                    channel = channel + change(parameter, *([every] * place), 5)
        now = torch.stack([neuron, third, channel]).abs()
        wanted = 0.85 * wanted + 0.15 * now
        with torch.no_grad():
            table += 0.01  # the second step is another one
    places = [1, 5, 8]  # units: neurons of four blocks, heads of four blocks, channels
    assert [pruning.units[place].kind for place in places] == ["neurons", "heads", "hidden"]
    found = torch.stack([pruning.scores[1][7], pruning.scores[5][2], pruning.scores[8][5]]).double()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-9)

    for progress in (0.0, 0.1, 0.35, 0.69, 0.7, 1.0):
        pruning.prune(progress)
        for units, alive, left in zip(pruning.units, pruning.alive, pruning.left, strict=True):
            share = max(0.0, 1 - progress / 0.7) ** 3
            assert int(alive.sum()) == round(left + (units.size - left) * share)
    kept = pruning.scores[8][pruning.alive[8]].min()
    assert bool((pruning.scores[8][~pruning.alive[8]] <= kept).all())
