"""Filters of causal models (TED) between the stage in which they learn the task and the one that compares with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from lmdistill.recipe import HintSpec
from lmdistill.stages.context import Context
from lmdistill.training.filters import FilterPair, LayerFilters
from lmdistill.training.hint_pairs import layer_pairs

SIDES = ("student", "teacher")


def stage_name(job: str, side: str) -> str:
    """`filters-teacher-distil`."""
    return f"filters-{side}-{job}"


def filter_file(context: Context, job: str, side: str) -> Path:
    """Where a run keeps the filters of one model."""
    return context.folder.file(f"{stage_name(job, side)}.safetensors")


def fresh_filters(
    context: Context, hint: HintSpec, model: nn.Module, teacher: PreTrainedModel, side: str
) -> LayerFilters:
    """Filters that know nothing yet, behind the blocks of one model that the hint compares."""
    pairs = layer_pairs(hint, model, teacher)
    place = SIDES.index(side)
    layers = sorted({int(pair[place]) for pair in pairs})
    student: Any = model
    wanted = int(teacher.config.get_text_config().hidden_size)
    given = wanted if side == "teacher" else int(student.config.get_text_config().hidden_size)
    return LayerFilters(layers, given, wanted, context.recipe.seed).to(context.device)


def learnt_filters(
    context: Context, job: str, hint: HintSpec, model: PreTrainedModel, teacher: PreTrainedModel
) -> FilterPair:
    """The filters that `learn_filters` wrote."""
    made = {}
    for side in SIDES:
        made[side] = fresh_filters(context, hint, model, teacher, side)
        made[side].load_state_dict(load_file(filter_file(context, job, side)))
    return FilterPair(made["student"], made["teacher"])
