"""Weights of 8 bits: what they are off by, and that the model computes with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from lmdistill.errors import ModelError
from lmdistill.export import load_int8, save_int8
from lmdistill.export.int8 import Int8Linear, quantize_rows
from lmdistill.models import load_model, load_tokenizer, save_model
from lmdistill.recipe import ModelSpec

CPU = torch.device("cpu")


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 10_000), st.floats(1e-6, 1e6))
@settings(max_examples=40, deadline=None)
def test_no_weight_is_off_by_more_than_half_a_step(rows: int, columns: int, seed: int, size: float) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size
    weight[0] = 0
    numbers, scale = quantize_rows(weight)
    error = (numbers.double() * scale.double()[:, None] - weight.double()).abs()
    assert bool((error <= scale.double()[:, None] * (0.5 + 1e-4)).all())
    assert numbers.dtype == torch.int8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 20])
def test_the_layer_is_its_definition_in_float64(dtype: torch.dtype, rows: int) -> None:
    torch.manual_seed(rows)
    plain = nn.Linear(64, 48).requires_grad_(False)
    numbers, scale = quantize_rows(plain.weight)
    layer = Int8Linear(numbers, scale, plain.bias)
    x = torch.randn(2, rows, 64).to(dtype)
    with torch.no_grad():
        found = layer(x)
    wanted = x.double() @ (numbers.double() * scale.double()[:, None]).T + plain.bias.double()
    assert found.dtype == dtype
    bound = 1e-5 if dtype == torch.float32 else 3e-2
    assert float((found.double() - wanted).abs().max()) < bound * float(wanted.abs().max())


def test_a_saved_model_says_what_its_definition_says_and_is_half_as_large(
    tiny_llama_folder: Path, tmp_path: Path
) -> None:
    model = load_model(ModelSpec(model=str(tiny_llama_folder)), dtype=torch.float32, device=CPU)
    tokenizer = load_tokenizer(ModelSpec(model=str(tiny_llama_folder)))
    save_int8(model.to(torch.bfloat16), tokenizer, tmp_path / "q")
    found = load_int8(tmp_path / "q")
    by_hand = load_model(ModelSpec(model=str(tiny_llama_folder)), dtype=torch.float32, device=CPU)
    with torch.no_grad():
        for parameter in by_hand.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
            if parameter.ndim == 2:
                numbers, scale = quantize_rows(parameter)
                parameter.copy_(numbers * scale[:, None])
        ids = torch.arange(40).reshape(2, 20)
        assert torch.allclose(found(ids).logits, by_hand(ids).logits, atol=1e-5)
    size = (tmp_path / "q" / "int8.safetensors").stat().st_size
    save_model(model, tokenizer, tmp_path / "bf16")
    assert 0.5 < size / (tmp_path / "bf16" / "model.safetensors").stat().st_size < 0.6
    assert found.get_output_embeddings().numbers_OI is found.get_input_embeddings().numbers_VH
    assert not (tmp_path / "q" / "config.json").exists()  # transformers would fill what it does not know with noise
    assert found.generate(ids, max_new_tokens=3).shape == (2, 23)
    assert load_int8(tmp_path / "q", dtype=torch.bfloat16)(ids).logits.dtype == torch.bfloat16


def test_transposed_matrices_of_gpt2(tiny_llama_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=99, n_embd=16, n_layer=1, n_head=2, n_positions=32)).eval()
    save_int8(model, load_tokenizer(ModelSpec(model=str(tiny_llama_folder))), tmp_path / "q")
    ids = torch.arange(9)[None]
    with torch.no_grad():
        difference = (load_int8(tmp_path / "q")(ids).logits - model(ids).logits).abs().max()
    assert 0 < float(difference) < 0.02


def test_what_is_no_export_is_refused(tiny_llama_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no int8 export"):
        load_int8(tiny_llama_folder)
    model = load_model(ModelSpec(model=str(tiny_llama_folder)), dtype=torch.float32, device=CPU)
    save_int8(model, load_tokenizer(ModelSpec(model=str(tiny_llama_folder))), tmp_path / "q")
    description = tmp_path / "q" / "int8.json"
    text = description.read_text()
    description.write_text(text.replace('"version": 1', '"version": 7'))
    with pytest.raises(ModelError, match="not of version 1"):
        load_int8(tmp_path / "q")
    description.write_text(text.replace("model.layers.0.mlp.up_proj", "model.layers.9.mlp.up_proj"))
    with pytest.raises(ModelError, match="do not fit its configuration"):
        load_int8(tmp_path / "q")
