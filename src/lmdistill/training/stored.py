"""Batches whose signals come from a store.

Shape legend: B batch, L length, N = B * L positions, k slots of a position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lmdistill.data import Collator
from lmdistill.errors import DataError
from lmdistill.recipe import SignalSpec
from lmdistill.signals.kinds import Kind, load_kind
from lmdistill.signals.manifest import Source
from lmdistill.signals.store import SignalStore, source_key
from lmdistill.teachers.base import Part, Speech

KEY = "signal_key"
"""Column of a training set that names each sequence's row in the store."""


def kinds_of(store: SignalStore, source: Source) -> dict[int, Kind]:
    """The codecs of all of a store's sources that say the same things as `source`, by their number in the store."""
    found = {
        number: load_kind(SignalSpec.model_validate(known.signal), store.tables(number))
        for number, known in enumerate(store.manifest.sources)
        if source_key(known) == source_key(source)
    }
    if len(found) > 1 and source.signal["kind"] in ("hidden", "head_expectation"):
        raise DataError(
            f"{store.folder}: {len(found)} tables of kind {source.signal['kind']}, which cannot stand in one "
            "batch; train from one of the stores that it was merged from"
        )
    return found


@dataclass(frozen=True)
class SignalCollator:
    """Rows of a data set to a batch with their stored signals, as arrays (B, L, ...) under `signal`.

    Positions without a signal hold the kind's blank; they are masked in any case. Raises DataError for a row that the
    store lacks, CorruptFile for a shard that does not verify.
    """

    store: SignalStore
    kinds: Mapping[int, Kind]
    plain: Collator = field(default_factory=Collator)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Batch rows that have a `signal_key`."""
        batch = self.plain(rows)
        shape = batch["input_ids"].shape
        told = [self._payload(row) for row in rows]
        kind = next(iter(self.kinds.values()))
        found: dict[str, Tensor] = {}
        for name in told[0][0]:
            parts = [payload[name] for payload, _ in told]
            slots = () if parts[0].ndim == 1 else (max(part.shape[1] for part in parts),)
            blank_BL = torch.full((*shape, *slots), kind.blank()[name], dtype=parts[0].dtype)
            for index, (part, (_, labelled_L)) in enumerate(zip(parts, told, strict=True)):
                places = torch.zeros(shape[1], dtype=torch.bool)
                places[: len(labelled_L)] = labelled_L
                if slots:
                    blank_BL[index, places, : part.shape[1]] = part
                else:
                    blank_BL[index, places] = part
            found[name] = blank_BL
        found["targets"] = torch.nn.functional.pad(batch["input_ids"][:, 1:], (0, 1))
        return {**batch, "signal": found}

    def _payload(self, row: Mapping[str, Any]) -> tuple[dict[str, Tensor], Tensor]:
        stored = self.store.row(row[KEY])
        number = self.store.manifest.shards[self.store.places[row[KEY]][0]].source
        if number not in self.kinds:
            raise DataError(f"{self.store.folder}: the row {row[KEY]} is another teacher's; label with this one first")
        payload = self.kinds[number].unpack(stored.signal, stored.sequence.positions)
        return {name: torch.as_tensor(array) for name, array in payload.items()}, torch.as_tensor(
            stored.sequence.labelled_L
        )


class StoredTeacher:
    """A teacher that spoke before: what it said comes with the batch."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind

    def speak(self, batch: Mapping[str, Any]) -> Speech:
        """The signal at all positions of a batch, (N, ...)."""
        flat = {name: values_BL.flatten(0, 1) for name, values_BL in batch["signal"].items()}
        return Speech((Part(self.kind.signal(flat)),))
