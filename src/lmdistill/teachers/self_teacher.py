"""The student as its own teacher: other weights of it, its adapter switched off, or more to read.

With a text of the teacher's own in the batch (`lmdistill.teachers.columns`), the teacher sees a demonstration (SDFT
2601.19897), feedback or an attempt that succeeded (SDPO 2601.20802) or the solution (OPSD 2601.18734), and the student
does not. Nothing here holds a second model: a teacher of other weights keeps copies of the tensors that training
changes and lends them to the student's model while it speaks, so that with adapters only these exist twice. One process
or data-parallel training: weights that are cut over devices (FSDP, ZeRO-3) cannot be lent.

Shape legend: N = B * L positions, K hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from lmdistill.errors import CorruptFile, ModelError
from lmdistill.io import write_folder
from lmdistill.models import errors_of_the_disk, output_head
from lmdistill.teachers.base import Part, Speech
from lmdistill.teachers.reading import as_teacher, hidden_signal, read

FOLDER = "self_teacher"
_FILE = "weights.safetensors"

Weights = Literal["fixed", "ema", "live"]


class SelfTeacher:
    """The student's model with the weights of the start (`fixed`), a moving average (`ema`) or the present ones."""

    def __init__(
        self, model: PreTrainedModel, vocabulary_size: int, *, weights: Weights = "ema", ema_rate: float = 0.05
    ) -> None:
        """`model` is the student itself, before training and not wrapped for several devices, with its adapters.

        `ema_rate` is how far the average goes towards the student at each `update`: average += rate * (student -
        average); its decay is 1 - rate. SDPO's rate is 0.05. Raises ValueError for a rate outside (0, 1].
        """
        if not 0 < ema_rate <= 1:
            raise ValueError(f"ema_rate = {ema_rate} must lie in (0, 1]; its decay is 1 minus it")
        self.model = model
        self.vocabulary_size = vocabulary_size
        self.weights = weights
        self.ema_rate = ema_rate
        self.kept: dict[str, Tensor] = {}
        """The tensors that training changes, as the teacher has them; none where it teaches with the present ones."""
        if weights != "live":
            self.kept = {
                name: self._copy(parameter) for name, parameter in model.named_parameters() if parameter.requires_grad
            }

    def speak(self, batch: Mapping[str, Any]) -> Speech:
        """The exact distribution at the positions that its text has, and the hidden states behind it."""
        with as_teacher(self.model), _lent(self.model, self.kept):
            hidden_NK, mask_N = read(self.model, batch)
            # The head is taken while it is lent: the parameter holds the student's own weights again after the block.
            signal = hidden_signal(hidden_NK, output_head(self.model, self.vocabulary_size))
        return Speech((Part(signal, mask_N),), hidden_NK)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the step that training took; to be called after each optimiser step. Only `ema` moves.

        `model` is the one that the teacher was made of.
        """
        if self.weights != "ema":
            return
        parameters = dict(model.named_parameters())
        for name, kept in self.kept.items():
            if name not in parameters:
                raise ModelError(
                    f"{type(model).__name__} has no parameter {name}; update with the student's bare model"
                )
            self.kept[name] = kept.to(parameters[name].device).lerp_(parameters[name].to(kept.dtype), self.ema_rate)

    def save(self, checkpoint: Path) -> None:
        """Write the average beside the other files of a checkpoint, for `restore`; the other kinds need nothing.

        Raises StorageError.
        """
        if self.weights == "ema":
            with write_folder(checkpoint / FOLDER) as folder, errors_of_the_disk():
                save_file({name: kept.contiguous() for name, kept in self.kept.items()}, folder / _FILE)

    def restore(self, checkpoint: Path) -> None:
        """Go on with the average of a checkpoint. Raises CorruptFile where it holds none that fits."""
        if self.weights != "ema":
            return
        path = checkpoint / FOLDER / _FILE
        try:
            found = load_file(path)
        except (OSError, SafetensorError) as error:
            raise CorruptFile(f"{path}: the teacher's average cannot be read ({error}); resume from another") from error
        for name, kept in self.kept.items():
            if name not in found or found[name].shape != kept.shape:
                shape = tuple(found[name].shape) if name in found else "nothing"
                raise CorruptFile(
                    f"{path}: {name} has {shape} there and {tuple(kept.shape)} here; it is another student's average"
                )
        self.kept = {name: found[name].to(kept) for name, kept in self.kept.items()}

    def _copy(self, parameter: Tensor) -> Tensor:
        kept = parameter.detach().clone()
        # In bfloat16 a small step towards the student would round to none.
        return kept.float() if self.weights == "ema" and kept.element_size() < 4 else kept


class AdapterOffTeacher:
    """The model as it was before its adapter: the student with the adapter switched off, nothing twice in memory."""

    def __init__(self, model: PreTrainedModel, vocabulary_size: int) -> None:
        """`model` is a peft model in training. Raises ModelError where it has no adapter."""
        if not callable(getattr(model, "disable_adapter", None)):
            raise ModelError(
                f"{type(model).__name__} has no adapter to switch off; give the student adapters (student.lora)"
            )
        self.model = model
        self.vocabulary_size = vocabulary_size

    def speak(self, batch: Mapping[str, Any]) -> Speech:
        """The exact distribution at the positions that its text has, and the hidden states behind it."""
        model: Any = self.model
        with as_teacher(self.model), model.disable_adapter():
            hidden_NK, mask_N = read(self.model, batch)
            signal = hidden_signal(hidden_NK, output_head(self.model, self.vocabulary_size))
        return Speech((Part(signal, mask_N),), hidden_NK)


@contextmanager
def _lent(model: nn.Module, kept: Mapping[str, Tensor]) -> Iterator[None]:
    """The model with other values in some of its parameters. Pointers change hands; nothing is copied but casts.

    The graph of a forward pass before it stays valid, since every parameter holds its own values again at the end.
    """
    parameters = dict(model.named_parameters()) if kept else {}
    own = {name: parameters[name].data for name in kept}
    try:
        for name, values in kept.items():
            parameters[name].data = values.to(own[name])
        yield
    finally:
        for name, values in own.items():
            parameters[name].data = values
