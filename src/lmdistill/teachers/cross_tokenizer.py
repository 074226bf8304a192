"""A teacher that cuts text otherwise than the student: from a batch of the student's tokens to a loss.

The teacher reads the same text in its own tokens (`lmdistill.teachers.translate`); an objective of
`lmdistill.objectives` compares what is comparable. What the teacher said may come from a model beside the student, or,
for the objective that needs no more than log-probabilities of the teacher's own tokens, from a store or a server.

Shape legend: B batch, L, P lengths of the student's and the teacher's rows, N = B * L, M = B * P, H student hidden,
K teacher hidden, V student's vocabulary, U teacher's, G groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lmdistill.models import OutputHead, last_hidden, output_head
from lmdistill.objectives.alignment import Alignment, pair_positions
from lmdistill.objectives.chunk_likelihood import chunk_likelihood_loss, own_logprobs
from lmdistill.objectives.dual_space import DualSpaceProjectors, ModelSide, dual_space_loss
from lmdistill.objectives.gold import VocabularyMatch, gold_loss
from lmdistill.objectives.grouped import GroupLoss
from lmdistill.objectives.uld import uld_loss
from lmdistill.signals.types import HiddenSignal, TokenSignal, TopKSignal
from lmdistill.teachers.cross_objective import CrossTokenizerObjective
from lmdistill.teachers.token_bytes import same_tokens
from lmdistill.teachers.translate import Translator
from lmdistill.teachers.translated_batch import TranslatedBatch, translate_batch


@dataclass(frozen=True)
class TeacherReading:
    """What a teacher said of a batch, in its own tokens."""

    text: TranslatedBatch
    """What it read, which tokens cover the same bytes, and what is trained."""
    hidden_MK: Tensor | None = None
    """Its last hidden states; row i - 1 predicts token i."""
    head: OutputHead | None = None
    """Its output head, without gradient."""
    embeddings_UK: Tensor | None = None
    """Its input embeddings."""
    logprobs_M: Tensor | None = None
    """Log-probability of each of its own tokens; only those in trained groups are read."""

    @classmethod
    def of_signal(cls, text: TranslatedBatch, signal: TokenSignal | TopKSignal) -> TeacherReading:
        """From a store's or a server's rows: row i - 1 speaks of token i of the teacher's text.

        A group with a token that the signal does not hold (one beyond the k likeliest) is not trained. Raises
        ValueError where rows and tokens do not fit.
        """
        ids_M = text.teacher_ids
        if len(signal) != len(ids_M):
            raise ValueError(f"{len(ids_M)} tokens of the teacher's but {len(signal)} rows of its signal; label anew")
        logprobs_M, known_M = _own_logprobs(signal, ids_M)
        unknown_M = torch.nn.functional.pad((~known_M).long().cumsum(0), (1, 0))
        groups = text.alignment
        complete_G = unknown_M[groups.teacher_end_G] == unknown_M[groups.teacher_first_G]
        return cls(replace(text, mask_G=text.mask_G & complete_G), logprobs_M=logprobs_M)

    @property
    def signal(self) -> HiddenSignal:
        """The teacher's distributions. Raises ValueError where there are only log-probabilities."""
        if self.hidden_MK is None or self.head is None:
            raise ValueError(
                "this objective compares distributions, but only log-probabilities of the teacher's tokens are there; "
                "take a live teacher, or kind 'alm'"
            )
        return HiddenSignal(
            self.hidden_MK,
            self.head.weight_VH,
            bias=self.head.bias_V,
            logit_scale=self.head.logit_scale,
            softcap=self.head.softcap,
        )


