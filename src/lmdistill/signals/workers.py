"""The teacher in several worker processes, by Ray Data: on one machine or many, the same results row for row.

Everything that is asked for goes through one pipeline, so that each worker loads the teacher once. A row of Ray Data is
a whole batch, cut as in one process (`local.batches_of`), as bytes: Ray can neither regroup its sequences nor convert
its numbers. So the results do not depend on how many workers there are or which of them dies: Ray starts a dead worker
again and repeats its batch. Batches come back in any order and are put in theirs here.

Ray must not send anything out: usage statistics are switched off, and its dashboard is not started.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load, save

from lmdistill.errors import LmdistillError, MissingExtra, TrainingError
from lmdistill.recipe import ModelSpec, SignalSpec
from lmdistill.signals.codec import Array
from lmdistill.signals.engine import Ask
from lmdistill.signals.local import LocalEngine, batches_of
from lmdistill.signals.store import TrainingSequence
from lmdistill.signals.teller import Payload

_STARTS = 3
"""How often in a row a worker may die while it starts, before the teacher itself is to blame."""


class RayEngine:
    """Lets workers of Ray tell; connects to RAY_ADDRESS where it is set, else starts Ray on this machine."""

    def __init__(
        self,
        spec: SignalSpec,
        teacher: ModelSpec,
        dtype: torch.dtype,
        vocabulary_size: int,
        tables: dict[str, Array] | None = None,
    ) -> None:
        """Raises MissingExtra where Ray is not installed."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise MissingExtra("engine: ray needs Ray Data: pip install 'lmdistill[ray]'") from error
        self.spec = spec
        self._ray = ray
        self._own = not ray.is_initialized()
        if self._own:
            address = os.environ.get("RAY_ADDRESS")
            here: dict[str, Any] = {"num_cpus": max(spec.workers, os.cpu_count() or 1), "include_dashboard": False}
            with _without_native_lines():
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **({} if address else here))
            logging.getLogger("ray.data").setLevel(logging.ERROR)
        threads = max(1, torch.get_num_threads())
        plain = (spec.model_dump(mode="json"), teacher.model_dump(mode="json"))
        self._construction = (*plain, dtype, vocabulary_size, tables, threads)

    def tell_all(
        self, asks: Iterable[Ask], told: Callable[[int], None] = lambda tokens: None
    ) -> Generator[list[Payload], None, None]:
        """The answers in order. All that is asked for lies in Ray's object store from the beginning."""
        order = _Order()
        rows = [row for ask in asks for row in order.rows_of(ask, self.spec.batch_tokens)]
        if not rows:
            return
        with self._quiet(), contextlib.closing(self._results(rows)) as results:
            for row in results:
                if row["failed"]:
                    raise TrainingError(f"a worker failed: {row['failed']}; earlier shards are intact")
                told(order.take(int(row["number"]), _payloads(row["said"])))
                yield from order.finished()

    def close(self) -> None:
        """End the workers, and Ray where it was started here."""
        if self._own:
            with self._quiet():
                self._ray.shutdown()

    def _results(self, rows: list[dict[str, Any]]) -> Generator[dict[str, Any], None, None]:
        """Rows of the pipeline as they are done."""
        data = self._ray.data
        context = data.DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.max_consecutive_actor_init_deaths = _STARTS
        with data.DataContext.current(context):
            pipeline = data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                _Worker,
                fn_constructor_args=self._construction,
                batch_size=1,
                batch_format="numpy",
                compute=data.ActorPoolStrategy(size=self.spec.workers),
                num_cpus=1,
                num_gpus=1 if torch.cuda.is_available() else 0,
            )
        try:
            yield from pipeline.iter_rows()
        except self._ray.exceptions.RayError as error:
            last = str(error).strip().splitlines()[-1]
            raise TrainingError(f"Ray's workers failed: {last}; earlier shards are intact") from error

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        """Ray prints to standard output what it thinks of dying workers, and that is where our answers go."""
        with contextlib.redirect_stdout(io.StringIO()) if self._own else contextlib.nullcontext():
            yield


