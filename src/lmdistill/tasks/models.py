"""Models of a task: which class of transformers, and what they say of a batch.

Shape legend: B rows, L length, H hidden, C classes, V vocabulary, n labelled or masked positions.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from lmdistill.errors import ModelError
from lmdistill.io import read_json
from lmdistill.models import load_auto
from lmdistill.packages import resolve_path
from lmdistill.recipe import ModelSpec
from lmdistill.recipe.task import TaskKind
from lmdistill.tasks.bilstm import MODEL_TYPE, BiLstm
from lmdistill.tasks.encode import IGNORED

AUTO: Mapping[TaskKind, Any] = {
    "sequence_classification": AutoModelForSequenceClassification,
    "sequence_regression": AutoModelForSequenceClassification,
    "token_classification": AutoModelForTokenClassification,
    "sentence_embedding": AutoModel,
    "masked_lm": AutoModelForMaskedLM,
}
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def load_task_model(
    spec: ModelSpec,
    kind: TaskKind,
    classes: Sequence[str],
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
) -> tuple[PreTrainedModel, list[str]]:
    """A model of this kind of task, and the names of weights that were not in its files. Raises ModelError.

    A head for other classes than these is refused; a model without a head gets a new one, drawn by the seed.
    """
    folder = Path(resolve_path(spec.model)).expanduser()
    if (folder / "config.json").is_file() and read_json(folder / "config.json").get("model_type") == MODEL_TYPE:
        found: Any = BiLstm.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        return cast(PreTrainedModel, found[0].to(device).eval()), sorted(found[1]["missing_keys"])
    options = {**head_options(kind, classes), "ignore_mismatched_sizes": True}
    return load_auto(AUTO[kind], spec, dtype=dtype, device=device, seed=seed, **options)


def head_options(kind: TaskKind, classes: Sequence[str]) -> dict[str, Any]:
    """What a configuration has to say about the head of a task."""
    if kind == "sequence_regression":
        return {"num_labels": 1, "problem_type": "regression"}
    if kind not in ("sequence_classification", "token_classification"):
        return {}
    return {
        "num_labels": len(classes),
        "id2label": dict(enumerate(classes)),
        "label2id": {name: number for number, name in enumerate(classes)},
    }


def fresh_task_model(config: PreTrainedConfig, kind: TaskKind, classes: Sequence[str], seed: int) -> PreTrainedModel:
    """A model of this configuration with weights drawn by the seed."""
    for name, value in head_options(kind, classes).items():
        setattr(config, name, value)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AUTO[kind].from_config(config, dtype=torch.float32)
    return cast(PreTrainedModel, model.eval())


def inputs_of(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Those parts of a batch that the model's forward takes."""
    known = inspect.signature(model.forward).parameters
    return {name: batch[name] for name in INPUTS if name in batch and name in known}


def outputs(
    model: nn.Module,
    batch: Mapping[str, Any],
    kind: TaskKind,
    embeds: Tensor | None = None,
    bare: nn.Module | None = None,
) -> Tensor:
    """What a model says of a batch: class logits (B, C); a number, (B, 1); class logits of labelled words, (n, C);
    embeddings of length 1, (B, H); or logits of masked tokens, (n, V).

    `embeds` stands for the input embeddings, (B, L, H). `bare` is the model inside what wraps it.
    """
    inputs: dict[str, Any] = dict(inputs_of(bare or model, batch))
    if embeds is not None:
        del inputs["input_ids"]
        inputs["inputs_embeds"] = embeds
    if kind == "masked_lm":
        return _masked_logits(model, bare or model, inputs, batch["labels"] != IGNORED)
    found = model(**inputs)
    if kind == "sentence_embedding":
        return mean_embedding(found.last_hidden_state, batch["attention_mask"])
    logits: Tensor = found.logits
    return logits[batch["labels"] != IGNORED] if kind == "token_classification" else logits


def _masked_logits(model: nn.Module, bare: nn.Module, inputs: Mapping[str, Any], mask_BL: Tensor) -> Tensor:
    """Logits of the masked positions alone, (n, V): the head sees no other, of which it would make half of the work."""

    def select(module: nn.Module, arguments: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[mask_BL][None]
        return output

    handle = backbone(cast(PreTrainedModel, bare)).register_forward_hook(select)
    try:
        logits: Tensor = model(**inputs).logits[0]
    finally:
        handle.remove()
    return logits


def mean_embedding(hidden_BLH: Tensor, mask_BL: Tensor) -> Tensor:
    """The mean of the unmasked positions, scaled to length 1, (B, H); as sentence-transformers pools all-MiniLM."""
    weights_BL1 = mask_BL[..., None].to(torch.float32)
    mean_BH = (hidden_BLH.float() * weights_BL1).sum(1) / weights_BL1.sum(1).clamp(min=1e-9)
    return torch.nn.functional.normalize(mean_BH, dim=-1)


def backbone(model: PreTrainedModel) -> PreTrainedModel:
    """The encoder inside a model with a head. Raises ModelError where there is none."""
    inner = model.base_model
    if not isinstance(inner, PreTrainedModel):
        raise ModelError(f"{type(model).__name__} has no encoder inside")
    return inner
