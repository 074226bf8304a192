"""From examples to batches.

Shape legend: B rows, L length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lmdistill.data import DataReport
from lmdistill.errors import DataError, ModelError
from lmdistill.recipe.task import TaskKind
from lmdistill.tasks.rows import Example, check_classes

IGNORED = -100


def encode_examples(
    examples: Sequence[Example],
    kind: TaskKind,
    classes: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    report: DataReport,
) -> datasets.Dataset:
    """A data set of `input_ids`, `token_type_ids`, `labels` and `row_id`; rows without any label are left out.

    For embeddings of pairs, `pair_input_ids` too. Counts go into `report`. Raises DataError for an unknown class and
    where no row is left.
    """
    rows = []
    for example in examples:
        if classes and example.label is not None:
            check_classes(example, classes)
        row = _encode(example, kind, classes, tokenizer, max_length, report)
        if kind == "token_classification" and all(label == IGNORED for label in row["labels"]):
            report.fully_masked += 1
            continue
        rows.append(row)
    if not rows:
        raise DataError(
            f"none of {len(examples)} rows has a label within data.max_length = {max_length} tokens; raise it"
        )
    report.sequences = len(rows)
    report.tokens = sum(len(row["input_ids"]) for row in rows)
    report.trained_tokens = len(rows) if kind != "token_classification" else _labelled(rows)
    report.longest = max(report.longest, *(len(row["input_ids"]) for row in rows))
    report.max_length = max_length
    return datasets.Dataset.from_list(rows)


def _labelled(rows: Sequence[Mapping[str, Any]]) -> int:
    return sum(label != IGNORED for row in rows for label in row["labels"])


def _encode(
    example: Example,
    kind: TaskKind,
    classes: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    report: DataReport,
) -> dict[str, Any]:
    row: dict[str, Any] = {"row_id": f"{example.document.origin} ({example.document.id})"}
    if kind == "token_classification":
        assert example.words is not None
        assert isinstance(example.label, list)
        encoded = tokenizer(example.words, is_split_into_words=True)
        labels, last = [], None
        for word in encoded.word_ids():
            labels.append(IGNORED if word is None or word == last else classes.index(example.label[word]))
            last = word
        cut = _cut(encoded, max_length, report)
        return row | cut | {"labels": [*labels[: len(cut["input_ids"]) - 1], IGNORED][: len(cut["input_ids"])]}
    if kind == "sentence_embedding":
        row |= _cut(tokenizer(example.text), max_length, report)
        if example.pair is not None:
            row["pair_input_ids"] = _cut(tokenizer(example.pair), max_length, report)["input_ids"]
        row["labels"] = float("nan") if example.label is None else float(example.label)  # type: ignore[arg-type]
        return row
    whole = tokenizer(example.text, example.pair, truncation=True, max_length=max_length)
    report.truncated += len(whole["input_ids"]) == max_length and _is_longer(example, tokenizer, max_length)
    row |= {"input_ids": list(whole["input_ids"]), "token_type_ids": _types(whole)}
    if kind == "sequence_classification":
        row["labels"] = IGNORED if example.label is None else classes.index(str(example.label))
    elif kind == "sequence_regression":
        assert isinstance(example.label, float)
        row["labels"] = example.label
    return row


def _is_longer(example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int) -> bool:
    return len(tokenizer(example.text, example.pair)["input_ids"]) > max_length


def _types(encoded: Any) -> list[int]:
    return list(encoded.get("token_type_ids") or [0] * len(encoded["input_ids"]))


def _cut(encoded: Any, max_length: int, report: DataReport) -> dict[str, Any]:
    """The first tokens with the end token behind them."""
    ids, types = list(encoded["input_ids"]), _types(encoded)
    if len(ids) > max_length:
        report.truncated += 1
        ids, types = [*ids[: max_length - 1], ids[-1]], types[:max_length]
    return {"input_ids": ids, "token_type_ids": types}


@dataclass(frozen=True)
class TaskCollator:
    """Rows of `encode_examples` to a batch: `input_ids`, `attention_mask` and `token_type_ids`, (B, L), `labels`, and
    `row_ids`.

    Pairs of embeddings become 2 B rows, first texts, then their pairs. For masked_lm tokens are masked here, anew each
    time a row is seen: labels are the ids at masked positions and -100 elsewhere, (B, L).
    """

    kind: TaskKind
    tokenizer: PreTrainedTokenizerBase
    masking: float = 0.15
    seed: int | None = None
    """Mask the same positions whenever a row is seen, for evaluation; by torch's generator where absent."""

    def __post_init__(self) -> None:
        if self.tokenizer.pad_token_id is None:
            raise ModelError("this tokenizer has no padding token, which rows of different length need")
        if self.kind == "masked_lm" and self.tokenizer.mask_token_id is None:
            raise ModelError("this tokenizer has no mask token: its model cannot learn by masked_lm")

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Batch rows."""
        ids = [row["input_ids"] for row in rows]
        types = [row["token_type_ids"] for row in rows]
        if "pair_input_ids" in rows[0]:
            pairs = [row["pair_input_ids"] for row in rows]
            ids, types = [*ids, *pairs], [*types, *([0] * len(pair) for pair in pairs)]
        pad = int(self.tokenizer.pad_token_id)
        batch: dict[str, Any] = {
            "input_ids": _padded(ids, pad),
            "attention_mask": _padded([[1] * len(row) for row in ids], 0),
            "token_type_ids": _padded(types, 0),
            "row_ids": [[str(row["row_id"])] for row in rows],
        }
        if self.kind == "token_classification":
            batch["labels"] = _padded([row["labels"] for row in rows], IGNORED)
        elif self.kind == "masked_lm":
            batch["input_ids"], batch["labels"] = self._masked(batch["input_ids"], rows)
        else:
            dtype = torch.long if self.kind == "sequence_classification" else torch.float32
            batch["labels"] = torch.tensor([row["labels"] for row in rows], dtype=dtype)
        return batch

    def _masked(self, ids_BL: Tensor, rows: Sequence[Mapping[str, Any]]) -> tuple[Tensor, Tensor]:
        """Ids with masks, and the ids that stood there (BERT: 80 % masks, 10 % any token, 10 % as it was)."""
        generator = None
        if self.seed is not None:
            first = int.from_bytes(str(rows[0]["row_id"]).encode()[-8:], "big") % 2**31
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + first)
        special = torch.tensor(sorted(set(self.tokenizer.all_special_ids)))
        open_BL = ~torch.isin(ids_BL, special)
        draw_BL = torch.rand(ids_BL.shape, generator=generator).masked_fill(~open_BL, 2.0)
        chosen_BL = draw_BL < self.masking
        # A row of which no position was drawn gives its lowest one: it would teach nothing.
        none_B = ~chosen_BL.any(-1) & open_BL.any(-1)
        chosen_BL[none_B, draw_BL.argmin(-1)[none_B]] = True
        labels_BL = ids_BL.masked_fill(~chosen_BL, IGNORED)
        how_BL = torch.rand(ids_BL.shape, generator=generator)
        any_BL = torch.randint(len(self.tokenizer), ids_BL.shape, generator=generator)
        masked_BL = ids_BL.masked_fill(chosen_BL & (how_BL < 0.8), int(self.tokenizer.mask_token_id))
        return torch.where(chosen_BL & (how_BL >= 0.9), any_BL, masked_BL), labels_BL


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    length = max(len(row) for row in rows)
    return torch.tensor([[*row, *([fill] * (length - len(row)))] for row in rows], dtype=torch.long)
