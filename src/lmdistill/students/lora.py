"""Low-rank adapters (LoRA, 2106.09685) through peft."""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from lmdistill.errors import MissingExtra, RecipeError
from lmdistill.recipe import LoraSpec


def with_adapters(model: PreTrainedModel, spec: LoraSpec, *, seed: int) -> PreTrainedModel:
    """The model with adapters, everything else frozen. Raises MissingExtra where peft is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise MissingExtra("LoRA needs the peft package: pip install 'lmdistill[lora]'")
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=spec.rank,
        lora_alpha=cast(Any, spec.alpha),
        lora_dropout=spec.dropout,
        target_modules=spec.target_modules,
        fan_in_fan_out=model.config.model_type == "gpt2",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 asks transformers 5 for a name it has renamed
        torch.manual_seed(seed)
        try:
            return cast(PreTrainedModel, get_peft_model(model, config))
        except ValueError as error:
            raise RecipeError(f"student.lora: {error}") from error


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """The plain model, its adapters merged into the weights; a model without adapters as it is."""
    merge: Any = getattr(model, "merge_and_unload", None)
    return cast(PreTrainedModel, merge()) if callable(merge) else model
