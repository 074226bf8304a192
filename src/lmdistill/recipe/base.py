"""What all parts of a recipe share: the section, its field types, and the nearest known name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]

_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,100}")


def names_a_folder(name: str) -> bool:
    """Whether a run may have this name."""
    return _NAME.fullmatch(name) is not None


def _folder_name(value: str) -> str:
    if not names_a_folder(value):
        raise ValueError(f"{value!r} cannot name a folder; use 1 to 100 of A-Z a-z 0-9 . _ -")
    return value


FolderName = Annotated[str, AfterValidator(_folder_name)]
"""A name that a folder may have."""


class Section(BaseModel):
    """Base of every part of a recipe: unknown keys are errors, field docs are the strings under the fields."""

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
    )


AnySection = TypeVar("AnySection", bound=Section)


def nearest(name: str, known: Sequence[str]) -> str:
    """`; did you mean 'x'?`, or the known names where none is near."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known here: {', '.join(known)}" if known else ""


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section class inside an annotation such as `list[SourceSpec] | None`, if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = section_of(inner)
        if found is not None:
            return found
    return None
