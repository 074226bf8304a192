"""What a person asks of a store: what is in it, what its first rows say, and whether it still tells the truth."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from lmdistill.errors import ModelError
from lmdistill.models import fastest_dtype, load_model, load_tokenizer, model_fingerprint, pick_device
from lmdistill.progress import Progress
from lmdistill.recipe import ModelSpec, SignalSpec
from lmdistill.signals.kinds import load_kind
from lmdistill.signals.local import LocalEngine, check_rows
from lmdistill.signals.store import SignalStore


def statistics(folder: Path) -> dict[str, Any]:
    """Facts about a store; bytes are of its files, and a position is one that carries a signal."""
    store = SignalStore(folder, verify=False)
    shards, sources = store.manifest.shards, store.manifest.sources
    positions = max(1, sum(shard.positions for shard in shards))
    tables = sum((folder / source.tables).stat().st_size for source in sources)
    return {
        "store": str(folder),
        "complete": store.manifest.complete,
        "teachers": ", ".join(source.teacher for source in sources),
        "signals": "; ".join(", ".join(f"{k} {v}" for k, v in source.signal.items()) for source in sources),
        "vocabulary": ", ".join(str(source.vocabulary_size) for source in sources),
        "shards": len(shards),
        "rows": len(store),
        "tokens": sum(shard.tokens for shard in shards),
        "positions": sum(shard.positions for shard in shards),
        "bytes": sum(shard.bytes for shard in shards) + tables,
        "signal bytes a position": round(sum(shard.signal_bytes for shard in shards) / positions, 2),
        "all bytes a position": round((sum(shard.bytes for shard in shards) + tables) / positions, 2),
    }


def first_rows(folder: Path, rows: int, positions: int) -> list[dict[str, Any]]:
    """The first rows as plain values: each position's token and the likeliest of what the teacher says."""
    store = SignalStore(folder)
    found = []
    for row, _ in zip(store.rows(), range(rows), strict=False):
        source = store.source_of(row.key)
        kind = load_kind(SignalSpec.model_validate(source.signal), store.tables(store.manifest.sources.index(source)))
        payload = kind.unpack(row.signal, row.sequence.positions)
        places = np.flatnonzero(row.sequence.labelled_L)[:positions]
        lines = []
        for number, place in enumerate(places):
            shown = f"after {row.sequence.input_ids_L[place]}: "
            if "ids" in payload:
                values = np.exp(payload["logprobs"][number]) if "logprobs" in payload else payload["counts"][number]
                order = np.argsort(-values, kind="stable")[:6]
                shown += " ".join(
                    f"{payload['ids'][number][slot]}:{values[slot]:.4g}" for slot in order if values[slot]
                )
            else:
                name = next(iter(payload))
                shown += f"{name} " + " ".join(f"{value:.3g}" for value in np.atleast_1d(payload[name][number])[:6])
            lines.append(shown)
        found.append(
            {
                "key": row.key,
                "row_ids": list(row.sequence.row_ids),
                "tokens": len(row.sequence.input_ids_L),
                "positions": row.sequence.positions,
                "bytes": len(row.signal),
                "signal": lines,
            }
        )
    return found


def check_store(
    folder: Path, teacher: ModelSpec | None, rows: int, progress: Progress
) -> tuple[list[str], dict[str, Any] | None]:
    """Damaged files, and with a teacher how far stored rows are from it. Raises ModelError for another teacher."""
    store = SignalStore(folder)
    with progress.stage("checksums", f"{len(store.manifest.shards)} shards"):
        bad = store.problems()
    if teacher is None:
        return list(bad.values()), None
    fingerprint = model_fingerprint(teacher)
    number = next((n for n, s in enumerate(store.manifest.sources) if s.teacher_fingerprint == fingerprint), None)
    if number is None:
        known = ", ".join(f"{s.teacher} ({s.teacher_fingerprint[:12]})" for s in store.manifest.sources)
        raise ModelError(f"{folder} holds nothing of {teacher.model} ({fingerprint[:12]}); it holds {known}")
    source = store.manifest.sources[number]
    good = [n for n, s in enumerate(store.manifest.shards) if n not in bad and s.source == number]
    wanted = list(store.rows(good))
    if not wanted:
        return list(bad.values()), None
    chosen = [wanted[place] for place in np.unique(np.linspace(0, len(wanted) - 1, rows).astype(int))]
    with progress.stage("verify", f"{len(chosen)} rows with {teacher.model}"):
        device = pick_device("auto")
        model = load_model(teacher, dtype=fastest_dtype(device), device=device)
        spec = SignalSpec.model_validate(source.signal)
        found = check_rows(store, chosen, LocalEngine(model, len(load_tokenizer(teacher)), spec))
    named = dataclasses.asdict(found)
    return list(bad.values()), {
        "rows": named["rows"],
        "positions": named["positions"],
        "KL(exact || stored), nats": named["kl"],
        "relative error": named["relative_error"],
        "probability covered": named["covered"],
    }
