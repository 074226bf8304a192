"""GAD's discriminator (2511.10643): a copy of the student that learns to tell the teacher's answers from the student's.

Its score of an answer is the reward of the text (`objectives.group_advantages`), and it is trained on the same fresh
text: one that stands still is soon outwitted. It sees text alone, so that the teacher may be behind an API.

A batch holds padded rows of one text each: `input_ids`, `labels` (-100 outside the answer, not shifted) and
`position_ids`, all (B, L).

Shape legend: B batch, L length, H hidden, P pairs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from lmdistill.errors import CorruptFile, NonFiniteLoss
from lmdistill.io import read_json, write_folder, write_json
from lmdistill.models import errors_of_the_disk, last_hidden
from lmdistill.teachers.base import model_inputs

FOLDER = "discriminator"
"""Name of its folder in a checkpoint."""

_IGNORED = -100
_WEIGHTS, _OPTIMISER, _COUNTS = "weights.safetensors", "optimiser.safetensors", "state.json"


@dataclass(frozen=True)
class DiscriminatorStep:
    """What one update of the discriminator saw, before it changed anything."""

    loss: float
    """Mean of -log sigma(D(teacher's answer) - D(student's))."""
    accuracy: float
    """Share of pairs in which the teacher's answer scores higher."""
    margin: float
    """Mean of D(teacher's answer) - D(student's)."""
    gradient_norm: float
    pairs: int


