"""From a batch to a loss: the student's and the teacher's hidden states, compared by the loss engine.

Shape legend: B batch, L length, N = B * L positions, H student hidden, K teacher hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from lmdistill.data.dataset import WEIGHTS
from lmdistill.models import OutputHead, last_hidden, output_head
from lmdistill.objectives import Divergence, distillation_loss
from lmdistill.objectives.chunked import LossParts
from lmdistill.objectives.contrastive import likelihood_gap
from lmdistill.objectives.hints import cosine_distance
from lmdistill.objectives.preference import PreferenceParts
from lmdistill.objectives.rows import LogitsView
from lmdistill.objectives.signal_logprobs import signal_logprobs
from lmdistill.objectives.token_logprobs import token_logprobs
from lmdistill.objectives.weights import first_share, student_entropy, top_share
from lmdistill.recipe import ObjectiveSpec
from lmdistill.signals import Signal
from lmdistill.teachers.base import Speech, Teacher, model_inputs
from lmdistill.teachers.reading import as_teacher
from lmdistill.training.contrast import GAPS, TYPICAL, Side, sides_of, typical_gaps
from lmdistill.training.groups import IGNORED, Group, Term, groups_of, next_labels
from lmdistill.training.hints import HintSet
from lmdistill.training.pairs import preference
from lmdistill.training.policy import ADVANTAGES, Policy
from lmdistill.training.positions import decoder_positions
from lmdistill.training.twins import consistency

SPEECH = "speech"
"""Where a batch of a prepared window holds what the teacher said of it."""
PAIRS = "pair_count"
"""Where a batch of a window holds the number of pairs of the whole window."""
PROGRESS = "progress"
"""Where a batch of a window holds the share of training that is done."""


class Aligned(Protocol):
    """A distance between models that cut text differently; what it trains beside the student are its `projectors`."""

    @property
    def projectors(self) -> nn.Module | None:
        """A module whose parameters the optimiser moves too."""

    def __call__(
        self, hidden_BLH: Tensor, head: OutputHead, batch: Mapping[str, Any], num_items: Tensor | float | None
    ) -> tuple[Tensor, Tensor]:
        """The loss of a batch, a scalar with gradient, and what each position added before division, (B, L)."""


@dataclass(frozen=True)
class StepLoss:
    """The loss of one micro-batch and its parts, all divided by the tokens of the whole accumulated batch."""

    loss: Tensor
    divergence: Tensor
    cross_entropy: Tensor
    hidden_cosine: Tensor
    token_loss_BL: Tensor
    """What each position added before division, 0 where masked."""
    others: dict[str, Tensor] = field(default_factory=dict)
    """Parts that only some objectives have, by name."""


@dataclass(frozen=True)
class Read:
    """What the student makes of a micro-batch."""

    hidden_NH: Tensor
    head: OutputHead
    labels_N: Tensor
    mask_N: Tensor
    """The trained positions."""
    batch: Mapping[str, Any]

    @property
    def shape(self) -> torch.Size:
        """(B, L)."""
        shape: torch.Size = self.batch["input_ids"].shape
        return shape


class Objective:
    """The weighted sum of terms that an `ObjectiveSpec` describes."""

    def __init__(
        self,
        spec: ObjectiveSpec,
        *,
        teacher: Teacher | None,
        vocabulary_size: int,
        compute_dtype: torch.dtype | None = None,
        compiled: bool = True,
        policy: Policy | None = None,
        reference: Teacher | None = None,
        aligned: Aligned | None = None,
        hints: HintSet | None = None,
    ) -> None:
        """`vocabulary_size` is the number of real ids; `compute_dtype` the precision of the head's products.

        `policy` makes the advantages of `spec.policy`; `reference` is what `spec.preference` compares with where it is
        not the teacher; `aligned` is the distance of `spec.cross_tokenizer`; `hints` are those of `spec.hints`.
        Raises ValueError where the terms need a teacher, or one of these, and none is given.
        """
        if spec.needs_teacher and spec.cross_tokenizer is None and teacher is None:
            raise ValueError("this objective compares with a teacher, but none was given")
        for name, wanted, given in (
            ("policy", spec.policy.weight > 0, policy),
            ("reference", spec.preference.weight > 0 and spec.preference.kind in ("dpo", "ipo"), reference),
            ("aligned distance", spec.cross_tokenizer is not None, aligned),
            ("set of hints", bool(spec.hints), hints),
        ):
            if wanted and given is None:
                raise ValueError(f"this objective needs a {name}, but none was given")
        self.spec = spec
        self.teacher = teacher if spec.needs_teacher else None
        self.term = Term.of(spec.divergence)
        self.student_term = None if spec.student_divergence is None else Term.of(spec.student_divergence)
        self.vocabulary_size = vocabulary_size
        self.compute_dtype = compute_dtype
        self.compiled = compiled
        self.policy = policy
        self.reference = teacher if spec.preference.kind == "dpkd" else reference
        self.aligned = aligned
        self.hints = hints

    def prepare(
        self,
        batches: Sequence[dict[str, Any]],
        model: PreTrainedModel,
        total: Callable[[Tensor], Tensor] = lambda sums: sums,
    ) -> None:
        """Decide what the texts of a whole window decide: advantages of a policy term, typical gaps of contrasts.

        The teacher is then asked once, and what it said stays with the batches. `model` is the student; `total` sums
        over all ranks.
        """
        if self.spec.contrastive is not None and self.spec.contrastive.published:
            self._prepare_gaps(batches, model, total)
        if self.policy is None or self.spec.policy.weight == 0:
            return
        said: list[Tensor | None] = [None] * len(batches)
        if self.policy.asks_teacher:
            assert self.teacher is not None
            for place, batch in enumerate(batches):
                batch[SPEECH] = self.teacher.speak(batch)
                said[place] = self._said(batch[SPEECH], batch)
        self.policy.prepare(batches, said)

    def _prepare_gaps(
        self, batches: Sequence[dict[str, Any]], model: PreTrainedModel, total: Callable[[Tensor], Tensor]
    ) -> None:
        """Ask teacher and student how likely each text of a window is: one forward pass of the student more."""
        assert self.teacher is not None
        mixed = torch.autocast(model.device.type, dtype=self.compute_dtype, enabled=self.compute_dtype is not None)
        for batch in batches:
            batch[SPEECH] = self.teacher.speak(batch)
            with mixed, as_teacher(model):
                batch[GAPS] = self._gaps(self._read(model, model, batch), batch[SPEECH])
        typical_2 = typical_gaps(batches, [batch[GAPS] for batch in batches], total)
        for batch in batches:
            batch[TYPICAL] = typical_2

    def _said(self, speech: Speech, batch: Mapping[str, Any]) -> Tensor:
        """What a teacher says of the text's own trained tokens, (B, L)."""
        labels_N = next_labels(batch["labels"]).flatten()
        found_N = torch.zeros(len(labels_N), dtype=torch.float32, device=labels_N.device)
        left_N = labels_N != IGNORED
        for part in speech.parts:
            mask_N = left_N if part.mask_N is None else left_N & part.mask_N
            found_N += signal_logprobs(
                part.signal,
                labels_N.clamp_min(0),
                mask_N,
                vocabulary_size=self.vocabulary_size,
                compute_dtype=self.compute_dtype,
                compiled=self.compiled,
            )
        return found_N.view(batch["labels"].shape)

    @property
    def divergence(self) -> Divergence:
        """The definition of `spec.divergence`."""
        return self.term.definition

    def __call__(
        self, model: nn.Module, bare_model: PreTrainedModel, batch: Mapping[str, Any], num_items: Tensor | float | None
    ) -> StepLoss:
        """The loss of one micro-batch.

        `model` is called (wrapped for several devices or not), `bare_model` is the student inside it.
        """
        read, speech = self._listen(model, bare_model, batch)
        hidden_NH = read.hidden_NH
        sums = self._compare(read, speech, num_items) if self.spec.contrastive is None else self._contrast(read, speech)
        cosine = hidden_NH.new_zeros((), dtype=torch.float32)
        if self.spec.hidden_cosine.weight > 0 and speech is not None and speech.hidden_NK is not None:
            said_N = speech.parts[0].mask_N if speech.parts else None
            mask_N = read.mask_N if said_N is None else read.mask_N & said_N
            cosine = cosine_distance(hidden_NH, speech.hidden_NK, mask_N, num_items)
        loss, others = self._others(read, num_items)
        loss = sums.loss + self.spec.hidden_cosine.weight * cosine + loss
        if self.hints is not None:
            hinted, parts = self._hinted(self.hints, read, loss, num_items)
            loss, others = loss + hinted, {**others, **parts}
        return StepLoss(
            loss=loss,
            divergence=sums.divergence,
            cross_entropy=sums.cross_entropy,
            hidden_cosine=cosine.detach(),
            token_loss_BL=sums.token_loss_N.view(read.shape),
            others={**others, **({"policy": sums.policy} if self.spec.policy.weight > 0 else {})},
        )

    def _listen(
        self, model: nn.Module, bare_model: PreTrainedModel, batch: Mapping[str, Any]
    ) -> tuple[Read, Speech | None]:
        """What student and teacher make of a micro-batch, and what hints compare caught on the way."""
        if self.hints is None:
            return self._read(model, bare_model, batch), self._speech(batch)
        assert self.teacher is not None
        with self.hints.listening():
            # The teacher first: blocks may read its states. It speaks again where the window was prepared: what is
            # inside it was not kept.
            speech = self.teacher.speak(batch)
            self.hints.feed()
            read = self._read(model, bare_model, batch)
        return read, batch.get(SPEECH, speech)

    def _hinted(
        self, hints: HintSet, read: Read, rest: Tensor, num_items: Tensor | float | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of hints, and each by name; `rest` is the rest of the loss."""
        values = hints.values(decoder_positions(read.batch))
        if num_items is not None:  # means over this micro-batch, of which the window has several
            share = read.mask_N.sum() / num_items
            values = {name: value * share for name, value in values.items()}
        return hints.weighed(values, rest), {f"hint_{name}": value.detach() for name, value in values.items()}

    def _read(self, model: nn.Module, bare_model: PreTrainedModel, batch: Mapping[str, Any]) -> Read:
        hidden_NH = last_hidden(model, model_inputs(batch)).flatten(0, 1)
        labels_N = next_labels(batch["labels"]).flatten()
        head = output_head(bare_model, self.vocabulary_size)
        return Read(hidden_NH, head, labels_N.clamp_min(0), labels_N != IGNORED, batch)

    def _others(self, read: Read, num_items: Tensor | float | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The terms that few objectives have: their weighted sum, and each by name."""
        loss = read.hidden_NH.new_zeros((), dtype=torch.float32)
        others: dict[str, Tensor] = {}
        if self.spec.preference.weight > 0:
            parts = self._preference(read)
            loss = loss + self.spec.preference.weight * parts.loss
            others |= {"preference": parts.loss.detach(), "preference_accuracy": parts.accuracy}
        if self.spec.consistency.weight > 0:
            apart = consistency(
                self.spec.consistency, read.hidden_NH, read.head, read.batch, self.vocabulary_size, self.compute_dtype
            )
            loss = loss + self.spec.consistency.weight * apart
            others["consistency"] = apart.detach()
        if self.spec.cross_tokenizer is not None and self.aligned is not None:
            hidden_BLH = read.hidden_NH.view(*read.shape, -1)
            distance, _ = self.aligned(hidden_BLH, read.head, read.batch, num_items)
            loss = loss + self.spec.cross_tokenizer.weight * distance
            others["cross_tokenizer"] = distance.detach()
        return loss, others

    def _preference(self, read: Read) -> PreferenceParts:
        logprobs_N = token_logprobs(
            read.hidden_NH,
            read.head.weight_VH,
            read.labels_N,
            mask_N=read.mask_N,
            bias=read.head.bias_V,
            logit_scale=read.head.logit_scale,
            softcap=read.head.softcap,
            vocab_size=self.vocabulary_size,
            compute_dtype=self.compute_dtype,
            compiled=self.compiled,
        )
        reference_BL = None
        if self.reference is not None:
            reference_BL = self._said(self.reference.speak(read.batch), read.batch)
        logprobs_BL = logprobs_N.view(read.shape)
        return preference(self.spec.preference, read.batch, logprobs_BL, reference_BL, read.batch.get(PAIRS))

    def _speech(self, batch: Mapping[str, Any]) -> Speech | None:
        """What the teacher says; said already where the window was prepared."""
        said: Speech | None = batch.get(SPEECH)
        return said if said is not None or self.teacher is None else self.teacher.speak(batch)

    def _compare(self, read: Read, speech: Speech | None, num_items: Tensor | float | None) -> LossParts:
        """Divergences and cross-entropy over all groups of tokens and all parts of the speech."""
        weight_N = self._weights(read, speech)
        counted_N = read.mask_N if weight_N is None else read.mask_N & (weight_N > 0)
        if num_items is None and weight_N is not None:
            num_items = max(1, int(read.mask_N.sum()))
        found = [
            self._engine(read, group, signal, mask_N, weight_N, count)
            for group in groups_of(self.spec, (self.term, self.student_term), read.batch, counted_N, num_items)
            for signal, mask_N, count in _pieces(group, speech, self._has_policy(group, read.batch))
        ]
        return _sum(found, read)

    def _contrast(self, read: Read, speech: Speech | None) -> LossParts:
        """DistiLLM-2: each side of the pairs by its own divergence, sequence by sequence."""
        assert self.spec.contrastive is not None
        assert self.student_term is not None
        assert speech is not None
        found = []
        for side, term in zip(self._sides(read, speech), (self.term, self.student_term), strict=True):
            group = Group(read.mask_N & (side.weight_N > 0), term, 0.0, side.num_items)
            found += [
                self._engine(read, group, signal, mask_N, side.weight_N, count, side.setting_N)
                for signal, mask_N, count in _pieces(group, speech)
            ]
        return _sum(found, read)

    def _sides(self, read: Read, speech: Speech) -> tuple[Side, Side]:
        spec = self.spec.contrastive
        assert spec is not None
        gap_S: Tensor | None = read.batch.get(GAPS)
        typical_2: Tensor | None = read.batch.get(TYPICAL)
        if spec.published and gap_S is None:  # a batch by itself is its own window
            gap_S = self._gaps(read, speech)
            typical_2 = typical_gaps([read.batch], [gap_S])
        progress = float(read.batch.get(PROGRESS, 0.0))
        return sides_of(spec, read.batch, gap_S, typical_2, progress=progress, num_pairs=read.batch.get(PAIRS))

    @torch.no_grad()
    def _gaps(self, read: Read, speech: Speech) -> Tensor:
        """How much likelier each row is under the teacher, (B,)."""
        own_N = token_logprobs(
            read.hidden_NH.detach(),
            read.head.weight_VH.detach(),
            read.labels_N,
            mask_N=read.mask_N,
            bias=None if read.head.bias_V is None else read.head.bias_V.detach(),
            logit_scale=read.head.logit_scale,
            softcap=read.head.softcap,
            vocab_size=self.vocabulary_size,
            compute_dtype=self.compute_dtype,
            compiled=self.compiled,
        )
        said_BL = self._said(speech, read.batch)
        return likelihood_gap(said_BL, own_N.view(read.shape), read.mask_N.view(read.shape))

    def _has_policy(self, group: Group, batch: Mapping[str, Any]) -> bool:
        """Whether the policy term is taken at a group's tokens: it holds text of the student."""
        return ADVANTAGES in batch and group.own and self.spec.policy.weight > 0

    def _engine(
        self,
        read: Read,
        group: Group,
        signal: Signal | None,
        mask_N: Tensor,
        weight_N: Tensor | None,
        num_items: Tensor | float | None,
        setting_N: Tensor | None = None,
    ) -> LossParts:
        term = group.term.spec
        surrogate = None
        if self.policy is not None and self._has_policy(group, read.batch):
            surrogate = self.policy.surrogate(read.batch, self.spec.policy.weight)
        return distillation_loss(
            read.hidden_NH,
            read.head.weight_VH,
            signal if term.weight > 0 else None,
            group.term.definition,
            divergence_weight=term.weight,
            labels_N=read.labels_N,
            label_weight=group.label_weight,
            mask_N=mask_N,
            weight_N=weight_N,
            num_items=num_items,
            temperature=term.temperature,
            temperature_squared=term.temperature_squared,
            student_bias=read.head.bias_V,
            logit_scale=read.head.logit_scale,
            softcap=read.head.softcap,
            vocab_size=self.vocabulary_size,
            compute_dtype=self.compute_dtype,
            compiled=self.compiled,
            setting_N=setting_N,
            policy=surrogate,
        )

    def _weights(self, read: Read, speech: Speech | None) -> Tensor | None:
        """Weights of the tokens, (N,); None where all count alike."""
        own_N = self._chosen(read, speech)
        if WEIGHTS not in read.batch:
            return own_N
        given_N = F.pad(read.batch[WEIGHTS][:, 1:], (0, 1)).flatten()
        return given_N if own_N is None else own_N * given_N

    def _chosen(self, read: Read, speech: Speech | None) -> Tensor | None:
        """Weights by which tokens `spec.tokens` chooses, (N,); None where it leaves out none."""
        spec = self.spec.tokens
        if spec.by == "all":
            return None
        if spec.by == "position":
            mask_BL = read.mask_N.view(read.shape)
            return first_share(read.batch["position_ids"], mask_BL, spec.keep).flatten()
        if spec.by == "student_entropy":
            return top_share(self._entropy(read), read.mask_N, spec.keep)
        detached = replace(
            read,
            hidden_NH=read.hidden_NH.detach(),
            head=replace(read.head, weight_VH=read.head.weight_VH.detach()),
        )
        with torch.no_grad():
            group = Group(read.mask_N, self.term, 0.0, None)
            scores = [
                self._engine(detached, group, signal, mask_N, None, count)
                for signal, mask_N, count in _pieces(group, speech)
            ]
        return top_share(_sum(scores, read).token_loss_N, read.mask_N, spec.keep)

    def _entropy(self, read: Read) -> Tensor:
        head = read.head
        weight_VH = head.weight_VH[: head.vocabulary_size].detach()
        compute = self.compute_dtype or weight_VH.dtype
        bias_V = None if head.bias_V is None else head.bias_V[: head.vocabulary_size].detach().to(compute)
        return student_entropy(
            read.hidden_NH.detach(),
            weight_VH.to(compute),
            read.mask_N,
            bias_V=bias_V,
            view=LogitsView(head.logit_scale, head.softcap),
            compiled=self.compiled,
        )


def _pieces(
    group: Group, speech: Speech | None, has_policy: bool = False
) -> list[tuple[Signal | None, Tensor, Tensor | float | None]]:
    """Calls of the engine that make up one group: (signal, mask, divisor), masks disjoint.

    Several parts share the divisor of the group. Where nobody speaks, the text's own labels, or the advantages of its
    tokens, may still count.
    """
    speaks_itself = group.label_weight > 0 or has_policy
    if speech is None:
        return [(None, group.mask_N, group.num_items)] if speaks_itself else []
    if group.term.spec.weight == 0 and not speaks_itself:
        return []
    if len(speech.parts) == 1 and speech.parts[0].mask_N is None:
        return [(speech.parts[0].signal, group.mask_N, group.num_items)]
    count = group.num_items if group.num_items is not None else max(1, int(group.mask_N.sum()))
    pieces: list[tuple[Signal | None, Tensor, Tensor | float | None]] = []
    left_N = group.mask_N
    for part in speech.parts:
        said_N = left_N if part.mask_N is None else left_N & part.mask_N
        pieces.append((part.signal, said_N, count))
        left_N = left_N & ~said_N
    return [*pieces, (None, left_N, count)] if speaks_itself else pieces


def _sum(found: Sequence[LossParts], read: Read) -> LossParts:
    if len(found) == 1:
        return found[0]
    # Nothing was compared: a loss of 0 that still has a gradient, of 0, for the optimiser's sake.
    zero = read.hidden_NH.sum() * 0.0 if not found else read.hidden_NH.new_zeros(())
    none_N = torch.zeros(len(read.hidden_NH), dtype=torch.float32, device=read.hidden_NH.device)
    return LossParts(
        loss=sum((each.loss for each in found), zero.float()),
        divergence=sum((each.divergence for each in found), zero.detach().float()),
        cross_entropy=sum((each.cross_entropy for each in found), zero.detach().float()),
        token_loss_N=sum((each.token_loss_N for each in found), none_N),
        policy=sum((each.policy for each in found), zero.detach().float()),
    )
