"""What a run found, as one self-contained page, and as the student's model card."""

from lmdistill.report.card import student_card
from lmdistill.report.html import compare_runs, write_report
from lmdistill.report.sentences import summary_sentence

__all__ = ["compare_runs", "student_card", "summary_sentence", "write_report"]
