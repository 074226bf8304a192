"""Distributions over two vocabularies, compared group by group: merged groups, exact matches, sorted rests.

General online logit distillation (GOLD, Patiño et al. 2025, in TRL) merges the distributions of a group of several
tokens into one, compares the tokens that both vocabularies hold one to one, and the rest of both by size (universal
logit distillation, 2402.12030). Distributions exist for a chunk of groups at a time. Depends on torch alone.

A group's merged distribution is that at one of its tokens times the probabilities of its others: `merge="first"` takes
the distribution at the first token (TRL's `observed`, its default), `"last"` that at the last (TRL's `bayesian`, the
chain rule). It does not sum to 1. TRL's `observed` also reads every distribution one place late, where it predicts the
token after; that is not repeated here: row i - 1 predicts token i for either choice.

Shape legend: N student tokens, M teacher tokens, n, m those of one chunk, G groups, g those of one chunk, V student's
vocabulary, U teacher's, C matched tokens, A, B unmatched tokens of student and teacher, H, K hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from lmdistill.objectives.alignment import Alignment, tokens_of
from lmdistill.objectives.divergences import Divergence, find_divergence
from lmdistill.objectives.grouped import GroupChunk, GroupLoss, check_ends, check_ids, grouped_loss
from lmdistill.objectives.products import project
from lmdistill.objectives.rows import LogitsView, log_normaliser
from lmdistill.signals.types import DenseSignal, HiddenSignal

Merge = Literal["first", "last"]

# Of both models together. Sorting makes several copies in float32, so that chunks are smaller than the dense engine's.
_CHUNK_LOGITS = 1 << 23
# TRL's floor of probabilities before logarithms, of single tokens and of merged distributions.
PROBABILITY_FLOOR = 1e-8


@dataclass(frozen=True)
class VocabularyMatch:
    """Tokens that both vocabularies hold: student_ids_C[c] and teacher_ids_C[c] are the same bytes. Each id once."""

    student_ids_C: Tensor
    teacher_ids_C: Tensor

    def __post_init__(self) -> None:
        if self.student_ids_C.ndim != 1 or self.student_ids_C.shape != self.teacher_ids_C.shape:
            raise ValueError(
                f"matched ids have shapes {tuple(self.student_ids_C.shape)} and {tuple(self.teacher_ids_C.shape)}; "
                "they go in pairs"
            )
        for name, ids_C in (("student", self.student_ids_C), ("teacher", self.teacher_ids_C)):
            if len(ids_C.unique()) < len(ids_C):
                raise ValueError(f"a {name}'s id is matched twice; match one to one")

    def __len__(self) -> int:
        return len(self.student_ids_C)

    def to(self, device: torch.device) -> VocabularyMatch:
        """The same on a device."""
        return VocabularyMatch(self.student_ids_C.to(device), self.teacher_ids_C.to(device))


def gold_loss(
    student_hidden_NH: Tensor,
    student_head_VH: Tensor,
    student_ids_N: Tensor,
    teacher: HiddenSignal | DenseSignal,
    teacher_ids_M: Tensor,
    alignment: Alignment,
    match: VocabularyMatch | None,
    matched_kind: str | Divergence = "jsd",
    *,
    merge: Merge = "first",
    matched_weight: float | None = None,
    unmatched_weight: float | None = None,
    temperature: float = 1.0,
    mask_G: Tensor | None = None,
    weight_G: Tensor | None = None,
    num_items: float | Tensor | None = None,
    student_bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
    teacher_vocab_size: int | None = None,
    chunk_tokens: int | None = None,
    compute_dtype: torch.dtype | None = None,
    compiled: bool = True,
) -> GroupLoss:
    """Sum over groups of matched_weight * divergence(matched part) + unmatched_weight * L1(sorted rests), / num_items.

    Args:
        student_hidden_NH, student_head_VH, student_ids_N: the student's side; row i - 1 predicts token i.
        teacher: the teacher's hidden states and head, or its logits, for its own M tokens.
        teacher_ids_M: its tokens, (M,).
        alignment: which tokens cover the same bytes.
        match: tokens compared one to one; None compares the whole of both by size (ULD over aligned groups).
        matched_kind: the divergence of the matched parts, which are no distributions: its sum over their classes, with
            probabilities below 1e-8 set to that (as in TRL). `jsd` of teacher_weight 0.5 is GOLD's default.
        merge: see the module's head.
        matched_weight, unmatched_weight: given together; where absent, the share of the teacher's vocabulary that is
            matched, and the rest (GOLD's default).
        temperature: of both models' distributions.
        mask_G, weight_G: which groups are trained, and the factor of each one's loss, (G,).
        num_items, student_bias, logit_scale, softcap, vocab_size, chunk_tokens, compute_dtype, compiled: as in
            `divergence`; `teacher_vocab_size` is the teacher's number of real ids.

    Raises:
        ValueError: shapes, ids, weights or an alignment that do not fit.
    """
    if merge not in ("first", "last"):
        raise ValueError(f"merge = {merge!r} is not known; use 'first' or 'last'")
    if not temperature > 0:
        raise ValueError(f"temperature = {temperature} must be above 0")
    if len(student_ids_N) != len(student_hidden_NH) or len(teacher_ids_M) != len(teacher):
        raise ValueError(
            f"{len(student_hidden_NH)} student tokens with {len(student_ids_N)} ids, {len(teacher)} of the teacher's "
            f"with {len(teacher_ids_M)}; they go in pairs"
        )
    trained = alignment if mask_G is None else alignment.select(mask_G.to(torch.bool))
    check_ends(trained.teacher_first_G, trained.teacher_end_G, len(teacher), "teacher")
    vocabulary = vocab_size or len(student_head_VH)
    reader = _TeacherReader(teacher, teacher_ids_M, teacher_vocab_size, temperature, compiled)
    check_ids(student_ids_N, tokens_of(trained.student_first_G, trained.student_end_G)[0], vocabulary, "student_ids_N")
    check_ids(
        teacher_ids_M, tokens_of(trained.teacher_first_G, trained.teacher_end_G)[0], reader.vocabulary, "teacher_ids_M"
    )
    definition = find_divergence(matched_kind)
    comparison = _Comparison(
        match, definition, _weights(match, reader.vocabulary, matched_weight, unmatched_weight), vocabulary, reader
    )
    view = LogitsView(logit_scale, softcap)
    inverse_t = 1 / temperature

    def compare(chunk: GroupChunk, raw_nV: Tensor) -> Tensor:
        part = alignment.select(chunk.groups_g)
        target_gU = reader.merged(part, merge)
        student = _Merged.of(raw_nV, student_ids_N[chunk.tokens_n], chunk.owner_n, view, inverse_t, merge, compiled)
        loss_g, pull_gV = comparison(student.log_merged_gV, target_gU)
        student.multiply_back(raw_nV, pull_gV, chunk.weight_g, view, inverse_t)
        return loss_g

    both = vocabulary + reader.vocabulary
    return grouped_loss(
        student_hidden_NH,
        student_head_VH,
        alignment,
        compare,
        mask_G=mask_G,
        weight_G=weight_G,
        num_items=num_items,
        student_bias=student_bias,
        vocab_size=vocab_size,
        chunk_logits=(chunk_tokens or max(1, _CHUNK_LOGITS // both)) * vocabulary,
        compute_dtype=compute_dtype,
    )


def _weights(
    match: VocabularyMatch | None, teacher_vocabulary: int, matched: float | None, unmatched: float | None
) -> tuple[float, float]:
    """Weights of both parts. Raises ValueError where only one is given."""
    if (matched is None) != (unmatched is None):
        raise ValueError(
            f"matched_weight = {matched} and unmatched_weight = {unmatched}; give both, or neither for the share of "
            "the vocabulary"
        )
    if match is None:
        return 0.0, 1.0 if unmatched is None else unmatched
    if matched is None or unmatched is None:
        share = len(match) / max(1, teacher_vocabulary)
        return share, 1 - share
    return matched, unmatched


@dataclass(frozen=True)
class _Merged:
    """The merged distributions of a chunk's groups, and what their derivatives need."""

    log_merged_gV: Tensor
    log_base_gV: Tensor
    base_g: Tensor
    """Row of the token whose distribution is taken."""
    other_n: Tensor
    """True for tokens that are but a factor, where their floor does not hold."""
    logs_n: Tensor
    """Normalisers of the rows."""
    ids_n1: Tensor
    owner_n: Tensor

    @classmethod
    def of(
        cls,
        raw_nV: Tensor,
        ids_n: Tensor,
        owner_n: Tensor,
        view: LogitsView,
        inverse_t: float,
        merge: Merge,
        compiled: bool,
    ) -> _Merged:
        """Merge the rows of each group."""
        ids_n1 = ids_n.long()[:, None]
        own_n = view.logits(raw_nV.gather(1, ids_n1))[:, 0] * inverse_t
        logs_n = log_normaliser(raw_nV, own_n.new_tensor(inverse_t), view=view, compiled=compiled)
        counts_g = torch.bincount(owner_n)
        base_g = counts_g.cumsum(0) - (counts_g if merge == "first" else 1)
        is_base_n = torch.zeros_like(owner_n, dtype=torch.bool).index_fill(0, base_g, True)
        floor = torch.log(own_n.new_tensor(PROBABILITY_FLOOR))
        factor_n = (own_n - logs_n).maximum(floor).masked_fill(is_base_n, 0.0)
        factor_g = own_n.new_zeros(len(counts_g)).index_add(0, owner_n, factor_n)
        log_base_gV = view.logits(raw_nV[base_g]) * inverse_t - logs_n[base_g, None]
        return cls(
            log_merged_gV=log_base_gV + factor_g[:, None],
            log_base_gV=log_base_gV,
            base_g=base_g,
            other_n=~is_base_n & (own_n - logs_n > floor),
            logs_n=logs_n,
            ids_n1=ids_n1,
            owner_n=owner_n,
        )

    def multiply_back(
        self, raw_nV: Tensor, pull_gV: Tensor, weight_g: Tensor, view: LogitsView, inverse_t: float
    ) -> None:
        """Overwrite raw logits with the gradient; `pull_gV` is that by the logarithms of the merged distribution.

        log u_c = log p_c + log f, with p the base's distribution and f the product of the others' probabilities: the
        base's logits get pull_c - p_c sum(pull), each other token's sum(pull) (onehot - its distribution).
        """
        factor_g = weight_g * inverse_t
        total_g = pull_gV.sum(1)
        base_gV = (pull_gV - self.log_base_gV.exp() * total_g[:, None]) * factor_g[:, None]
        base_z_gV = view.logits(raw_nV[self.base_g])
        if len(self.base_g) < len(raw_nV):
            others = self.other_n.nonzero()[:, 0]
            z_oV = view.logits(raw_nV[others])
            pull_o1 = (total_g * factor_g)[self.owner_n[others]][:, None]
            other_oV = (z_oV * inverse_t - self.logs_n[others, None]).exp().mul_(-pull_o1)
            other_oV.scatter_add_(1, self.ids_n1[others], pull_o1)
            raw_nV.zero_()  # tokens below the floor are constants
            raw_nV[others] = view.chain(other_oV, z_oV).to(raw_nV.dtype)
        raw_nV[self.base_g] = view.chain(base_gV, base_z_gV).to(raw_nV.dtype)


class _TeacherReader:
    """The teacher's merged distributions, chunk by chunk."""

    def __init__(
        self,
        signal: HiddenSignal | DenseSignal,
        ids_M: Tensor,
        vocab_size: int | None,
        temperature: float,
        compiled: bool,
    ) -> None:
        self.signal = signal
        self.ids_M = ids_M
        self.inverse_t = 1 / temperature
        self.compiled = compiled
        rows = signal.head_VK.shape[0] if isinstance(signal, HiddenSignal) else signal.logits_NV.shape[1]
        if vocab_size is not None and not 1 <= vocab_size <= rows:
            raise ValueError(f"teacher_vocab_size = {vocab_size} but the teacher has {rows} entries")
        self.vocabulary = vocab_size or rows

    @torch.no_grad()
    def merged(self, part: Alignment, merge: Merge) -> Tensor:
        """Merged probabilities of the groups, (g, U)."""
        tokens_m, owner_m = tokens_of(part.teacher_first_G, part.teacher_end_G)
        view = LogitsView()
        if isinstance(self.signal, HiddenSignal):
            view = LogitsView(self.signal.logit_scale, self.signal.softcap)
            head_UK = self.signal.head_VK[: self.vocabulary]
            bias = None if self.signal.bias is None else self.signal.bias[: self.vocabulary].to(head_UK.dtype)
            raw_mU = head_UK.new_empty(len(tokens_m), self.vocabulary)
            project(self.signal.hidden_NK[tokens_m - 1].to(head_UK.dtype), head_UK, bias, raw_mU)
        else:
            raw_mU = self.signal.logits_NV[tokens_m - 1, : self.vocabulary]
        return _Merged.of(
            raw_mU, self.ids_M[tokens_m], owner_m, view, self.inverse_t, merge, self.compiled
        ).log_merged_gV.exp_()


class _Comparison:
    """Losses of merged distributions, and the gradient by the logarithms of the student's."""

    def __init__(
        self,
        match: VocabularyMatch | None,
        definition: Divergence,
        weights: tuple[float, float],
        vocabulary: int,
        reader: _TeacherReader,
    ) -> None:
        self.match = match
        self.definition = definition
        self.matched_weight, self.unmatched_weight = weights
        self.vocabulary, self.teacher_vocabulary = vocabulary, reader.vocabulary
        if match is not None and len(match):
            tops = (int(match.student_ids_C.max()), int(match.teacher_ids_C.max()))
            if tops[0] >= vocabulary or tops[1] >= self.teacher_vocabulary:
                raise ValueError(
                    f"matched ids reach {tops[0]} and {tops[1]} but the vocabularies have {vocabulary} and "
                    f"{self.teacher_vocabulary} entries"
                )

    @cached_property
    def _rest_student(self) -> Tensor | None:
        return None if self.match is None else _complement(self.match.student_ids_C, self.vocabulary)

    @cached_property
    def _rest_teacher(self) -> Tensor | None:
        return None if self.match is None else _complement(self.match.teacher_ids_C, self.teacher_vocabulary)

    def __call__(self, log_student_gV: Tensor, target_gU: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (g,) and the gradient by log u, (g, V)."""
        target_gU = target_gU.to(log_student_gV.dtype)
        if self.match is None:
            loss_g, pull_gV = sorted_distance(log_student_gV.exp(), target_gU)
            return loss_g * self.unmatched_weight, pull_gV * self.unmatched_weight
        pull_gV = torch.zeros_like(log_student_gV)
        loss_g = log_student_gV.new_zeros(len(log_student_gV))
        if len(self.match) and self.matched_weight:
            matched_g, pull_gC = self._matched(
                log_student_gV[:, self.match.student_ids_C], target_gU[:, self.match.teacher_ids_C]
            )
            loss_g += self.matched_weight * matched_g
            pull_gV[:, self.match.student_ids_C] = self.matched_weight * pull_gC
        rest_A, rest_B = self._rest_student, self._rest_teacher
        assert rest_A is not None
        assert rest_B is not None
        # TRL leaves the part out where one side has nothing left.
        if len(rest_A) and len(rest_B) and self.unmatched_weight:
            rest_g, pull_gA = sorted_distance(log_student_gV[:, rest_A].exp(), target_gU[:, rest_B])
            loss_g += self.unmatched_weight * rest_g
            pull_gV[:, rest_A] = self.unmatched_weight * pull_gA
        return loss_g, pull_gV

    def _matched(self, log_s_gC: Tensor, t_gC: Tensor) -> tuple[Tensor, Tensor]:
        floor = torch.log(log_s_gC.new_tensor(PROBABILITY_FLOOR))
        held_gC = log_s_gC.maximum(floor)
        log_t_gC = t_gC.clamp_min(PROBABILITY_FLOOR).log()
        f_gC, v_gC = self.definition.summands(held_gC, log_t_gC, *self.definition.context(held_gC, log_t_gC))
        return f_gC.sum(1), v_gC.masked_fill(log_s_gC <= floor, 0.0)


def sorted_distance(student_gA: Tensor, teacher_gB: Tensor) -> tuple[Tensor, Tensor]:
    """sum_i |i-th largest of the student's - i-th largest of the teacher's|, (g,), the shorter side filled up with 0.

    Universal logit distillation (2402.12030, section 3). Also the gradient by the logarithms of the student's entries,
    (g, A). Of the longer side only as many entries as the shorter one has need be sorted: the rest meets zeros.
    """
    a, b = student_gA.shape[1], teacher_gB.shape[1]
    shared = min(a, b)
    if a <= b:
        student_gk, order_gk = student_gA.sort(1, descending=True)
    else:
        student_gk, order_gk = student_gA.topk(shared, 1)
    teacher_gk = teacher_gB.topk(shared, 1).values if b > a else teacher_gB.sort(1, descending=True).values
    difference_gk = student_gk - teacher_gk
    loss_g = difference_gk.abs().sum(1)
    if b > a:
        loss_g = loss_g + (teacher_gB.sum(1) - teacher_gk.sum(1)).clamp_min(0)
    pull_gA = student_gA.clone() if a > b else torch.empty_like(student_gA)
    if a > b:
        loss_g = loss_g + (student_gA.sum(1) - student_gk.sum(1)).clamp_min(0)
    pull_gA.scatter_(1, order_gk, difference_gk.sign() * student_gk)
    return loss_g, pull_gA


def _complement(ids_C: Tensor, vocabulary: int) -> Tensor:
    free = torch.ones(vocabulary, dtype=torch.bool, device=ids_C.device)
    free[ids_C] = False
    return free.nonzero()[:, 0]
