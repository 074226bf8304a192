"""Dual-space distillation with cross-model attention: each model's states seen through the other's head.

DSKD (2406.17328): learnt projections carry the teacher's hidden states into the student's space, where the student's
head reads them, and the student's into the teacher's space. Where vocabularies differ, an attention between the two
sequences, from the embeddings of each place's token and the next, says which states belong together: no alignment is
needed. The projections are trained beside the student and are no part of it. Depends on torch alone.

    loss = CE(t2s, text) + KD(student‖t2s, where t2s is right) + KD(s2t‖teacher)

all sums over tokens / num_items. Embeddings and both heads get no gradient from the projected states; the student's
head gets one from the middle term.

Shape legend: N student tokens, M teacher tokens, n, m trained ones of one sequence or of all, V student's vocabulary,
U teacher's, H student hidden, K teacher hidden.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lmdistill.objectives.chunked import distillation_loss
from lmdistill.objectives.divergences import Divergence
from lmdistill.objectives.products import product_dtype, project
from lmdistill.signals.types import HiddenSignal

_CHUNK_BYTES = 80 * 2**20


@dataclass(frozen=True)
class ModelSide:
    """What dual-space distillation reads of one model, of a flattened batch of its own tokens.

    Row i - 1 of the hidden states predicts token i.
    """

    hidden: Tensor
    """Last hidden states, (N, H)."""
    ids: Tensor
    """Token ids, (N,)."""
    head: Tensor
    """Output head, (V, H)."""
    embeddings: Tensor
    """Input embeddings, (V, H); gets no gradient."""
    bias: Tensor | None = None
    logit_scale: float = 1.0
    softcap: float | None = None
    vocab_size: int | None = None

    @property
    def vocabulary(self) -> int:
        """Number of real ids."""
        return self.vocab_size or len(self.head)


@dataclass(frozen=True)
class DualSpaceLoss:
    """The loss and its three terms; all but the first without gradient."""

    loss: Tensor
    cross_entropy: Tensor
    """Of the teacher's states in the student's space with the text, / num_items."""
    student_space: Tensor
    """Divergence of the student from them, where they name the text's token, / num_items."""
    teacher_space: Tensor
    """Forward KL of the student's states in the teacher's space from the teacher, / num_items."""
    right_share: Tensor
    """Share of trained tokens that the teacher's projected states name."""
    token_loss_N: Tensor
    """The terms in the student's space by token, at the row that predicts it, before division."""


