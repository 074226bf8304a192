"""The models of the runs, loaded when they are first asked for; at most two are kept in memory."""

from __future__ import annotations

import gc
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lmdistill.errors import CorruptFile, ModelError
from lmdistill.io import read_json
from lmdistill.models import fastest_dtype, load_model, load_tokenizer, pick_device
from lmdistill.packages import resolve_path
from lmdistill.recipe import ModelSpec
from lmdistill.studio.runs import recipe_of

KEPT = 2
"""Models in memory: a teacher and a student."""


@dataclass(frozen=True)
class Choice:
    """A model that can be chosen."""

    label: str
    role: str
    """teacher, student, before training, or the name of a baseline."""
    model: str
    gguf_file: str | None = None
    kept_ids: Path | None = None
    """File with the teacher's id of each of its ids, where its vocabulary was trimmed."""

    @property
    def stamp(self) -> tuple[Any, ...]:
        """What changes when the weights do: a student that was trained again is loaded again."""
        folder = Path(self.model)
        files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
        return self.model, self.gguf_file, *((file.name, file.stat().st_mtime_ns) for file in files)


@dataclass(frozen=True)
class Loaded:
    """A model in memory."""

    label: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    kept_ids: Tensor | None


def choices_of(runs: Mapping[str, Path]) -> dict[str, Choice]:
    """The models of all runs by their labels: students first in each run, teachers that several share once."""
    found: dict[str, Choice] = {}
    teachers: set[tuple[str, str | None]] = set()
    for name, folder in runs.items():
        for choice in _of_run(name, folder):
            if choice.role == "teacher":
                if (choice.model, choice.gguf_file) in teachers:
                    continue
                teachers.add((choice.model, choice.gguf_file))
            found[choice.label] = choice
    return found


def teacher_label(choices: Mapping[str, Choice], folder: Path) -> str | None:
    """The label under which a run's teacher stands, which may be another run's."""
    spec = _teacher(recipe_of(folder))
    if spec is None:
        return None
    same = (each.label for each in choices.values() if (each.model, each.gguf_file) == (spec.model, spec.gguf_file))
    return next(same, None)


def _of_run(name: str, folder: Path) -> Iterator[Choice]:
    recipe = recipe_of(folder)
    if recipe.get("task"):
        return  # its models say classes or vectors, not text
    ids = folder / "student-initial" / "kept_ids.safetensors"
    kept = ids if ids.is_file() else None
    places = {"student": folder / "student", "before training": folder / "student-initial"}
    places |= {path.name: path for path in sorted((folder / "baselines").glob("*"))}
    for role, path in places.items():
        if _is_causal(path):
            yield Choice(f"{name} · {role}", role, str(path), kept_ids=kept)
    teacher = _teacher(recipe)
    if teacher is not None:
        yield Choice(f"{name} · teacher ({_short(teacher)})", "teacher", teacher.model, teacher.gguf_file)


def _teacher(recipe: Mapping[str, Any]) -> ModelSpec | None:
    """The teacher, where its weights are on this machine."""
    try:
        spec = ModelSpec.model_validate(recipe.get("teacher"))
        source = Path(resolve_path(spec.model)).expanduser()
    except (ValidationError, ModelError):
        return None
    return spec if source.is_dir() else None


def _short(spec: ModelSpec) -> str:
    return spec.gguf_file or Path(spec.model).name


def _is_causal(folder: Path) -> bool:
    try:
        value = read_json(folder / "config.json")
    except (OSError, CorruptFile):
        return False
    names = value.get("architectures") if isinstance(value, dict) else None
    causal = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
    return isinstance(names, list) and any(str(name).endswith(causal) for name in names)


class Shelf:
    """Models in memory; the one that was asked for longest ago makes room."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._models: OrderedDict[tuple[Any, ...], Loaded] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, choice: Choice) -> Loaded:
        """A model, from memory or from its files. Raises ModelError."""
        with self._lock:
            key = choice.stamp
            if key in self._models:
                self._models.move_to_end(key)
                return self._models[key]
            while len(self._models) >= self._kept:  # room first, so that there are never more
                self._models.popitem(last=False)
            gc.collect()
            self._models[key] = _load(choice)
            return self._models[key]

    @property
    def labels(self) -> list[str]:
        """What is in memory."""
        return [loaded.label for loaded in self._models.values()]


def _load(choice: Choice) -> Loaded:
    spec = ModelSpec(model=choice.model, gguf_file=choice.gguf_file)
    device = pick_device("auto")
    try:
        ids = None if choice.kept_ids is None else load_file(choice.kept_ids)["kept_ids"]
    except (OSError, KeyError, SafetensorError) as error:
        raise ModelError(f"{choice.kept_ids}: {type(error).__name__}; build the student anew") from error
    tokenizer = load_tokenizer(spec)
    model = load_model(spec, dtype=fastest_dtype(device), device=device)
    with torch.no_grad():
        model.requires_grad_(False)
    return Loaded(choice.label, model, tokenizer, ids)
