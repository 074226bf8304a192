"""What a run found, as one self-contained page, and as the student's model card."""

from lmdistill.report.card import Origin, student_card
from lmdistill.report.card_metadata import stated_licence
from lmdistill.report.html import compare_runs, write_report
from lmdistill.report.run_data import read_run
from lmdistill.report.sentences import summary_sentence

__all__ = [
    "Origin",
    "compare_runs",
    "read_run",
    "stated_licence",
    "student_card",
    "summary_sentence",
    "write_report",
]
