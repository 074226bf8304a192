"""Labelling through a real vLLM for processors (`make test-vllm` makes its environment): the real model, real text."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from lmdistill.models import load_model, load_tokenizer
from lmdistill.progress import Progress
from lmdistill.recipe import ModelSpec, SignalSpec
from lmdistill.signals.label import label
from lmdistill.signals.local import LocalEngine, check_rows
from lmdistill.signals.manifest import Source
from lmdistill.signals.server import ServerEngine
from lmdistill.signals.store import SignalStore, TrainingSequence

VLLM = Path(__file__).parents[2] / ".venv-vllm" / "bin" / "python"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not VLLM.is_file(), reason="needs .venv-vllm (make test-vllm)")]


@pytest.fixture(scope="module")
def url(smollm2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A vLLM server on a free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("vllm") / "log.txt"
    # The command `vllm` asks for the metadata of a package of that name, which the build for processors has not.
    command = [
        str(VLLM),
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(smollm2_folder),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    command += ["--dtype", "bfloat16", "--max-model-len", "512", "--max-logprobs", "64", "--max-num-seqs", "8"]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    environment = {**os.environ, **settings, "OMP_NUM_THREADS": "2"}
    with log.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
    try:
        for _ in range(600):
            if server.poll() is not None:
                pytest.fail("vLLM ended: " + log.read_text()[-3000:])
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                    break
            except OSError:
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(timeout=60)


def test_a_real_vllm_says_what_the_model_says(url: str, smollm2_folder: Path, tmp_path: Path) -> None:
    given = SignalSpec(kind="top_k", k=64, resolution=0.002, calibration_tokens=256, shard_rows=2, requests=4)
    tokenizer = load_tokenizer(ModelSpec(model=str(smollm2_folder)))
    texts = [
        "The capital of France is Paris, and the capital of Italy is Rome.",
        "Photosynthesis is the process by which plants turn light, water and carbon dioxide into sugar.",
        "A home run derby is a contest in which players try to hit as many home runs as they can.",
    ]
    items = []
    for pair in ((0, 1), (1, 2), (2, 0)):
        ids = [tokenizer(texts[place])["input_ids"] for place in pair]
        starts = np.array([0, len(ids[0])], dtype=np.int32)
        mask = np.ones(sum(map(len, ids)), dtype=bool)
        mask[starts] = False
        items.append(TrainingSequence(np.concatenate(ids).astype(np.int32), mask, starts, ("a", "b")))
    source = Source(
        teacher="smollm2",
        teacher_fingerprint="smollm2",
        tokenizer_fingerprint="smollm2",
        vocabulary_size=len(tokenizer),
        signal=given.meaning(),
        seed=0,
        tables="",
        tables_sha256="",
    )
    engine = ServerEngine(given, url, str(smollm2_folder), len(tokenizer))
    result = label(items, source, given, tmp_path, engine=lambda: engine, progress=Progress())
    engine.close()
    assert result.computed == 3
    model = load_model(ModelSpec(model=str(smollm2_folder)), dtype=torch.bfloat16, device=torch.device("cpu"))
    store = SignalStore(tmp_path)
    found = check_rows(store, list(store.rows()), LocalEngine(model, len(tokenizer), given))
    # A tail that is one number, spread evenly, costs some tenths of a nat by itself; another text gives whole nats.
    assert found.kl is not None
    assert found.kl < 1.0
    assert found.relative_error < 0.1
