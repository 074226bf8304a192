"""Which tokens of two tokenizers cover the same bytes of one text. Depends on torch alone.

Two tokenizers cut one text at different places. Where both cut, a group of the student's tokens and a group of the
teacher's end together, and cover the same bytes: the only units whose probabilities can be compared. Groups are as
small as the cuts allow. Token i of a sequence is predicted at place i - 1, so the first token of a sequence is in no
trained group.

Shape legend: n, m tokens of one sequence (student's, teacher's), N, M tokens of a flattened batch, G groups, A answers,
t tokens of some groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Alignment:
    """Group g: the student's tokens [student_first, student_end) and the teacher's [teacher_first, teacher_end).

    Groups are in order and do not overlap; tokens may be in none. Numbers are places in a flattened batch.
    """

    student_first_G: Tensor
    student_end_G: Tensor
    teacher_first_G: Tensor
    teacher_end_G: Tensor

    def __post_init__(self) -> None:
        shapes = {tuple(ends.shape) for ends in self._fields()}
        if len(shapes) != 1 or self.student_first_G.ndim != 1:
            raise ValueError(f"the four ends of the groups have shapes {sorted(shapes)}; give (G,) four times")

    def __len__(self) -> int:
        return len(self.student_first_G)

    @property
    def student_sizes(self) -> Tensor:
        """Number of the student's tokens in each group."""
        return self.student_end_G - self.student_first_G

    @property
    def teacher_sizes(self) -> Tensor:
        """Number of the teacher's tokens in each group."""
        return self.teacher_end_G - self.teacher_first_G

    @property
    def one_to_one(self) -> Tensor:
        """True where a group is one token of either side."""
        return (self.student_sizes == 1) & (self.teacher_sizes == 1)

    def select(self, kept_G: Tensor) -> Alignment:
        """Some of the groups, by a mask or by numbers."""
        return Alignment(*(ends[kept_G] for ends in self._fields()))

    def shifted(self, student: int, teacher: int) -> Alignment:
        """The same groups in sequences that start elsewhere in a batch."""
        return Alignment(
            self.student_first_G + student,
            self.student_end_G + student,
            self.teacher_first_G + teacher,
            self.teacher_end_G + teacher,
        )

    def to(self, device: torch.device) -> Alignment:
        """The same on a device."""
        return Alignment(*(ends.to(device) for ends in self._fields()))

    def _fields(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.student_first_G, self.student_end_G, self.teacher_first_G, self.teacher_end_G


def align_spans(student_bytes_n: Tensor, teacher_bytes_m: Tensor) -> Alignment:
    """The smallest groups of equal bytes, from how many bytes each token covers, (n,) and (m,), integers.

    A token without bytes (the space that some tokenizers put before a text, the first half of a character) belongs to
    the group of the next token, or of the last one where none follows.

    Raises ValueError where the two do not cover the same number of bytes.
    """
    for name, lengths in (("student", student_bytes_n), ("teacher", teacher_bytes_m)):
        if lengths.ndim != 1 or (len(lengths) and int(lengths.min()) < 0):
            raise ValueError(f"the {name}'s tokens must cover a number of bytes each, not {tuple(lengths.shape)}")
    ends_n, ends_m = student_bytes_n.cumsum(0), teacher_bytes_m.cumsum(0)
    totals = [int(ends[-1]) if len(ends) else 0 for ends in (ends_n, ends_m)]
    if totals[0] != totals[1]:
        raise ValueError(
            f"the student's tokens cover {totals[0]} bytes but the teacher's {totals[1]}; align tokens of one text"
        )
    if totals[0] == 0:
        common_G = ends_n[:0]
    else:
        shared_n = ends_m[torch.searchsorted(ends_m, ends_n)] == ends_n
        # Of tokens that end at one byte the first closes the group: those behind it cover nothing.
        common_G = ends_n[shared_n & (student_bytes_n > 0)]
    bounds = [_first_and_end(ends, common_G) for ends in (ends_n, ends_m)]
    return Alignment(*bounds[0], *bounds[1])


def join(parts: Sequence[Alignment]) -> Alignment:
    """Alignments of several sequences of one batch, in order."""
    if not parts:
        none = torch.zeros(0, dtype=torch.long)
        return Alignment(none, none, none, none)
    return Alignment(*(torch.cat(column) for column in zip(*(part._fields() for part in parts), strict=True)))


def pair_positions(alignment: Alignment, mask_G: Tensor) -> Alignment:
    """The k-th token of each answer with the teacher's k-th, whatever they cover; the longer side's rest is dropped.

    Universal logit distillation (2402.12030) aligns so, from the start of the answer. An answer is a run of unmasked
    groups without a gap.
    """
    kept = alignment.select(mask_G)
    if len(kept) == 0:
        return kept
    gap_G = (kept.student_first_G[1:] != kept.student_end_G[:-1]) | (
        kept.teacher_first_G[1:] != kept.teacher_end_G[:-1]
    )
    first_A = torch.nn.functional.pad(gap_G.nonzero()[:, 0] + 1, (1, 0))
    last_A = torch.cat([first_A[1:] - 1, first_A.new_tensor([len(kept) - 1])])
    student_A, teacher_A = kept.student_first_G[first_A], kept.teacher_first_G[first_A]
    pairs_A = torch.minimum(kept.student_end_G[last_A] - student_A, kept.teacher_end_G[last_A] - teacher_A)
    student_t, _ = tokens_of(student_A, student_A + pairs_A)
    teacher_t, _ = tokens_of(teacher_A, teacher_A + pairs_A)
    return Alignment(student_t, student_t + 1, teacher_t, teacher_t + 1)


def tokens_of(first_G: Tensor, end_G: Tensor) -> tuple[Tensor, Tensor]:
    """All tokens of the groups in order, (t,), and the number of each one's group, (t,)."""
    sizes_G = end_G - first_G
    owner_t = torch.repeat_interleave(torch.arange(len(sizes_G), device=sizes_G.device), sizes_G)
    before_G = sizes_G.cumsum(0) - sizes_G
    return torch.arange(len(owner_t), device=sizes_G.device) - before_G[owner_t] + first_G[owner_t], owner_t


def covers(first_G: Tensor, end_G: Tensor, count: int) -> Tensor:
    """True for each of `count` tokens that is in a group, (count,)."""
    inside = torch.zeros(count, dtype=torch.bool, device=first_G.device)
    inside[tokens_of(first_G, end_G)[0]] = True
    return inside


def _first_and_end(ends: Tensor, common_G: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens of each group on one side; `ends` are the cumulative bytes."""
    end_G = torch.searchsorted(ends, common_G) + 1
    if len(end_G):
        end_G[-1] = len(ends)
    return torch.nn.functional.pad(end_G[:-1], (1, 0)) if len(end_G) else end_G, end_G
