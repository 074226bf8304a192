"""Pairs of tokenizers of different kinds, and what a translation between any two of them must hold to."""

from __future__ import annotations

import json
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lmdistill.teachers.translate import TranslatedRow, Translator

# The small tokenizers live beside the tests of the data layer, which pytest puts on the path only when it runs them.
sys.path.append(str(Path(__file__).parents[1] / "data"))
import tokenizers_for_tests as family

PLAIN = ["chatml", "llama2", "llama2 legacy", "llama3", "gemma"]
"""Tokenizers that leave a text as it is: byte-level; a space before texts, after control tokens too, and without."""


@lru_cache
def make(kind: str) -> PreTrainedTokenizerFast:
    """One of the families, or `lower` (NFKC and lower case before BPE over ▁), `nfc` (byte-level behind NFC, as Qwen),
    `unigram` (no bytes to fall back on, so that what it does not know is unknown)."""
    if kind in PLAIN:
        return family.make_tokenizer(kind)
    if kind == "unigram":
        return _unigram()
    state = json.loads(family.make_tokenizer("gemma" if kind == "lower" else "chatml").backend_tokenizer.to_str())
    tokenizer = Tokenizer.from_str(json.dumps(state))
    if kind == "lower":
        steps = [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(steps)
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **family.NAMED["gemma"])
    assert kind == "nfc"
    tokenizer.normalizer = normalizers.NFC()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **family.NAMED["chatml"])


def _unigram() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(family.CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


@lru_cache
def translator(student: str, teacher: str) -> Translator:
    """Between two of them."""
    return Translator(make(student), make(teacher))


def groups(row: TranslatedRow) -> list[tuple[int, int, int, int]]:
    """Ends of the groups: the student's first and end, the teacher's first and end."""
    a = row.alignment
    ends = (a.student_first_G, a.student_end_G, a.teacher_first_G, a.teacher_end_G)
    return [tuple(found) for found in zip(*(side.tolist() for side in ends), strict=True)]  # type: ignore[misc]


def check(between: Translator, ids: list[int], row: TranslatedRow) -> None:
    """Groups cover both sides, cover equal bytes, cannot be split, and where comparable say the same bytes."""
    lead = len(between.student.lead_ids) if ids[: len(between.student.lead_ids)] == between.student.lead_ids else 0
    before = len(between.teacher.lead_ids)
    assert row.teacher_ids[:before] == between.teacher.lead_ids
    assert len(row.student_units) == len(ids)
    assert len(row.teacher_units) == len(row.teacher_ids)
    assert row.student_units.sum() == row.teacher_units.sum()
    found = groups(row)
    if not found:
        assert row.student_units.sum() == 0 or len(row.teacher_ids) == before
        return
    i, j = lead, before
    ends = [np.cumsum(units) for units in (row.student_units, row.teacher_units)]
    for number, (i0, i1, j0, j1) in enumerate(found):
        assert (i0, j0) == (i, j), "a token is in no group"
        i, j = i1, j1
        assert row.student_units[i0:i1].sum() == row.teacher_units[j0:j1].sum() > 0
        last = number == len(found) - 1
        inside = [
            set(side[first : end - 1].tolist()) for side, first, end in zip(ends, (i0, j0), (i1, j1), strict=True)
        ]
        begun = 0 if i0 == 0 else int(ends[0][i0 - 1])
        assert inside[0] & inside[1] <= ({begun, int(ends[0][i1 - 1])} if last else {begun}), (
            "a smaller group was there"
        )
        if bool(row.comparable_G[number]):
            # A space that covers nothing was put before the text by the tokenizer.
            own, theirs = between.student.pieces, between.teacher.pieces
            said = [ids[i] for i in range(i0, i1) if row.student_units[i] or own[ids[i]] != b" "]
            told = [t for j, t in enumerate(row.teacher_ids[j0:j1], j0) if row.teacher_units[j] or theirs[t] != b" "]
            assert_says_the_same(between, said, told)
    assert (i, j) == (len(ids), len(row.teacher_ids))


def assert_says_the_same(between: Translator, ids: list[int], teacher_ids: list[int]) -> None:
    """The same bytes but for a space that a tokenizer puts before a text, or a pair of control tokens."""
    if len(ids) == 1 and between.controls.pairs.get(ids[0]) == teacher_ids[-1]:
        return
    said, told = between.student.join(ids), between.teacher.join(teacher_ids)
    if between.teacher.tokenizer in (make("lower"), make("nfc"), make("unigram")):
        return  # it changes texts: only where they come from can be checked
    assert said in (told, b" " + told) or told == b" " + said
