"""Students for other programs: merged safetensors, GGUF for llama.cpp, and weights of 8 bits for processors.

What an export kept of its student is measured again, never assumed: `export_student` writes both.
"""

from lmdistill.evaluation.export_results import ExportRecord
from lmdistill.export.card import write_card
from lmdistill.export.int8 import load_int8, save_int8
from lmdistill.export.make import export_student, read_records
from lmdistill.export.run import export_from_run, yardstick_of_run
from lmdistill.export.source import ExportSource, find_student

__all__ = [
    "ExportRecord",
    "ExportSource",
    "export_from_run",
    "export_student",
    "find_student",
    "load_int8",
    "read_records",
    "save_int8",
    "write_card",
    "yardstick_of_run",
]
