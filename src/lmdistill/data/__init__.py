"""Data: sources to documents, documents to packed sequences with a loss mask, batches of them.

Names are imported when they are used: what only reads or compares text needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
_HOME = {name: module for module, names in _MODULES.items() for name in names}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
