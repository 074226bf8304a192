"""The configuration of a student before it is built: what the doctor estimates from, and what a fresh start uses."""

from __future__ import annotations

from transformers import PreTrainedConfig

from lmdistill.errors import RecipeError
from lmdistill.models import load_config
from lmdistill.recipe import StudentSpec
from lmdistill.students.families import config_for_layers
from lmdistill.students.width import narrowed_config


def starting_config(spec: StudentSpec, teacher: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration that a student starts from, before anything is cut. Raises RecipeError for unknown fields."""
    template = load_config(spec.model) if spec.model is not None else teacher
    known = template.to_dict()
    unknown = sorted(set(spec.config) - set(known))
    if unknown:
        raise RecipeError(f"student.config: a {template.model_type} configuration has no field {unknown[0]!r}")
    values = {**known, **spec.config}
    if "num_hidden_layers" in spec.config and "layer_types" not in spec.config:
        values.pop("layer_types", None)  # as many as there were layers; the class makes its own
    try:
        return type(template).from_dict(values)
    except Exception as error:  # transformers validates with classes of its own
        raise RecipeError(f"student.config: {str(error).splitlines()[-1].strip()}") from error


def planned_config(spec: StudentSpec, teacher: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of the student as it will be, its vocabulary untrimmed.

    Which layers importance will choose is not known yet: the first ones stand for them, since only sizes are asked for.
    Raises RecipeError where the sizes do not fit the model that is cut.
    """
    config = starting_config(spec, teacher)
    depth = config.num_hidden_layers
    if spec.layers is not None:
        if max(spec.layers, default=0) >= depth:
            raise RecipeError(f"student.layers names layer {max(spec.layers)}, but there are 0 to {depth - 1}")
        config = config_for_layers(config, sorted(spec.layers))
    elif spec.depth is not None:
        if spec.depth.keep > depth:
            raise RecipeError(
                f"{spec.depth.keep} layers are to be kept, but there are {depth}; lower student.depth.keep"
            )
        config = config_for_layers(config, list(range(spec.depth.keep)))
    return config if spec.width is None else narrowed_config(config, spec.width)
