"""Writing a student as one GGUF file, and reading its weights back.

Shape legend: rows and columns of a matrix are R and C.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lmdistill.errors import MissingExtra, ModelError
from lmdistill.export.architectures import (
    add_configuration,
    architecture_of,
    into_order,
    out_of_order,
    rope_factors,
    tensor_names,
)
from lmdistill.export.empty import empty_model
from lmdistill.export.vocabulary import add_vocabulary
from lmdistill.io import write_file

_ROPE_FACTORS = "rope_freqs.weight"


def need_gguf() -> None:
    """Raises MissingExtra without the gguf package."""
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtra("exporting to GGUF needs the gguf package: pip install 'lmdistill[gguf]'")


def write_gguf(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path, quantization: str, name: str, licence: str
) -> list[str]:
    """Write a model as a GGUF file, whole or not at all; returns what is worth knowing about it.

    Norms and biases stay in float32; a matrix whose rows do not divide into a quantization's blocks stays in f16.
    `licence` is left out where it is empty. Raises ModelError for what the format or llama.cpp cannot hold,
    MissingExtra, StorageError.
    """
    need_gguf()
    import gguf

    architecture = architecture_of(model.config)
    config: Any = model.config
    kind = gguf.GGMLQuantizationType[quantization.upper()]
    name_of = tensor_names(architecture, config.num_hidden_layers)
    tensors = {parameter: name_of(parameter) for parameter in _weights(model)}
    unfit: list[str] = []
    with write_file(path, _estimate(model, quantization)) as temporary:
        writer = gguf.GGUFWriter(temporary, architecture.name)
        try:
            writer.add_name(name)
            if licence:
                writer.add_license(licence)
            writer.add_file_type(_file_type(quantization))
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            add_configuration(writer, config, architecture)
            add_vocabulary(writer, tokenizer, config.vocab_size)
            kinds = {}
            factors = rope_factors(config)
            if factors is not None:
                writer.add_tensor_info(_ROPE_FACTORS, factors.shape, np.dtype(np.float32), factors.numel() * 4)
            for parameter, tensor in _weights(model).items():
                kinds[parameter] = found = _kind(tensor, kind, gguf)
                if tensor.ndim > 1 and found != kind:
                    unfit.append(tensors[parameter])
                shape, size, dtype = _stored(tuple(tensor.shape), found, gguf)
                writer.add_tensor_info(tensors[parameter], shape, dtype, size, raw_dtype=found)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            if factors is not None:
                writer.write_tensor_data(factors.numpy())
            for parameter, tensor in _weights(model).items():
                ordered = into_order(parameter, tensor.detach(), config, architecture)
                writer.write_tensor_data(_quantized(parameter, ordered, kinds[parameter], gguf))
        finally:
            writer.close()
    if unfit:
        return [f"{len(unfit)} matrices stay in f16: their rows are no multiple of {quantization}'s blocks"]
    return []


def read_gguf(path: Path, config: Any) -> PreTrainedModel:
    """A model of this configuration with the weights that a GGUF file holds, in float32."""
    need_gguf()
    import gguf

    architecture = architecture_of(config)
    model = empty_model(config, torch.float32)
    name_of = tensor_names(architecture, config.num_hidden_layers)
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    with torch.no_grad():
        for parameter, target in _weights(model).items():
            tensor = found.get(name_of(parameter))
            if tensor is None:
                raise ModelError(f"{path}: no tensor {name_of(parameter)!r}")
            values = torch.from_numpy(np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32))
            target.copy_(out_of_order(parameter, values.reshape(target.shape), config, architecture))
    model.eval()
    return model


def _weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Parameters by name, a head that is the embedding's own matrix left out."""
    return dict(model.named_parameters())


def _kind(tensor: Tensor, wanted: Any, gguf: Any) -> Any:
    if tensor.ndim < 2:
        return gguf.GGMLQuantizationType.F32
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    return wanted if tensor.shape[-1] % block == 0 else gguf.GGMLQuantizationType.F16


def _stored(shape: tuple[int, ...], kind: Any, gguf: Any) -> tuple[tuple[int, ...], int, np.dtype[Any]]:
    """Shape (in bytes for quantised kinds), size and number format of a tensor in the file."""
    types = gguf.GGMLQuantizationType
    plain: dict[Any, type[Any]] = {types.F32: np.float32, types.F16: np.float16}
    if kind in plain:
        dtype = np.dtype(plain[kind])
        return shape, int(np.prod(shape)) * dtype.itemsize, dtype
    stored = gguf.quants.quant_shape_to_byte_shape(shape, kind)
    return stored, int(np.prod(stored)), np.dtype(np.uint8)


def _quantized(name: str, tensor: Tensor, kind: Any, gguf: Any) -> NDArray[Any]:
    values = tensor.to(torch.float32).cpu().contiguous().numpy()
    with np.errstate(over="ignore"):
        found: NDArray[Any] = gguf.quants.quantize(values, kind)
    if kind == gguf.GGMLQuantizationType.F16 and not np.isfinite(found).all():
        raise ModelError(f"{name}: its largest value {np.abs(values).max():.3g} is beyond f16 (65504); export as bf16")
    return found


def _file_type(quantization: str) -> int:
    from gguf.constants import LlamaFileType

    return int(LlamaFileType.ALL_F32 if quantization == "f32" else LlamaFileType[f"MOSTLY_{quantization.upper()}"])


def _estimate(model: PreTrainedModel, quantization: str) -> int:
    import gguf

    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[quantization.upper()]]
    return sum(parameter.numel() for parameter in model.parameters()) * size // block
