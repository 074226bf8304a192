"""What a student says token by token beside its teacher, from one pass over a text.

Logits are made for a few positions at a time; only numbers per token are kept.

Shape legend: B batch, L length, N scored positions, n positions of one chunk, V vocabulary, H hidden.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lmdistill.data import Collator
from lmdistill.evaluation.results import Role
from lmdistill.models import OutputHead, last_hidden, output_head
from lmdistill.objectives.rows import LogitsView

_CHUNK_LOGITS = 1 << 23
"""Logits of one chunk and model; float32 temporaries of both models stay within about 200 MB."""


@dataclass
class Subject:
    """A model to be scored."""

    role: Role
    label: str
    model: PreTrainedModel
    kept_ids: Tensor | None = None
    """Teacher's id of each of its ids, where its vocabulary was trimmed."""


@dataclass
class TokenScores:
    """One model on one text: an entry for each scored token, in order."""

    sequence: list[int] = field(default_factory=list)
    target: list[int] = field(default_factory=list)
    nll: list[float] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)
    correct: list[bool] = field(default_factory=list)
    top: list[int] = field(default_factory=list)
    agrees: list[bool] = field(default_factory=list)
    forward_kl: list[float] = field(default_factory=list)
    reverse_kl: list[float] = field(default_factory=list)

    def array(self, name: str) -> NDArray[np.float64]:
        """A column as numbers."""
        return np.asarray(getattr(self, name), dtype=np.float64)


@dataclass(frozen=True)
class _Logs:
    """Log-probabilities of one model for a chunk."""

    own_nV: Tensor
    """Over its own whole vocabulary."""
    shared_nV: Tensor
    """Over the ids that teacher and student share."""


