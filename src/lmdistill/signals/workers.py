"""The teacher in several worker processes of Ray, on one machine or many; the same results row for row.

Every worker holds the teacher. A shard is cut into the same batches as in one process, and each batch is computed whole
by one worker, so that the numbers do not depend on how many workers there are or which of them dies: Ray starts a dead
worker again and repeats its batch.

Ray must not send anything out: usage statistics are switched off, and its dashboard is not started.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from lmdistill.errors import MissingExtra, TrainingError
from lmdistill.recipe import ModelSpec, SignalSpec
from lmdistill.signals.codec import Array
from lmdistill.signals.local import LocalEngine, batches_of
from lmdistill.signals.store import TrainingSequence
from lmdistill.signals.teller import Payload


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
        except ImportError as error:
            raise MissingExtra("engine: ray needs the ray package: pip install 'lmdistill[ray]'") from error
        if not ray.is_initialized():
            address = os.environ.get("RAY_ADDRESS")
            here: dict[str, Any] = {"num_cpus": max(spec.workers, os.cpu_count() or 1), "include_dashboard": False}
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **({} if address else here))
        self.spec = spec
        self._ray = ray
        threads = max(1, torch.get_num_threads())
        gpus = 1 if torch.cuda.is_available() else 0
        # A worker that dies is started again; what it was doing is done again.
        actor = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=-1, max_task_retries=-1)(_Worker)
        plain = (spec.model_dump(mode="json"), teacher.model_dump(mode="json"))
        self.workers: list[Any] = [
            actor.remote(*plain, dtype, vocabulary_size, tables, threads) for _ in range(spec.workers)
        ]

    def tell(
        self,
        sequences: Sequence[TrainingSequence],
        seeds: Sequence[int],
        told: Callable[[int], None] = lambda tokens: None,
    ) -> list[Payload]:
        """What the teacher says at the labelled positions of each sequence."""
        found: dict[int, Payload] = {}
        waiting = {}
        for number, places in enumerate(batches_of(sequences, self.spec.batch_tokens)):
            worker = self.workers[number % len(self.workers)]
            task = worker.tell.remote([sequences[place] for place in places], [seeds[place] for place in places])
            waiting[task] = places
        while waiting:
            done, _ = self._ray.wait(list(waiting), num_returns=1)
            for task in done:
                places = waiting.pop(task)
                try:
                    payloads = self._ray.get(task)
                except self._ray.exceptions.RayTaskError as error:
                    cause = error.cause if isinstance(error.cause, Exception) else error
                    raise TrainingError(f"a worker failed: {cause}; earlier shards are intact") from error
                found.update(zip(places, payloads, strict=True))
                told(sum(len(sequences[place].input_ids_L) for place in places))
        return [found[place] for place in range(len(sequences))]


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

    def tell(self, sequences: Sequence[TrainingSequence], seeds: Sequence[int]) -> list[Payload]:
        """One batch."""
        return self.engine.tell(sequences, seeds)
