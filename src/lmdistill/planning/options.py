"""What the command line's options of a plan mean."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from lmdistill.errors import CorruptFile, RecipeError
from lmdistill.io import read_json
from lmdistill.planning.hardware import find_hardware
from lmdistill.planning.make import Elsewhere
from lmdistill.planning.scaling import DistillationLaw


def elsewhere_of(name: str | None, file: Path | None, utilisation: float, price: float | None) -> Elsewhere | None:
    """The hardware that was asked for; None where none was. Raises RecipeError for a name that is not known."""
    if name is None:
        return None
    return Elsewhere(find_hardware(name, file), utilisation, price)


def load_law(file: Path) -> DistillationLaw:
    """Coefficients of equation 8 from a JSON file. Raises RecipeError where some are missing."""
    try:
        return DistillationLaw.model_validate(read_json(file))
    except (FileNotFoundError, CorruptFile, ValidationError) as error:
        names = ", ".join(DistillationLaw.model_fields)
        raise RecipeError(f"{file}: not the coefficients of the law; a JSON object with {names} is wanted") from error
