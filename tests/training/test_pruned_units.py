"""Heads and channels that go while the student learns, beside neurons: importance, masks, and the smaller model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import BERT, MODELS, llama
from transformers import BertConfig, BertForMaskedLM

from lmdistill.errors import ModelError, RecipeError
from lmdistill.recipe import PruneWhileSpec
from lmdistill.training.pruning import PruneWhile
from lmdistill.training.units import Units, units_of

IDS = torch.randint(1, 64, (2, 6), generator=torch.Generator().manual_seed(3))


def bert() -> Any:
    torch.manual_seed(0)
    return BertForMaskedLM(BertConfig(**BERT, initializer_range=0.3)).eval()


KINDS: dict[str, tuple[Any, dict[str, int]]] = {
    "bert": (bert, {"intermediate": 9, "heads": 2, "hidden": 8}),
    "llama": (lambda: llama(initializer_range=0.3), {"intermediate": 9, "heads": 2, "hidden": 10}),
    "llama heads alone": (lambda: llama(tie_word_embeddings=False), {"heads": 2}),
    "qwen3": (MODELS["qwen3"], {"heads": 2, "hidden": 12}),
    "gpt2": (MODELS["gpt2"], {"intermediate": 20, "heads": 3, "hidden": 12}),
}


def randomised(model: Any) -> Any:
    """Norms and biases that are neither 1 nor 0, so that a wrong slice shows."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("name", KINDS)
def test_the_smaller_model_says_what_the_masked_one_said(name: str, tmp_path: Path) -> None:
    make, sizes = KINDS[name]
    model = randomised(make())
    with torch.no_grad():
        whole = model(IDS).logits
    pruning = PruneWhile(PruneWhileSpec(**sizes), model, lambda: 1.0)
    generator = torch.Generator().manual_seed(0)
    for scores in pruning.scores:
        scores.copy_(torch.rand(len(scores), generator=generator))
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, whole)  # nothing is gone yet
        pruning.prune(1.0)
        pruning._mask()
        before = model(IDS).logits
        assert not torch.allclose(before, whole, atol=1e-3)
        pruning.shrink(model)
        torch.testing.assert_close(model(IDS).logits, before, rtol=1e-4, atol=1e-5)
    config = model.config
    found = {"hidden": config.hidden_size, "heads": config.num_attention_heads}
    assert found == {key: sizes.get(key, getattr(make().config, field)) for key, field in SIZES.items()}
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(IDS).logits, before, rtol=1e-4, atol=1e-5)


SIZES = {"hidden": "hidden_size", "heads": "num_attention_heads"}


def slope(model: Any, units: Units, number: int) -> float:
    """By how much the loss falls to first order when a unit goes: the difference quotient over scaling it."""
    parameters = dict(model.named_parameters())
    values = []
    for step in (1e-2, -1e-2):  # not less: a Llama's norms count in float32
        factors = torch.ones(units.size, dtype=torch.float64)
        factors[number] += step
        before = {part.path: parameters[part.path].detach().clone() for part in units.slices}
        with torch.no_grad():
            for part in units.slices:
                shape = [1] * parameters[part.path].ndim
                shape[part.axis] = -1
                parameters[part.path].mul_(part.spread(factors).view(shape))
            values.append(float(model(IDS).logits.square().mean()))
            for path, value in before.items():
                parameters[path].copy_(value)
    return (values[0] - values[1]) / 2e-2


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
def test_importance_is_what_the_loss_would_change_by(name: str) -> None:
    """|sum of w dL/dw| of neurons, heads and channels against difference quotients of the loss, in float64."""
    make, sizes = KINDS[name]
    model = randomised(make()).double()
    pruning = PruneWhile(PruneWhileSpec(**sizes, average=0.0), model, lambda: 0.0)
    model(IDS).logits.square().mean().backward()
    arguments: Any = None
    pruning.on_pre_optimizer_step(arguments, arguments, arguments)
    seen = set()
    for units, scores in zip(pruning.units, pruning.scores, strict=True):
        if units.kind not in seen:  # one block of each kind
            seen.add(units.kind)
            for number in (0, units.size - 1):
                assert float(scores[number]) == pytest.approx(abs(slope(model, units, number)), rel=1e-2, abs=1e-4)
    assert seen == {"neurons", "heads", "hidden"}


def test_every_weight_of_a_model_is_of_some_unit() -> None:
    """With heads, neurons and channels all matrices shrink, in both directions or by their words."""
    model = bert()
    spec = PruneWhileSpec(intermediate=9, heads=2, hidden=8)
    covered: dict[str, set[int]] = {}
    for units, _ in units_of(model, spec):
        for part in units.slices:
            covered.setdefault(part.path, set()).add(part.axis)
    for path, parameter in model.named_parameters():
        if path.startswith("bert.encoder"):
            assert covered[path] == set(range(parameter.ndim)), path


@pytest.mark.parametrize(
    ("make", "sizes", "told"),
    [
        (bert, {"heads": 2}, r"2 heads of 4 are 8 numbers, but hidden = 16.*set heads: 4 and hidden: 16"),
        (bert, {"hidden": 8}, r"4 heads of 4 are 16 numbers, but hidden = 8.*set heads: 2 and hidden: 8"),
        (bert, {"heads": 9, "hidden": 36}, r"pruning\.heads = 9, but the student has 4"),
        (llama, {"heads": 3}, r"pruning\.heads = 3: whole groups of 2"),
        (llama, {"hidden": 99}, r"pruning\.hidden = 99, but it has 16"),
        (MODELS["gemma2"], {"hidden": 8}, "a Gemma multiplies its embeddings"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(make: Any, sizes: dict[str, int], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        PruneWhile(PruneWhileSpec(**sizes), make(), lambda: 0.0)


def test_models_without_known_heads_are_refused() -> None:
    for name in ("vit", "distilbert"):
        with pytest.raises(ModelError, match=r"pruning\.heads and pruning\.hidden do not know"):
            PruneWhile(PruneWhileSpec(heads=2, hidden=8), MODELS[name](), lambda: 0.0)
    with pytest.raises(ValueError, match="pruning takes nothing away"):
        PruneWhileSpec()
