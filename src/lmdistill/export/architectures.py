"""Architectures that the GGUF export knows: what llama.cpp must be told of each, and how it keeps the weights.

Facts about the format are those of the gguf package and of llama.cpp's loader: names of tensors come from the package's
own table, and what a configuration says becomes keys under the architecture's name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lmdistill.errors import ModelError


@dataclass(frozen=True)
class Architecture:
    """One architecture of GGUF."""

    name: str
    """As llama.cpp calls it."""
    interleaved: bool = False
    """Whether llama.cpp turns neighbouring channels of a head, where transformers turns the two halves: the rows of the
    query and key projections are then put into that order."""
    norm_offset: float = 0.0
    """What is added to the weights of norms (Gemma's multiply by 1 + weight)."""
    sliding: bool = False
    """Whether it is told of sliding windows."""


KNOWN: dict[str, Architecture] = {
    "llama": Architecture("llama", interleaved=True),
    "mistral": Architecture("llama", interleaved=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "gemma3_text": Architecture("gemma3", norm_offset=1.0, sliding=True),
}
"""By `model_type` of the configuration."""


def architecture_of(config: PreTrainedConfig) -> Architecture:
    """The architecture of a model. Raises ModelError naming the known ones."""
    found = KNOWN.get(config.model_type)
    if found is None:
        raise ModelError(
            f"a {config.model_type!r} model cannot be exported to GGUF yet; these can: {', '.join(KNOWN)}. Export it "
            "as safetensors or int8 instead"
        )
    return found


def head_size(config: Any) -> int:
    """Channels of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def add_configuration(writer: Any, config: Any, architecture: Architecture) -> None:
    """Tell a GGUFWriter the sizes of a model. Raises ModelError for what llama.cpp would compute otherwise."""
    window = getattr(config, "sliding_window", None)
    context = config.max_position_embeddings
    if window and not architecture.sliding and getattr(config, "use_sliding_window", True):
        context = min(context, window)  # up to here a window changes nothing
    size = head_size(config)
    writer.add_context_length(context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    activation = getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", None)
    expected = ("gelu_pytorch_tanh",) if architecture.name == "gemma3" else ("silu", "swish")
    if activation not in (*expected, None):
        raise ModelError(f"llama.cpp computes a {architecture.name} with {expected[0]}, this model uses {activation!r}")
    _add_rope(writer, config, architecture)
    if architecture.sliding:
        _add_sliding(writer, config, size)


def _add_rope(writer: Any, config: Any, architecture: Architecture) -> None:
    rope = _rope(config, "full_attention")
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    kind = rope.get("rope_type", "default")
    if kind not in ("default", "llama3") or (kind == "llama3" and architecture.sliding):
        raise ModelError(f"rotary embeddings of type {kind!r} cannot be exported to GGUF yet; default and llama3 can")


def _add_sliding(writer: Any, config: Any, size: int) -> None:
    """Gemma 3: every sixth layer sees everything, which llama.cpp takes as given."""
    types = getattr(config, "layer_types", None) or []
    expected = ["full_attention" if (n + 1) % 6 == 0 else "sliding_attention" for n in range(len(types))]
    if list(types) != expected:
        raise ModelError(
            "llama.cpp takes it that every sixth layer of a Gemma 3 sees the whole text and the others a window; this "
            f"student's layers are {types}: export it as safetensors or int8 instead, or prune whole groups of six"
        )
    scale = getattr(config, "query_pre_attn_scalar", size)
    if scale != size:
        raise ModelError(f"llama.cpp divides a Gemma 3's queries by the root of {size}, this model by that of {scale}")
    writer.add_sliding_window(config.sliding_window)


def _rope(config: Any, layer_type: str) -> dict[str, Any]:
    """The rotary parameters, those of one type of layers where these differ."""
    found: dict[str, Any] = config.rope_parameters or {}
    return found.get(layer_type, found) if isinstance(found.get(layer_type), dict) else found


def rope_factors(config: Any) -> Tensor | None:
    """By how much the frequencies of Llama 3.1's rotary embeddings are slowed, (head size / 2,); None for others."""
    rope = _rope(config, "full_attention")
    if rope.get("rope_type") != "llama3":
        return None
    size = head_size(config)
    plain: Tensor = 1.0 / rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    return plain / scaled


def tensor_names(architecture: Architecture, layers: int) -> Callable[[str], str]:
    """What a parameter of transformers is called in GGUF; the function raises ModelError for one that is not there."""
    import gguf

    kind = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    table = gguf.get_tensor_name_map(kind, layers)

    def name_of(parameter: str) -> str:
        found = table.get_name(parameter, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ModelError(f"llama.cpp's {architecture.name} has no place for {parameter!r}; export as safetensors")
        return str(found)

    return name_of


def into_order(name: str, tensor: Tensor, config: Any, architecture: Architecture) -> Tensor:
    """A parameter of transformers as llama.cpp keeps it."""
    if architecture.norm_offset and name.endswith("norm.weight"):
        return tensor.float() + architecture.norm_offset
    heads = _heads(name, config, architecture)
    if heads is None:
        return tensor
    return tensor.reshape(heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def out_of_order(name: str, tensor: Tensor, config: Any, architecture: Architecture) -> Tensor:
    """The inverse of `into_order`."""
    if architecture.norm_offset and name.endswith("norm.weight"):
        return tensor - architecture.norm_offset
    heads = _heads(name, config, architecture)
    if heads is None:
        return tensor
    return tensor.reshape(heads, -1, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def _heads(name: str, config: Any, architecture: Architecture) -> int | None:
    """How many heads the rows of this parameter are; None where their order does not matter."""
    if not architecture.interleaved:
        return None
    if ".q_proj." in name:
        return int(config.num_attention_heads)
    return int(config.num_key_value_heads) if ".k_proj." in name else None
