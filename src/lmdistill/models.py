"""Loading and saving models, and the loss engine's view of one.

Models come from a folder, a Hugging Face name, a GGUF file or an installed Python package. They are untrusted input:
weights are read from safetensors or GGUF only, and a configuration that asks for code is refused before transformers
sees it.

Shape legend: B batch, L length, V vocabulary, H hidden.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import functools
import importlib.util
import inspect
import io
import json
import logging
import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from lmdistill.errors import LmdistillError, MissingExtra, ModelError
from lmdistill.io import hash_bytes, hash_json, write_folder
from lmdistill.packages import resolve_path
from lmdistill.recipe import ModelSpec

_PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib"}
_CODE_KEYS = {"auto_map", "trust_remote_code", "custom_pipelines", "model_file", "_attn_implementation_internal"}
_CONFIG_LIMIT = 64 * 2**20


def load_config(spec: ModelSpec) -> PreTrainedConfig:
    """The model's configuration. Raises ModelError."""
    source, options = _source(spec)
    with _explained(spec):
        return cast(PreTrainedConfig, _loaded(AutoConfig, source, options))


def load_tokenizer(spec: ModelSpec) -> PreTrainedTokenizerBase:
    """The model's tokenizer. Raises ModelError."""
    source, options = _source(spec)
    with _explained(spec):
        return cast(PreTrainedTokenizerBase, _loaded(AutoTokenizer, source, options))


def _loaded(kind: Any, source: str, options: Mapping[str, Any]) -> Any:
    """A configuration or tokenizer; of a local folder a copy of what was read before, while its files are the same."""
    folder = Path(source)
    if not folder.is_dir():
        return kind.from_pretrained(source, **options)
    files = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    stamp = tuple((name, stat.st_mtime_ns, stat.st_ino, stat.st_size) for name, stat in files)
    return copy.deepcopy(_of_folder(kind, source, tuple(sorted(options.items())), stamp))


@functools.lru_cache(maxsize=8)
def _of_folder(kind: Any, source: str, options: tuple[tuple[str, Any], ...], stamp: tuple[Any, ...]) -> Any:
    """What transformers makes of a folder, read once: the head of a GGUF file with 262 k tokens takes a quarter of a
    minute."""
    return kind.from_pretrained(source, **dict(options))


def load_model(spec: ModelSpec, *, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The causal language model with these weights in this number format, in evaluation mode. Raises ModelError."""
    source, options = _source(spec)
    if spec.gguf_file is None:
        options["use_safetensors"] = True
    with _explained(spec):
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, attn_implementation=spec.attention, **options)
    _forget_quantiser(model)
    _refuse_non_finite(model, spec)
    moved: Any = model
    return cast(PreTrainedModel, moved.to(device).eval())


def load_auto(
    auto: Any, spec: ModelSpec, *, dtype: torch.dtype, device: torch.device, seed: int, **options: Any
) -> tuple[PreTrainedModel, list[str]]:
    """A model of another of transformers' auto classes, in evaluation mode, and the names of weights that its files
    lack: a new head's, which are drawn by the seed. Raises ModelError.
    """
    source, found = _source(spec)
    if spec.gguf_file is None:
        found["use_safetensors"] = True
    with _explained(spec), torch.random.fork_rng():
        torch.manual_seed(seed)
        model, info = auto.from_pretrained(
            source, dtype=dtype, attn_implementation=spec.attention, output_loading_info=True, **found, **options
        )
    _refuse_non_finite(model, spec)
    return cast(PreTrainedModel, model.to(device).eval()), sorted(info["missing_keys"])


@contextmanager
def errors_of_the_disk() -> Iterator[None]:
    """Turn what safetensors and torch raise where the disk fails into the OSError behind it."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if isinstance(error, SafetensorError) and found:
            raise OSError(int(found.group(1)), os.strerror(int(found.group(1)))) from error
        if "PytorchStreamWriter failed" in str(error):  # torch names no reason; a full disk is by far the likeliest
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save weights (safetensors), configuration and tokenizer, whole or not at all. Raises StorageError."""
    with write_folder(folder) as temporary, errors_of_the_disk(), quiet_transformers():
        model.save_pretrained(temporary, safe_serialization=True)
        tokenizer.save_pretrained(temporary)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """One name for how a tokenizer cuts text and lays out chats."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    description = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    return hash_json([description, tokenizer.chat_template])


def model_fingerprint(spec: ModelSpec) -> str:
    """One name for a model's weights: names, sizes, and the first and last MiB of its files and its configuration.

    For a model of the Hugging Face hub, the commit that is in the cache.
    """
    path = Path(resolve_path(spec.model)).expanduser()
    if not path.exists():
        config = load_config(spec)
        return hash_json([spec.model, getattr(config, "_commit_hash", None) or spec.revision])
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".gguf"))
    if spec.gguf_file is not None:
        files = [path / spec.gguf_file]
    parts: list[object] = []
    for file in files:
        size = file.stat().st_size
        with open(file, "rb") as opened:
            first = opened.read(2**20)
            opened.seek(max(0, size - 2**20))
            parts.append([file.name, size, hash_bytes(first), hash_bytes(opened.read(2**20))])
    config_file = path / "config.json"
    return hash_json([*parts, hash_bytes(config_file.read_bytes()) if config_file.is_file() else None])


