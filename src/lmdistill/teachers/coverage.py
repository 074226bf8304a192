"""How much of a text can be compared between two tokenizers, found before anything is trained.

Every byte, token and, with the teacher's model, every bit of its probability falls into one of three parts:

- one to one: in a group of one token of either side, so that distributions themselves can be compared;
- merged: in a group of several tokens on one side, or two on both, so that only their likelihoods can;
- none: in a group whose tokens do not say the same (unknown tokens, control tokens without a counterpart) and which is
  not trained, or in a tangled one: more than two tokens on both sides, with no cut in common, which is trained as one.

Of the teacher's probability at a one-to-one place, what lies on tokens that the student's vocabulary lacks is in none.

Shape legend: n student tokens, m teacher tokens of one text, G groups, U teacher's vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from lmdistill.errors import DataError
from lmdistill.models import last_hidden, output_head
from lmdistill.objectives.rows import LogitsView
from lmdistill.teachers.token_bytes import same_tokens
from lmdistill.teachers.translate import TranslatedRow, Translator

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MINIMUM_COVERAGE = 0.5
"""Below this share of bytes in comparable groups a pair should be refused. Pairs of tokenizers that leave texts as they
are lie above 0.99 in every language tried (docs/cross_tokenizer.md): what falls below 0.5 has a teacher that cannot say
most of the text, and an alignment that would train the student on the smaller part of it."""
TANGLED = 2
"""A group is tangled where both sides have more tokens than this."""
_SIZES_SHOWN = 8
_CHUNK_LOGITS = 1 << 24


class Shares(BaseModel):
    """Three parts of a whole; their sum is 1."""

    model_config = ConfigDict(extra="forbid")

    one_to_one: float
    merged: float
    none: float

    @property
    def aligned(self) -> float:
        """One to one or merged."""
        return self.one_to_one + self.merged


class Coverage(BaseModel):
    """What of a pair of tokenizers can be compared, measured on some texts."""

    model_config = ConfigDict(extra="forbid")

    texts: int
    bytes: int
    student_tokens: int
    """Without what the tokenizer puts before a text."""
    teacher_tokens: int
    of_bytes: Shares
    of_student_tokens: Shares
    of_teacher_tokens: Shares
    of_probability: Shares | None = None
    """Of the teacher's probability, over all of its tokens' places; None without its model."""
    altered_bytes: float
    """Share of bytes that the teacher's tokenizer changes before it reads them (lower case, normal forms)."""
    group_sizes: dict[str, int]
    """How many groups have so many tokens, "student:teacher", most frequent first."""
    student_vocabulary: int
    teacher_vocabulary: int
    shared_tokens: int
    """Tokens that are the same bytes in both vocabularies, or control tokens of one part."""
    shared_use: float
    """Share of the teacher's tokens in the texts that the student's vocabulary has too."""
    controls: dict[str, str]
    """The student's control tokens and the teacher's that play their part."""
    end_is_paired: bool
    """Whether the student's end of text has a counterpart; without one the teacher never says when to stop."""

    def problem(self, minimum: float = MINIMUM_COVERAGE) -> str | None:
        """Why this pair should be refused, with both numbers and what to do; None where it should not."""
        if self.of_bytes.aligned >= minimum:
            return None
        return (
            f"only {self.of_bytes.aligned:.1%} of the bytes of {self.texts} texts can be compared between the two "
            f"tokenizers, and at least {minimum:.0%} are needed; take a teacher whose tokenizer can say this text, or "
            "distil from the teacher's own text (method: seqkd)"
        )

    def summary(self) -> str:
        """A table for people, plain text."""
        rows = [
            ("bytes", self.of_bytes),
            ("student's tokens", self.of_student_tokens),
            ("teacher's tokens", self.of_teacher_tokens),
        ]
        if self.of_probability is not None:
            rows.append(("teacher's probability", self.of_probability))
        lines = [f"{'share of':22s} {'one to one':>10s} {'merged':>8s} {'none':>8s}"]
        lines += [f"{name:22s} {s.one_to_one:10.1%} {s.merged:8.1%} {s.none:8.1%}" for name, s in rows]
        shown = list(self.group_sizes.items())
        sizes = ", ".join(f"{size} {count:,}" for size, count in shown[:_SIZES_SHOWN])
        more = f" and {len(shown) - _SIZES_SHOWN} more kinds" if len(shown) > _SIZES_SHOWN else ""
        controls = ", ".join(f"{ours} is {theirs}" for ours, theirs in self.controls.items()) or "none"
        return "\n".join(
            [
                *lines,
                f"groups (student:teacher): {sizes}{more}",
                f"{self.texts:,} texts, {self.bytes:,} bytes: {self.student_tokens:,} tokens of the student's, "
                f"{self.teacher_tokens:,} of the teacher's",
                f"vocabularies {self.student_vocabulary:,} and {self.teacher_vocabulary:,}: {self.shared_tokens:,} "
                f"tokens in both, {self.shared_use:.1%} of the teacher's tokens in the texts",
                f"altered by the teacher's tokenizer: {self.altered_bytes:.1%} of bytes",
                f"control tokens: {controls}"
                + ("" if self.end_is_paired else "; the student's end of text has no counterpart"),
            ]
        )


