"""Data: sources to documents, documents to packed sequences with a loss mask, batches of them.

Names are imported when they are used: what only reads or compares text needs no torch.
"""

from typing import TYPE_CHECKING

from lmdistill.packages import late_names

if TYPE_CHECKING:
    from lmdistill.data.chat import EncodedRow, RowEncoder, prompts_of
    from lmdistill.data.dataset import Collator, build_dataset, build_from_rows, fingerprint, token_counts
    from lmdistill.data.deduplicate import Contamination, contamination
    from lmdistill.data.documents import DataReport, Document, merge_reports
    from lmdistill.data.load import first_documents, load_documents
    from lmdistill.data.prompts import PromptRow, prompt_dataset, prompt_rows, row_of

__all__ = [
    "Collator",
    "Contamination",
    "DataReport",
    "Document",
    "EncodedRow",
    "PromptRow",
    "RowEncoder",
    "build_dataset",
    "build_from_rows",
    "contamination",
    "fingerprint",
    "first_documents",
    "load_documents",
    "merge_reports",
    "prompt_dataset",
    "prompt_rows",
    "prompts_of",
    "row_of",
    "token_counts",
]

_MODULES = {
    "chat": ["EncodedRow", "RowEncoder", "prompts_of"],
    "dataset": ["Collator", "build_dataset", "build_from_rows", "fingerprint", "token_counts"],
    "deduplicate": ["Contamination", "contamination"],
    "documents": ["DataReport", "Document", "merge_reports"],
    "load": ["first_documents", "load_documents"],
    "prompts": ["PromptRow", "prompt_dataset", "prompt_rows", "row_of"],
}

if not TYPE_CHECKING:
    __getattr__ = late_names(__name__, _MODULES)