class Discriminator:
    """Scores answers and learns from pairs of them; keeps its state in checkpoints (see `training.companions`)."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        learning_rate: float = 1e-6,
        weight_decay: float = 0.01,
        max_grad_norm: float = 0.2,
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        """`model` is taken over and trained where its parameters ask for gradients; `of` copies one instead.

        The head starts at 0: all scores are 0 and the first loss is log 2, whatever the seed. `compute_dtype` is that
        of the model's products; AdamW's steps, at the published rate, would be lost in weights of 16 bits.
        """
        self.model = model.eval()  # no dropout: a resumed run needs no random state of ours
        width = int(model.config.get_text_config().hidden_size)
        self.head = nn.Linear(width, 1, bias=False, device=model.device, dtype=torch.float32)
        nn.init.zeros_(self.head.weight)
        self.max_grad_norm = max_grad_norm
        self.compute_dtype = compute_dtype
        self.updates = 0
        """Optimiser steps so far."""
        self._trained = {name: p for name, p in self._parameters().items() if p.requires_grad}
        self._optimiser = torch.optim.AdamW(self._trained.values(), lr=learning_rate, weight_decay=weight_decay)

    @classmethod
    def of(cls, student: PreTrainedModel, **settings: Any) -> Discriminator:
        """A discriminator that starts from a copy of the student in float32; the student stays as it is."""
        own: Any = copy.deepcopy(student)
        for parameter in own.parameters():
            parameter.grad = None
        return cls(own.float(), **settings)

    @torch.no_grad()
    def score(self, batch: Mapping[str, Any]) -> Tensor:
        """D(y) of each row, taken at its answer's last token, (B,), float32.

        A row without an answer gives the score of its first token.
        """
        return self._scores(batch)

    def update(self, batches: Sequence[Mapping[str, Any]], pairs: Sequence[Tensor]) -> DiscriminatorStep:
        """One step on the pairs of all micro-batches; Bradley-Terry, mean over pairs.

        `pairs` holds, for each batch, its rows that belong together, (P, 2): the teacher's answer, then the student's.
        Several answers of the student may be paired with one of the teacher. Without any pair nothing changes.
        Raises NonFiniteLoss before anything is changed.
        """
        total = sum(len(rows_P2) for rows_P2 in pairs)
        if total == 0:
            return DiscriminatorStep(0.0, 0.0, 0.0, 0.0, 0)
        self._optimiser.zero_grad(set_to_none=True)
        margins = []
        for batch, rows_P2 in zip(batches, pairs, strict=True):
            if len(rows_P2) == 0:
                continue
            scores_B = self._scores(batch)
            margin_P = scores_B[rows_P2[:, 0]] - scores_B[rows_P2[:, 1]]
            (-F.logsigmoid(margin_P).sum() / total).backward()
            margins.append(margin_P.detach())
        margin_P = torch.cat(margins)
        norm = float(nn.utils.clip_grad_norm_(self._trained.values(), self.max_grad_norm))
        step = DiscriminatorStep(
            loss=float(-F.logsigmoid(margin_P).mean()),
            accuracy=float((margin_P > 0).float().mean()),
            margin=float(margin_P.mean()),
            gradient_norm=norm,
            pairs=total,
        )
        self._refuse_non_finite(step)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        self.updates += 1
        return step

    def save(self, checkpoint: Path) -> None:
        """Write weights, the optimiser's averages and counts into the checkpoint. Raises StorageError."""
        averages = {
            f"{entry}.{name}": value
            for name, parameter in self._trained.items()
            for entry, value in self._optimiser.state[parameter].items()
        }
        with write_folder(checkpoint / FOLDER) as temporary, errors_of_the_disk():
            save_file(_contiguous(self._parameters()), temporary / _WEIGHTS)
            save_file(_contiguous(averages), temporary / _OPTIMISER)
            write_json(temporary / _COUNTS, {"updates": self.updates})

    def restore(self, checkpoint: Path) -> None:
        """Go on, to the bit, from what `save` wrote. Raises CorruptFile where that does not fit this model."""
        folder = checkpoint / FOLDER
        weights, averages = _read(folder / _WEIGHTS), _read(folder / _OPTIMISER)
        _check_fit(folder / _WEIGHTS, weights, self._parameters())
        with torch.no_grad():
            for name, parameter in self._parameters().items():
                parameter.copy_(weights[name])
        state: dict[Tensor, dict[str, Tensor]] = {parameter: {} for parameter in self._trained.values()}
        for key, value in averages.items():
            entry, name = key.split(".", 1)
            if name not in self._trained:
                raise CorruptFile(f"{folder / _OPTIMISER}: {name!r} is not trained here; was the student another one?")
            parameter = self._trained[name]
            # Adam counts its steps on the processor, wherever the parameter is.
            state[parameter][entry] = value if entry == "step" else value.to(parameter.device)
        self._optimiser.state.clear()
        self._optimiser.state.update({parameter: entries for parameter, entries in state.items() if entries})
        self.updates = int(read_json(folder / _COUNTS)["updates"])

    def _scores(self, batch: Mapping[str, Any]) -> Tensor:
        device = self.head.weight.device
        inputs = {name: tensor.to(device) for name, tensor in model_inputs(batch).items()}
        with torch.autocast(device.type, dtype=self.compute_dtype, enabled=self.compute_dtype is not None):
            hidden_BLH = last_hidden(self.model, inputs)
        answer_BL = batch["labels"].to(device) != _IGNORED
        places_BL = torch.arange(answer_BL.shape[1], device=device) * answer_BL
        last_BH = hidden_BLH[torch.arange(len(places_BL), device=device), places_BL.amax(1)]
        scores_B: Tensor = self.head(last_BH.float())[:, 0]
        return scores_B

    def _parameters(self) -> dict[str, nn.Parameter]:
        """All parameters, tied ones once, by name."""
        return {**dict(self.model.named_parameters(prefix="model")), "head": self.head.weight}

    def _refuse_non_finite(self, step: DiscriminatorStep) -> None:
        if all(map(torch.isfinite, torch.tensor([step.loss, step.gradient_norm]))):
            return
        self._optimiser.zero_grad(set_to_none=True)
        rate = self._optimiser.param_groups[0]["lr"]
        raise NonFiniteLoss(
            f"update {self.updates + 1} of the discriminator: its loss is {step.loss} and its gradient's norm "
            f"{step.gradient_norm}; the step was not taken. Lower its learning rate (now {rate})"
        )


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise CorruptFile(f"{path}: missing; resume from an older checkpoint, or start this stage anew") from error
    except SafetensorError as error:
        raise CorruptFile(f"{path}: not readable ({error}); resume from an older checkpoint") from error


def _check_fit(path: Path, found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    for name in sorted({*found, *own}):
        ours, theirs = own.get(name), found.get(name)
        if ours is None or theirs is None or ours.shape != theirs.shape:
            shapes = [None if tensor is None else tuple(tensor.shape) for tensor in (ours, theirs)]
            raise CorruptFile(
                f"{path}: {name!r} has shape {shapes[1]} there and {shapes[0]} here; the student was another one: "
                "start this stage anew"
            )