@dataclass(frozen=True)
class OutputHead:
    """A model's output head: logits = softcap(logit_scale * (hidden @ weight.T + bias))."""

    weight_VH: Tensor
    bias_V: Tensor | None
    logit_scale: float
    softcap: float | None
    vocabulary_size: int
    """Number of real ids; rows of the weight above it are padding."""


def output_head(model: nn.Module, vocabulary_size: int | None = None) -> OutputHead:
    """The head of a causal model: Gemma's soft-capping, Cohere's `logit_scale`, Granite's `logits_scaling` included."""
    layer = model.get_output_embeddings()  # type: ignore[operator]
    if layer is None:
        raise ModelError(f"{type(model).__name__} has no output embeddings; is it a causal language model?")
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    return OutputHead(
        weight_VH=layer.weight,
        bias_V=getattr(layer, "bias", None),
        logit_scale=scale,
        softcap=getattr(config, "final_logit_softcapping", None),
        vocabulary_size=vocabulary_size or layer.weight.shape[0],
    )


def last_hidden(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The last hidden states after the final norm, (B, L, H), without the logits of all positions.

    The model is called as a whole, so that the hooks of wrappers (DDP, FSDP, PEFT) run; it projects no position (a
    single one of each row would cost as much as all: few rows make slow matrix products), and the decoder's output is
    caught on its way to the head.
    """
    caught: list[Tensor] = []

    def catch(module: nn.Module, arguments: Any, output: Any) -> None:
        caught.append(output[0] if isinstance(output, tuple) else output.last_hidden_state)

    none = torch.empty(0, dtype=torch.long, device=batch["input_ids"].device)
    handle = _decoder(model).register_forward_hook(catch)
    try:
        model(**batch, use_cache=False, logits_to_keep=none)
    finally:
        handle.remove()
    return caught[-1]


def cache_argument(model: nn.Module) -> str:
    """What the forward of a causal model calls its key-value cache: transformers 5.24 began to rename it."""
    bare: Any = model
    if hasattr(bare, "get_base_model"):  # peft's wrapper takes anything and hands it on
        bare = bare.get_base_model()
    return "cache" if "cache" in inspect.signature(bare.forward).parameters else "past_key_values"


def pick_device(text: str) -> torch.device:
    """`auto` is the accelerator that torch sees, else the processor. Raises ModelError for one that is not there."""
    if text != "auto":
        try:
            device = torch.device(text)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ModelError(f"machine.device = {text!r} cannot be used ({str(error).splitlines()[0]})") from error
        return device
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device(accelerator.type) if accelerator is not None else torch.device("cpu")


@functools.lru_cache(maxsize=8)
def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies matrices faster in it than in float32, else float32.

    A processor is measured, once: not every one that knows the format is fast at it.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type != "cpu":
        return torch.float32
    return torch.bfloat16 if bfloat16_speedup() > 1.2 else torch.float32


@functools.lru_cache(maxsize=1)
def bfloat16_speedup() -> float:
    """How many times faster this processor multiplies matrices in bfloat16 than in float32."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.ones(256, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
        times = []
        for _ in range(6):
            start = time.perf_counter()
            left @ right
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times[1:])
    return seconds[torch.float32] / seconds[torch.bfloat16]


def count_parameters(model: nn.Module) -> int:
    """Number of parameters; shared ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' own progress bars and notices: ours say what is done."""
    bars = transformers_logging.is_progress_bar_enabled()
    level = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def check_folder(folder: Path) -> None:
    """Refuse a model folder that asks for code or holds pickled weights only. Raises ModelError."""
    for name in ("config.json", "tokenizer_config.json", "generation_config.json", "processor_config.json"):
        path = folder / name
        if path.is_file():
            _check_config(path)
    files = [path for path in folder.iterdir() if path.is_file()]
    for path in files:
        if path.suffix == ".safetensors":
            _check_safetensors(path)
    safe = [path for path in files if path.suffix in (".safetensors", ".gguf")]
    pickled = [path for path in files if path.suffix in _PICKLED and path.name != "training_args.bin"]
    if pickled and not safe:
        raise ModelError(
            f"{folder}: its weights are pickled ({pickled[0].name}), and reading those can run any code; convert them "
            "to safetensors where you trust them"
        )


