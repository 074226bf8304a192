"""Tiny random models of every kind that is tapped; they know nothing and are made in milliseconds."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from typing import Any
from unittest.mock import MagicMock, patch

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    ViTConfig,
    ViTModel,
)

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
TORCHVISION = (
    "torchvision",
    "torchvision.datasets",
    "torchvision.ops",
    "torchvision.ops.misc",
    "torchvision.transforms",
    "torchvision.transforms.functional",
    "torchvision.models",
    "torchvision.models.feature_extraction",
)
BERT: dict[str, Any] = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}


def llama(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, "tie_word_embeddings": True, **changes})).eval()


def timm_vit() -> nn.Module:
    """timm's models are torch alone, but importing any of them imports its data sets, and those torchvision."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip("needs timm")
    absent = {} if importlib.util.find_spec("torchvision") else {name: MagicMock() for name in TORCHVISION}
    with patch.dict(sys.modules, absent):
        module = importlib.import_module("timm.models.vision_transformer")
    made = module.VisionTransformer(img_size=8, patch_size=4, embed_dim=16, depth=3, num_heads=4, num_classes=0)
    return made.eval()


def vit() -> nn.Module:
    config = ViTConfig(
        image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=3, num_attention_heads=4, intermediate_size=24
    )
    return ViTModel(config, add_pooling_layer=False).eval()


def distilbert() -> nn.Module:
    config = DistilBertConfig(vocab_size=64, dim=16, hidden_dim=24, n_layers=3, n_heads=4, max_position_embeddings=64)
    return DistilBertModel(config).eval()


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=3, n_head=4, n_positions=64)).eval()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": llama,
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=4)).eval(),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=4)).eval(),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, head_dim=4)).eval(),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**SIZES, pad_token_id=0)).eval(),
    "gpt2": gpt2,
    "bert": lambda: BertModel(BertConfig(**BERT)).eval(),
    "distilbert": distilbert,
    "vit": vit,
    "timm": timm_vit,
}


def inputs_of(name: str, model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a model is called with: two texts of five tokens, one of them with padding, or two images."""
    generator = torch.Generator().manual_seed(1)
    if name in ("vit", "timm"):
        images = torch.randn(2, 3, 8, 8, generator=generator)
        return ((images,), {}) if name == "timm" else ((), {"pixel_values": images})
    ids = torch.randint(1, 64, (2, 5), generator=generator)
    return (), {"input_ids": ids, "attention_mask": torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])}