@torch.no_grad()
def score_tokens(
    subjects: Sequence[Subject],
    dataset: Dataset,
    *,
    vocabulary_size: int,
    max_tokens: int,
    batch_size: int,
    told: object = None,
    dtype: torch.dtype | None = None,
) -> list[TokenScores]:
    """Score every subject on the same sequences; the teacher, where it is among them, comes first.

    Position t predicts label t + 1; positions without a label are not scored. Where the vocabulary was trimmed,
    teacher and student are compared on the kept ids, the teacher's distribution renormalised over them.
    `vocabulary_size` is the number of real ids of the text's tokenizer. Teachers' own scores use all their ids.
    """
    found = [TokenScores() for _ in subjects]
    kept_ids = next((subject.kept_ids for subject in subjects if subject.kept_ids is not None), None)
    for first, batch in _batches(dataset, batch_size, max_tokens):
        labels_BL = F.pad(batch["labels"][:, 1:], (0, 1), value=-100)
        scored_BL = labels_BL != -100
        targets_N = labels_BL[scored_BL]
        sequence_N = scored_BL.nonzero()[:, 0] + first
        hidden = [_hidden(subject, batch, scored_BL, kept_ids, dtype) for subject in subjects]
        heads = [_head(subject, kept_ids, vocabulary_size) for subject in subjects]
        step = max(1, _CHUNK_LOGITS // vocabulary_size)
        for start in range(0, len(targets_N), step):
            rows = slice(start, start + step)
            logs = [
                _log_probabilities(states[rows], head, subject, kept_ids, vocabulary_size, dtype)
                for states, head, subject in zip(hidden, heads, subjects, strict=True)
            ]
            teacher = logs[0] if subjects[0].role == "teacher" else None
            for subject, log, scores in zip(subjects, logs, found, strict=True):
                own = targets_N[rows].to(log.own_nV.device)
                if subject.role == "teacher" and kept_ids is not None:
                    own = kept_ids.to(own.device)[own]
                _add(scores, log, own, sequence_N[rows], targets_N[rows], None if log is teacher else teacher)
        if callable(told):
            told(len(targets_N))
    return found


def quick_scores(
    student: nn.Module,
    teacher: PreTrainedModel | None,
    dataset: Dataset,
    *,
    tokenizer: PreTrainedTokenizerBase,
    kept_ids: Tensor | None,
    max_tokens: int,
    dtype: torch.dtype,
) -> dict[str, float]:
    """Perplexity and, with a teacher, agreement and forward KL, on the beginning of a text: for curves in training."""
    assert isinstance(student, nn.Module)
    was_training = student.training
    student.eval()
    subjects = [Subject("student", "student", student, kept_ids)]  # type: ignore[arg-type]
    if teacher is not None:
        subjects.insert(0, Subject("teacher", "teacher", teacher))
    scores = score_tokens(
        subjects, dataset, vocabulary_size=len(tokenizer), max_tokens=max_tokens, batch_size=4, dtype=dtype
    )[-1]
    student.train(was_training)
    result = {"perplexity": float(np.exp(scores.array("nll").mean()))}
    if teacher is not None:
        result["agreement"] = float(scores.array("agrees").mean())
        result["forward_kl"] = float(scores.array("forward_kl").mean())
    return result


def _batches(dataset: Dataset, batch_size: int, max_tokens: int) -> Iterator[tuple[int, Mapping[str, Tensor]]]:
    """Batches from the beginning of a data set until `max_tokens` tokens have come."""
    collate, seen = Collator(), 0
    for first in range(0, len(dataset), batch_size):
        rows = [dataset[index] for index in range(first, min(first + batch_size, len(dataset)))]
        yield first, collate(rows)
        seen += sum(len(row["input_ids"]) for row in rows)
        if seen >= max_tokens:
            return


def _hidden(
    subject: Subject,
    batch: Mapping[str, Tensor],
    scored_BL: Tensor,
    kept_ids: Tensor | None,
    dtype: torch.dtype | None,
) -> Tensor:
    device = next(subject.model.parameters()).device
    ids_BL = batch["input_ids"]
    if subject.role == "teacher" and kept_ids is not None:
        ids_BL = kept_ids[ids_BL]
    inputs = {"input_ids": ids_BL.to(device), "position_ids": batch["position_ids"].to(device)}
    mixed = dtype is not None and dtype != torch.float32 and next(subject.model.parameters()).dtype == torch.float32
    with torch.autocast(device.type, dtype=dtype) if mixed else contextlib.nullcontext():
        return last_hidden(subject.model, inputs)[scored_BL.to(device)]


def _head(subject: Subject, kept_ids: Tensor | None, vocabulary_size: int) -> OutputHead:
    whole = subject.role == "teacher" and kept_ids is not None
    return output_head(subject.model, None if whole else vocabulary_size)


def _log_probabilities(
    hidden_nH: Tensor,
    head: OutputHead,
    subject: Subject,
    kept_ids: Tensor | None,
    vocabulary_size: int,
    dtype: torch.dtype | None,
) -> _Logs:
    compute = dtype if dtype is not None and head.weight_VH.dtype == torch.float32 else head.weight_VH.dtype
    weight_VH = head.weight_VH[: head.vocabulary_size].to(compute)
    bias_V = None if head.bias_V is None else head.bias_V[: head.vocabulary_size].to(compute)
    view = LogitsView(head.logit_scale, head.softcap)
    logits_nV = view.logits(F.linear(hidden_nH.to(compute), weight_VH, bias_V))
    own_nV = logits_nV.log_softmax(-1)
    if subject.role == "teacher" and kept_ids is not None:
        return _Logs(own_nV, logits_nV[:, kept_ids.to(logits_nV.device)].log_softmax(-1))
    return _Logs(own_nV, own_nV)


def _add(
    scores: TokenScores,
    log: _Logs,
    own_targets_n: Tensor,
    sequence_n: Tensor,
    targets_n: Tensor,
    teacher: _Logs | None,
) -> None:
    best_n = log.own_nV.max(-1)
    shared_top_n = log.shared_nV.argmax(-1)
    scores.sequence += sequence_n.tolist()
    scores.target += targets_n.tolist()
    scores.nll += (-log.own_nV.gather(1, own_targets_n[:, None])[:, 0]).tolist()
    scores.confidence += best_n.values.exp().tolist()
    scores.correct += (best_n.indices == own_targets_n).tolist()
    scores.top += shared_top_n.tolist()
    if teacher is None:
        return
    ratio_nV = teacher.shared_nV - log.shared_nV
    scores.agrees += (teacher.shared_nV.argmax(-1) == shared_top_n).tolist()
    # (t - s) log(t / s) would round alike in both directions; the two sums are kept apart as they are reported.
    scores.forward_kl += (teacher.shared_nV.exp() * ratio_nV).sum(-1).clamp_min(0).tolist()
    scores.reverse_kl += (-log.shared_nV.exp() * ratio_nV).sum(-1).clamp_min(0).tolist()
