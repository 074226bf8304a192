"""Scores against full-logits definitions, intervals against their coverage, operations against a counter."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lmdistill.accounting import forward_flops
from lmdistill.data import DataReport, build_dataset, load_documents
from lmdistill.evaluation.fidelity import Subject, quick_scores, score_tokens
from lmdistill.evaluation.results import Interval
from lmdistill.evaluation.statistics import resampling, verdict
from lmdistill.evaluation.summarise import Tally, compare, text_scores, token_bytes
from lmdistill.models import load_tokenizer
from lmdistill.progress import Progress
from lmdistill.recipe import DataSpec, ModelSpec, SourceSpec


@pytest.fixture(scope="module")
def prepared(tiny_llama_folder: Path, text_file: Path):  # type: ignore[no-untyped-def]
    tokenizer = load_tokenizer(ModelSpec(model=str(tiny_llama_folder)))
    source = SourceSpec(path=str(text_file), limit=12)
    documents, report = load_documents(source, seed=0, on_bad_rows="stop", progress=Progress())
    spec = DataSpec(train=[source], max_length=96)
    dataset = build_dataset(documents, tokenizer, spec, seed=0, report=report, progress=Progress())
    assert isinstance(report, DataReport)
    teacher = AutoModelForCausalLM.from_pretrained(tiny_llama_folder).eval()
    student = AutoModelForCausalLM.from_pretrained(tiny_llama_folder).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return tokenizer, dataset, teacher, student


def score(prepared, first, second):  # type: ignore[no-untyped-def]
    tokenizer, dataset, _, _ = prepared
    subjects = [Subject("teacher", "t", first), Subject("student", "s", second)]
    return score_tokens(subjects, dataset, vocabulary_size=len(tokenizer), max_tokens=10**6, batch_size=3)


def test_every_number_is_that_of_the_full_logits_of_each_document_alone(prepared) -> None:  # type: ignore[no-untyped-def]
    _, dataset, teacher, student = prepared
    _, found = score(prepared, teacher, student)
    expected: list[tuple[float, float, float, bool, bool, float]] = []
    with torch.no_grad():
        for row in dataset:
            positions = row["position_ids"]
            starts = [i for i, p in enumerate(positions) if p == 0] + [len(positions)]
            for start, end in itertools.pairwise(starts):
                ids = torch.tensor([row["input_ids"][start:end]])
                log_s = student(ids).logits.double().log_softmax(-1)[0]
                log_t = teacher(ids).logits.double().log_softmax(-1)[0]
                for place in range(end - start - 1):
                    label = row["labels"][start + place + 1]
                    if label == -100:
                        continue
                    s, t = log_s[place], log_t[place]
                    expected.append((
                        -float(s[label]), float((t.exp() * (t - s)).sum()), float((s.exp() * (s - t)).sum()),
                        bool(s.argmax() == t.argmax()), bool(s.argmax() == label), float(s.max().exp()),
                    ))  # fmt: skip
    columns = list(zip(*expected, strict=True))
    names = ("nll", "forward_kl", "reverse_kl", "agrees", "correct", "confidence")
    for name, column in zip(names, columns, strict=True):
        np.testing.assert_allclose(
            found.array(name), np.asarray(column, dtype=float), rtol=1e-3, atol=1e-5, err_msg=name
        )


def test_a_model_agrees_with_itself_wholly(prepared) -> None:  # type: ignore[no-untyped-def]
    _, found = score(prepared, prepared[2], prepared[2])
    assert all(found.agrees)
    assert max(found.forward_kl) == 0.0


def test_summaries_add_up(prepared) -> None:  # type: ignore[no-untyped-def]
    tokenizer, dataset, teacher, student = prepared
    of_teacher, of_student = score(prepared, teacher, student)
    draws = resampling(len(dataset), 200, 0.95, 0)
    tally = Tally(of_student, draws, 10)
    counts = np.full(len(tokenizer), 5)
    summary = text_scores(tally, token_bytes(tokenizer), counts)
    nll = of_student.array("nll")
    assert summary.perplexity.value == pytest.approx(np.exp(nll.mean()))
    assert summary.bits_per_byte.value == pytest.approx(nll.sum() / np.log(2) / summary.bytes)
    assert summary.perplexity.low <= summary.perplexity.value <= summary.perplexity.high
    assert [band.label for band in summary.by_frequency] == ["1-9"]
    assert sum(found.tokens for found in summary.calibration) == summary.tokens == len(nll)
    gap = sum(found.tokens * abs(found.confidence - found.accuracy) for found in summary.calibration)
    assert summary.calibration_error.value == pytest.approx(gap / summary.tokens)
    same = compare(tally, Tally(of_student, draws, 10), "sft", "held")
    assert {found.better for found in same} == {"undecided"}
    assert all(found.difference.value == 0 for found in same)
    against_teacher = compare(tally, Tally(of_teacher, draws, 10), "teacher", "held")
    assert {found.metric for found in against_teacher} == {"log_perplexity", "calibration_error"}


def test_bytes_of_tokens_are_those_of_their_text(prepared) -> None:  # type: ignore[no-untyped-def]
    tokenizer = prepared[0]
    sizes = token_bytes(tokenizer)
    for text in ("plain words", "Ünïcödé — 漢字 😀", "  spaces\n\ttabs"):
        assert sizes[tokenizer(text)["input_ids"]].sum() == len(text.encode())
    assert sizes[tokenizer.eos_token_id] == 0


def test_scores_in_training_leave_the_model_as_it_was(prepared) -> None:  # type: ignore[no-untyped-def]
    tokenizer, dataset, teacher, student = prepared
    student.train()
    found = quick_scores(
        student, teacher, dataset, tokenizer=tokenizer, kept_ids=None, max_tokens=10**6, dtype=torch.float32
    )
    assert student.training
    student.eval()
    assert found["perplexity"] == pytest.approx(
        np.exp(score(prepared, teacher, student)[1].array("nll").mean()), rel=1e-5
    )
    assert set(found) == {"perplexity", "agreement", "forward_kl"}


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    random, covered = np.random.default_rng(0), 0
    for trial in range(200):
        counts = random.integers(20, 60, 40).astype(float)
        level = random.normal(2.0, 0.5, 40)  # each sequence has a level of its own
        sums = counts * level
        draws = resampling(40, 400, 0.95, trial)
        interval = draws.interval(draws.ratio(sums, counts))
        covered += interval.low <= 2.0 <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


def test_a_verdict_needs_an_interval_apart_from_zero() -> None:
    assert verdict(Interval(value=-1, low=-2, high=-0.5), lower_is_better=True) == "student"
    assert verdict(Interval(value=-1, low=-2, high=-0.5), lower_is_better=False) == "other"
    assert verdict(Interval(value=-1, low=-2, high=0.5), lower_is_better=True) == "undecided"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_operations_are_those_that_torch_counts(family: str) -> None:
    if family == "llama":
        config = LlamaConfig(
            vocab_size=500, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, tie_word_embeddings=True, attn_implementation="eager",
        )  # fmt: skip
        model = LlamaForCausalLM(config)
    else:
        model = GPT2LMHeadModel(GPT2Config(vocab_size=500, n_embd=64, n_layer=3, n_head=4, attn_implementation="eager"))
    ids = torch.zeros(2, 32, dtype=torch.long)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(ids)
    # eager attention multiplies the whole square, of which a causal model needs half: count it so here
    ours = forward_flops(model, 64, 2 * 32)
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.02)
