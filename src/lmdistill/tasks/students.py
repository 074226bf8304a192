"""Students of a task: cut from the teacher, fresh, pretrained, or a bidirectional LSTM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import MobileBertConfig, PreTrainedConfig, PreTrainedModel

from lmdistill.errors import RecipeError
from lmdistill.models import count_parameters
from lmdistill.recipe import DepthSpec, StudentSpec
from lmdistill.recipe.task import BiLstmSpec, BottleneckSpec, TaskKind
from lmdistill.students.families import config_for_layers
from lmdistill.students.plan import starting_config
from lmdistill.students.prune import rebuilt
from lmdistill.tasks.bilstm import BiLstm, BiLstmConfig
from lmdistill.tasks.models import fresh_task_model
from lmdistill.training.anatomy import blocks_of


def kept_layers(spec: StudentSpec, depth: int) -> list[int] | None:
    """The layers that a student keeps of `depth`, counted from 0; None where all stay. Raises RecipeError."""
    if spec.layers is not None:
        wrong = [layer for layer in spec.layers if layer >= depth]
        if wrong or len(set(spec.layers)) < len(spec.layers) or not spec.layers:
            raise RecipeError(f"student.layers = {spec.layers}: must be different numbers from 0 to {depth - 1}")
        return sorted(spec.layers)
    if spec.depth is None:
        return None
    if spec.depth.keep > depth:
        raise RecipeError(f"student.depth.keep = {spec.depth.keep}, but the teacher has {depth} layers")
    return _by_position(depth, spec.depth)


def _by_position(depth: int, spec: DepthSpec) -> list[int]:
    if spec.importance == "first":
        return [*range(spec.keep)]
    if spec.importance == "last":
        return [*range(depth - spec.keep, depth)]
    return [0] if spec.keep == 1 else sorted({round(i * (depth - 1) / (spec.keep - 1)) for i in range(spec.keep)})


def cut_layers(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """A model of the same class made of these layers; its weights are copies."""
    first = blocks_of(model)[0]
    path = next(name for name, module in model.named_modules() if module is first)
    marker = path.rpartition(".")[0] + "."
    state = {}
    for name, tensor in model.state_dict().items():
        if name.startswith(marker):
            index, _, inner = name.removeprefix(marker).partition(".")
            if int(index) not in kept:
                continue
            name = f"{marker}{list(kept).index(int(index))}.{inner}"
        state[name] = tensor
    return rebuilt(model, config_for_layers(model.config, list(kept)), state)


def from_teacher(spec: StudentSpec, teacher: PreTrainedModel) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A student of the teacher's layers, and what was done, as plain values. Raises RecipeError."""
    depth = len(blocks_of(teacher))
    kept = kept_layers(spec, depth)
    model = teacher if kept is None else cut_layers(teacher, kept)
    return model, {
        "start": "teacher",
        "parameters_before": count_parameters(teacher),
        "parameters_after": count_parameters(model),
        "layers_before": depth,
        "kept_layers": kept if kept is not None else [*range(depth)],
    }


def from_config(
    spec: StudentSpec, teacher: PreTrainedConfig, kind: TaskKind, classes: Sequence[str], seed: int
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A student with fresh weights. Raises RecipeError for unknown fields of its configuration."""
    model = fresh_task_model(starting_config(spec, teacher), kind, classes, seed)
    count = count_parameters(model)
    return model, {"start": "config", "parameters_before": count, "parameters_after": count}


def bottleneck(
    spec: BottleneckSpec, teacher: PreTrainedConfig, kind: TaskKind, classes: Sequence[str], seed: int
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A MobileBERT with the teacher's depth, heads, width between blocks and vocabulary. Raises RecipeError."""
    heads = teacher.num_attention_heads
    if spec.width % heads:
        raise RecipeError(f"task.bottleneck.width = {spec.width} is no multiple of the teacher's {heads} heads")
    config = MobileBertConfig(
        vocab_size=teacher.vocab_size,
        hidden_size=teacher.hidden_size,
        num_hidden_layers=teacher.num_hidden_layers,
        num_attention_heads=heads,
        intermediate_size=4 * spec.width,
        embedding_size=spec.embedding,
        intra_bottleneck_size=spec.width,
        num_feedforward_networks=spec.feed_forwards,
        max_position_embeddings=teacher.max_position_embeddings,
        type_vocab_size=getattr(teacher, "type_vocab_size", 2),
        pad_token_id=teacher.pad_token_id,
    )
    model = fresh_task_model(config, kind, classes, seed)
    count = count_parameters(model)
    return model, {"start": "bottleneck", "parameters_before": count, "parameters_after": count}


def bilstm(
    spec: BiLstmSpec, teacher: PreTrainedModel, classes: Sequence[str], seed: int
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A bidirectional LSTM; its word embeddings are the teacher's where the recipe gives them no width."""
    table: Any = teacher.get_input_embeddings()
    words, width = table.weight.shape
    config = BiLstmConfig(
        vocab_size=int(words),
        embedding=spec.embedding or int(width),
        hidden=spec.hidden,
        layers=spec.layers,
        projection=spec.projection,
        dropout=spec.dropout,
        num_labels=len(classes),
        id2label=dict(enumerate(classes)),
        label2id={name: number for number, name in enumerate(classes)},
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BiLstm(config)
    if spec.embedding is None:
        with torch.no_grad():
            model.embedding.weight.copy_(table.weight)
    model.train(False)
    return model, {
        "start": "bilstm",
        "parameters_before": count_parameters(teacher),
        "parameters_after": count_parameters(model),
    }
