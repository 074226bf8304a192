"""Labelling through a server: a small one here, with a real model behind vLLM's protocol, that can also misbehave."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from store_helpers import VOCABULARY, fill, rows, sequences, source, spec, teacher

from lmdistill.arguments import engine_overrides
from lmdistill.errors import EXIT_DONE, LmdistillError, ModelError, RecipeError
from lmdistill.models import load_model
from lmdistill.progress import Progress
from lmdistill.recipe import ModelSpec, SignalSpec, load_recipe
from lmdistill.signals.kinds import load_kind
from lmdistill.signals.label import LabelResult, label
from lmdistill.signals.local import LocalEngine
from lmdistill.signals.server import ServerEngine
from lmdistill.signals.store import SignalStore
from small import small_overrides


class Server(ThreadingHTTPServer):
    """Completions with prompt_logprobs, from a real tiny model."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.model = teacher()
        self.lock = threading.Lock()
        self.requests = 0
        self.names: set[str] = set()
        self.fail_first = 0
        self.limit: int | None = None
        self.refuse: int | None = None
        self.plain = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def logprobs(self, ids: list[int], k: int) -> list[Any]:
        with torch.no_grad(), self.lock:
            log_LV = self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        found: list[Any] = [None]
        for place, own in enumerate(ids[1:]):
            values, best = log_LV[place].topk(k)
            entry = {
                str(int(i)): {"logprob": float(v), "rank": r}
                for r, (i, v) in enumerate(zip(best, values, strict=True), 1)
            }
            entry[str(own)] = {"logprob": float(log_LV[place, own]), "rank": None}
            found.append(entry)
        return found


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests += 1
        self.server.names.add(body["model"])
        if self.server.refuse is not None:
            return self.answer(self.server.refuse, {"error": {"message": "no"}})
        if self.server.requests <= self.server.fail_first:
            return self.answer(503, {"error": {"message": "busy"}})
        k = min(body["prompt_logprobs"], self.server.limit or 10**6)
        choice: dict[str, Any] = {"index": 0, "text": "x", "finish_reason": "length"}
        if not self.server.plain:
            choice["prompt_logprobs"] = self.server.logprobs(body["prompt"], k)
        return self.answer(
            200, {"id": "1", "object": "text_completion", "created": 0, "model": "m", "choices": [choice]}
        )

    def answer(self, status: int, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def through(server: Server, given: Any, folder: Path, count: int = 20) -> LabelResult:
    engine = ServerEngine(given, server.url, "m", VOCABULARY)
    try:
        return label(sequences(count), source(given), given, folder, engine=lambda: engine, progress=Progress())
    finally:
        engine.close()


@pytest.mark.parametrize("kind", ["top_k", "top_p", "token"])
def test_a_server_says_what_the_model_itself_says(kind: str, server: Server, tmp_path: Path) -> None:
    given = spec(kind, k=20)
    assert through(server, given, tmp_path / "server").computed == 20
    assert server.requests >= 2 * 20  # two packed rows a sequence
    fill(tmp_path / "local", given, sequences())
    stores = [SignalStore(tmp_path / name) for name in ("server", "local")]
    codecs = [load_kind(given, store.tables(0)) for store in stores]
    for item in sequences():
        key = item.key(source(given))
        left, right = (c.unpack(s.row(key).signal, item.positions) for c, s in zip(codecs, stores, strict=True))
        if kind == "token":
            np.testing.assert_allclose(left["logprobs"], right["logprobs"], atol=0.02)
            continue
        dense = []
        for payload in (left, right):
            full = np.zeros((item.positions, VOCABULARY))
            np.add.at(full, (np.arange(item.positions)[:, None], payload["ids"]), np.exp(payload["logprobs"]))
            dense.append(full)
        assert np.abs(dense[0] - dense[1]).max() < 0.006  # a step of rounding


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.fail_first = 3
    assert through(server, spec("top_k", k=20), tmp_path, 6).computed == 6


def test_fewer_log_probabilities_than_asked_are_named_and_nothing_good_is_lost(server: Server, tmp_path: Path) -> None:
    given = spec("top_k", k=20)
    through(server, given, tmp_path, 6)
    server.limit = 5
    with pytest.raises(ModelError, match=r"gave [56] of 20 log-probabilities .* doc.*--max-logprobs"):
        through(server, given, tmp_path, 20)
    assert len(SignalStore(tmp_path)) == 6
    server.limit = None
    assert through(server, given, tmp_path, 20).computed == 14


@pytest.mark.parametrize(
    ("status", "words"), [(401, "LMDISTILL_API_KEY"), (404, "served_model"), (400, "--max-logprobs 20")]
)
def test_what_the_server_refuses_is_told_at_once(status: int, words: str, server: Server, tmp_path: Path) -> None:
    server.refuse = status
    with pytest.raises(ModelError, match=words):
        through(server, spec("top_k", k=20), tmp_path, 6)


def test_a_server_without_prompt_logprobs_is_refused(server: Server, tmp_path: Path) -> None:
    server.plain = True
    with pytest.raises(ModelError, match="gave no prompt_logprobs"):
        through(server, spec("top_k", k=20), tmp_path, 6)


def test_a_server_that_is_not_there_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmdistill.signals.server.RETRIES", 0)
    given = spec("top_k", k=20)
    engine = ServerEngine(given, "http://127.0.0.1:9/v1", "m", VOCABULARY)
    with pytest.raises(LmdistillError, match="is the server running"):
        label(sequences(6), source(given), given, tmp_path, engine=lambda: engine, progress=Progress())
    engine.close()


def test_rows_of_the_helpers_start_untrained() -> None:
    assert all(row["labels"][0] == -100 for row in rows(3))


def test_the_command_labels_through_a_server(
    server: Server, tiny_llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "offline_top_k.yaml"
    model = load_model(ModelSpec(model=str(tiny_llama_folder)), dtype=torch.float32, device=torch.device("cpu"))
    server.model = model  # type: ignore[assignment]
    overrides = [*small_overrides(recipe, tiny_llama_folder, text_file), f"runs={tmp_path}", "name=run"]
    # A random teacher over so many ids is almost uniform: the kinds that round would keep nothing of it.
    overrides += ["signals.kind=token", "signals.calibration_tokens=256", "signals.shard_rows=4"]
    settings = [part for override in overrides for part in ("--set", override)]
    line = [sys.executable, "-m", "lmdistill", "label", str(recipe), "--json", *settings]
    line += ["--base-url", server.url, "--served-model", "3"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == EXIT_DONE, done.stderr + done.stdout
    assert server.names == {"3"}
    store = SignalStore(tmp_path / "run" / "signals")
    rows = list(store.rows())
    given = SignalSpec.model_validate(store.manifest.sources[0].signal)
    vocabulary = store.manifest.sources[0].vocabulary_size
    exact = LocalEngine(model, vocabulary, given).tell([row.sequence for row in rows], [0] * len(rows))
    for row, payload in zip(rows, exact, strict=True):
        said = load_kind(given, {}).unpack(row.signal, row.sequence.positions)
        np.testing.assert_allclose(said["logprobs"], payload["logprobs"], atol=0.01)  # half precision near 10.8


@pytest.mark.parametrize(
    ("options", "words"),
    [(("server", None, None), "signals.base_url"), (("cluster", None, None), "signals.engine")],
)
def test_options_of_the_command_are_checked_as_the_recipe_is(
    options: tuple[str | None, str | None, str | None], words: str
) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "offline_top_k.yaml"
    with pytest.raises(RecipeError, match=words):
        load_recipe(recipe, engine_overrides(*options))