def _check_config(path: Path) -> None:
    if path.stat().st_size > _CONFIG_LIMIT:
        raise ModelError(f"{path}: {path.stat().st_size} bytes is no configuration (limit {_CONFIG_LIMIT})")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not valid JSON ({error}); get the model anew") from error
    asked = _asks_for_code(value)
    if asked:
        raise ModelError(
            f"{path}: {asked!r} asks for code of the model's author to be run, which lmdistill never does; use a model "
            "that transformers supports by itself"
        )


def _asks_for_code(value: Any) -> str | None:
    """The first key, at any depth, that makes transformers fetch or run foreign code."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key in _CODE_KEYS and item:
                return str(key)
            if key in ("attn_implementation", "_attn_implementation") and isinstance(item, str) and "/" in item:
                return str(key)
            found = _asks_for_code(item)
            if found:
                return found
    if isinstance(value, list):
        return next((found for item in value if (found := _asks_for_code(item))), None)
    return None


def _check_safetensors(path: Path) -> None:
    """The header must be what the format says: a size, then JSON that fits into the file."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(9)
    if head[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise ModelError(f"{path}: a pickled file under the name of safetensors; do not trust where it came from")
    header = int.from_bytes(head[:8], "little")
    if len(head) < 9 or header > size - 8 or head[8:9] != b"{":
        raise ModelError(f"{path}: not a safetensors file ({size} bytes, header of {header}); get the model anew")


def _source(spec: ModelSpec) -> tuple[str, dict[str, Any]]:
    """What to hand to transformers, after the checks that need no transformers."""
    source = resolve_path(spec.model)
    options: dict[str, Any] = {"trust_remote_code": False}
    path = Path(source).expanduser()
    if path.is_file():
        raise ModelError(
            f"{spec.model}: a file; name its folder in `model`"
            + (" and it in `gguf_file`" if path.suffix == ".gguf" else "")
        )
    if path.is_dir():
        check_folder(path)
        options["local_files_only"] = True
        source = str(path)
    elif _looks_like_path(spec.model):
        raise ModelError(f"{spec.model}: no such folder; give a folder, a Hugging Face name or package:NAME")
    elif spec.revision:
        options["revision"] = spec.revision
    if spec.gguf_file is not None:
        if importlib.util.find_spec("gguf") is None:
            raise MissingExtra("reading a GGUF file needs the gguf package: pip install 'lmdistill[gguf]'")
        if path.is_dir() and not (path / spec.gguf_file).is_file():
            present = ", ".join(sorted(item.name for item in path.glob("*.gguf"))) or "none"
            raise ModelError(f"{source}: no file {spec.gguf_file!r}; GGUF files there: {present}")
        options["gguf_file"] = spec.gguf_file
    return source, options


def _looks_like_path(text: str) -> bool:
    return text.startswith((".", "/", "~")) or text.count("/") > 1 or os.sep * 2 in text


@contextmanager
def _explained(spec: ModelSpec) -> Iterator[None]:
    """Turn transformers' errors into one line that says what to do."""
    try:
        # The GGUF reader's progress bar goes to stderr whatever one says.
        with quiet_transformers(), warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    except LmdistillError:
        raise
    except Exception as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if not Path(resolve_path(spec.model)).expanduser().is_dir():
            raise ModelError(
                f"{spec.model}: cannot be had from the hub ({first}); check the name and the network, or give a folder"
            ) from error
        raise ModelError(f"{spec.model}: transformers cannot load it ({type(error).__name__}: {first})") from error


def _refuse_non_finite(model: nn.Module, spec: ModelSpec) -> None:
    bad = [name for name, parameter in model.named_parameters() if not bool(torch.isfinite(parameter).all())]
    if bad:
        raise ModelError(f"{spec.model}: {len(bad)} tensors hold NaN or infinities (first: {bad[0]}); get it anew")


def _forget_quantiser(model: PreTrainedModel) -> None:
    """A model read from GGUF holds plain weights, yet transformers would refuse to save it as if it were quantised."""
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config
    for name in ("hf_quantizer", "quantization_method"):
        if getattr(model, name, None) is not None:
            setattr(model, name, None)
    if getattr(model, "is_quantized", False):
        setattr(model, "is_quantized", False)  # noqa: B010 - a class attribute elsewhere


def _decoder(model: nn.Module) -> nn.Module:
    """The part of a causal model whose output goes into the head, inside whatever wraps it."""
    bare = model
    while True:
        if isinstance(bare, PreTrainedModel):
            decoder = bare.get_decoder()
            return decoder if isinstance(decoder, nn.Module) and decoder is not bare else bare.base_model
        inner = getattr(bare, "module", None) or getattr(bare, "base_model", None) or getattr(bare, "model", None)
        if not isinstance(inner, nn.Module):
            raise ModelError(f"{type(bare).__name__} holds no transformers model")
        bare = inner
