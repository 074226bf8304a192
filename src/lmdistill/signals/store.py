"""A store of signals: a folder of Parquet shards and a manifest, keyed by sample.

A row is one training sequence with what the teacher says at its trained positions. Rows are found by a key, the hash of
everything that the signal depends on, so that a store can be shuffled, subset, extended, merged and shared. A shard is
written whole or not at all; the manifest, written last, acknowledges it with its checksum, which is verified when a
shard is first read. On the outside it is an ordinary data set of Parquet files. Torch is not imported here.

Shape legend: L tokens of a sequence, R rows of text in it.
"""

from __future__ import annotations

import hashlib
import io
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lmdistill.errors import CorruptFile, DataError
from lmdistill.io import hash_bytes, hash_file, hash_json, write_bytes
from lmdistill.signals.manifest import Manifest, Shard, Source, read_manifest, write_manifest

Array = NDArray[Any]

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("input_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("loss_mask", pa.list_(pa.bool_()), nullable=False),
        pa.field("row_starts", pa.list_(pa.int32()), nullable=False),
        pa.field("row_ids", pa.list_(pa.string()), nullable=False),
        pa.field("signal", pa.binary(), nullable=False),
    ]
)
_SHARD_ROWS = 256
_GROUP_ROWS = 64
_GROUPS_HELD = 16


@dataclass(frozen=True)
class TrainingSequence:
    """A training sequence as the store keeps it."""

    input_ids_L: Array
    loss_mask_L: Array
    """Whether a token is trained on; the position before such a token carries a signal."""
    row_starts_R: Array
    """Where the packed rows of text begin."""
    row_ids: tuple[str, ...]

    @property
    def labelled_L(self) -> Array:  # noqa: N802
        """The positions that carry a signal: those that predict a trained token."""
        found_L = np.zeros(len(self.input_ids_L), dtype=bool)
        found_L[:-1] = self.loss_mask_L[1:]
        return found_L

    @property
    def positions(self) -> int:
        """How many positions carry a signal."""
        return int(self.loss_mask_L[1:].sum())

    def key(self, source: Source) -> str:
        """The name of this sequence's signal: a hash of the sequence and of everything about the teacher."""
        digest = hashlib.sha256(source_key(source).encode())
        for array, kind in ((self.input_ids_L, "<i4"), (self.loss_mask_L, "u1"), (self.row_starts_R, "<i4")):
            digest.update(len(array).to_bytes(8, "little") + np.ascontiguousarray(array).astype(kind).tobytes())
        return digest.hexdigest()[:32]

    @classmethod
    def from_columns(cls, row: Mapping[str, Any]) -> TrainingSequence:
        """From a row of a data set of `lmdistill.data`: input_ids, labels, position_ids, row_ids."""
        positions_L = np.asarray(row["position_ids"])
        return cls(
            input_ids_L=np.asarray(row["input_ids"], dtype=np.int32),
            loss_mask_L=np.asarray(row["labels"]) >= 0,
            row_starts_R=np.flatnonzero(positions_L == 0).astype(np.int32),
            row_ids=tuple(map(str, row["row_ids"])),
        )

    def columns(self) -> dict[str, Any]:
        """The reverse of `from_columns`."""
        length = len(self.input_ids_L)
        starts_R = self.row_starts_R.astype(np.int64)
        lengths_R = np.diff(np.append(starts_R, length))
        return {
            "input_ids": self.input_ids_L,
            "labels": np.where(self.loss_mask_L, self.input_ids_L, -100).astype(np.int32),
            "position_ids": (np.arange(length) - np.repeat(starts_R, lengths_R)).astype(np.int32),
            "row_ids": list(self.row_ids),
        }


def source_key(source: Source) -> str:
    """Everything of a source that a signal depends on; names, and the tables it is packed by, do not count."""
    return hash_json(source.model_dump(mode="json", exclude={"teacher", "tables", "tables_sha256"}))


@dataclass(frozen=True)
class StoredRow:
    """A sequence with its key and the bytes of its signal."""

    key: str
    sequence: TrainingSequence
    signal: bytes


