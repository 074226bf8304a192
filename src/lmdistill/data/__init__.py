"""Data: sources to documents, documents to packed sequences with a loss mask, batches of them."""

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
