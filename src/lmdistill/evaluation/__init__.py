"""One protocol for every student: fidelity, perplexity, calibration, efficiency, beside its teacher and baselines."""

from lmdistill.evaluation.evaluate import evaluate
from lmdistill.evaluation.fidelity import Subject, quick_scores
from lmdistill.evaluation.results import Evaluation, Role

__all__ = ["Evaluation", "Role", "Subject", "evaluate", "quick_scores"]
