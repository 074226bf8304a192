"""The coverage report against counting by hand, and what the doctor is to refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cross_helpers import make, translator
from transformers import LlamaConfig, LlamaForCausalLM

from lmdistill.doctor import examine
from lmdistill.errors import DataError, LmdistillError
from lmdistill.models import save_model
from lmdistill.recipe import resolve_recipe
from lmdistill.teachers.coverage import MINIMUM_COVERAGE, Coverage, Shares, coverage
from lmdistill.teachers.token_bytes import same_tokens

TEXTS = ["The quick brown fox jumps over the lazy dog.", "Be kind and brief, naïve 漢!", "", "Yes."]


def measure(student: str, teacher: str, texts: list[str] = TEXTS, **options: object) -> Coverage:
    return coverage(make(student), make(teacher), texts, translator=translator(student, teacher), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("student", "teacher"), [("chatml", "gemma"), ("gemma", "chatml"), ("llama2", "llama3")])
def test_shares_are_counted(student: str, teacher: str) -> None:
    found = measure(student, teacher)
    between = translator(student, teacher)
    one = merged = positions = teacher_positions = 0
    for text in filter(None, TEXTS):
        ids = [*between.student.lead_ids, *between.student.encode(text).ids_L.tolist()]
        row = between.row(ids)
        a = row.alignment
        for g in range(len(a)):
            size = int(row.student_units[a.student_first_G[g] : a.student_end_G[g]].sum())
            sides = int(a.student_sizes[g]), int(a.teacher_sizes[g])
            one += size if sides == (1, 1) else 0
            merged += size if sides != (1, 1) and min(sides) <= 2 else 0
            positions += sides[0] if sides == (1, 1) else 0
            teacher_positions += sides[1]
    total = sum(len(text.encode()) for text in TEXTS)
    assert found.bytes == total
    assert found.texts == 3
    assert found.of_bytes.one_to_one == pytest.approx(one / total)
    assert found.of_bytes.merged == pytest.approx(merged / total)
    assert found.of_student_tokens.one_to_one == pytest.approx(positions / found.student_tokens)
    assert found.teacher_tokens == teacher_positions
    for shares in (found.of_bytes, found.of_student_tokens, found.of_teacher_tokens):
        assert shares.one_to_one + shares.merged + shares.none == pytest.approx(1)
    counted = sum(int(n) * int(size.split(":")[0]) for size, n in found.group_sizes.items())
    assert counted == found.student_tokens
    assert found.end_is_paired
    assert found.problem() is None


def test_a_tokenizer_with_itself_is_covered_wholly() -> None:
    found = measure("chatml", "chatml")
    assert found.of_bytes == found.of_student_tokens == Shares(one_to_one=1.0, merged=0.0, none=0.0)
    assert found.shared_use == 1
    assert found.altered_bytes == 0
    assert found.problem() is None


def test_a_teacher_that_cannot_say_the_text_is_refused_with_both_numbers() -> None:
    found = measure("chatml", "unigram", ["漢字かな交じり文 quick"])
    assert found.of_bytes.none > 0.7
    problem = found.problem()
    assert problem is not None
    assert f"only {found.of_bytes.aligned:.1%} of the bytes" in problem
    assert f"at least {MINIMUM_COVERAGE:.0%}" in problem
    assert "seqkd" in problem
    assert found.problem(minimum=0.01) is None


def test_what_the_teacher_alters_is_said() -> None:
    found = measure("chatml", "lower", ["ABC abc"])
    assert found.altered_bytes == pytest.approx(3 / 7)
    assert found.of_bytes.none == 0


@torch.no_grad()
def test_where_the_teachers_probability_lies() -> None:
    torch.manual_seed(0)
    between = translator("chatml", "gemma")
    config = LlamaConfig(
        vocab_size=between.teacher.size,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    model = LlamaForCausalLM(config).double()
    found = measure("chatml", "gemma", teacher_model=model).of_probability
    shared = same_tokens(between.student, between.teacher, between.controls.pairs).teacher_ids_C
    one = merged = places = 0.0
    for text in filter(None, TEXTS):
        row = between.row(between.student.encode(text).ids_L.tolist())
        probabilities = model(torch.tensor([row.teacher_ids])).logits[0].softmax(-1)
        a = row.alignment
        for g in range(len(a)):
            for j in range(int(a.teacher_first_G[g]), int(a.teacher_end_G[g])):
                places += 1
                if (int(a.student_sizes[g]), int(a.teacher_sizes[g])) == (1, 1):
                    one += float(probabilities[j - 1, shared].sum())
                elif min(int(a.student_sizes[g]), int(a.teacher_sizes[g])) <= 2:
                    merged += 1
    assert found is not None
    assert found.one_to_one == pytest.approx(one / places)
    assert found.merged == pytest.approx(merged / places)
    assert found.one_to_one + found.merged + found.none == pytest.approx(1)


def test_the_summary_shows_all_of_it() -> None:
    found = measure("chatml", "gemma")
    text = found.summary()
    for shown in (
        f"{found.of_bytes.one_to_one:.1%}",
        "teacher's tokens",
        "groups (student:teacher): 1:1",
        "<|im_end|> is",
    ):
        assert shown in text
    assert Coverage.model_validate_json(found.model_dump_json()) == found


def test_nothing_to_measure() -> None:
    with pytest.raises(DataError, match="no text to measure"):
        measure("chatml", "gemma", [""])


def test_a_pair_of_tokenizers_with_too_little_in_common_is_refused(tmp_path: Path) -> None:
    folders = {}
    for name, kind in (("teacher", "unigram"), ("student", "chatml")):
        tokenizer = make(kind)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=128,
        )
        folders[name] = tmp_path / name
        save_model(LlamaForCausalLM(config), tokenizer, folders[name])
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"text": "漢字かな交じり文 quick"}) + "\n", encoding="utf-8")
    across = {"divergence": {"weight": 0.0}, "cross_tokenizer": {"kind": "alm"}}
    student = {"start": "pretrained", "model": {"model": str(folders["student"])}}
    values = {
        "teacher": {"model": str(folders["teacher"])},
        "student": student,
        "data": {"train": [{"path": str(text)}], "max_length": 64},
    }
    diagnosis = examine(resolve_recipe({**values, "objective": across}))
    said = {finding.check: finding for finding in diagnosis.findings}["coverage"]
    assert said.severity == "error"
    assert "at least 50%" in said.message
    with pytest.raises(LmdistillError, match="coverage: only"):
        diagnosis.raise_for_errors()
    allowed = {**across, "cross_tokenizer": {"kind": "alm", "minimum_coverage": 0.01}}
    diagnosis = examine(resolve_recipe({**values, "objective": allowed}))
    assert next(finding.severity for finding in diagnosis.findings if finding.check == "coverage") == "ok"