def coverage(
    student_tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    teacher_model: PreTrainedModel | None = None,
    translator: Translator | None = None,
) -> Coverage:
    """Measure a pair of tokenizers on some texts; a hundred passages are plenty.

    With `teacher_model` also where the teacher's probability lies, which takes one forward pass over the texts.
    `translator` saves making one. Raises ModelError for tokenizers that cannot be laid beside each other, DataError
    where there is no text.
    """
    between = translator or Translator(student_tokenizer, teacher_tokenizer)
    count = _Count(between, teacher_model)
    for text in texts:
        count.add(text)
    return count.result()


class _Count:
    """Sums over texts."""

    def __init__(self, between: Translator, model: PreTrainedModel | None) -> None:
        self.between = between
        self.match = same_tokens(between.student, between.teacher, between.controls.pairs)
        self.mass = None if model is None else _Mass(model, self.match.teacher_ids_C)
        self.is_shared_U = np.zeros(between.teacher.size, bool)
        self.is_shared_U[self.match.teacher_ids_C.numpy()] = True
        self.texts = self.altered = self.shared = 0
        self.sums = np.zeros((3, 3), np.int64)  # bytes, student's and teacher's tokens; one to one, merged, none
        self.sizes: Counter[str] = Counter()

    def add(self, text: str) -> None:
        """Count one text."""
        student = self.between.student
        ids = [*student.lead_ids, *student.encode(text).ids_L.tolist()]
        row = self.between.row(ids)
        if len(row.alignment) == 0:
            return
        self.texts += 1
        groups = row.alignment
        part_G = _parts(row)
        begun_n = np.concatenate([np.zeros(1, np.int64), row.student_units.cumsum()])
        bytes_G = begun_n[groups.student_end_G.numpy()] - begun_n[groups.student_first_G.numpy()]
        for measure, weight_G in enumerate((bytes_G, groups.student_sizes.numpy(), groups.teacher_sizes.numpy())):
            self.sums[measure] += np.bincount(part_G, weights=weight_G, minlength=3).astype(np.int64)
        sizes = zip(groups.student_sizes.tolist(), groups.teacher_sizes.tolist(), strict=True)
        self.sizes.update(f"{ours}:{theirs}" for ours, theirs in sizes)
        lead = len(self.between.teacher.lead_ids)
        self.shared += int(self.is_shared_U[row.teacher_ids[lead:]].sum())
        self.altered += self._altered(ids, row, bytes_G)
        if self.mass is not None:
            self.mass.add(row, part_G)

    def result(self) -> Coverage:
        """The shares. Raises DataError where nothing was counted."""
        if self.texts == 0:
            raise DataError("no text to measure the two tokenizers on; give some that the training will use")
        between = self.between
        end = between.student.tokenizer.eos_token_id
        return Coverage(
            texts=self.texts,
            bytes=int(self.sums[0].sum()),
            student_tokens=int(self.sums[1].sum()),
            teacher_tokens=int(self.sums[2].sum()),
            of_bytes=_shares(self.sums[0]),
            of_student_tokens=_shares(self.sums[1]),
            of_teacher_tokens=_shares(self.sums[2]),
            of_probability=None if self.mass is None else _shares(self.mass.sums),
            altered_bytes=self.altered / max(1, int(self.sums[0].sum())),
            group_sizes=dict(self.sizes.most_common()),
            student_vocabulary=between.student.size,
            teacher_vocabulary=between.teacher.size,
            shared_tokens=len(self.match),
            shared_use=self.shared / max(1, int(self.sums[2].sum())),
            controls=between.controls.named(between.student, between.teacher),
            end_is_paired=end in between.controls.pairs,
        )

    def _altered(self, ids: list[int], row: TranslatedRow, bytes_G: NDArray[np.int64]) -> int:
        """Bytes of groups that the teacher reads otherwise than the student."""
        student, teacher = self.between.student, self.between.teacher
        lead = len(teacher.lead_ids)
        said, told = student.join(ids[len(student.lead_ids) :]), teacher.join(row.teacher_ids[lead:])
        if said.removeprefix(b" ") == told.removeprefix(b" "):
            return 0
        groups = row.alignment
        ends = zip(
            groups.student_first_G.tolist(),
            groups.student_end_G.tolist(),
            groups.teacher_first_G.tolist(),
            groups.teacher_end_G.tolist(),
            bytes_G.tolist(),
            strict=True,
        )
        return sum(
            size
            for i0, i1, j0, j1, size in ends
            if student.join(ids[i0:i1]).removeprefix(b" ") != teacher.join(row.teacher_ids[j0:j1]).removeprefix(b" ")
        )


