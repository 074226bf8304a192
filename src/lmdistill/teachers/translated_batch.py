"""A batch of the student's rows as the teacher reads it, and which groups of tokens are trained.

Shape legend: B batch, L, P lengths of the student's and the teacher's rows, N = B * L, M = B * P, G groups, n student
tokens of one row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmdistill.data.packing import IGNORED
from lmdistill.objectives.alignment import Alignment, join, tokens_of
from lmdistill.teachers.reading import packed_rows
from lmdistill.teachers.translate import TranslatedRow, Translator


@dataclass(frozen=True)
class TranslatedBatch:
    """A batch in the teacher's tokens."""

    inputs: dict[str, Tensor]
    """`input_ids` and `position_ids` for the teacher, (B, P): packed like the student's, padded at the right."""
    alignment: Alignment
    """Groups of all rows; places count in the flattened batches."""
    mask_G: Tensor
    """Trained groups: comparable, with trained student tokens alone, and without the first token of a row."""
    row_G: Tensor
    """The packed row of each group, counted through the batch."""
    trained_tokens: int
    """The student's trained tokens, in trained groups or not."""

    @property
    def teacher_ids(self) -> Tensor:
        """The teacher's ids, flattened, (M,)."""
        return self.inputs["input_ids"].flatten()

    @property
    def trained_share(self) -> float:
        """Share of the student's trained tokens that are in trained groups."""
        sizes_G = self.alignment.student_sizes * self.mask_G
        return float(sizes_G.sum()) / max(1, self.trained_tokens)

    def trained(self) -> Alignment:
        """The trained groups."""
        return self.alignment.select(self.mask_G)

    def sequences(self) -> list[tuple[Tensor, Tensor]]:
        """Tokens in trained groups of each packed row that has any, the student's and the teacher's."""
        kept, rows_g = self.trained(), self.row_G[self.mask_G]
        found = []
        for row in rows_g.unique().tolist():
            part = kept.select(rows_g == row)
            found.append(
                (
                    tokens_of(part.student_first_G, part.student_end_G)[0],
                    tokens_of(part.teacher_first_G, part.teacher_end_G)[0],
                )
            )
        return found


def translate_batch(translator: Translator, batch: Mapping[str, Any]) -> TranslatedBatch:
    """A batch of `input_ids`, `labels` (not shifted, -100 where nothing is trained) and `position_ids` (0 where a
    packed row begins), (B, L), for the teacher. Packed rows without a trained token are left out.

    Raises DataError for an id that the student's tokenizer does not have.
    """
    ids_BL, labels_BL = batch["input_ids"].cpu(), batch["labels"].cpu()
    placed: list[_Placed] = []
    filled = [0] * len(ids_BL)
    for number, rows in enumerate(packed_rows(batch["position_ids"].cpu())):
        for place in rows:
            trained_n = labels_BL[number, place.first : place.end] != IGNORED
            trained_n[:1] = False
            if bool(trained_n.any()):
                row = translator.row(ids_BL[number, place.first : place.end].tolist())
                placed.append(_Placed(row, trained_n, number, place.first, filled[number]))
                filled[number] += len(row.teacher_ids)
    width = max(1, *filled)
    ids_BP = torch.zeros(len(ids_BL), width, dtype=torch.long)
    positions_BP = torch.zeros_like(ids_BP)
    for number, end in enumerate(filled):
        positions_BP[number, end:] = torch.arange(width - end)
    for one in placed:
        stretch = slice(one.teacher_first, one.teacher_first + len(one.row.teacher_ids))
        ids_BP[one.number, stretch] = torch.tensor(one.row.teacher_ids)
        positions_BP[one.number, stretch] = torch.arange(len(one.row.teacher_ids))
    lengths = torch.tensor([len(one.row.alignment) for one in placed], dtype=torch.long)
    none = torch.zeros(0, dtype=torch.bool)
    alignment = join([one.alignment(ids_BL.shape[1], width) for one in placed])
    mask_G = torch.cat([none, *(one.mask() for one in placed)])
    device = batch["input_ids"].device
    return TranslatedBatch(
        inputs={"input_ids": ids_BP.to(device), "position_ids": positions_BP.to(device)},
        alignment=alignment.to(device),
        mask_G=mask_G.to(device),
        row_G=torch.repeat_interleave(torch.arange(len(placed)), lengths).to(device),
        trained_tokens=sum(int(one.trained_n.sum()) for one in placed),
    )


@dataclass(frozen=True)
class _Placed:
    """A row and where it lies in both batches."""

    row: TranslatedRow
    trained_n: Tensor
    number: int
    student_first: int
    teacher_first: int

    def alignment(self, width: int, teacher_width: int) -> Alignment:
        """In the flattened batches."""
        return self.row.alignment.shifted(
            self.number * width + self.student_first, self.number * teacher_width + self.teacher_first
        )

    def mask(self) -> Tensor:
        """Its trained groups."""
        groups = self.row.alignment
        before_n = torch.nn.functional.pad(self.trained_n.long().cumsum(0), (1, 0))
        trained_G = before_n[groups.student_end_G] - before_n[groups.student_first_G]
        return self.row.comparable_G & (trained_G == groups.student_sizes) & (groups.teacher_first_G > 0)