class DualSpaceProjectors(nn.Module):
    """The three learnt projections of DSKD with cross-model attention; `query` reads embeddings, the others states."""

    def __init__(self, student_width: int, teacher_width: int) -> None:
        super().__init__()
        self.query = nn.Linear(2 * student_width, 2 * teacher_width)
        self.t2s = nn.Linear(teacher_width, student_width)
        self.s2t = nn.Linear(student_width, teacher_width)

    def forward(
        self, student: ModelSide, teacher: ModelSide, sequences: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """The teacher's states in the student's space at the student's tokens, (n, H), and the reverse, (m, K).

        `sequences` holds the trained tokens of each text, the student's and the teacher's; each attends to its own.
        Embeddings and the teacher's states are divided by their standard deviation over all trained tokens (the
        published code takes padding into it).
        """
        student_n = torch.cat([tokens for tokens, _ in sequences])
        teacher_m = torch.cat([tokens for _, tokens in sequences])
        weight = self.query.weight
        index_n = _embedded(student, student_n).to(weight.dtype)
        index_m = _embedded(teacher, teacher_m).to(weight.dtype)
        target_m = teacher.embeddings.detach()[teacher.ids[teacher_m]].to(weight.dtype)
        states_m = teacher.hidden.detach()[teacher_m - 1].to(weight.dtype)
        query_n, key_m = self.query(index_n), index_m / _spread(index_m)
        value_m = self.t2s(states_m / _spread(states_m) + target_m / _spread(target_m))
        value_n = self.s2t(student.hidden[student_n - 1].to(weight.dtype))
        counts = [[len(tokens) for tokens in side] for side in zip(*sequences, strict=True)]
        to_student, to_teacher = [], []
        parts = zip(
            query_n.split(counts[0]),
            key_m.split(counts[1]),
            value_n.split(counts[0]),
            value_m.split(counts[1]),
            strict=True,
        )
        for query, key, of_student, of_teacher in parts:
            align_nm = query @ key.t() / math.sqrt(2 * teacher.hidden.shape[1])
            to_student.append(align_nm.softmax(-1) @ of_teacher)
            to_teacher.append(align_nm.t().softmax(-1) @ of_student)
        return torch.cat(to_student), torch.cat(to_teacher)


def dual_space_loss(
    projectors: DualSpaceProjectors,
    student: ModelSide,
    teacher: ModelSide,
    sequences: Sequence[tuple[Tensor, Tensor]],
    kind: str | Divergence = "forward_kl",
    *,
    temperature: float = 2.0,
    num_items: float | Tensor | None = None,
    chunk_tokens: int | None = None,
    compute_dtype: torch.dtype | None = None,
    compiled: bool = True,
) -> DualSpaceLoss:
    """The three terms of dual-space distillation, without a tokens x vocabulary tensor.

    Args:
        projectors: the learnt projections; they and the student get gradients.
        student, teacher: both models over their own tokens of the same texts.
        sequences: for each text the places of its trained tokens, the student's (n,) and the teacher's (m,), each at
            least one and none the first token of its row.
        kind: the divergence in the student's space; that in the teacher's is forward KL, as published.
        temperature: of both divergences, without temperature² (2 in the published scripts).
        num_items: what the sums are divided by; the student's trained tokens where absent.
        chunk_tokens, compute_dtype, compiled: as in `divergence`.

    Raises:
        ValueError: no sequence, an empty one, or shapes that do not fit.
    """
    _check(student, teacher, sequences)
    student_n = torch.cat([tokens for tokens, _ in sequences])
    teacher_m = torch.cat([tokens for _, tokens in sequences])
    count = num_items if num_items is not None else len(student_n)
    t2s_nH, s2t_mK = projectors(student, teacher, sequences)
    t2s_nH = t2s_nH.to(student.hidden.dtype)
    labels_n = student.ids[student_n].long()
    head_VH = student.head.detach()
    bias_V = None if student.bias is None else student.bias.detach()
    engine: dict[str, Any] = {
        "num_items": count,
        "chunk_tokens": chunk_tokens,
        "compute_dtype": compute_dtype,
        "compiled": compiled,
    }
    heads: dict[str, Any] = {
        "logit_scale": student.logit_scale,
        "softcap": student.softcap,
        "vocab_size": student.vocabulary,
    }
    spoken = distillation_loss(
        t2s_nH, head_VH, None, labels_N=labels_n, label_weight=1.0, student_bias=bias_V, **heads, **engine
    )
    right_n = _is_right(t2s_nH, student, labels_n, compute_dtype)
    target = HiddenSignal(
        t2s_nH.detach(), head_VH, bias=bias_V, logit_scale=student.logit_scale, softcap=student.softcap
    )
    here = distillation_loss(
        student.hidden[student_n - 1],
        student.head,
        target,
        kind,
        mask_N=right_n,
        temperature=temperature,
        student_bias=student.bias,
        **heads,
        **engine,
    )
    there = _teacher_space(s2t_mK, teacher, teacher_m, temperature, engine)
    token_loss_N = here.token_loss_N.new_zeros(len(student.hidden))
    token_loss_N[student_n - 1] = here.token_loss_N + spoken.token_loss_N
    return DualSpaceLoss(
        loss=spoken.loss + here.loss + there,
        cross_entropy=spoken.cross_entropy,
        student_space=here.divergence,
        teacher_space=there.detach(),
        right_share=right_n.double().mean(),
        token_loss_N=token_loss_N,
    )


def _teacher_space(
    s2t_mK: Tensor, teacher: ModelSide, teacher_m: Tensor, temperature: float, engine: dict[str, Any]
) -> Tensor:
    """Forward KL(teacher‖student's states through the teacher's head), over the teacher's tokens."""
    head_UK = teacher.head.detach()
    bias_U = None if teacher.bias is None else teacher.bias.detach()
    # The teacher's head is by far the largest tensor here: products go in its number format rather than in a copy.
    options = {**engine, "compute_dtype": head_UK.dtype}
    signal = HiddenSignal(
        teacher.hidden.detach()[teacher_m - 1],
        head_UK,
        bias=bias_U,
        logit_scale=teacher.logit_scale,
        softcap=teacher.softcap,
    )
    parts = distillation_loss(
        s2t_mK,
        head_UK,
        signal,
        "forward_kl",
        temperature=temperature,
        student_bias=bias_U,
        logit_scale=teacher.logit_scale,
        softcap=teacher.softcap,
        vocab_size=teacher.vocabulary,
        **options,
    )
    return parts.loss


def _embedded(side: ModelSide, tokens_n: Tensor) -> Tensor:
    """Embeddings of the token before and of the token itself, side by side, (n, 2 H)."""
    table = side.embeddings.detach()
    return torch.cat([table[side.ids[tokens_n - 1]], table[side.ids[tokens_n]]], -1)


def _spread(values_nH: Tensor) -> Tensor:
    """Standard deviation over everything; 1 for a single number, which has none."""
    return values_nH.std() if values_nH.numel() > 1 else values_nH.new_ones(())


@torch.no_grad()
def _is_right(hidden_nH: Tensor, student: ModelSide, labels_n: Tensor, compute_dtype: torch.dtype | None) -> Tensor:
    """Whether the student's head names the label; scale and cap keep the order, so that raw outputs do."""
    head_VH = student.head[: student.vocabulary].to(compute_dtype or product_dtype(hidden_nH))
    bias_V = None if student.bias is None else student.bias[: student.vocabulary].to(head_VH.dtype)
    step = max(1, _CHUNK_BYTES // (len(head_VH) * head_VH.element_size()))
    found = []
    for rows_nH, rows_n in zip(hidden_nH.split(step), labels_n.split(step), strict=True):
        raw_nV = head_VH.new_empty(len(rows_n), len(head_VH))
        project(rows_nH.to(head_VH.dtype), head_VH, bias_V, raw_nV)
        found.append(raw_nV.argmax(-1) == rows_n)
    return torch.cat(found)


def _check(student: ModelSide, teacher: ModelSide, sequences: Sequence[tuple[Tensor, Tensor]]) -> None:
    if not sequences:
        raise ValueError("no sequence to compare; leave the step out where nothing is trained")
    for name, side in (("student", student), ("teacher", teacher)):
        if side.hidden.ndim != 2 or side.hidden.shape[1] != side.head.shape[1]:
            raise ValueError(
                f"the {name}'s hidden states {tuple(side.hidden.shape)} and head {tuple(side.head.shape)} must be "
                "(N, H) and (V, H) with one H"
            )
        if len(side.ids) != len(side.hidden):
            raise ValueError(f"the {name} has {len(side.hidden)} hidden states but {len(side.ids)} ids")
    for student_n, teacher_m in sequences:
        if len(student_n) == 0 or len(teacher_m) == 0:
            raise ValueError(f"a sequence has {len(student_n)} and {len(teacher_m)} trained tokens; leave it out")
        if int(student_n.min()) < 1 or int(teacher_m.min()) < 1:
            raise ValueError("a sequence holds the first token, which nothing predicts; leave it out")
