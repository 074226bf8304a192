"""Labelling: the teacher speaks once about every training sequence, and what it says is kept.

The rows that a store lacks are computed in the data set's order, a shard at a time; a shard counts once the manifest
names it. A run that is killed loses the shard in progress; the next one goes on behind it and ends at the same bytes.
A shard that does not verify is computed again in its place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lmdistill.errors import DataError, Interrupted, ModelError
from lmdistill.io import RunLock
from lmdistill.models import OutputHead
from lmdistill.progress import Progress
from lmdistill.recipe import SignalSpec
from lmdistill.signals.codec import Array
from lmdistill.signals.engine import Ask, Engine
from lmdistill.signals.kinds import Kind, learn_kind, load_kind
from lmdistill.signals.manifest import MANIFEST, MAX_VOCABULARY, Manifest, Shard, Source, write_manifest
from lmdistill.signals.sources import check_source
from lmdistill.signals.store import (
    SignalStore,
    StoredRow,
    TrainingSequence,
    keys_hash,
    source_key,
    write_shard,
    write_tables,
)
from lmdistill.signals.teller import Payload


@dataclass(frozen=True)
class LabelResult:
    """What labelling did."""

    folder: Path
    rows: int
    """Rows of the data set, all of which the store now has."""
    computed: int
    """Rows that were computed now."""
    tokens: int
    """Tokens that the teacher read for it."""
    keys: list[str]
    """The key of each sequence."""


def label(
    sequences: Sequence[TrainingSequence],
    source: Source,
    spec: SignalSpec,
    folder: Path,
    *,
    engine: Callable[[], Engine],
    head: Callable[[], OutputHead] | None = None,
    student: dict[str, Array] | None = None,
    progress: Progress,
    stopped: Callable[[], bool] = lambda: False,
) -> LabelResult:
    """Fill a store with the signals of these sequences.

    `source` says whose signals they are (its tables are filled in here); `engine` lets the teacher speak and is asked
    for only where something is missing; `head` is the teacher's, for the kind `hidden`. Raises ModelError for a store
    of another teacher or tokenizer, DataError, CorruptFile, RunFolderInUse, StorageError, and Interrupted where
    `stopped`.
    """
    if source.vocabulary_size > MAX_VOCABULARY:
        raise DataError(f"{source.vocabulary_size} ids; a store holds vocabularies of up to {MAX_VOCABULARY}")
    folder.mkdir(parents=True, exist_ok=True)
    with RunLock(folder):
        job = _Job(sequences, source, spec, folder, engine, head, student, progress, stopped)
        return job.carry_out()


@dataclass(frozen=True)
class _Work:
    """A shard to be made."""

    slot: int | None
    """Its place in the manifest, where it mends a shard that is named there."""
    file: int
    places: list[int]


class _Job:
    """One call of `label`."""

    def __init__(
        self,
        sequences: Sequence[TrainingSequence],
        source: Source,
        spec: SignalSpec,
        folder: Path,
        engine: Callable[[], Engine],
        head: Callable[[], OutputHead] | None,
        student: dict[str, Array] | None,
        progress: Progress,
        stopped: Callable[[], bool],
    ) -> None:
        self.sequences = sequences
        self.spec = spec
        self.folder = folder
        self.engine = engine
        self.head = head
        self.student = student
        self.progress = progress
        self.stopped = stopped
        self.keys = [sequence.key(source) for sequence in sequences]
        self.source = source
        self.manifest = Manifest()
        self.computed = 0
        self.tokens = 0

    def carry_out(self) -> LabelResult:
        """Repair, then extend, then say that all is there."""
        damaged = self._known()
        missing = self._missing(damaged)
        if (missing or damaged) and len(self.manifest.sources) > 1:
            lacking = sum(len(places) for places in [*missing, *damaged.values()])
            raise ModelError(
                f"{self.folder} was merged from {len(self.manifest.sources)} sources and lacks {lacking} of these "
                "rows: it can be read but not extended; name another folder in signals.store"
            )
        if missing or damaged:
            self._compute(damaged, missing)
        if not self.manifest.complete:
            self.manifest.complete = True
            write_manifest(self.folder, self.manifest)
        return LabelResult(self.folder, len(self.sequences), self.computed, self.tokens, self.keys)

    def _known(self) -> dict[int, list[int]]:
        """Read what is there; returns the shards to be computed again, each with the places of its rows."""
        if not (self.folder / MANIFEST).is_file():
            return {}
        store = SignalStore(self.folder)
        self.manifest = store.manifest
        if self.manifest.sources:
            check_source(self.manifest.sources, self.source, self.folder)
            self.source = next(s for s in self.manifest.sources if source_key(s) == source_key(self.source))
            store.tables(self.manifest.sources.index(self.source))
        damaged: dict[int, list[int]] = {}
        gone = []
        for number, problem in store.problems().items():
            first, shard = store.first_row(number), self.manifest.shards[number]
            places = list(range(first, first + shard.rows))
            if places[-1] < len(self.keys) and keys_hash(self.keys[p] for p in places) == shard.keys_sha256:
                damaged[number] = places
                self.progress.warn(f"{problem} now")
            else:
                gone.append(number)
                self.progress.warn(f"{problem.partition(';')[0]}; it is dropped: its rows are not of this data set")
        if gone:
            kept = [number for number in range(len(self.manifest.shards)) if number not in gone]
            damaged = {kept.index(number): places for number, places in damaged.items()}
            self.manifest.shards = [self.manifest.shards[number] for number in kept]
            write_manifest(self.folder, self.manifest)
        return damaged

    def _missing(self, damaged: dict[int, list[int]]) -> list[list[int]]:
        """Places of the rows that no shard holds, a list for each shard to come."""
        known: set[str] = set()
        if self.manifest.shards:
            store = SignalStore(self.folder, verify=False)
            for number in range(len(self.manifest.shards)):
                if number not in damaged:
                    known.update(store.keys_of(number))
        known.update(self.keys[place] for places in damaged.values() for place in places)
        missing = []
        for place, key in enumerate(self.keys):
            if key not in known:
                known.add(key)  # a sequence that comes twice is labelled once
                missing.append(place)
        step = self.spec.shard_rows
        return [missing[first : first + step] for first in range(0, len(missing), step)]

    def _compute(self, damaged: dict[int, list[int]], missing: list[list[int]]) -> None:
        """Ask for everything in one stream: first what the codec is learnt on, where the store is new."""
        first = 1 + max((int(shard.file[6:-8]) for shard in self.manifest.shards), default=-1)
        work = [_Work(n, int(self.manifest.shards[n].file[6:-8]), places) for n, places in damaged.items()]
        work += [_Work(None, first + n, places) for n, places in enumerate(missing)]
        learnt = [] if self.manifest.sources else self._calibration()
        asked = [*([learnt] if learnt else []), *(part.places for part in work)]
        total = sum(len(self.sequences[place].input_ids_L) for places in asked for place in places)
        rows = sum(len(part.places) for part in work)
        with self.progress.task(f"label {rows} sequences", total=total, unit="tokens") as task:
            told = self.engine().tell_all(map(self._ask, asked), task.advance)
            with contextlib.closing(told):
                kind = self._learn(self._answer(told, learnt)) if learnt else self._known_kind()
                self._write(kind, work, told)

    def _ask(self, places: Sequence[int]) -> Ask:
        seeds = [int(self.keys[place][:15], 16) for place in places]
        return Ask([self.sequences[place] for place in places], seeds)

    def _answer(self, told: Iterator[list[Payload]], places: Sequence[int]) -> list[Payload]:
        payloads = next(told)
        self.tokens += sum(len(self.sequences[place].input_ids_L) for place in places)
        return payloads

    def _calibration(self) -> list[int]:
        """The first sequences, as many as the codec is learnt on."""
        places, tokens = [], 0
        for place, sequence in enumerate(self.sequences):
            places.append(place)
            tokens += len(sequence.input_ids_L)
            if tokens >= self.spec.calibration_tokens:
                break
        return places

    def _known_kind(self) -> Kind:
        return load_kind(self.spec, SignalStore(self.folder, verify=False).tables(0))

    def _learn(self, examples: Sequence[Payload]) -> Kind:
        """The codec of a new store."""
        told = [example for example in examples if len(next(iter(example.values())))]
        if not told:
            raise DataError("the first sequences have no trained token, so there is nothing to learn the codec on")
        head = self.head() if self.head is not None else None
        kind = learn_kind(self.spec, told, self.source.vocabulary_size, head, self.student)
        name, checksum = write_tables(self.folder, 0, kind.tables)
        self.source = self.source.model_copy(update={"tables": name, "tables_sha256": checksum})
        self.manifest = Manifest(sources=[self.source])
        write_manifest(self.folder, self.manifest)
        return kind

    def _write(self, kind: Kind, work: Sequence[_Work], told: Iterator[list[Payload]]) -> None:
        """Take shard after shard; packing and writing one overlaps with computing the next."""
        if any(part.slot is None for part in work):
            self.manifest.complete = False
        pending: Future[Shard] | None = None
        slot: int | None = None
        with ThreadPoolExecutor(1) as writer:
            for part in work:
                payloads = self._answer(told, part.places)
                self.computed += len(part.places)
                if pending is not None:
                    self._acknowledge(pending.result(), slot)
                pending, slot = writer.submit(self._shard, kind, part, payloads), part.slot
                if self.stopped():
                    self._acknowledge(pending.result(), slot)
                    raise Interrupted(
                        f"stopped after {self.computed} of {sum(len(w.places) for w in work)} rows; what is labelled "
                        "is kept: run the same command again to go on"
                    )
            if pending is not None:
                self._acknowledge(pending.result(), slot)

    def _shard(self, kind: Kind, part: _Work, payloads: Sequence[Payload]) -> Shard:
        rows = [
            StoredRow(self.keys[place], self.sequences[place], kind.pack(payload))
            for place, payload in zip(part.places, payloads, strict=True)
        ]
        return write_shard(self.folder, part.file, rows)

    def _acknowledge(self, shard: Shard, slot: int | None) -> None:
        if slot is None:
            self.manifest.shards.append(shard)
        else:
            self.manifest.shards[slot] = shard
        write_manifest(self.folder, self.manifest)