@contextlib.contextmanager
def _without_native_lines() -> Iterator[None]:
    """Start Ray so that its native part stays silent on standard error, where progress goes; it keeps its own logs.

    The level is read once, when Ray starts, and that it was read is itself told, past Python.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@dataclass
class _Order:
    """Which batch belongs where, and what has come of each ask so far."""

    asks: list[Ask] = field(default_factory=list)
    batches: list[tuple[int, list[int]]] = field(default_factory=list)
    """Of each batch its ask and the places of its sequences in it."""
    found: dict[int, dict[int, Payload]] = field(default_factory=dict)
    next: int = 0

    def rows_of(self, ask: Ask, batch_tokens: int) -> Iterator[dict[str, Any]]:
        """The rows of an ask, one a batch."""
        for places in batches_of(ask.sequences, batch_tokens):
            sequences = [ask.sequences[place] for place in places]
            yield {
                "number": len(self.batches),
                "sequences": _bytes_of(sequences, [ask.seeds[place] for place in places]),
                "row_ids": json.dumps([sequence.row_ids for sequence in sequences]),
            }
            self.batches.append((len(self.asks), places))
        self.asks.append(ask)

    def take(self, number: int, payloads: Sequence[Payload]) -> int:
        """Keep what was said of a batch; returns its tokens."""
        ask, places = self.batches[number]
        self.found.setdefault(ask, {}).update(zip(places, payloads, strict=True))
        return sum(len(self.asks[ask].sequences[place].input_ids_L) for place in places)

    def finished(self) -> Iterator[list[Payload]]:
        """The next asks in order that are complete."""
        while self.next < len(self.asks):
            found, wanted = self.found.get(self.next, {}), len(self.asks[self.next].sequences)
            if len(found) < wanted:
                return
            self.found.pop(self.next, None)
            self.next += 1
            yield [found[place] for place in range(wanted)]


class _Worker:
    """One process with the teacher in it."""

    def __init__(
        self,
        spec: dict[str, Any],
        teacher: dict[str, Any],
        dtype: torch.dtype,
        vocabulary_size: int,
        tables: dict[str, Array] | None,
        threads: int,
    ) -> None:
        from lmdistill.models import load_model, pick_device

        torch.set_num_threads(threads)  # as many as in one process: sums are then cut alike
        model = load_model(ModelSpec.model_validate(teacher), dtype=dtype, device=pick_device("auto"))
        self.engine = LocalEngine(model, vocabulary_size, SignalSpec.model_validate(spec), tables)

    def __call__(self, batch: dict[str, Array]) -> dict[str, list[Any]]:
        """One row of the pipeline, which is one batch for the teacher."""
        sequences, seeds = _sequences(batch["sequences"][0], json.loads(batch["row_ids"][0]))
        said, failed = b"", ""
        try:
            payloads = self.engine.tell(sequences, seeds)
            said = save({f"{row}.{name}": array for row, found in enumerate(payloads) for name, array in found.items()})
        except LmdistillError as error:  # the same error again would come of any repetition
            failed = str(error)
        return {"number": [int(batch["number"][0])], "said": [said], "failed": [failed]}


def _bytes_of(sequences: Sequence[TrainingSequence], seeds: Sequence[int]) -> bytes:
    arrays: dict[str, Array] = {"seeds": np.array(seeds, dtype=np.int64)}
    for row, sequence in enumerate(sequences):
        arrays[f"ids.{row}"] = np.ascontiguousarray(sequence.input_ids_L)
        arrays[f"mask.{row}"] = np.ascontiguousarray(sequence.loss_mask_L)
        arrays[f"starts.{row}"] = np.ascontiguousarray(sequence.row_starts_R)
    return save(arrays)


def _sequences(data: bytes, row_ids: Sequence[Sequence[str]]) -> tuple[list[TrainingSequence], list[int]]:
    arrays = load(data)
    found = [
        TrainingSequence(arrays[f"ids.{row}"], arrays[f"mask.{row}"], arrays[f"starts.{row}"], tuple(names))
        for row, names in enumerate(row_ids)
    ]
    return found, arrays["seeds"].tolist()


def _payloads(data: bytes) -> list[Payload]:
    found: dict[int, Payload] = {}
    for key, array in load(data).items():
        row, _, name = key.partition(".")
        found.setdefault(int(row), {})[name] = array
    return [found[row] for row in range(len(found))]
