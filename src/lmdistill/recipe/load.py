"""Reading a recipe: YAML, laid over its method's fragment, overridden by `a.b=c`, checked; and writing it back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from lmdistill.errors import RecipeError
from lmdistill.recipe.base import AnySection, Section, nearest, section_of
from lmdistill.recipe.whole import Recipe, merge
from lmdistill.yamltext import read_yaml, write_yaml


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a YAML recipe, lay it over its method's defaults, apply `a.b=c` overrides and check the whole.

    Raises RecipeError with the place, the reason and the nearest known name.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML recipe") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text (byte {error.start}); is it a YAML recipe?") from error
    return parse_recipe(text, overrides, source=str(path))


def parse_recipe(text: str, overrides: Sequence[str] = (), source: str = "recipe") -> Recipe:
    """`load_recipe` for YAML text."""
    try:
        values = read_yaml(text)
    except ValueError as error:
        raise RecipeError(f"{source}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        got = "nothing" if values is None else f"a {type(values).__name__}"
        raise RecipeError(f"{source}: a recipe is a mapping of fields, but this holds {got}; see lmdistill new --help")
    return resolve_recipe(values, overrides, source=source)


def resolve_recipe(values: Mapping[str, Any], overrides: Sequence[str] = (), source: str = "recipe") -> Recipe:
    """Complete plain values with their method's fragment, apply `a.b=c` overrides, and check. Raises RecipeError."""
    changes = [_parse_override(override) for override in overrides]
    # The method comes first: an override may address what its fragment brings, such as stages.0.
    chosen = [change.value for change in changes if change.path == ["method"]]
    complete = _with_fragment({**values, "method": chosen[-1]} if chosen else values, source)
    recipe = _validated(Recipe, complete, changes, source)
    _check_training_fields(recipe, source)
    return recipe


def resolve_section(section: type[AnySection], overrides: Sequence[str], source: str) -> AnySection:
    """One section at its defaults, with `a.b=c` overrides. Raises RecipeError."""
    return _validated(section, {}, [_parse_override(override) for override in overrides], source)


def _validated(
    section: type[AnySection], values: Mapping[str, Any], changes: Sequence[_Override], source: str
) -> AnySection:
    for change in changes:
        values = _with_value(values, change.path, change)
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise RecipeError(_explain(error, section, source)) from error


def _with_fragment(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The values laid over the fragment of their method, where they name one."""
    from lmdistill.methods import find_method  # methods describe recipes in plain values: no cycle at import time

    name = values.get("method")
    if not isinstance(name, str):
        return dict(values)
    try:
        return merge(find_method(name).fragment, values)
    except RecipeError as error:
        raise RecipeError(f"{source}: {error}") from error


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML; reading it again gives an equal recipe."""
    return write_yaml(recipe.model_dump(mode="json"))


@dataclass(frozen=True)
class _Override:
    """One `a.b=c`."""

    text: str
    path: list[str]
    value: Any


def _parse_override(text: str) -> _Override:
    """Take `a.b=c` apart; the value is YAML."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise RecipeError(f"--set {text!r}: write it as field=value, for example --set training.max_steps=100")
    try:
        return _Override(text, path.strip().split("."), read_yaml(value))
    except ValueError as error:
        raise RecipeError(f"--set {text!r}: the value is not valid YAML: {error}") from error


def _with_value(node: Any, path: list[str], change: _Override) -> Any:
    """A copy of `node` in which the entry at `path` has the new value; list items are addressed by their number."""
    key, rest = path[0], path[1:]
    if isinstance(node, list):
        if not (key.isascii() and key.isdigit()) or int(key) >= len(node):
            held = f"has the items 0 to {len(node) - 1}" if node else "is empty"
            raise RecipeError(f"--set {change.text!r}: {key!r} is not an item of that list, which {held}")
        items = list(node)
        items[int(key)] = _with_value(items[int(key)], rest, change) if rest else change.value
        return items
    if node is not None and not isinstance(node, Mapping):
        raise RecipeError(f"--set {change.text!r}: {key!r} lies inside {node!r}, which has no fields")
    fields = dict(node or {})
    fields[key] = _with_value(fields.get(key), rest, change) if rest else change.value
    return fields


def _explain(error: ValidationError, section: type[Section], source: str) -> str:
    """All problems of a recipe, one a line, each with its place and, for an unknown key, the nearest known one."""
    lines = []
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = _fields_at(section, problem["loc"][:-1])
            lines.append(f"{place}: unknown field{nearest(str(problem['loc'][-1]), known)}")
        elif problem["type"] == "missing":
            lines.append(f"{place}: missing; add it")
        else:
            got = problem.get("input")
            shown = f" (got {got!r})" if isinstance(got, str | int | float | bool) or got is None else ""
            lines.append(f"{place or 'recipe'}: {problem['msg'].removeprefix('Value error, ')}{shown}")
    return f"{source}: " + "\n  ".join(lines) if len(lines) == 1 else f"{source}:\n  " + "\n  ".join(lines)


def _fields_at(model: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """Names of the fields that exist at a place inside a section."""
    current: type[BaseModel] | None = model
    for part in place:
        if current is None:
            return []
        field = current.model_fields.get(str(part))
        if field is not None:
            current = section_of(field.annotation)
        # a list index or a mapping key stays within the section that the list or mapping holds
    return list(current.model_fields) if current else []


# The Trainer owns these: lmdistill sets them from other fields of the recipe or depends on their value.
_RESERVED_TRAINING = {
    "output_dir": "runs and name",
    "seed": "seed",
    "data_seed": "seed",
    "remove_unused_columns": "nothing: it is always false",
    "use_cpu": "machine.device",
    "resume_from_checkpoint": "nothing: a run resumes by itself",
    "torch_compile": "machine.compile",
}


def _check_training_fields(recipe: Recipe, source: str) -> None:
    """Refuse names that `transformers.TrainingArguments` does not have, and those that the recipe sets elsewhere."""
    places = [("training", recipe.training)]
    places += [(f"stages.{index}.training", stage.training) for index, stage in enumerate(recipe.stages)]
    if not any(fields for _, fields in places):
        return
    known = training_fields()
    for place, fields in places:
        for name in fields:
            if name in _RESERVED_TRAINING:
                raise RecipeError(f"{source}: {place}.{name} is set by {_RESERVED_TRAINING[name]}; remove it")
            if name not in known:
                raise RecipeError(f"{source}: {place}.{name}: unknown field of TrainingArguments{nearest(name, known)}")


def training_fields() -> list[str]:
    """Names of the fields of `transformers.TrainingArguments`."""
    from dataclasses import fields

    from transformers import TrainingArguments  # seconds to import: only when a recipe has training fields

    return [field.name for field in fields(TrainingArguments)]
