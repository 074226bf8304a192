"""Labelling with workers of Ray: row for row what one process makes, also when a worker is killed."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from store_helpers import VOCABULARY, sequences, source, spec, teacher

from lmdistill.progress import Progress
from lmdistill.recipe import ModelSpec
from lmdistill.signals.label import label
from lmdistill.signals.local import LocalEngine

ray = pytest.importorskip("ray", reason="needs the extra `ray` (make test-ray installs it)")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # what Ray itself warns of is not ours


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    teacher().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def workers(model_folder: Path) -> Iterator[Any]:
    from lmdistill.signals.workers import RayEngine

    given = spec("top_k", workers=2)
    engine = RayEngine(given, ModelSpec(model=str(model_folder)), torch.float32, VOCABULARY)
    yield engine
    ray.shutdown()


def bytes_of(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.name != ".lock"
    }


def fill(folder: Path, engine: Any, count: int = 60) -> None:
    given = spec("top_k")
    label(sequences(count), source(given), given, folder, engine=lambda: engine, progress=Progress())


def test_workers_make_the_same_store(workers: Any, tmp_path: Path) -> None:
    fill(tmp_path / "ray", workers)
    fill(tmp_path / "local", LocalEngine(teacher(), VOCABULARY, spec("top_k")))
    assert bytes_of(tmp_path / "ray") == bytes_of(tmp_path / "local")


def test_a_killed_worker_costs_nothing_but_time(workers: Any, tmp_path: Path) -> None:
    def pid_of(worker: Any) -> int:
        found = ray.get(worker.__ray_call__.remote(lambda self: os.getpid()))
        assert isinstance(found, int)
        return found

    victim = pid_of(workers.workers[1])
    timer = threading.Timer(0.2, lambda: os.kill(victim, signal.SIGKILL))
    timer.start()
    fill(tmp_path / "ray", workers, 200)
    timer.join()
    time.sleep(0.1)
    assert pid_of(workers.workers[1]) != victim
    fill(tmp_path / "local", LocalEngine(teacher(), VOCABULARY, spec("top_k")), 200)
    assert bytes_of(tmp_path / "ray") == bytes_of(tmp_path / "local")
