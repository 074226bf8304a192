"""Where each architecture family keeps what pruning cuts: a table of parameter names and the meaning of their axes.

Llama-type (Llama, Mistral, SmolLM), Qwen-type (Qwen2, Qwen3) and Gemma-type (Gemma 2 and 3) models share one table;
GPT-2 has its own, with transposed and fused matrices.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from lmdistill.errors import ModelError

Axis = Literal["vocabulary", "hidden", "neurons", "query", "key_value", "fused_qkv", "whole"]

_SEPARATE: tuple[tuple[str, tuple[Axis, ...]], ...] = (
    (r"embed_tokens\.weight|lm_head\.weight", ("vocabulary", "hidden")),
    (r"lm_head\.bias", ("vocabulary",)),
    (r"self_attn\.q_proj\.weight", ("query", "hidden")),
    (r"self_attn\.[kv]_proj\.weight", ("key_value", "hidden")),
    (r"self_attn\.o_proj\.weight", ("hidden", "query")),
    (r"self_attn\.q_proj\.bias", ("query",)),
    (r"self_attn\.[kv]_proj\.bias", ("key_value",)),
    (r"self_attn\.o_proj\.bias", ("hidden",)),
    (r"self_attn\.[qk]_norm\.weight", ("whole",)),
    (r"mlp\.(gate|up)_proj\.weight", ("neurons", "hidden")),
    (r"mlp\.(gate|up)_proj\.bias", ("neurons",)),
    (r"mlp\.down_proj\.weight", ("hidden", "neurons")),
    (r"mlp\.down_proj\.bias", ("hidden",)),
    (r"(\w*layernorm|norm)\.weight", ("hidden",)),
)
_FUSED: tuple[tuple[str, tuple[Axis, ...]], ...] = (
    (r"wte\.weight|lm_head\.weight", ("vocabulary", "hidden")),
    (r"wpe\.weight", ("whole", "hidden")),
    (r"attn\.c_attn\.weight", ("hidden", "fused_qkv")),
    (r"attn\.c_attn\.bias", ("fused_qkv",)),
    (r"attn\.c_proj\.weight", ("query", "hidden")),
    (r"attn\.c_proj\.bias", ("hidden",)),
    (r"mlp\.c_fc\.weight", ("hidden", "neurons")),
    (r"mlp\.c_fc\.bias", ("neurons",)),
    (r"mlp\.c_proj\.weight", ("neurons", "hidden")),
    (r"mlp\.c_proj\.bias", ("hidden",)),
    (r"ln_(1|2|f)\.(weight|bias)", ("hidden",)),
)


@dataclass(frozen=True)
class Family:
    """One kind of decoder."""

    name: str
    axes: tuple[tuple[str, tuple[Axis, ...]], ...]
    layers: str
    """Name of the list of layers inside the decoder."""
    attention_out: str
    """The projection behind the attention, inside a layer: its input holds the heads' outputs."""
    mlp_out: str
    """The projection behind the MLP: its input holds the neurons' activations."""
    norms_read: tuple[str, ...]
    """Norms inside a layer whose output the layer reads; hidden channels are judged by them."""
    final_norm: str
    rms: bool
    """Whether norms are RMS norms, which divide by the number of channels."""
    one_plus: bool = False
    """Whether a norm multiplies by 1 + weight (Gemma)."""
    sizes: tuple[str, str, str, str] = (
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
    )

    def axes_of(self, parameter: str) -> tuple[Axis, ...]:
        """The meaning of each dimension of a parameter. Raises ModelError for one that the table lacks."""
        for pattern, axes in self.axes:
            if re.search(rf"(^|\.)({pattern})$", parameter):
                return axes
        raise ModelError(
            f"width pruning does not know the parameter {parameter!r} of this {self.name}-type model; prune its depth, "
            "or start from a pretrained student"
        )


_LLAMA = Family(
    name="llama",
    axes=_SEPARATE,
    layers="layers",
    attention_out="self_attn.o_proj",
    mlp_out="mlp.down_proj",
    norms_read=("input_layernorm", "post_attention_layernorm"),
    final_norm="norm",
    rms=True,
)
_GEMMA = replace(_LLAMA, name="gemma", norms_read=("input_layernorm", "pre_feedforward_layernorm"), one_plus=True)
_GPT2 = Family(
    name="gpt2",
    axes=_FUSED,
    layers="h",
    attention_out="attn.c_proj",
    mlp_out="mlp.c_proj",
    norms_read=("ln_1", "ln_2"),
    final_norm="ln_f",
    rms=False,
    sizes=("n_embd", "n_inner", "n_head", "n_head"),
)
FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gpt2": _GPT2,
}
"""By `model_type` of the configuration."""


def family_of(config: PreTrainedConfig) -> Family:
    """The family of a model. Raises ModelError naming the known ones."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ModelError(
            f"a {config.model_type!r} model cannot be cut yet; these can: {', '.join(FAMILIES)}. Start from a "
            "pretrained student instead (student.start: pretrained)"
        )
    return family


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The list of decoder layers."""
    family = family_of(model.config)
    layers = getattr(model.base_model, family.layers)
    assert isinstance(layers, nn.ModuleList)
    return layers


_PER_LAYER_FIELDS = ("layer_types", "no_rope_layers", "mlp_layer_types")


def config_for_layers(config: PreTrainedConfig, kept: list[int]) -> PreTrainedConfig:
    """A copy of the configuration with these layers only; lists with one entry a layer are cut along."""
    values = config.to_dict()
    depth = config.num_hidden_layers
    for name in _PER_LAYER_FIELDS:
        if isinstance(values.get(name), list) and len(values[name]) == depth:
            values[name] = [values[name][index] for index in kept]
    values["n_layer" if config.model_type == "gpt2" else "num_hidden_layers"] = len(kept)
    if "max_window_layers" in values and isinstance(values["max_window_layers"], int):
        # "the first n layers attend to everything": n counts kept layers now
        values["max_window_layers"] = sum(index < values["max_window_layers"] for index in kept)
    return type(config).from_dict(values)
