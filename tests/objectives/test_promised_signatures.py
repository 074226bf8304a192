"""Public names and signatures of the loss engine are a promise: others call them from their own trainers.

A deliberate change is made by running this file: python tests/objectives/test_promised_signatures.py
"""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path

from lmdistill import objectives, signals
from lmdistill.objectives import hints

PROMISED = Path(__file__).with_name("promised_signatures.json")


def signatures() -> dict[str, str]:
    """Name -> signature as Python prints it."""
    found = {}
    for module, names in (
        (objectives, objectives.__all__),
        (signals, signals.__all__),
        (hints, ["cosine_distance"]),
    ):
        for name in names:
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                found[f"{module.__name__}.{name}"] = str(inspect.signature(value))
    for name, definition in objectives.DIVERGENCES.items():
        shown = inspect.signature(definition)
        # A tensor's default prints its address.
        kept = [p for p in shown.parameters.values() if p.name != "interpolation"]
        found[f"divergence {name}"] = str(shown.replace(parameters=kept))
    return found


def test_public_signatures_are_as_promised() -> None:
    assert signatures() == json.loads(PROMISED.read_text())


if __name__ == "__main__":
    PROMISED.write_text(json.dumps(signatures(), indent=2) + "\n")
    sys.stdout.write(f"wrote {PROMISED}\n")
