"""Which layer of the teacher teaches which layer of the student. Layers are numbered as in `lmdistill.recipe.hints`.

Shape legend: S layers of the student, T layers of the teacher, n positions, H and K widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lmdistill.errors import RecipeError
from lmdistill.objectives.hints import linear_cka

MapKind = Literal["uniform", "last", "skip"]


def mapped_layers(
    kind: MapKind, student_depth: int, teacher_depth: int, student_layers: Sequence[int] | None = None
) -> list[tuple[int, int]]:
    """Pairs (student's layer, teacher's layer) of a map by position.

    With M blocks of the student and N of the teacher, layer m of the student learns from layer m N / M (`uniform`,
    rounded; TinyBERT 1909.10351, section 3.1; `skip` is the same without the last block, PKD-Skip 1908.09355) or
    N - M + m (`last`, PKD-Last: without the last block too). Layer 0, the embeddings, learns from layer 0.

    Args:
        student_layers: the student's layers that learn, checked numbers; all blocks that the map speaks of where
            absent.

    Raises:
        RecipeError: a student that is too shallow for the map, or deeper than its teacher (`last`).
    """
    if kind == "last" and student_depth > teacher_depth:
        raise RecipeError(
            f"hints: map: last pairs the student's {student_depth} layers with the teacher's last ones, of which there "
            f"are {teacher_depth}; use map: uniform"
        )
    if student_layers is None:
        student_layers = [*range(1, student_depth + (kind == "uniform"))]
        if not student_layers:
            raise RecipeError(f"hints: map: {kind} leaves out the last layer, and the student has {student_depth}")
    pairs = []
    for layer in student_layers:
        behind = (
            teacher_depth - student_depth + layer if kind == "last" else _scaled(layer, student_depth, teacher_depth)
        )
        pairs.append((layer, 0 if layer == 0 else behind))
    return pairs


def checked_layers(layers: Sequence[int], depth: int, whose: str, *, lowest: int = 0) -> list[int]:
    """Numbers of layers, negative ones counted from the end. Raises RecipeError with both numbers where one is none."""
    found = []
    for layer in layers:
        number = depth + 1 + layer if layer < 0 else layer
        if not lowest <= number <= depth:
            raise RecipeError(
                f"hints: layer {layer} of the {whose}, which has the layers {lowest} to {depth}"
                + (" (0 are the embeddings)" if lowest == 0 else "")
            )
        found.append(number)
    return found


def cka_pairs(similarity_ST: Tensor, student_layers: Sequence[int]) -> list[tuple[int, int]]:
    """For each of the student's layers, in order, a layer of the teacher that is not below the one before.

    Of all such maps, the one with the largest sum of similarities (found by dynamic programming); `similarity_ST` holds
    the CKA of the student's layers with the teacher's layers 1 to T.
    """
    S, T = similarity_ST.shape
    best_ST = similarity_ST.double().clone()
    came_ST = torch.zeros(S, T, dtype=torch.long)
    for row in range(1, S):
        for column in range(T):
            value, place = best_ST[row - 1, : column + 1].max(0)
            best_ST[row, column] += value
            came_ST[row, column] = place
    column = int(best_ST[-1].argmax())
    chosen = [column]
    for row in range(S - 1, 0, -1):
        column = int(came_ST[row, column])
        chosen.append(column)
    return list(zip(student_layers, [column + 1 for column in reversed(chosen)], strict=True))


@torch.no_grad()
def cka_similarity(student: Sequence[Tensor], teacher: Sequence[Tensor], rows: int = 512) -> Tensor:
    """Linear CKA of each of the student's states (n, H) with each of the teacher's (n, K), (S, T).

    Of more than `rows` positions that many are taken, evenly spaced.
    """
    count = len(student[0])
    places_m = torch.arange(min(rows, count), device=student[0].device) * count // max(1, min(rows, count))
    own, other = ([each[places_m].float() for each in states] for states in (student, teacher))
    return torch.stack([torch.stack([linear_cka(s_mH, t_mK) for t_mK in other]) for s_mH in own])


def _scaled(layer: int, student_depth: int, teacher_depth: int) -> int:
    """layer * N / M, rounded half up, so that a student deeper than its teacher is served too."""
    return max(1, (2 * layer * teacher_depth + student_depth) // (2 * student_depth))
