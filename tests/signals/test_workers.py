"""Labelling with workers of Ray Data: row for row what one process makes, also when a worker is killed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from store_helpers import VOCABULARY, sequences, source, spec, student_tables, teacher

from lmdistill.errors import TrainingError
from lmdistill.models import output_head
from lmdistill.progress import Progress
from lmdistill.recipe import ModelSpec
from lmdistill.signals.engine import Ask
from lmdistill.signals.label import LabelResult, label
from lmdistill.signals.local import LocalEngine
from lmdistill.signals.store import SignalStore
from small import small_overrides

ray = pytest.importorskip("ray", reason="needs the extra `ray` (make test-ray installs it)")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # what Ray itself warns of is not ours


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    teacher().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def engine_of(model_folder: Path) -> Iterator[Callable[..., Any]]:
    """Makes engines with two workers; one Ray serves them all."""
    from lmdistill.signals.workers import RayEngine

    made: list[Any] = []

    def make(kind: str = "top_k", folder: Path = model_folder) -> Any:
        tables = student_tables() if kind == "head_expectation" else None
        given = spec(kind, workers=2)
        made.append(RayEngine(given, ModelSpec(model=str(folder)), torch.float32, VOCABULARY, tables))
        return made[-1]

    yield make
    for engine in made:
        engine.close()
    assert not ray.is_initialized()


def local(kind: str = "top_k") -> LocalEngine:
    return LocalEngine(teacher(), VOCABULARY, spec(kind), student_tables() if kind == "head_expectation" else None)


def fill(folder: Path, engine: Any, kind: str = "top_k", count: int = 60) -> LabelResult:
    given = spec(kind)
    tables = student_tables() if kind == "head_expectation" else None
    return label(
        sequences(count),
        source(given),
        given,
        folder,
        engine=lambda: engine,
        head=lambda: output_head(teacher(), VOCABULARY),
        student=tables,
        progress=Progress(),
    )


def bytes_of(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.name != ".lock"
    }


def worker_pids(parent: int | None = None) -> set[int]:
    """Processes of Ray in which a teacher is."""
    found = set()
    for process in psutil.Process(parent).children(recursive=True):
        try:
            if "MapWorker" in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process.pid)
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.mark.parametrize("kind", ["top_k", "sampled", "top_and_sampled", "hidden", "head_expectation", "token"])
def test_workers_make_the_same_store(kind: str, engine_of: Callable[..., Any], tmp_path: Path) -> None:
    made = fill(tmp_path / "ray", engine_of(kind), kind)
    own = fill(tmp_path / "local", local(kind), kind)
    assert bytes_of(tmp_path / "ray") == bytes_of(tmp_path / "local")
    assert (made.computed, made.tokens) == (own.computed, own.tokens)


class Killing:
    """An engine whose first living worker is killed when so many answers have come; remembers who worked."""

    def __init__(self, engine: Any, after: int) -> None:
        self.engine = engine
        self.after = after
        self.before: set[int] = set()
        self.victim = 0
        self.replaced = False

    def tell_all(self, asks: Iterable[Ask], told: Callable[[int], None]) -> Generator[Any, None, None]:
        for number, answer in enumerate(self.engine.tell_all(asks, told)):
            if number == self.after:
                self.before = worker_pids()
                self.victim = min(self.before)
                os.kill(self.victim, signal.SIGKILL)
            if self.victim and not self.replaced:
                self.replaced = bool(worker_pids() - self.before)
            yield answer

    def close(self) -> None:
        self.engine.close()


def test_a_killed_worker_costs_nothing_but_time(engine_of: Callable[..., Any], tmp_path: Path) -> None:
    killing = Killing(engine_of(), after=3)
    fill(tmp_path / "ray", killing, count=900)
    assert len(killing.before) == 2
    assert killing.replaced
    fill(tmp_path / "local", local(), count=900)
    assert bytes_of(tmp_path / "ray") == bytes_of(tmp_path / "local")


def test_workers_load_the_teacher_once(engine_of: Callable[..., Any], tmp_path: Path) -> None:
    seen: set[int] = set()

    class Watching(Killing):
        def tell_all(self, asks: Iterable[Ask], told: Callable[[int], None]) -> Generator[Any, None, None]:
            for answer in self.engine.tell_all(asks, told):
                seen.update(worker_pids())
                yield answer

    result = fill(tmp_path, Watching(engine_of(), 0), count=60)
    assert result.computed == 60  # in ten shards, behind the rows that the codec is learnt on
    assert len(seen) == 2


def test_what_a_worker_cannot_do_is_told_and_earlier_shards_stay(
    engine_of: Callable[..., Any], model_folder: Path, tmp_path: Path
) -> None:
    fill(tmp_path / "store", engine_of(), count=12)
    broken = teacher()
    with torch.no_grad():
        broken.model.norm.weight.fill_(1e38)  # hidden states overflow
        broken.model.norm.weight.mul_(10)
    broken_folder = tmp_path / "broken"
    finite = {name: tensor.clone().nan_to_num(posinf=3e38) for name, tensor in broken.state_dict().items()}
    broken.load_state_dict(finite)
    broken.save_pretrained(broken_folder)
    before = bytes_of(tmp_path / "store")
    with pytest.raises(TrainingError, match=r"a worker failed: the teacher's hidden states are not finite for doc"):
        fill(tmp_path / "store", engine_of(folder=broken_folder), count=40)
    assert len(SignalStore(tmp_path / "store")) == 12
    assert {name: before[name] for name in before if name != "manifest.json"}.items() <= bytes_of(
        tmp_path / "store"
    ).items()


def test_a_teacher_that_no_worker_can_load_is_told(engine_of: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="Ray's workers failed"):
        fill(tmp_path / "store", engine_of(folder=tmp_path / "nothing"))


def test_a_stopped_labelling_leaves_no_worker(engine_of: Callable[..., Any]) -> None:
    items = sequences(60)
    asks = [Ask(items[first : first + 6], list(range(6))) for first in range(0, 60, 6)]
    told: list[int] = []
    answers = engine_of().tell_all(asks, told.append)
    first = next(answers)
    assert len(first) == 6
    assert np.isfinite(first[0]["logprobs"]).all()
    answers.close()
    deadline = time.monotonic() + 30
    while worker_pids() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not worker_pids()


def test_the_command_with_a_killed_worker(tiny_llama_folder: Path, tmp_path: Path) -> None:
    from conftest import SENTENCES

    rows = [{"text": f"{SENTENCES[n % 6]} {SENTENCES[n % 5]} Item {n}."} for n in range(1200)]
    text = tmp_path / "many.jsonl"
    text.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Path(__file__).parents[2] / "recipes" / "offline_top_k.yaml"

    def line(name: str, engine: str) -> list[str]:
        overrides = [*small_overrides(recipe, tiny_llama_folder, text), f"runs={tmp_path}", f"name={name}"]
        overrides += ["signals.batch_tokens=128", "signals.calibration_tokens=256", "signals.shard_rows=8"]
        settings = [part for override in overrides for part in ("--set", override)]
        return [sys.executable, "-m", "lmdistill", "label", str(recipe), "--json", "--engine", engine, *settings]

    child = subprocess.Popen(line("ray", "ray"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    store = tmp_path / "ray" / "signals"
    while not (store / "shard-00002.parquet").is_file():
        assert child.poll() is None, child.communicate()
        time.sleep(0.05)
    before = worker_pids(child.pid)
    os.kill(min(before), signal.SIGKILL)
    killed_at = len(list(store.glob("shard-*.parquet")))
    out, err = child.communicate(timeout=300)
    assert child.returncode == 0, err
    assert json.loads(out) == {"ok": True, "store": str(store)}
    assert all(json.loads(row)["event"] for row in err.splitlines())
    assert killed_at < len(list(store.glob("shard-*.parquet")))
    done = subprocess.run(line("local", "local"), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert bytes_of(store) == bytes_of(tmp_path / "local" / "signals")
