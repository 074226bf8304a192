"""Batches of the data set's text in which the teacher reads each conversation under its own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmdistill.data import Collator, Document, RowEncoder
from lmdistill.teachers.columns import Retold, retemplate, teacher_columns


@dataclass(frozen=True)
class TemplateCollator:
    """A `Collator` with what the teacher reads (`lmdistill.teachers.columns`); rows are whole documents."""

    documents: Mapping[str, Document]
    """By their ids, which are the names of the rows."""
    student: RowEncoder
    teacher: RowEncoder
    longest: int | None = None
    """The teacher's own limit in tokens."""
    collate: Collator = field(default_factory=Collator)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Raises DataError for a conversation that the templates cut into different answers or that is too long."""
        batch = self.collate(rows)
        told = [[self._retold(name) for name in names] for names in batch["row_ids"]]
        if not any(item for row in told for item in row):
            return batch
        return batch | teacher_columns(batch, told, max_length=self.longest)

    def _retold(self, name: str) -> Retold | None:
        document = self.documents[name]
        return None if document.text is not None else retemplate(document, self.student, self.teacher)[1]
