"""Weights of 8 bits for processors: one scale a row, symmetric, nothing of the activations quantised.

A row w of a matrix becomes q = round(w / s) with s = max|w| / 127, so that every weight is off by s / 2 at most. Rows
of a head are outputs, rows of an embedding tokens, so that a matrix that both share is kept once. What is read is
plain: int8 numbers and scales in a safetensors file, a JSON file, the configuration, and the tokenizer.

Shape legend: O outputs (rows), I inputs, V vocabulary, H hidden, N positions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from lmdistill.errors import ModelError
from lmdistill.export.empty import empty_model
from lmdistill.io import read_json, write_folder, write_json
from lmdistill.models import errors_of_the_disk, load_config, quiet_transformers
from lmdistill.recipe import ModelSpec

WEIGHTS, DESCRIPTION, CONFIGURATION = "int8.safetensors", "int8.json", "configuration"
VERSION = 1
_FEW_ROWS = 4


def quantize_rows(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of 8 bits (O, I) and the scale of each row (O,), float32; a row of zeros has the scale 1."""
    weight_OI = weight_OI.detach().to(torch.float32)
    scale_O = weight_OI.abs().amax(1) / 127
    scale_O = torch.where(scale_O > 0, scale_O, torch.ones_like(scale_O))
    return (weight_OI / scale_O[:, None]).round().clamp(-127, 127).to(torch.int8).contiguous(), scale_O


