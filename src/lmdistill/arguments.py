"""From words of the command line to sections of a recipe."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from lmdistill.errors import RecipeError
from lmdistill.recipe import (
    QUANTIZATIONS,
    ApiSpec,
    EvaluationSpec,
    ExportSpec,
    FieldNames,
    ModelSpec,
    SourceSpec,
    SuitesSpec,
    nearest,
    resolve_section,
    section_of,
)
from lmdistill.recipe.whole import REMOTE

_COMMIT = re.compile(r"(?P<model>.+)@(?P<revision>[0-9a-f]{7,40})")


def model_spec(text: str) -> ModelSpec:
    """A model as it is named on the command line.

    The folder of a model or of a run (its student is meant), a Hugging Face name, which may end in @COMMIT,
    `package:NAME`, or the path of a GGUF file in any of them.
    """
    path = PurePosixPath(text)
    if path.suffix.lower() == ".gguf":
        return ModelSpec(model=str(path.parent), gguf_file=path.name)
    folder = Path(text)
    if (folder / "student" / "config.json").is_file() and not (folder / "config.json").is_file():
        return ModelSpec(model=str(folder / "student"))
    pinned = _COMMIT.fullmatch(text)
    if pinned and not folder.exists():
        return ModelSpec(model=pinned["model"], revision=pinned["revision"])
    return ModelSpec(model=text)


def named_model(text: str, base_url: str | None, ledger: Path | None = None) -> ModelSpec | ApiSpec:
    """A model as `lmdistill evaluate` takes it: weights as in `model_spec`, or `api:NAME`, a name on the server at
    `base_url`, whose answers are kept in `ledger`. Raises RecipeError for `api:` without an address."""
    if not text.startswith(REMOTE):
        return model_spec(text)
    if base_url is None:
        raise RecipeError(
            f"{text}: where is that server? --base-url https://api.openai.com/v1, or http://127.0.0.1:8000/v1"
        )
    name = text.removeprefix(REMOTE)
    kept = None if ledger is None else str(ledger)
    try:
        return ApiSpec(model=name, base_url=base_url, ledger=kept)
    except ValidationError as error:
        raise RecipeError(f"--base-url: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error


def sources(words: Sequence[str], text_column: str = "text") -> dict[str, SourceSpec]:
    """Held-out texts by name, from `PATH` or `NAME=PATH`; a path without a name is called after its file.

    Raises RecipeError where two have one name.
    """
    found: dict[str, SourceSpec] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or Path(word).exists():
            name, path = PurePosixPath(word).stem, word
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:100] or "data"
        if name in found:
            raise RecipeError(f"--data {word!r}: two texts are called {name!r}; name them as in --data other={path}")
        found[name] = SourceSpec(path=path, fields=FieldNames(text=text_column))
    return found


def export_spec(form: str, quantization: str | None, max_tokens: int) -> ExportSpec:
    """An export as it is named on the command line. Raises RecipeError for one that is not known."""
    if form not in QUANTIZATIONS:
        raise RecipeError(f"--format {form!r} is not known; choose one of {', '.join(QUANTIZATIONS)}")
    if quantization is not None and quantization not in QUANTIZATIONS[form]:
        known = ", ".join(QUANTIZATIONS[form])
        raise RecipeError(f"--quantization {quantization!r}: {form} cannot hold it; it can hold {known}")
    return ExportSpec.model_validate({"format": form, "quantization": quantization, "max_tokens": max_tokens})


def evaluation_spec(overrides: Sequence[str], suites: Sequence[str] = (), limit: int | None = None) -> EvaluationSpec:
    """The `evaluation` section of a recipe from `FIELD=VALUE` words and `--suite NAME[,NAME]`. Raises RecipeError."""
    names = [name.strip() for word in suites for name in word.split(",") if name.strip()]
    known = [name for name, field in SuitesSpec.model_fields.items() if section_of(field.annotation) is not None]
    for name in names:
        if name not in known:
            raise RecipeError(f"--suite {name!r}: no such suite{nearest(name, known)}")
    asked = [f"suites.{name}={{}}" for name in names]
    asked += [f"suites.limit={limit}"] if limit is not None else []
    return resolve_section(EvaluationSpec, [*asked, *overrides], "evaluate --set")


def engine_overrides(engine: str | None, base_url: str | None, served_model: str | None) -> list[str]:
    """The fields of `signals` that the options of `lmdistill label` set; an address alone means a server."""
    chosen = {
        "engine": engine or ("server" if base_url is not None else None),
        "base_url": base_url,
        "served_model": served_model,
    }
    # Quoted: YAML would take a model called 3 for a number.
    return [f"signals.{name}={json.dumps(value)}" for name, value in chosen.items() if value is not None]
