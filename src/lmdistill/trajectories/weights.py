"""A copy of the student as it was at one step, in the number format that text is written in."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, initialization

from lmdistill.errors import ModelError
from lmdistill.models import fastest_dtype


class WeightCopy:
    """A plain model of the student's kind; `take` writes the student's present weights into it, in place.

    The student itself stays as it is, in its own number format and mode. Adapters are merged into the copy.
    """

    def __init__(self, dtype: torch.dtype | None = None, *, untied: bool = False) -> None:
        """`dtype` None: the format that the student's device multiplies fastest. `untied` gives the copy an output
        head of its own where the student's is its embeddings."""
        self.dtype = dtype
        self.untied = untied
        self.model: PreTrainedModel | None = None

    @torch.no_grad()
    def take(self, student: PreTrainedModel) -> PreTrainedModel:
        """The copy, with the student's present weights. Raises ModelError where their names do not fit."""
        if self.model is None:
            self.model = self._make(student)
        targets = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        for name, weight in plain_weights(student):
            target = targets.pop(name, None)
            if target is None or target.shape != weight.shape:
                found = "nothing" if target is None else str(tuple(target.shape))
                raise ModelError(
                    f"the student's {name} {tuple(weight.shape)} meets {found} in a model made of its configuration; "
                    "was it changed since its configuration was written?"
                )
            target.copy_(weight)
        if self.untied:
            head = self.model.get_output_embeddings().weight
            head.copy_(_base(student).get_output_embeddings().weight)
            targets = {name: target for name, target in targets.items() if target is not head}
        missing = [name for name in targets if name in dict(self.model.named_parameters())]
        if missing:
            raise ModelError(f"the student has no weights for {len(missing)} tensors of its kind (first: {missing[0]})")
        return self.model

    def _make(self, student: PreTrainedModel) -> PreTrainedModel:
        """A model of the student's kind; making it moves no random numbers of anybody else."""
        base = _base(student)
        dtype = self.dtype or fastest_dtype(base.device)
        config = copy.deepcopy(base.config)
        if self.untied:
            config.tie_word_embeddings = False
        unset = getattr(initialization, "no_init_weights", contextlib.nullcontext)  # all weights are written at once
        with torch.random.fork_rng(), unset():
            # Made in this format rather than turned into it: rotary frequencies stay float32.
            made: Any = AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=base.config._attn_implementation
            )
        made.tie_weights()
        made.generation_config = copy.deepcopy(base.generation_config)
        return cast(PreTrainedModel, made.to(base.device).eval().requires_grad_(False))


def plain_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Names and values of a model's parameters and stored buffers; those of adapters are added to what they adapt."""
    base = _base(model)
    modules = dict(base.named_modules())
    stored = base.state_dict(keep_vars=True)
    buffers = [(name, buffer) for name, buffer in base.named_buffers() if name in stored]
    for name, weight in [*base.named_parameters(), *buffers]:
        owner, _, kind = name.rpartition(".")
        outer = owner.removesuffix(".base_layer")
        if outer != owner:
            adapted: Any = modules[outer]
            if kind == "weight":
                for adapter in adapted.active_adapters:
                    weight = weight.float() + adapted.get_delta_weight(adapter).float()
            yield f"{outer}.{kind}", weight
        elif not _of_adapter(owner, modules):
            yield name, weight


def _of_adapter(owner: str, modules: dict[str, Any]) -> bool:
    """Whether a module lies inside one that adapts another."""
    parts = owner.split(".")
    above = (".".join(parts[:end]) for end in range(1, len(parts)))
    return any(hasattr(modules.get(name), "base_layer") for name in above)


def _base(model: PreTrainedModel) -> PreTrainedModel:
    unwrap: Any = getattr(model, "get_base_model", None)
    return cast(PreTrainedModel, unwrap()) if callable(unwrap) else model