class _Mass:
    """Where the teacher's probability lies."""

    def __init__(self, model: PreTrainedModel, shared_ids: Tensor) -> None:
        self.model = model.eval()
        self.device = next(model.parameters()).device
        self.head = output_head(model)
        kept = shared_ids[shared_ids < self.head.vocabulary_size]
        self.shared_ids = kept.to(self.device)
        self.sums = np.zeros(3)

    @torch.no_grad()
    def add(self, row: TranslatedRow, part_G: NDArray[np.int64]) -> None:
        """Count the places of one text that predict its tokens."""
        ids = torch.tensor([row.teacher_ids], device=self.device)
        positions = torch.arange(ids.shape[1], device=self.device)[None]
        hidden_mK = last_hidden(self.model, {"input_ids": ids, "position_ids": positions})[0]
        sizes_G = row.alignment.teacher_sizes.numpy()
        tokens_m = np.arange(len(row.teacher_ids))[len(row.teacher_ids) - int(sizes_G.sum()) :]
        part_m = np.repeat(part_G, sizes_G)[tokens_m > 0]
        places_m = torch.from_numpy(tokens_m[tokens_m > 0] - 1).to(self.device)
        shared_m = self._on_shared(hidden_mK[places_m]).double().cpu().numpy()
        one_to_one = part_m == 0
        self.sums += [
            shared_m[one_to_one].sum(),
            (part_m == 1).sum(),
            (part_m == 2).sum() + (1 - shared_m[one_to_one]).sum(),
        ]

    def _on_shared(self, hidden_mK: Tensor) -> Tensor:
        """Probability of the tokens that both vocabularies have, at each place, (m,)."""
        head_UK, bias = self.head.weight_VH, self.head.bias_V
        view = LogitsView(self.head.logit_scale, self.head.softcap)
        found = []
        for rows_nK in hidden_mK.split(max(1, _CHUNK_LOGITS // len(head_UK))):
            raw_nU = torch.nn.functional.linear(rows_nK.to(head_UK.dtype), head_UK, bias)
            found.append(view.logits(raw_nU).softmax(-1)[:, self.shared_ids].sum(-1))
        return torch.cat(found) if found else hidden_mK.new_zeros(0)


def _parts(row: TranslatedRow) -> NDArray[np.int64]:
    """0 for groups of one token each, 1 for merged ones, 2 for those that are not compared, (G,)."""
    groups = row.alignment
    tangled_G = torch.minimum(groups.student_sizes, groups.teacher_sizes) > TANGLED
    part_G = torch.where(groups.one_to_one, 0, 1)
    found: NDArray[np.int64] = part_G.masked_fill(tangled_G | ~row.comparable_G, 2).numpy()
    return found


def _shares(sums: NDArray[np.int64] | NDArray[np.float64]) -> Shares:
    total = max(1e-300, float(sums.sum()))
    return Shares(one_to_one=float(sums[0]) / total, merged=float(sums[1]) / total, none=float(sums[2]) / total)