class Int8Linear(nn.Module):
    """A linear layer whose weights are 8 bits: y = s * (x q^T) + b."""

    numbers_OI: Tensor
    scale_O: Tensor
    bias: Tensor | None

    def __init__(self, numbers_OI: Tensor, scale_O: Tensor, bias_O: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("numbers_OI", numbers_OI)
        self.register_buffer("scale_O", scale_O)
        self.register_buffer("bias", bias_O)
        self.out_features, self.in_features = numbers_OI.shape

    @property
    def weight(self) -> Tensor:
        """The weights in float32, (O, I), made anew at every call."""
        return self.numbers_OI.to(torch.float32) * self.scale_O.to(torch.float32)[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """Of (..., I) the outputs (..., O), in the number format of `x`."""
        flat_NI = x.reshape(-1, self.in_features)
        scale_O = self.scale_O.to(x.dtype)
        if _fused_pays(flat_NI):
            out_NO = torch._weight_int8pack_mm(flat_NI.contiguous(), self.numbers_OI, scale_O)
        else:
            out_NO = F.linear(flat_NI, self.numbers_OI.to(x.dtype)) * scale_O
        if self.bias is not None:
            out_NO = out_NO + self.bias.to(x.dtype)
        return out_NO.reshape(*x.shape[:-1], self.out_features)


class Int8Embedding(nn.Module):
    """An embedding of 8 bits; `factor` is what some models multiply it by (Gemma)."""

    numbers_VH: Tensor
    scale_V: Tensor

    def __init__(self, numbers_VH: Tensor, scale_V: Tensor, factor: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("numbers_VH", numbers_VH)
        self.register_buffer("scale_V", scale_V)
        self.factor, self.dtype = factor, dtype
        self.num_embeddings, self.embedding_dim = numbers_VH.shape

    @property
    def weight(self) -> Tensor:
        """The whole table in float32, (V, H), made anew at every call."""
        return self.numbers_VH.to(torch.float32) * self.scale_V[:, None]

    def forward(self, ids: Tensor) -> Tensor:
        """Of ids (...) their rows (..., H)."""
        rows = self.numbers_VH[ids].to(torch.float32) * self.scale_V[ids][..., None]
        return (rows * self.factor).to(self.dtype)


def save_int8(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Quantise a model's matrices and save them, whole or not at all. Raises StorageError."""
    tensors: dict[str, Tensor] = {}
    matrices = []
    plain = dict(model.named_parameters())
    for name, module in model.named_modules():
        weight = _matrix(module)
        if weight is None or f"{name}.weight" not in plain:  # a head that is the embedding's matrix comes once
            continue
        del plain[f"{name}.weight"]
        tensors[f"{name}.numbers"], tensors[f"{name}.scale"] = quantize_rows(weight)
        matrices.append(name)
    tensors |= {name: parameter.detach().contiguous() for name, parameter in plain.items()}
    with write_folder(folder) as temporary, errors_of_the_disk(), quiet_transformers():
        save_file(tensors, temporary / WEIGHTS)
        write_json(temporary / DESCRIPTION, {"version": VERSION, "matrices": matrices, "scheme": "rows, symmetric"})
        model.config.save_pretrained(temporary / CONFIGURATION)
        tokenizer.save_pretrained(temporary)


def load_int8(folder: Path | str, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model that `save_int8` saved, computing in this number format, in evaluation mode.

    Its tokenizer: `transformers.AutoTokenizer.from_pretrained(folder)`. Raises ModelError for a folder that is none.
    """
    folder = Path(folder)
    if not (folder / DESCRIPTION).is_file() or not (folder / WEIGHTS).is_file():
        raise ModelError(f"{folder}: no int8 export ({DESCRIPTION} and {WEIGHTS} are not both there)")
    description = read_json(folder / DESCRIPTION)
    if not isinstance(description, dict) or description.get("version") != VERSION:
        raise ModelError(f"{folder / DESCRIPTION}: not of version {VERSION}; export it anew with this lmdistill")
    config = load_config(ModelSpec(model=str(folder / CONFIGURATION)))
    model = empty_model(config, dtype)
    try:
        _fill(model, load_file(folder / WEIGHTS), description["matrices"], dtype)
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise ModelError(f"{folder}: its weights do not fit its configuration ({str(error)[:200]})") from error
    model.eval()
    return model


def _fill(model: PreTrainedModel, tensors: dict[str, Tensor], matrices: list[str], dtype: torch.dtype) -> None:
    plain: Any = model
    table, head = plain.get_input_embeddings(), plain.get_output_embeddings()
    tied = head.weight is table.weight
    expected = {name for name, _ in model.named_parameters()}
    for name in matrices:
        module = model.get_submodule(name)
        numbers, scale = tensors[f"{name}.numbers"], tensors[f"{name}.scale"]
        weight = _matrix(module)
        if weight is None or weight.shape != numbers.shape or scale.shape != numbers.shape[:1]:
            raise ValueError(f"{name} is {list(numbers.shape)}")
        expected.remove(f"{name}.weight")
        bias = getattr(module, "bias", None)
        if bias is not None:
            bias = tensors[f"{name}.bias"].to(dtype)
            expected.remove(f"{name}.bias")
        if isinstance(module, nn.Embedding):
            factor = float(getattr(module, "embed_scale", 1.0))
            model.set_submodule(name, Int8Embedding(numbers, scale, factor, dtype))
            if module is table and tied:
                model.set_output_embeddings(cast(Any, Int8Linear(numbers, scale, None)))
        else:
            model.set_submodule(name, Int8Linear(numbers, scale, bias))
    with torch.no_grad():
        for name in expected:
            model.get_parameter(name).copy_(tensors[name])


def _matrix(module: nn.Module) -> Tensor | None:
    """The weights of a layer that is quantised, (outputs, inputs); None for others."""
    if isinstance(module, Conv1D):
        return module.weight.t()
    return module.weight if isinstance(module, nn.Linear | nn.Embedding) else None


def _fused_pays(flat_NI: Tensor) -> bool:
    """Whether torch's product with numbers of 8 bits is the faster one: for a few rows in bfloat16 on a processor.

    With many rows, and in float32, it is slower than making the matrix anew (benchmarks/int8.py).
    """
    if flat_NI.device.type != "cpu" or flat_NI.dtype != torch.bfloat16 or torch.is_grad_enabled():
        return False
    whole = flat_NI.shape[1] % 32 == 0  # its kernels read whole vectors
    return whole and len(flat_NI) <= _FEW_ROWS and hasattr(torch, "_weight_int8pack_mm")
