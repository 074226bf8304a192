"""Documents to a data set of sequences, batches of it, and what is counted over it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from lmdistill.data.chat import EncodedRow, RowEncoder
from lmdistill.data.documents import DataReport, Document
from lmdistill.data.load import shuffled
from lmdistill.data.packing import IGNORED, Piece, pack, pieces_of
from lmdistill.data.tasks import task_weights
from lmdistill.data.twins import NO_TWIN, split_pairs, twins_of
from lmdistill.errors import DataError
from lmdistill.progress import Progress
from lmdistill.recipe import DataSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WEIGHTS, TWINS = "loss_weights", "twins"
"""Columns that only some data sets have; see `build_dataset`."""
_FILL: dict[str, tuple[float, torch.dtype]] = {WEIGHTS: (0.0, torch.float32), TWINS: (NO_TWIN, torch.long)}


def build_dataset(
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerBase,
    spec: DataSpec,
    *,
    seed: int,
    report: DataReport,
    progress: Progress,
) -> datasets.Dataset:
    """Encode, truncate and pack documents; what becomes of each is counted into `report`.

    Columns, for a sequence of L tokens: `input_ids` (L); `labels` (L), the id itself or -100 where there is no loss,
    **not** shifted, -100 at the first token of every row; `position_ids` (L), from 0 in every row; `row_ids`, the ids
    of its documents in order. With `spec.balance`, `loss_weights` (L) of each label; where rows make pairs, `twins`
    (L), the place in the sequence of the label that shall be predicted alike, or -1; a pair is a sequence of its own,
    which may be twice as long. Raises DataError, with counts, where nothing is left.
    """
    if spec.shuffle:
        documents = shuffled(documents, seed, "shuffle")
    encoder = RowEncoder(tokenizer, add_eos=spec.add_eos)
    with progress.task("encoding", total=len(documents), unit="rows") as task:

        def counted(rows: Iterable[EncodedRow]) -> Iterable[EncodedRow]:
            for row in rows:
                task.advance()
                yield row

        return build_from_rows(counted(encoder.encode(documents)), spec, report=report)


def build_from_rows(rows: Iterable[EncodedRow], spec: DataSpec, *, report: DataReport) -> datasets.Dataset:
    """`build_dataset` for rows that are ids already, such as text that a teacher wrote."""
    pieces = list(pieces_of(rows, spec, report))
    if not pieces:
        raise DataError(
            f"no row has a token to train on ({report.explain()}). Rows need a response, fewer tokens than "
            f"max_length {spec.max_length}, or another data.truncation"
        )
    pairs, rest = split_pairs(pieces)
    sequences = pack(rest, spec.max_length) if spec.packing else [[piece] for piece in rest]
    sequences = sorted(pairs + sequences, key=lambda sequence: sequence[0].number) if pairs else sequences
    dataset = _to_dataset(sequences, task_weights(pieces, spec.balance), paired=bool(pairs))
    report.max_length = spec.max_length
    report.sequences = len(sequences)
    report.tokens = sum(len(piece) for piece in pieces)
    report.trained_tokens = sum(int(piece.row.trained_L[1:].sum()) for piece in pieces)
    report.fill = report.tokens / (report.sequences * spec.max_length)
    report.fingerprint = fingerprint(dataset)
    return dataset


def _to_dataset(
    sequences: Sequence[Sequence[Piece]], weights: Mapping[str, float] | None = None, paired: bool = False
) -> datasets.Dataset:
    """Arrow arrays straight from the pieces: Python lists of every token would take 30 times the memory."""
    pieces = [piece for sequence in sequences for piece in sequence]
    ids_N = np.concatenate([piece.row.ids_L for piece in pieces])
    labels_N = np.concatenate([_labels(piece) for piece in pieces])
    positions_N = np.concatenate([np.arange(len(piece), dtype=np.int32) for piece in pieces])
    ends = np.cumsum([0] + [sum(len(piece) for piece in sequence) for sequence in sequences])
    row_ends = np.cumsum([0] + [len(sequence) for sequence in sequences])
    columns = {
        "input_ids": pa.LargeListArray.from_arrays(ends, ids_N),
        "labels": pa.LargeListArray.from_arrays(ends, labels_N),
        "position_ids": pa.LargeListArray.from_arrays(ends, positions_N),
        "row_ids": pa.LargeListArray.from_arrays(row_ends, pa.array([piece.row.row_id for piece in pieces])),
    }
    if weights is not None:
        weights_N = np.concatenate([np.full(len(piece), weights[piece.row.task], np.float32) for piece in pieces])
        columns[WEIGHTS] = pa.LargeListArray.from_arrays(ends, weights_N)
    if paired:
        columns[TWINS] = pa.LargeListArray.from_arrays(ends, np.concatenate([twins_of(each) for each in sequences]))
    return datasets.Dataset(datasets.table.InMemoryTable(pa.table(columns)))


def _labels(piece: Piece) -> Any:
    labels_L = np.where(piece.row.trained_L, piece.row.ids_L, IGNORED).astype(np.int32)
    labels_L[0] = IGNORED
    return labels_L


@dataclass(frozen=True)
class Collator:
    """Rows of a data set to a batch: `input_ids`, `labels` and `position_ids` (B, L), and `row_ids` as lists.

    Shorter rows are padded at the right. Padding has label -100 and positions from 0 of its own, so that it is one
    more packed row: no attention mask is needed, and none must be given. Call models with `use_cache=False`, or
    transformers attends across packed rows. The padding id never matters.
    """

    pad_id: int = 0

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Batch rows of a data set made by `build_dataset`."""
        length = max(len(row["input_ids"]) for row in rows)
        shape = (len(rows), length)
        input_ids_BL = torch.full(shape, self.pad_id, dtype=torch.long)
        labels_BL = torch.full(shape, IGNORED, dtype=torch.long)
        position_ids_BL = torch.zeros(shape, dtype=torch.long)
        for index, row in enumerate(rows):
            end = len(row["input_ids"])
            input_ids_BL[index, :end] = torch.as_tensor(row["input_ids"])
            labels_BL[index, :end] = torch.as_tensor(row["labels"])
            position_ids_BL[index, :end] = torch.as_tensor(row["position_ids"])
            position_ids_BL[index, end:] = torch.arange(length - end)
        return {
            **{name: _column(rows, name, length) for name in _FILL if name in rows[0]},
            "input_ids": input_ids_BL,
            "labels": labels_BL,
            "position_ids": position_ids_BL,
            "row_ids": [list(row["row_ids"]) for row in rows],
        }


