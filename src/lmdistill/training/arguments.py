"""From a recipe's `training` fields to `transformers.TrainingArguments`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from lmdistill.errors import RecipeError

DEFAULTS: Mapping[str, Any] = {
    "per_device_train_batch_size": 8,
    "learning_rate": 5e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "num_train_epochs": 1,
    "max_grad_norm": 1.0,
    "logging_steps": 10,
    "save_strategy": "steps",
    "save_steps": 500,
    "save_total_limit": 2,
    "report_to": "none",
    "dataloader_pin_memory": False,
    "include_num_input_tokens_seen": "all",
}
"""What is used where a recipe is silent; other fields keep transformers' defaults."""


def training_arguments(
    values: Mapping[str, Any], *, folder: Path, seed: int, device: torch.device, fast_dtype: torch.dtype
) -> TrainingArguments:
    """The arguments of one stage. Raises RecipeError with transformers' own reason where a value is wrong.

    Mixed precision (`bf16`) is switched on where the processor is faster in it and the recipe does not say.
    """
    fields = {**DEFAULTS, "bf16": fast_dtype == torch.bfloat16 and not values.get("fp16", False), **values}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # its notices are for those who write the arguments by hand
            return TrainingArguments(
                output_dir=str(folder),
                seed=seed,
                data_seed=seed,
                use_cpu=device.type == "cpu",
                remove_unused_columns=False,
                disable_tqdm=True,
                **fields,
            )
    except (TypeError, ValueError, ImportError) as error:
        raise RecipeError(f"training: {error}") from error
