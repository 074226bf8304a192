"""A tiny teacher and some text for the tests of stores."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lmdistill.models import output_head
from lmdistill.progress import Progress
from lmdistill.recipe import SignalSpec
from lmdistill.signals.label import LabelResult, label
from lmdistill.signals.local import LocalEngine
from lmdistill.signals.manifest import Source
from lmdistill.signals.store import TrainingSequence

VOCABULARY = 97
KINDS = ["top_k", "top_p", "sampled", "top_and_sampled", "hidden", "head_expectation", "token"]


def teacher(seed: int = 0, vocabulary: int = VOCABULARY) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    made = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        made.lm_head.weight.mul_(20)  # a random head is almost uniform; teachers are not
    return made


def rows(count: int = 20, seed: int = 0, vocabulary: int = VOCABULARY) -> list[dict[str, list[int]]]:
    """Packed rows of two documents each, the first tokens of the second one not trained."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        lengths = rng.integers(3, 12, 2)
        ids = rng.integers(0, vocabulary, lengths.sum()).astype(np.int32)
        positions = np.concatenate([np.arange(n) for n in lengths])
        labels = np.where(positions == 0, -100, ids)
        labels[lengths[0] : lengths[0] + 2] = -100
        found.append(
            {
                "input_ids": ids.tolist(),
                "labels": labels.tolist(),
                "position_ids": positions.tolist(),
                "row_ids": [f"doc{number}a", f"doc{number}b"],
            }
        )
    return found


def dataset(count: int = 20, seed: int = 0) -> datasets.Dataset:
    return datasets.Dataset.from_list(rows(count, seed))


def spec(kind: str, **values: object) -> SignalSpec:
    small = {
        "calibration_tokens": 256,
        "shard_rows": 6,
        "batch_tokens": 64,
        "resolution": 0.004,
        "samples": 30,
        "rank": 24,
    }
    return SignalSpec.model_validate({"kind": kind, **small, **values})


def source(given: SignalSpec, name: str = "teacher", vocabulary: int = VOCABULARY) -> Source:
    return Source(
        teacher=name,
        teacher_fingerprint=name,
        tokenizer_fingerprint="tokenizer",
        vocabulary_size=vocabulary,
        signal=given.meaning(),
        seed=0,
        tables="",
        tables_sha256="",
    )


def sequences(count: int = 20, seed: int = 0) -> list[TrainingSequence]:
    return [TrainingSequence.from_columns(row) for row in rows(count, seed)]


def student_tables() -> dict[str, np.ndarray]:
    torch.manual_seed(9)
    return {"student_head": torch.randn(VOCABULARY, 16).numpy()}


def fill(folder: Path, given: SignalSpec, items: list[TrainingSequence], **options: object) -> LabelResult:
    model = options.pop("model", None) or teacher()
    tables = student_tables() if given.kind == "head_expectation" else None
    return label(
        items,
        options.pop("source", None) or source(given),  # type: ignore[arg-type]
        given,
        folder,
        engine=lambda: LocalEngine(model, VOCABULARY, given, tables),  # type: ignore[arg-type]
        head=lambda: output_head(model, VOCABULARY),  # type: ignore[arg-type]
        student=tables,
        progress=Progress(),
        **options,  # type: ignore[arg-type]
    )