def _column(rows: Sequence[Mapping[str, Any]], name: str, length: int) -> Tensor:
    """A further column of a batch, (B, L)."""
    fill, dtype = _FILL[name]
    found_BL = torch.full((len(rows), length), fill, dtype=dtype)
    for index, row in enumerate(rows):
        found_BL[index, : len(row[name])] = torch.as_tensor(row[name], dtype=dtype)
    return found_BL


def token_counts(dataset: datasets.Dataset, vocabulary_size: int) -> Tensor:
    """How often each id occurs in a data set (V, int64). Raises DataError for an id outside the vocabulary."""
    counts_V = np.zeros(vocabulary_size, dtype=np.int64)
    for table in dataset.select_columns(["input_ids"]).with_format("arrow").iter(batch_size=1000):
        ids_N = table["input_ids"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        if len(ids_N) and int(ids_N.max()) >= vocabulary_size:
            raise DataError(
                f"id {int(ids_N.max())} in the data, but the vocabulary has {vocabulary_size} tokens; was the data "
                "set built with another tokenizer?"
            )
        counts_V += np.bincount(ids_N, minlength=vocabulary_size)
    return torch.from_numpy(counts_V)


def fingerprint(dataset: datasets.Dataset) -> str:
    """SHA-256 over columns, row borders and values; the same for equal content, however it is stored or chunked."""
    digest = hashlib.sha256()
    names = sorted(dataset.column_names)
    digest.update(repr(names).encode())
    for row in dataset.with_format("arrow").iter(batch_size=1):
        for name in names:
            values = row[name].combine_chunks()
            if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
                values = values.flatten()
            digest.update(len(values).to_bytes(8, "big"))
            if pa.types.is_integer(values.type):
                digest.update(values.to_numpy(zero_copy_only=False).astype("<i8").tobytes())
            else:
                for text in values.to_pylist():
                    data = str(text).encode()
                    digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()
