"""Whose signals a recipe's are, where they lie, and whether a store holds them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from lmdistill.errors import ModelError
from lmdistill.io import hash_json
from lmdistill.models import model_fingerprint, tokenizer_fingerprint
from lmdistill.recipe import Recipe
from lmdistill.signals.manifest import Source
from lmdistill.signals.store import source_key


def store_folder(recipe: Recipe) -> Path:
    """Where a recipe's store lies."""
    named = recipe.signals.store
    return Path(named).expanduser() if named is not None else recipe.folder / "signals"


def source_of(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, student_head: str | None = None) -> Source:
    """Whose signals a recipe's are. `student_head` names the frozen head that `head_expectation` refers to."""
    return Source(
        teacher=_name(recipe),
        teacher_fingerprint=_fingerprint(recipe),
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        vocabulary_size=len(tokenizer),
        signal=recipe.signals.meaning(),
        student_head=student_head,
        seed=recipe.seed,
        tables="",
        tables_sha256="",
    )


def check_source(known: Sequence[Source], wanted: Source, folder: Path) -> None:
    """Raises ModelError where a store holds signals of other sources only."""
    if any(source_key(source) == source_key(wanted) for source in known):
        return
    names = {
        "teacher_fingerprint": "teacher",
        "tokenizer_fingerprint": "tokenizer or chat template",
        "vocabulary_size": "vocabulary",
        "signal": "signal",
        "seed": "seed",
    }
    other = [field for field in names if getattr(known[0], field) != getattr(wanted, field)]
    field = other[0]
    old, new = getattr(known[0], field), getattr(wanted, field)
    shown = (old, new) if not isinstance(old, str) else (old[:12], new[:12])
    raise ModelError(
        f"{folder} holds signals of another {names[field]}: {shown[0]} there ({known[0].teacher}), {shown[1]} here "
        f"({wanted.teacher}). Name another folder in signals.store, or delete this one"
    )


def _name(recipe: Recipe) -> str:
    spec = recipe.signals
    return spec.served_model or recipe.teacher.model if spec.engine == "answers" else recipe.teacher.model


def _fingerprint(recipe: Recipe) -> str:
    """An API's weights cannot be seen, so its name stands for them."""
    if recipe.signals.engine == "answers":
        return hash_json(["answers", _name(recipe)])
    return model_fingerprint(recipe.teacher)
