"""Stores: what is labelled is found again, as exactly as its kind promises; damage is seen, named and mended."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from store_helpers import KINDS, VOCABULARY, fill, rows, sequences, source, spec, student_tables, teacher

from lmdistill.errors import CorruptFile, DataError, Interrupted, ModelError, RunFolderInUse, TrainingError
from lmdistill.io import RunLock, read_json, write_json
from lmdistill.models import output_head
from lmdistill.recipe import SignalSpec
from lmdistill.signals.inspect import first_rows, statistics
from lmdistill.signals.kinds import learn_kind, load_kind
from lmdistill.signals.local import LocalEngine, check_rows
from lmdistill.signals.store import SignalStore, TrainingSequence, merge, subset
from lmdistill.signals.teller import Speech, Teller


def bytes_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def exact_logprobs(sequence: TrainingSequence) -> torch.Tensor:
    """The teacher's log-probabilities at the labelled positions: each packed row on its own, in float64."""
    model = teacher().double()
    columns = sequence.columns()
    starts = [*sequence.row_starts_R.tolist(), len(sequence.input_ids_L)]
    found = []
    with torch.no_grad():
        for first, end in itertools.pairwise(starts):
            found.append(model(torch.tensor([columns["input_ids"][first:end].tolist()])).logits[0])
    return torch.cat(found)[torch.as_tensor(sequence.labelled_L)].log_softmax(-1)


def test_rows_of_a_data_set_survive_the_trip() -> None:
    for row in rows(5):
        sequence = TrainingSequence.from_columns(row)
        again = sequence.columns()
        for name in ("input_ids", "labels", "position_ids", "row_ids"):
            assert list(again[name]) == list(row[name])
        assert sequence.positions == sum(label != -100 for label in row["labels"][1:])


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_holds_what_was_said(kind: str, tmp_path: Path) -> None:
    given, items = spec(kind), sequences()
    result = fill(tmp_path, given, items)
    assert (result.rows, result.computed) == (20, 20)
    store = SignalStore(tmp_path)
    assert store.manifest.complete
    assert [shard.rows for shard in store.manifest.shards] == [6, 6, 6, 2]
    engine = LocalEngine(teacher(), VOCABULARY, given, student_tables() if kind == "head_expectation" else None)
    own = source(given)
    seeds = [int(item.key(own)[:15], 16) for item in items]
    # Batched as they were: how many rows stand beside one another moves the last bit of a product.
    said = [p for first in range(0, 20, 6) for p in engine.tell(items[first : first + 6], seeds[first : first + 6])]
    codec = load_kind(given, store.tables(0))
    for item, payload in zip(items, said, strict=True):
        stored = store.row(item.key(own))
        assert stored.sequence.row_ids == item.row_ids
        assert (stored.sequence.input_ids_L == item.input_ids_L).all()
        assert stored.signal == codec.pack(payload)
        unpacked = codec.unpack(stored.signal, item.positions)
        assert all(len(array) == item.positions for array in unpacked.values())


def test_top_k_is_the_teachers_own_up_to_half_a_step(tmp_path: Path) -> None:
    given = spec("top_k", k=97)
    fill(tmp_path, given, sequences())
    store = SignalStore(tmp_path)
    codec = load_kind(given, store.tables(0))
    for item in sequences():
        exact_NV = exact_logprobs(item).exp().numpy()
        payload = codec.unpack(store.row(item.key(source(given))).signal, item.positions)
        stored_NV = np.zeros_like(exact_NV)
        np.add.at(stored_NV, (np.arange(len(stored_NV))[:, None], payload["ids"]), np.exp(payload["logprobs"]))
        kept_NV = stored_NV > 0
        assert np.abs(stored_NV - exact_NV)[kept_NV].max() < 0.004 + 1e-4
        assert exact_NV[~kept_NV].max() < 0.002 + 1e-4


