"""What hints are given and cannot use: rows of which nothing counts, and attention that never makes maps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import BERT, llama
from torch import Tensor
from transformers import BertConfig, BertModel

from lmdistill.objectives.hints import HINTS
from lmdistill.recipe import HintSpec
from lmdistill.training.hints import HintSet
from lmdistill.training.positions import Positions, decoder_positions, encoder_positions
from lmdistill.training.taps import Place, Taps

IDS = torch.randint(1, 64, (2, 7), generator=torch.Generator().manual_seed(0))
KINDS = [kind for kind in HINTS if kind != "attribution"]


def spec_of(kind: str) -> HintSpec:
    value: dict[str, Any] = {"kind": kind}
    if HINTS[kind].takes == "flow":
        value["student"], value["teacher"] = [1, 2], [1, 2]
    return HintSpec.model_validate(value)


def taken(kind: str, models: tuple[Any, Any], inputs: dict[str, Tensor], positions: Positions) -> Tensor:
    """The value of a hint, and its gradient by the student, which must be finite."""
    student, teacher = models
    hints = HintSet([spec_of(kind)], student=student, teacher=teacher, inputs={"input_ids": IDS[:1, :2]})
    student.zero_grad()
    with hints.listening():
        with torch.no_grad():
            teacher(**inputs)
        student(**inputs)
    value = hints.values(positions)[kind]
    value.backward()
    hints.close()
    assert all(bool(p.grad.isfinite().all()) for p in student.parameters() if p.grad is not None)
    return value.detach()


def other_llama() -> Any:
    torch.manual_seed(5)
    model = llama()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_which_nothing_counts_is_as_if_it_were_not_there(kind: str) -> None:
    models = llama(), other_llama()
    inputs = {"input_ids": IDS, "position_ids": torch.arange(7).expand(2, -1)}
    labels = IDS.clone()
    labels[1] = -100
    both = taken(kind, models, inputs, decoder_positions({**inputs, "labels": labels}))
    first = {name: value[:1] for name, value in inputs.items()}
    alone = taken(kind, models, first, decoder_positions({**first, "labels": labels[:1]}))
    torch.testing.assert_close(both, alone)
    assert float(both) > 0
    nothing = taken(kind, models, inputs, decoder_positions({**inputs, "labels": torch.full_like(labels, -100)}))
    assert float(nothing) == 0.0
    assert all(not p.grad.any() for p in models[0].parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if HINTS[kind].takes != "logits"])
def test_a_text_of_padding_alone(kind: str) -> None:
    """An encoder that reads a row of which every token is masked: what it makes there is of no account."""
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(BertModel(BertConfig(**BERT), add_pooling_layer=False).eval())
    mask = torch.ones_like(IDS)
    mask[1] = 0
    inputs = {"input_ids": IDS, "attention_mask": mask}
    both = taken(kind, (models[0], models[1]), inputs, encoder_positions(mask))
    first = {name: value[:1] for name, value in inputs.items()}
    alone = taken(kind, (models[0], models[1]), first, encoder_positions(mask[:1]))
    torch.testing.assert_close(both, alone, rtol=1e-4, atol=1e-6)


def test_attention_that_makes_no_maps_is_switched_and_says_what_that_costs() -> None:
    model, told = llama(), []
    assert model.config._attn_implementation == "sdpa"
    with torch.no_grad():
        before = model(IDS).logits
    taps = Taps(model, [Place("scores", 2), Place("hidden", 1)], told.append)
    assert told == [
        "sdpa attention makes no maps: layers 2 of LlamaForCausalLM compute theirs in full (4 x length² scores a text, "
        "4 MiB at 512 tokens in float32, kept for the backward pass while training); the other layers use sdpa"
    ]
    with torch.no_grad(), taps.capture():
        torch.testing.assert_close(model(IDS).logits, before)
    scores = taps.take(Place("scores", 2))
    assert scores.shape == (2, 4, 7, 7)
    assert bool((scores[0, 0].softmax(-1).triu(1) == 0).all())
    taps.close()
    assert model.config._attn_implementation == "sdpa"
    quiet: list[str] = []  # what makes maps anyway costs nothing more
    Taps(llama(attn_implementation="eager"), [Place("scores", 2)], quiet.append).close()
    Taps(model, [Place("value", 2)], quiet.append).close()
    assert not quiet
