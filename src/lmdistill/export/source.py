"""Where an export begins: a student's folder, alone or inside its run, and what must be sound about it."""

from __future__ import annotations

import importlib.util
import warnings
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from lmdistill.errors import MissingExtra, ModelError
from lmdistill.io import read_json
from lmdistill.models import check_folder, load_config, load_model
from lmdistill.recipe import ModelSpec

ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class ExportSource:
    """A student on disk."""

    folder: Path
    run: Path | None
    """The run that it comes from, where it lies inside one."""

    @property
    def exports(self) -> Path:
        """Where its exports go when nothing is said."""
        return self.run / "exports" if self.run else self.folder.with_name(f"{self.folder.name}-exports")

    @property
    def weight_bytes(self) -> int:
        """Size of its files of weights."""
        return sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))


def find_student(path: Path) -> ExportSource:
    """The student of a run's folder, or the folder itself. Raises ModelError where there is none."""
    if not path.exists():
        raise ModelError(f"{path}: no such folder; give a run's folder or a student's")
    inside = path / "student"
    folder = inside if inside.is_dir() and not (path / "config.json").is_file() else path
    if not folder.is_dir() or not any((folder / name).is_file() for name in ("config.json", ADAPTER)):
        raise ModelError(
            f"{path}: no student (neither config.json nor {ADAPTER} is in it or in its folder student/); give a run "
            "that is finished, or the folder of a model"
        )
    check_folder(folder)
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder}: no weights (*.safetensors); was the run that made it stopped?")
    run = folder.parent if folder.name == "student" and (folder.parent / "recipe.yaml").is_file() else None
    return ExportSource(folder, run)


def load_student(source: ExportSource, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The student with its adapters merged. Raises ModelError, MissingExtra."""
    if (source.folder / ADAPTER).is_file():
        return _merged(source.folder, dtype, device)
    _check_widths(source.folder)
    architectures = load_config(ModelSpec(model=str(source.folder))).architectures or []
    if architectures and not any(name in _causal_names() for name in architectures):
        raise ModelError(
            f"{source.folder}: a {architectures[0]} does not write text; export is for causal language models, and "
            "this folder loads with transformers as it is"
        )
    return load_model(ModelSpec(model=str(source.folder)), dtype=dtype, device=device)


def _causal_names() -> set[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return {name for value in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() for name in _as_list(value)}


def _as_list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _merged(folder: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The base model of a folder of adapters with these merged into its weights."""
    if importlib.util.find_spec("peft") is None:
        raise MissingExtra("merging adapters needs the peft package: pip install 'lmdistill[lora]'")
    from peft import PeftModel

    base = read_json(folder / ADAPTER).get("base_model_name_or_path")
    if not (folder / ADAPTER_WEIGHTS).is_file():  # peft would read a pickled file in its place
        raise ModelError(f"{folder}: no {ADAPTER_WEIGHTS}; save the adapters as safetensors")
    if not base:
        raise ModelError(f"{folder / ADAPTER}: it names no base model, so its adapters fit nowhere")
    model = load_model(ModelSpec(model=str(base)), dtype=dtype, device=device)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 asks transformers 5 for a name it has renamed
            adapted: Any = PeftModel.from_pretrained(cast(Any, model), str(folder))
        return cast(PreTrainedModel, adapted.merge_and_unload().eval())
    except (RuntimeError, ValueError, OSError) as error:
        raise ModelError(f"{folder}: its adapters do not fit {base} ({str(error).splitlines()[0]})") from error


def _check_widths(folder: Path) -> None:
    """Refuse layers of different widths. Raises ModelError naming two of them."""
    shapes: dict[str, dict[int, tuple[int, ...]]] = defaultdict(dict)
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(str(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                before, found, after = name.partition(".layers.")
                number, _, rest = after.partition(".")
                if found and number.isdecimal():
                    shapes[f"{before}.layers.N.{rest}"][int(number)] = tuple(file.get_slice(name).get_shape())
    for name, by_layer in shapes.items():
        first = min(by_layer)
        for number, shape in by_layer.items():
            if shape != by_layer[first]:
                raise ModelError(
                    f"{folder}: {name} is {list(by_layer[first])} in layer {first} and {list(shape)} in layer "
                    f"{number}; neither transformers nor the formats of export hold layers of different widths: "
                    "prune all layers alike (student.width)"
                )