class CrossTokenizerTeacher:
    """A model in this process that reads the student's text in its own tokens."""

    def __init__(
        self,
        model: PreTrainedModel,
        translator: Translator,
        objective: CrossTokenizerObjective | None = None,
        *,
        student_width: int | None = None,
        compiled: bool = True,
    ) -> None:
        """`student_width`, the student's hidden width, is needed for DSKD alone, whose projections are made here.

        Raises ValueError where DSKD has no width.
        """
        self.model = model.eval().requires_grad_(False)
        self.translator = translator
        self.objective = objective or CrossTokenizerObjective()
        self.compiled = compiled
        self.head = output_head(model, min(translator.teacher.size, _rows(model)))
        self.projectors: DualSpaceProjectors | None = None
        """DSKD's, to be trained beside the student and saved nowhere with it; None for other kinds."""
        if self.objective.kind == "dskd":
            if student_width is None:
                raise ValueError("DSKD projects between hidden spaces: give student_width, the student's hidden width")
            self.projectors = DualSpaceProjectors(student_width, self.head.weight_VH.shape[1]).to(
                self.head.weight_VH.device
            )
        self._match: VocabularyMatch | None = None

    def match(self, student_vocabulary: int) -> VocabularyMatch:
        """Tokens that both vocabularies hold; made once."""
        if self._match is None:
            sizes = (student_vocabulary, self.head.vocabulary_size)
            pairs = self.translator.controls.pairs
            found = same_tokens(self.translator.student, self.translator.teacher, pairs, sizes)
            self._match = found.to(self.head.weight_VH.device)
        return self._match

    @torch.no_grad()
    def read(self, batch: Mapping[str, Any]) -> TeacherReading:
        """Translate a batch of the student's tokens and let the teacher read it.

        The batch holds `input_ids`, `labels` (-100 where nothing is trained, not shifted) and `position_ids` (0 where a
        packed row begins), (B, L). Raises DataError for ids that the student's tokenizer does not have.
        """
        text = translate_batch(self.translator, batch)
        hidden_MK = last_hidden(self.model, text.inputs).flatten(0, 1)
        embeddings = self.model.get_input_embeddings()
        reading = TeacherReading(text, hidden_MK=hidden_MK, head=self.head, embeddings_UK=embeddings.weight.detach())
        if self.objective.needs_hidden:
            return reading
        head = self.head
        logprobs_M = own_logprobs(
            hidden_MK,
            head.weight_VH,
            text.teacher_ids,
            text.trained(),
            bias=head.bias_V,
            logit_scale=head.logit_scale,
            softcap=head.softcap,
            vocab_size=head.vocabulary_size,
            compiled=self.compiled,
        )
        return replace(reading, logprobs_M=logprobs_M)

    def aligned_loss(
        self,
        student_hidden_BLH: Tensor,
        student_head: OutputHead,
        batch: Mapping[str, Any],
        *,
        num_items: float | Tensor | None = None,
        student_embeddings_VH: Tensor | None = None,
        compute_dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Let the teacher read a batch and compare: see `aligned_loss`."""
        return aligned_loss(
            self.objective,
            student_hidden_BLH,
            student_head,
            batch,
            self.read(batch),
            match=self.match(student_head.vocabulary_size) if self.objective.kind == "gold" else None,
            projectors=self.projectors,
            num_items=num_items,
            student_embeddings_VH=student_embeddings_VH,
            compute_dtype=compute_dtype,
            compiled=self.compiled,
        )


def aligned_loss(
    objective: CrossTokenizerObjective,
    student_hidden_BLH: Tensor,
    student_head: OutputHead,
    batch: Mapping[str, Any],
    reading: TeacherReading,
    *,
    match: VocabularyMatch | None = None,
    projectors: DualSpaceProjectors | None = None,
    num_items: float | Tensor | None = None,
    student_embeddings_VH: Tensor | None = None,
    compute_dtype: torch.dtype | None = None,
    compiled: bool = True,
) -> tuple[Tensor, Tensor]:
    """The loss of a batch, and what each of the student's positions added before division, (B, L).

    A group's loss stands at the position that predicts its first token.

    Args:
        objective: how to compare.
        student_hidden_BLH: the student's last hidden states of the batch's `input_ids`.
        student_head: its output head.
        batch: the student's batch; only `input_ids` is read here.
        reading: what the teacher said of it.
        match: GOLD: tokens that both vocabularies hold; needed where it is hybrid.
        projectors: DSKD: its projections, which get gradients.
        num_items: what the sum is divided by; trained groups (ALM, GOLD), pairs (ULD) or tokens (DSKD) where absent.
        student_embeddings_VH: DSKD: the student's input embeddings; its head where absent (tied).
        compute_dtype, compiled: as in `divergence`.

    Raises:
        ValueError: a reading, match or projectors that the objective needs and that are not there, or do not fit.
    """
    hidden_NH = student_hidden_BLH.flatten(0, 1)
    ids_N = batch["input_ids"].flatten()
    shared: dict[str, Any] = {"num_items": num_items, "compute_dtype": compute_dtype, "compiled": compiled}
    if objective.kind == "dskd":
        loss, token_loss_N = _dual_space(
            objective, hidden_NH, ids_N, student_head, reading, projectors, student_embeddings_VH, shared
        )
        return loss, token_loss_N.view(student_hidden_BLH.shape[:2])
    shared |= {
        "student_bias": student_head.bias_V,
        "logit_scale": student_head.logit_scale,
        "softcap": student_head.softcap,
        "vocab_size": student_head.vocabulary_size,
        "temperature": objective.softness,
    }
    groups = reading.text.trained()
    found: GroupLoss
    if objective.kind == "alm":
        if reading.logprobs_M is None:
            raise ValueError("ALM needs the log-probabilities of the teacher's tokens: give TeacherReading.logprobs_M")
        found = chunk_likelihood_loss(
            hidden_NH, student_head.weight_VH, ids_N, reading.logprobs_M, groups, objective.difference, **shared
        )
    elif objective.kind == "uld":
        groups = pair_positions(reading.text.alignment, reading.text.mask_G)
        shared["teacher_vocab_size"] = _head(reading).vocabulary_size
        found = uld_loss(hidden_NH, student_head.weight_VH, reading.signal, groups, **shared)
    else:
        if objective.hybrid and match is None:
            raise ValueError("hybrid GOLD needs the tokens that both vocabularies hold: give match, or hybrid = False")
        shared["teacher_vocab_size"] = _head(reading).vocabulary_size
        found = gold_loss(
            hidden_NH,
            student_head.weight_VH,
            ids_N,
            reading.signal,
            reading.text.teacher_ids,
            groups,
            match if objective.hybrid else None,
            objective.matched_divergence,
            merge=objective.merge,
            matched_weight=objective.matched_weight if objective.hybrid else None,
            unmatched_weight=objective.unmatched_weight if objective.hybrid else None,
            **shared,
        )
    return found.loss, _by_token(found, groups, len(hidden_NH)).view(student_hidden_BLH.shape[:2])


def _dual_space(
    objective: CrossTokenizerObjective,
    hidden_NH: Tensor,
    ids_N: Tensor,
    student_head: OutputHead,
    reading: TeacherReading,
    projectors: DualSpaceProjectors | None,
    embeddings_VH: Tensor | None,
    shared: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    if projectors is None:
        raise ValueError("DSKD needs its projections: give projectors, trained beside the student")
    sequences = reading.text.sequences()
    if not sequences:  # every parameter still gets a gradient, or wrappers for several devices wait for it
        nothing = hidden_NH.sum() * 0 + sum(parameter.sum() for parameter in projectors.parameters()) * 0
        return nothing, hidden_NH.detach().new_zeros(len(hidden_NH), dtype=torch.float32)
    signal, head = reading.signal, _head(reading)
    student = ModelSide(
        hidden=hidden_NH,
        ids=ids_N,
        head=student_head.weight_VH,
        embeddings=student_head.weight_VH if embeddings_VH is None else embeddings_VH,
        bias=student_head.bias_V,
        logit_scale=student_head.logit_scale,
        softcap=student_head.softcap,
        vocab_size=student_head.vocabulary_size,
    )
    teacher = ModelSide(
        hidden=signal.hidden_NK,
        ids=reading.text.teacher_ids,
        head=head.weight_VH,
        embeddings=head.weight_VH if reading.embeddings_UK is None else reading.embeddings_UK,
        bias=head.bias_V,
        logit_scale=head.logit_scale,
        softcap=head.softcap,
        vocab_size=head.vocabulary_size,
    )
    found = dual_space_loss(
        projectors, student, teacher, sequences, objective.divergence, temperature=objective.softness, **shared
    )
    return found.loss, found.token_loss_N


def _head(reading: TeacherReading) -> OutputHead:
    if reading.head is None:
        raise ValueError("this objective compares distributions: give the teacher's hidden states and head")
    return reading.head


def _by_token(found: GroupLoss, groups: Alignment, count: int) -> Tensor:
    """Each group's loss at the position that predicts its first token, (N,)."""
    token_loss_N = found.group_loss_G.new_zeros(count)
    return token_loss_N.index_put((groups.student_first_G - 1,), found.group_loss_G)


def _own_logprobs(signal: TokenSignal | TopKSignal, ids_M: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each token from the row before it, and whether that row holds it, (M,) each."""
    if isinstance(signal, TokenSignal):
        same_M = signal.ids_N[:-1] == ids_M[1:]
        values_M = signal.logprobs_N[:-1]
    else:
        hits_Mk = (signal.ids_Nk[:-1] == ids_M[1:, None]) & (signal.logprobs_Nk[:-1] > -torch.inf)
        same_M = hits_Mk.any(1)
        values_M = torch.where(hits_Mk, signal.logprobs_Nk[:-1], 0.0).sum(1)
    pad = torch.nn.functional.pad
    return pad(torch.where(same_M, values_M, 0.0), (1, 0)), pad(same_M, (1, 0))


def _rows(model: PreTrainedModel) -> int:
    return int(model.get_output_embeddings().weight.shape[0])