def test_top_p_keeps_the_smallest_set_that_holds_p() -> None:
    torch.manual_seed(0)
    head = output_head(teacher(), VOCABULARY)
    hidden = torch.randn(50, 24)
    head.weight_VH.requires_grad_(False)
    told = Teller(spec("top_p", p=0.8, k=97), head)(Speech(hidden, torch.zeros(50, dtype=torch.long), 0))
    sorted_NV = (hidden @ head.weight_VH.T).softmax(-1).sort(-1, descending=True).values.detach()
    for row, logprobs in zip(sorted_NV, told["logprobs"], strict=True):
        kept = int((logprobs > -np.inf).sum())
        assert row[:kept].sum() >= 0.8 - 1e-5
        assert row[: kept - 1].sum() < 0.8


@pytest.mark.parametrize("kind", ["sampled", "top_and_sampled"])
def test_draws_are_unbiased(kind: str) -> None:
    given = spec(kind, samples=8, exact=4, resolution=0.05)
    head = output_head(teacher(), VOCABULARY)
    head.weight_VH.requires_grad_(False)
    torch.manual_seed(1)
    hidden = torch.randn(3, 24)
    exact_NV = (hidden @ head.weight_VH.T).softmax(-1).numpy()
    teller = Teller(given, head)
    total_NV, draws = np.zeros_like(exact_NV), 3000
    codec = learn_kind(given, [teller(Speech(hidden, torch.zeros(3, dtype=torch.long), 0))], VOCABULARY)
    for seed in range(draws):
        payload = codec.unpack(codec.pack(teller(Speech(hidden, torch.zeros(3, dtype=torch.long), seed))), 3)
        share = payload["counts"] / payload["counts"].sum(1, keepdims=True)
        for row in range(3):
            np.add.at(total_NV[row], payload["ids"][row], share[row])
    # Plain draws have this variance; exact heads have less, but the rounding of their levels comes on top.
    rounding = 0.05**2 / 4 if kind == "top_and_sampled" else 0.0
    error_NV = np.sqrt((exact_NV * (1 - exact_NV) / 8 + rounding) / draws)
    assert (np.abs(total_NV / draws - exact_NV) / error_NV.clip(1e-5)).max() < 5
    assert np.abs(total_NV / draws - exact_NV).max() < 0.02


def test_the_same_sequence_always_draws_the_same(tmp_path: Path) -> None:
    given = spec("sampled")
    fill(tmp_path / "a", given, sequences())
    fill(tmp_path / "b", given, list(reversed(sequences())))
    left, right = SignalStore(tmp_path / "a"), SignalStore(tmp_path / "b")
    assert left.places.keys() == right.places.keys()
    codecs = [load_kind(given, store.tables(0)) for store in (left, right)]
    for key in left.places:
        drawn = []
        for codec, store in zip(codecs, (left, right), strict=True):
            row = store.row(key)
            payload = codec.unpack(row.signal, row.sequence.positions)
            pairs = zip(payload["ids"], payload["counts"], strict=True)
            drawn.append([sorted(zip(i[n > 0].tolist(), n[n > 0].tolist(), strict=True)) for i, n in pairs])
        assert drawn[0] == drawn[1]


def test_hidden_states_in_all_directions_give_the_whole_distribution(tmp_path: Path) -> None:
    given = spec("hidden", rank=24)
    fill(tmp_path, given, sequences())
    store = SignalStore(tmp_path)
    own = list(store.rows())
    whole = check_rows(store, own, LocalEngine(teacher(), VOCABULARY, given))
    assert whole.kl is not None
    assert 0 <= whole.kl < 0.02
    narrow = spec("hidden", rank=4)
    fill(tmp_path / "narrow", narrow, sequences())
    store = SignalStore(tmp_path / "narrow")
    less = check_rows(store, list(store.rows()), LocalEngine(teacher(), VOCABULARY, narrow))
    assert less.kl is not None
    assert less.kl > whole.kl


