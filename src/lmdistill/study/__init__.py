"""Studies: a grid of methods, students, budgets and seeds, each cell an ordinary run, compared at equal cost."""

from lmdistill.study.carry import CellState, StudyRun, carry_out, states_of
from lmdistill.study.cells import Cell, cells_of, primers_of, selected, starts_of
from lmdistill.study.compare import Contrast, contrasts
from lmdistill.study.results import CellResult, read_cell
from lmdistill.study.spec import StudyBudget, StudySpec, load_study
from lmdistill.study.write import write_study

__all__ = [
    "Cell",
    "CellResult",
    "CellState",
    "Contrast",
    "StudyBudget",
    "StudyRun",
    "StudySpec",
    "carry_out",
    "cells_of",
    "contrasts",
    "load_study",
    "primers_of",
    "read_cell",
    "selected",
    "starts_of",
    "states_of",
    "write_study",
]
