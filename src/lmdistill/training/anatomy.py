"""Where a transformer keeps its blocks, its attention and its final norm, whoever wrote it.

Nothing here is a table of families: blocks are the longest list of modules that each hold an attention, and an
attention is what holds projections of queries, keys and values. Llama-, Qwen-, Mistral- and Gemma-type decoders, GPT-2,
BERT, DistilBERT, MiniLM, ModernBERT, and vision transformers of transformers and timm are found so, wrapped or not.

Shape legend: B batch, L length, A heads, D head size.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from lmdistill.errors import ModelError

Part = Literal["query", "key", "value"]
PARTS: tuple[Part, ...] = ("query", "key", "value")

_SEPARATE = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
)
_FUSED = ("c_attn", "qkv", "Wqkv", "qkv_proj")
_NORMS = ("norm", "ln_f", "layernorm", "final_layernorm", "final_layer_norm", "final_norm")


@dataclass(frozen=True)
class Attention:
    """The self-attention of one block."""

    module: nn.Module
    projections: tuple[nn.Module, ...]
    """Those of queries, keys and values, or the one that makes all three."""

    @property
    def is_fused(self) -> bool:
        """Whether one projection makes all three."""
        return len(self.projections) == 1

    def projection_of(self, part: Part) -> nn.Module:
        """The module whose output holds a part."""
        return self.projections[0 if self.is_fused else PARTS.index(part)]

    def by_head(self, output: Tensor, part: Part) -> Tensor:
        """A part of a projection's output by head, (B, L, A, D); with grouped-query attention repeated for each query
        head."""
        size = self._head_size(output.shape[-1])
        heads = self._heads(output.shape[-1], size)
        if not self.is_fused:
            found = output.unflatten(-1, (-1, size))
        else:
            rest = (output.shape[-1] // size - heads) // 2  # key and value heads
            first = {"query": 0, "key": heads, "value": heads + rest}[part]
            found = output.unflatten(-1, (-1, size))[..., first : first + (heads if part == "query" else rest), :]
        repeated: Tensor = found.repeat_interleave(heads // found.shape[-2], -2)
        return repeated

    def _head_size(self, width: int) -> int:
        size = _first_number(self.module, ("head_dim", "attention_head_size"))
        if size is not None:
            return size
        heads = _first_number(self.module, ("num_heads", "num_attention_heads", "n_heads"))
        if heads is None:
            raise ModelError(f"{type(self.module).__name__} says neither its head size nor its number of heads")
        return width // heads // (3 if self.is_fused else 1)

    def _heads(self, width: int, size: int) -> int:
        """Number of query heads."""
        config = getattr(self.module, "config", None)
        found = _first_number(self.module, ("num_heads", "num_attention_heads", "n_heads"))
        if found is None and config is not None:
            found = _first_number(config, ("num_attention_heads", "n_heads", "n_head"))
        return found if found is not None else width // size // (3 if self.is_fused else 1)


def bare(model: nn.Module) -> nn.Module:
    """The model inside wrappers for several devices, for compilation and for adapters."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and callable(getattr(model, "get_base_model", None)):
            inner = model.get_base_model()  # type: ignore[operator]
        if inner is None and type(model).__name__ in ("DistributedDataParallel", "FullyShardedDataParallel"):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The model's blocks in order. Raises ModelError where it has none that hold an attention."""
    return _blocks(bare(model))[1]


def attention_of(block: nn.Module) -> Attention | None:
    """The self-attention inside a block."""
    for name, module in block.named_modules():
        if "cross" in name.lower() or "encoder_attn" in name or "cross" in type(module).__name__.lower():
            continue
        for names in _SEPARATE:
            parts = [getattr(module, each, None) for each in names]
            found = tuple(each for each in parts if isinstance(each, nn.Module))
            if len(found) == len(names):
                return Attention(module, found)
        for each in _FUSED:
            fused = getattr(module, each, None)
            if isinstance(fused, nn.Module):
                return Attention(module, (fused,))
    return None


def final_norm(model: nn.Module) -> nn.Module:
    """The norm behind the last block; the last block itself where norms lie inside blocks (BERT)."""
    inner = bare(model)
    path, blocks = _blocks(inner)
    parents = [path.rpartition(".")[0]]
    while parents[-1]:
        parents.append(parents[-1].rpartition(".")[0])
    for parent in parents:
        holder = inner.get_submodule(parent)
        for name in _NORMS:
            found = getattr(holder, name, None)
            if isinstance(found, nn.Module):
                return found
    last: nn.Module = blocks[-1]
    return last


def module_at(model: nn.Module, path: str) -> nn.Module:
    """The module at a path, or the one whose path ends so. Raises ModelError with the nearest paths."""
    modules: dict[str, nn.Module] = {name: module for name, module in bare(model).named_modules() if name}
    if path in modules:
        return modules[path]
    ending = [name for name in modules if name.endswith(f".{path}")]
    if len(ending) == 1:
        return modules[ending[0]]
    near = ending[:3] or difflib.get_close_matches(path, modules, n=3, cutoff=0.4) or [*modules][:3]
    reason = f"fits {len(ending)} modules" if ending else "is no module"
    raise ModelError(f"{path!r} {reason} of {type(bare(model)).__name__}; nearest: {', '.join(near)}")


def _blocks(inner: nn.Module) -> tuple[str, list[nn.Module]]:
    found: tuple[str, list[nn.Module]] = ("", [])
    for path, module in inner.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > len(found[1]):
            children = list(module.children())
            if all(attention_of(child) is not None for child in children):
                found = (path, children)
    if not found[1]:
        raise ModelError(
            f"{type(inner).__name__} has no list of blocks with attention: name what is compared by the path of a "
            "module instead of a layer's number"
        )
    return found


def _first_number(holder: Any, names: tuple[str, ...]) -> int | None:
    for name in names:
        value = getattr(holder, name, None)
        if isinstance(value, int):
            return value
    return None