@pytest.mark.parametrize("kind", KINDS)
def test_check_rows_tells_small_errors_from_another_teacher(kind: str, tmp_path: Path) -> None:
    given = spec(kind, samples=3000, exact=20)
    fill(tmp_path, given, sequences())
    store = SignalStore(tmp_path)
    tables = student_tables() if kind == "head_expectation" else None
    right = check_rows(store, list(store.rows()), LocalEngine(teacher(), VOCABULARY, given, tables))
    wrong = check_rows(store, list(store.rows()), LocalEngine(teacher(seed=5), VOCABULARY, given, tables))
    assert right.relative_error < 0.15
    assert wrong.relative_error > 3 * right.relative_error


def test_it_is_an_ordinary_data_set_on_the_outside(tmp_path: Path) -> None:
    fill(tmp_path / "store", spec("top_k"), sequences())
    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "store" / "*.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(loaded) == 20
    assert loaded[0]["input_ids"] == rows(1)[0]["input_ids"]
    assert set(loaded.column_names) == {"key", "input_ids", "loss_mask", "row_starts", "row_ids", "signal"}


def test_labelling_again_computes_only_what_is_new(tmp_path: Path) -> None:
    given = spec("top_k")
    fill(tmp_path, given, sequences(10))
    before = bytes_of(tmp_path)
    assert fill(tmp_path, given, sequences(10)).computed == 0
    assert bytes_of(tmp_path) == before
    assert fill(tmp_path, given, sequences(20)).computed == 10
    store = SignalStore(tmp_path)
    assert all(item.key(source(given)) in store for item in sequences(20))
    # Shuffled, subset, with a sequence twice: nothing to do.
    shuffled = sequences(20)[::-1][:15] + sequences(2)
    assert fill(tmp_path, given, shuffled).computed == 0


