"""The real pair, both ways: SmolLM2 (49 k, byte-level) and Gemma 3 270M (262 k, BPE over ▁)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from cross_helpers import check, groups
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from lmdistill.data import Collator
from lmdistill.models import last_hidden, load_model, load_tokenizer, output_head
from lmdistill.objectives.chunk_likelihood import own_logprobs
from lmdistill.recipe import ModelSpec
from lmdistill.teachers.coverage import coverage
from lmdistill.teachers.cross_objective import CrossTokenizerObjective
from lmdistill.teachers.cross_tokenizer import CrossTokenizerTeacher
from lmdistill.teachers.translate import Translator
from lmdistill.teachers.translated_batch import translate_batch

pytestmark = pytest.mark.slow
TEXTS = [
    "The library opens at nine and closes when the sun goes down. In 1969 two people walked on the moon.",
    "Rivers carry water from the mountains down to the sea, and bread is made from flour, water and salt.",
]


@pytest.fixture(scope="module")
def specs(smollm2_gguf: Path, gemma_gguf: Path) -> dict[str, ModelSpec]:
    return {
        "SmolLM2": ModelSpec(model=str(smollm2_gguf), gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf"),
        "Gemma": ModelSpec(model=str(gemma_gguf), gguf_file="gemma.gguf"),
    }


@pytest.fixture(scope="module")
def translators(specs: dict[str, ModelSpec]) -> dict[tuple[str, str], Translator]:
    tokenizers = {name: load_tokenizer(spec) for name, spec in specs.items()}
    return {(a, b): Translator(tokenizers[a], tokenizers[b]) for a, b in (("SmolLM2", "Gemma"), ("Gemma", "SmolLM2"))}


@pytest.fixture(scope="module")
def models(specs: dict[str, ModelSpec]) -> dict[str, PreTrainedModel]:
    device = torch.device("cpu")
    return {name: load_model(spec, dtype=torch.float32, device=device) for name, spec in specs.items()}


BOTH_WAYS = pytest.mark.parametrize("pair", [("SmolLM2", "Gemma"), ("Gemma", "SmolLM2")], ids=" from ".join)


@BOTH_WAYS
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_text_and_any_ids(
    pair: tuple[str, str], data: st.DataObject, translators: dict[tuple[str, str], Translator]
) -> None:
    between = translators[pair]
    text = data.draw(st.text(max_size=80)).encode("utf-8", "ignore").decode().replace("▁", "")
    ids = [*between.student.lead_ids, *between.student.encode(text).ids_L.tolist()]
    row = between.row(ids)
    check(between, ids, row)
    # SmolLM2 has no token for the byte 0xF1, among others, and says nothing in its place.
    if between.student.join(ids[len(between.student.lead_ids) :]) == text.encode():
        assert row.teacher_ids == [*between.teacher.lead_ids, *between.teacher.encode(text).ids_L.tolist()]
    written = data.draw(st.lists(st.integers(0, between.student.size - 1), max_size=20))
    check(between, written, between.row(written))


@BOTH_WAYS
def test_ends_go_with_ends_and_beginnings_are_left_out(
    pair: tuple[str, str], translators: dict[tuple[str, str], Translator]
) -> None:
    between = translators[pair]
    ids = [*between.student.lead_ids, *between.student.encode(TEXTS[0]).ids_L.tolist()]
    ids.append(int(between.student.tokenizer.eos_token_id))
    row = between.row(ids)
    assert groups(row)[-1] == (len(ids) - 1, len(ids), len(row.teacher_ids) - 1, len(row.teacher_ids))
    assert row.teacher_ids[-1] == between.teacher.tokenizer.eos_token_id
    assert groups(row)[0][0] == len(between.student.lead_ids)
    assert groups(row)[0][2] == len(between.teacher.lead_ids)
    assert bool(row.alignment.one_to_one.double().mean() > 0.8)


@BOTH_WAYS
def test_the_pair_is_covered(pair: tuple[str, str], translators: dict[tuple[str, str], Translator]) -> None:
    between = translators[pair]
    found = coverage(between.student.tokenizer, between.teacher.tokenizer, TEXTS, translator=between)
    assert found.of_bytes.aligned > 0.99
    assert found.of_bytes.one_to_one > 0.8
    assert found.shared_tokens > 40_000
    assert found.end_is_paired


def batch_for(between: Translator) -> dict[str, Any]:
    rows = []
    for text in TEXTS:
        ids = [*between.student.lead_ids, *between.student.encode(text).ids_L.tolist()]
        labels = [-100, *ids[1:]]
        rows.append({"input_ids": ids, "labels": labels, "position_ids": list(range(len(ids))), "row_ids": ["x"]})
    return Collator()(rows)


@BOTH_WAYS
@torch.no_grad()
def test_the_teacher_knows_the_text(
    pair: tuple[str, str], translators: dict[tuple[str, str], Translator], models: dict[str, PreTrainedModel]
) -> None:
    """Bits per byte of English: about 1. A teacher fed with the student's ids finds its text far less likely."""
    between, model = translators[pair], models[pair[1]]
    batch = batch_for(between)
    text = translate_batch(between, batch)
    head = output_head(model, between.teacher.size)

    def bits(ids: torch.Tensor, positions: torch.Tensor) -> float:
        hidden = last_hidden(model, {"input_ids": ids, "position_ids": positions}).flatten(0, 1)
        logprobs = own_logprobs(hidden, head.weight_VH, ids.flatten(), text.trained(), softcap=head.softcap)
        return -float(logprobs.sum()) / math.log(2) / sum(len(one.encode()) for one in TEXTS)

    right = bits(text.inputs["input_ids"], text.inputs["position_ids"])
    assert 0.3 < right < 1.5
    wrong = torch.zeros_like(text.inputs["input_ids"])
    width = min(wrong.shape[1], batch["input_ids"].shape[1])
    wrong[:, :width] = batch["input_ids"][:, :width].clamp_max(between.teacher.size - 1)
    assert bits(wrong, text.inputs["position_ids"]) > 2 * right


@BOTH_WAYS
@pytest.mark.parametrize("kind", ["uld", "gold", "alm", "dskd"])
def test_every_objective_takes_a_step(
    pair: tuple[str, str],
    kind: Any,
    translators: dict[tuple[str, str], Translator],
    models: dict[str, PreTrainedModel],
) -> None:
    between, student, teacher = translators[pair], models[pair[0]], models[pair[1]]
    batch = batch_for(between)
    torch.manual_seed(0)
    speaker = CrossTokenizerTeacher(
        teacher, between, CrossTokenizerObjective(kind), student_width=student.config.hidden_size
    )
    student.requires_grad_(True)
    try:
        hidden = last_hidden(student, {name: batch[name] for name in ("input_ids", "position_ids")})
        head = output_head(student, between.student.size)
        loss, token_loss_BL = speaker.aligned_loss(hidden, head, batch)
        loss.backward()
        assert torch.isfinite(loss)
        assert float(loss.detach()) > 0
        assert int((token_loss_BL != 0).sum()) > 30
        gradients = [parameter.grad for parameter in student.parameters() if parameter.grad is not None]
        assert gradients
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
        assert not any(parameter.grad is not None for parameter in teacher.parameters())
    finally:
        student.zero_grad()
        student.requires_grad_(False)
