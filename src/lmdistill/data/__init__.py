"""Data: sources to documents, documents to packed sequences with a loss mask, batches of them."""

from lmdistill.data.chat import EncodedRow, RowEncoder, prompts_of
from lmdistill.data.dataset import Collator, build_dataset, build_from_rows, fingerprint, token_counts
from lmdistill.data.deduplicate import Contamination, contamination
from lmdistill.data.documents import DataReport, Document, merge_reports
from lmdistill.data.load import first_documents, load_documents

__all__ = [
    "Collator",
    "Contamination",
    "DataReport",
    "Document",
    "EncodedRow",
    "RowEncoder",
    "build_dataset",
    "build_from_rows",
    "contamination",
    "fingerprint",
    "first_documents",
    "load_documents",
    "merge_reports",
    "prompts_of",
    "token_counts",
]