def test_a_stop_keeps_what_is_labelled_and_the_end_is_the_same(tmp_path: Path) -> None:
    given = spec("top_k")
    fill(tmp_path / "whole", given, sequences())
    calls = iter([False, True])
    with pytest.raises(Interrupted, match=r"12 of 20 rows"):
        fill(tmp_path / "cut", given, sequences(), stopped=lambda: next(calls))
    assert len(SignalStore(tmp_path / "cut")) == 12
    assert not SignalStore(tmp_path / "cut").manifest.complete
    assert fill(tmp_path / "cut", given, sequences()).computed == 8
    assert bytes_of(tmp_path / "cut") == bytes_of(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_is_named_with_file_and_rows_and_mended(damage: str, tmp_path: Path) -> None:
    given = spec("top_k")
    fill(tmp_path, given, sequences())
    before = bytes_of(tmp_path)
    path = tmp_path / "shard-00001.parquet"
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
    elif damage == "truncate":
        path.write_bytes(bytes(data[:-10]))
    else:
        path.unlink()
    store = SignalStore(tmp_path)
    with pytest.raises(CorruptFile, match=r"shard-00001.parquet \(rows 6 to 11\)"):
        list(store.rows())
    assert list(store.problems()) == [1]
    assert fill(tmp_path, given, sequences()).computed == 6
    assert bytes_of(tmp_path) == before


def test_a_damaged_shard_of_other_rows_is_dropped_and_nothing_else(tmp_path: Path) -> None:
    given = spec("top_k")
    fill(tmp_path, given, sequences(12, seed=1))
    (tmp_path / "shard-00000.parquet").unlink()
    result = fill(tmp_path, given, sequences(12, seed=2))
    assert result.computed == 12
    store = SignalStore(tmp_path)
    assert len(store) == 6 + 12
    assert all(item.key(source(given)) in store for item in sequences(12, seed=1)[6:])


def test_another_teacher_tokenizer_or_signal_is_refused(tmp_path: Path) -> None:
    given = spec("top_k")
    fill(tmp_path, given, sequences())
    before = bytes_of(tmp_path)
    with pytest.raises(ModelError, match=r"another teacher: teacher there .*, other here.*signals.store"):
        fill(tmp_path, given, sequences(), source=source(given, "other"))
    foreign = source(given).model_copy(update={"tokenizer_fingerprint": "another"})
    with pytest.raises(ModelError, match="another tokenizer or chat template"):
        fill(tmp_path, given, sequences(), source=foreign)
    with pytest.raises(ModelError, match="another signal"):
        fill(tmp_path, spec("top_k", k=7), sequences())
    assert bytes_of(tmp_path) == before


def test_two_writers_and_newer_versions_are_refused(tmp_path: Path) -> None:
    given = spec("top_k")
    fill(tmp_path, given, sequences())
    with RunLock(tmp_path), pytest.raises(RunFolderInUse):
        fill(tmp_path, given, sequences())
    value = read_json(tmp_path / "manifest.json")
    write_json(tmp_path / "manifest.json", {**value, "version": 99})
    with pytest.raises(CorruptFile, match=r"version 99 .* reads up to 1"):
        SignalStore(tmp_path)
    write_json(tmp_path / "manifest.json", {**value, "shards": [{"file": 3}]})
    with pytest.raises(CorruptFile, match=r"shards\.0"):
        SignalStore(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(CorruptFile, match=r"no manifest\.json"):
        SignalStore(tmp_path)


def test_damaged_tables_are_named(tmp_path: Path) -> None:
    fill(tmp_path, spec("top_k"), sequences())
    path = tmp_path / "tables-0.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptFile, match="tables-0"):
        SignalStore(tmp_path).tables(0)


def test_hidden_states_that_are_not_finite_name_the_rows(tmp_path: Path) -> None:
    given, model = spec("top_k"), teacher()
    with torch.no_grad():
        model.model.embed_tokens.weight[sequences()[13].input_ids_L[4]] = float("nan")
    with pytest.raises(TrainingError, match="doc"):
        fill(tmp_path, given, sequences(), model=model)


def test_vocabularies_beyond_the_format_are_refused(tmp_path: Path) -> None:
    given = spec("top_k")
    with pytest.raises(DataError, match="1048576"):
        fill(tmp_path, given, sequences(), source=source(given, vocabulary=2**20 + 1))


def test_merge_and_subset_keep_every_signal(tmp_path: Path) -> None:
    given = spec("top_k")
    fill(tmp_path / "a", given, sequences(10))
    fill(tmp_path / "b", given, sequences(8, seed=3), model=teacher(4), source=source(given, "second"))
    stores = [SignalStore(tmp_path / name) for name in "ab"]
    merge(stores, tmp_path / "c")
    merged = SignalStore(tmp_path / "c")
    assert len(merged) == 18
    assert [known.teacher for known in merged.manifest.sources] == ["teacher", "second"]
    for store in stores:
        for key in store.places:
            assert merged.row(key).signal == store.row(key).signal
            assert merged.source_of(key).teacher == store.source_of(key).teacher
    chosen = list(merged.places)[::3]
    subset(merged, chosen, tmp_path / "d")
    assert set(SignalStore(tmp_path / "d").places) == set(chosen)
    with pytest.raises(DataError, match="holds a store already"):
        merge(stores, tmp_path / "c")
    with pytest.raises(DataError, match="no signal for"):
        subset(merged, ["nothing"], tmp_path / "e")
    alien = source(given).model_copy(update={"tokenizer_fingerprint": "another"})
    fill(tmp_path / "f", given, sequences(4), source=alien)
    with pytest.raises(DataError, match="2 different tokenizers"):
        merge([*stores, SignalStore(tmp_path / "f")], tmp_path / "g")
    with pytest.raises(ModelError, match="merged from 2 sources"):
        fill(tmp_path / "c", given, sequences())


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_and_first_rows_speak_of_every_kind(kind: str, tmp_path: Path) -> None:
    fill(tmp_path, spec(kind), sequences())
    found = statistics(tmp_path)
    assert found["rows"] == 20
    assert found["signal bytes a position"] > 0
    assert found["all bytes a position"] > found["signal bytes a position"]
    shown = first_rows(tmp_path, 2, 3)
    assert len(shown) == 2
    assert len(shown[0]["signal"]) == 3
    assert SignalSpec.model_validate(SignalStore(tmp_path).manifest.sources[0].signal).kind == kind
