"""Rows of several tasks: how much each token weighs, so that the tasks have their shares of the loss.

With N_k trained tokens of task k in the data set and N of all, a token of task k weighs share_k N / N_k. The mean over
all trained tokens is then the sum over tasks of share_k times the task's own mean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from lmdistill.data.packing import Piece
from lmdistill.errors import DataError


def task_weights(pieces: Sequence[Piece], balance: Mapping[str, float] | None) -> dict[str, float] | None:
    """The weight of a trained token by its row's task; None where all count alike.

    Rows without any task (held-out text, the baseline's own answers) are left alone. Raises DataError where the tasks
    of the rows are not those of `data.balance`.
    """
    if balance is None or not any(piece.row.task for piece in pieces):
        return None
    tokens: Counter[str] = Counter()
    for piece in pieces:
        tokens[piece.row.task] += int(piece.row.trained_L[1:].sum())
    if set(tokens) != set(balance):
        raise DataError(
            f"data.balance names the tasks {', '.join(sorted(balance))}, but the rows have "
            f"{', '.join(sorted(tokens))}: name each of them, with its share"
        )
    whole = sum(tokens.values())
    return {task: balance[task] * whole / count for task, count in tokens.items()}
