"""What a store says of itself: its sources, its shards and their checksums. Torch is not imported here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from lmdistill.errors import CorruptFile
from lmdistill.io import read_json, write_json

FORMAT: Final = "lmdistill-signals"
VERSION = 1
MANIFEST = "manifest.json"
MAX_VOCABULARY = 2**20


class Source(BaseModel):
    """One teacher's way of speaking: everything that its signals depend on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    teacher: str
    """The teacher's name, for people."""
    teacher_fingerprint: str
    tokenizer_fingerprint: str
    """Of the tokenizer and its chat template."""
    vocabulary_size: int
    signal: dict[str, Any]
    """`SignalSpec.meaning()` of the labels."""
    student_head: str | None = None
    """The frozen head that the signals refer to (`head_expectation`)."""
    seed: int
    tables: str
    """File of the codec's tables, inside the store."""
    tables_sha256: str


class Shard(BaseModel):
    """One Parquet file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    source: int = 0
    """Which of the sources labelled it."""
    rows: int
    tokens: int
    """Tokens of its sequences."""
    positions: int
    """Positions that carry a signal."""
    signal_bytes: int
    """Bytes of the signals alone."""
    bytes: int
    sha256: str
    keys_sha256: str
    """Of its rows' keys in order: by it a damaged file's rows are known, and computed anew."""


class Manifest(BaseModel):
    """The whole store."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["lmdistill-signals"] = FORMAT
    version: int = VERSION
    sources: list[Source] = []
    shards: list[Shard] = []
    complete: bool = False
    """Whether everything that was asked for is labelled."""


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a store. Raises CorruptFile where it cannot be read or was written by a newer version."""
    path = folder / MANIFEST
    if not path.is_file():
        raise CorruptFile(f"{folder}: no {MANIFEST}, so this is no store of signals; make one with `lmdistill label`")
    value = read_json(path)
    if isinstance(value, dict) and value.get("format") == FORMAT and value.get("version", 0) > VERSION:
        raise CorruptFile(
            f"{path}: written in version {value['version']} of the format; this lmdistill reads up to {VERSION}: "
            "upgrade it"
        )
    try:
        return Manifest.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise CorruptFile(f"{path}: not a manifest of signals ({place}: {first['msg']})") from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest, whole or not at all."""
    write_json(folder / MANIFEST, manifest.model_dump(mode="json"))