class SignalStore:
    """Reads a store. Raises CorruptFile naming the file and its rows where something does not verify."""

    def __init__(self, folder: Path, *, verify: bool = True) -> None:
        self.folder = folder
        self.manifest: Manifest = read_manifest(folder)
        self._verify = verify
        self._files: dict[int, pq.ParquetFile] = {}
        self._groups: OrderedDict[tuple[int, int], list[StoredRow]] = OrderedDict()
        self._places: dict[str, tuple[int, int]] | None = None

    def __len__(self) -> int:
        return sum(shard.rows for shard in self.manifest.shards)

    def __contains__(self, key: str) -> bool:
        return key in self.places

    @property
    def places(self) -> dict[str, tuple[int, int]]:
        """Shard and row of each key."""
        if self._places is None:
            self._places = {}
            for number in range(len(self.manifest.shards)):
                self._places.update({key: (number, row) for row, key in enumerate(self.keys_of(number))})
        return self._places

    def keys_of(self, number: int) -> list[str]:
        """The keys of a shard's rows in order; nothing else of it is read."""
        return list(self._file(number).read(columns=["key"])["key"].to_pylist())

    def row(self, key: str) -> StoredRow:
        """The row of a key. Raises DataError where the store has none."""
        if key not in self.places:
            raise DataError(f"{self.folder}: no signal for the sequence {key}; label it first (`lmdistill label`)")
        number, row = self.places[key]
        return self._group(number, row // _GROUP_ROWS)[row % _GROUP_ROWS]

    def source_of(self, key: str) -> Source:
        """The source that labelled a row."""
        return self.manifest.sources[self.manifest.shards[self.places[key][0]].source]

    def rows(self, shards: Iterable[int] | None = None) -> Iterator[StoredRow]:
        """All rows in order, or those of some shards."""
        for number in range(len(self.manifest.shards)) if shards is None else shards:
            for group in range(self._file(number).num_row_groups):
                yield from self._group(number, group)

    def tables(self, source: int) -> dict[str, Array]:
        """The codec's tables of a source."""
        from safetensors.numpy import load

        known = self.manifest.sources[source]
        path = self.folder / known.tables
        if not path.is_file():
            raise CorruptFile(f"{path}: missing, and without it no signal can be read; run `lmdistill label` again")
        data = path.read_bytes()
        if hash_bytes(data) != known.tables_sha256:
            raise CorruptFile(f"{path}: damaged (its checksum is another); delete it and run `lmdistill label` again")
        return dict(load(data))

    def problems(self) -> dict[int, str]:
        """What is wrong with which shard."""
        found = {}
        for number in range(len(self.manifest.shards)):
            try:
                self._file(number)
            except CorruptFile as error:
                found[number] = str(error)
        return found

    def first_row(self, number: int) -> int:
        """The place of a shard's first row in the whole store."""
        return sum(shard.rows for shard in self.manifest.shards[:number])

    def _file(self, number: int) -> pq.ParquetFile:
        if number not in self._files:
            self._files[number] = self._open(number)
        return self._files[number]

    def _open(self, number: int) -> pq.ParquetFile:
        shard = self.manifest.shards[number]
        path = self.folder / shard.file
        first = self.first_row(number)
        place = f"{path} (rows {first} to {first + shard.rows - 1})"
        advice = "`lmdistill label` computes these rows anew"
        if not path.is_file():
            raise CorruptFile(f"{place}: missing; {advice}")
        size = path.stat().st_size
        if size != shard.bytes:
            raise CorruptFile(f"{place}: {size} bytes in place of {shard.bytes}; {advice}")
        if self._verify and hash_file(path) != shard.sha256:
            raise CorruptFile(f"{place}: damaged (its checksum is another); {advice}")
        return pq.ParquetFile(path, memory_map=True)

    def _group(self, number: int, group: int) -> list[StoredRow]:
        place = (number, group)
        if place not in self._groups:
            table = self._file(number).read_row_group(group, use_threads=False)
            self._groups[place] = list(_rows_of(table))
            if len(self._groups) > _GROUPS_HELD:
                self._groups.popitem(last=False)
        self._groups.move_to_end(place)
        return self._groups[place]


def _rows_of(table: pa.Table) -> Iterator[StoredRow]:
    columns = {name: table[name].combine_chunks() for name in SCHEMA.names}
    ids, mask, starts = (columns[name] for name in ("input_ids", "loss_mask", "row_starts"))
    keys, names, signals = (columns[name].to_pylist() for name in ("key", "row_ids", "signal"))
    for index in range(len(table)):
        sequence = TrainingSequence(
            input_ids_L=_owned(ids[index]),
            loss_mask_L=_owned(mask[index]),
            row_starts_R=_owned(starts[index]),
            row_ids=tuple(names[index]),
        )
        yield StoredRow(keys[index], sequence, signals[index])


def _owned(scalar: pa.ListScalar) -> Array:
    """A list as an array of its own: memory of Arrow's cannot be written, which torch warns of."""
    return np.array(scalar.values.to_numpy(zero_copy_only=False))


def shard_bytes(rows: Sequence[StoredRow]) -> bytes:
    """The Parquet file of some rows; the same rows always give the same bytes."""
    table = pa.table(
        {
            "key": [row.key for row in rows],
            "input_ids": [row.sequence.input_ids_L for row in rows],
            "loss_mask": [row.sequence.loss_mask_L for row in rows],
            "row_starts": [row.sequence.row_starts_R for row in rows],
            "row_ids": [list(row.sequence.row_ids) for row in rows],
            "signal": [row.signal for row in rows],
        },
        schema=SCHEMA,
    )
    sink = io.BytesIO()
    # Signals are entropy-coded already: no second compression, and no statistics over bytes that mean nothing.
    packed = {name: "zstd" for name in _leaves() if name != "signal"}
    pq.write_table(
        table,
        sink,
        row_group_size=_GROUP_ROWS,
        compression={**packed, "signal": "none"},
        use_dictionary=False,
        write_statistics=False,
        store_schema=False,
    )
    return sink.getvalue()


def _leaves() -> list[str]:
    """Names of the leaf columns as Parquet writes them."""
    return [f"{f.name}.list.element" if pa.types.is_list(f.type) else f.name for f in SCHEMA]


def write_shard(folder: Path, number: int, rows: Sequence[StoredRow], source: int = 0) -> Shard:
    """Write one shard and say what it is; the manifest does not know it yet."""
    data = shard_bytes(rows)
    name = f"shard-{number:05}.parquet"
    write_bytes(folder / name, data)
    return Shard(
        file=name,
        source=source,
        rows=len(rows),
        tokens=sum(len(row.sequence.input_ids_L) for row in rows),
        positions=sum(row.sequence.positions for row in rows),
        signal_bytes=sum(len(row.signal) for row in rows),
        bytes=len(data),
        sha256=hash_bytes(data),
        keys_sha256=keys_hash(row.key for row in rows),
    )


def keys_hash(keys: Iterable[str]) -> str:
    """One name for some rows in order."""
    return hash_bytes("\n".join(keys).encode())


def write_tables(folder: Path, number: int, tables: Mapping[str, Array]) -> tuple[str, str]:
    """Write a source's tables; returns the file's name and checksum."""
    from safetensors.numpy import save

    data = save({name: np.ascontiguousarray(table) for name, table in sorted(tables.items())})
    name = f"tables-{number}.safetensors"
    write_bytes(folder / name, data)
    return name, hash_bytes(data)


def subset(store: SignalStore, keys: Iterable[str], target: Path) -> Manifest:
    """Write a store with the rows of these keys only, in this order."""
    wanted = list(keys)
    by_source: dict[int, list[str]] = {}
    for key in wanted:
        if key not in store:
            raise DataError(f"{store.folder}: no signal for the sequence {key}")
        by_source.setdefault(store.manifest.shards[store.places[key][0]].source, []).append(key)
    parts = [(store, source, found) for source, found in sorted(by_source.items())]
    return _assemble(parts, target)


def merge(stores: Sequence[SignalStore], target: Path) -> Manifest:
    """Write a store that holds the rows of all, each once; sources are kept apart.

    Raises DataError where tokenizers differ: the ids would mean different things.
    """
    tokenizers = {source.tokenizer_fingerprint for store in stores for source in store.manifest.sources}
    if len(tokenizers) > 1:
        raise DataError(
            f"{len(tokenizers)} different tokenizers in {len(stores)} stores: their ids mean different things, so they "
            "cannot stand in one store"
        )
    seen: set[str] = set()
    parts = []
    for store in stores:
        for number in range(len(store.manifest.sources)):
            keys = []
            for key, (shard, _) in store.places.items():
                if store.manifest.shards[shard].source == number and key not in seen:
                    seen.add(key)
                    keys.append(key)
            if keys:
                parts.append((store, number, keys))
    return _assemble(parts, target)


def _assemble(parts: Sequence[tuple[SignalStore, int, list[str]]], target: Path) -> Manifest:
    if (target / "manifest.json").exists():
        raise DataError(f"{target} holds a store already; choose another folder")
    target.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(complete=True)
    known: dict[str, int] = {}
    for store, number, keys in parts:
        source = store.manifest.sources[number]
        name = source_key(source) + source.tables_sha256
        if name not in known:
            known[name] = len(manifest.sources)
            tables, checksum = write_tables(target, known[name], store.tables(number))
            manifest.sources.append(source.model_copy(update={"tables": tables, "tables_sha256": checksum}))
        for first in range(0, len(keys), _SHARD_ROWS):
            rows = [store.row(key) for key in keys[first : first + _SHARD_ROWS]]
            manifest.shards.append(write_shard(target, len(manifest.shards), rows, known[name]))
    write_manifest(target, manifest)
    return manifest
