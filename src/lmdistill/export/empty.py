"""A model whose weights are still to come."""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from lmdistill.models import quiet_transformers


def empty_model(config: Any, dtype: torch.dtype) -> PreTrainedModel:
    """The causal model of a configuration, its shared matrices shared; whoever asks fills every parameter.

    Nothing is drawn: on large vocabularies that takes longer than reading the weights.
    """
    with no_init_weights(), quiet_transformers():
        model = cast(PreTrainedModel, AutoModelForCausalLM.from_config(config, dtype=dtype))
    model.tie_weights()  # transformers does this where it draws
    return model
