"""What models write: the same prompts and draws for all, and every figure against its definition."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from lmdistill.data import build_dataset, load_documents
from lmdistill.data.prompts import prompt_rows
from lmdistill.doctor import examine
from lmdistill.errors import DataError, MissingExtra
from lmdistill.evaluation import Evaluation, Subject, evaluate
from lmdistill.evaluation.answers import end_tokens, held_out_prompts, write_answers
from lmdistill.evaluation.narrowed import narrowed
from lmdistill.evaluation.results import ModelScores
from lmdistill.evaluation.rouge import RougeL
from lmdistill.models import load_tokenizer
from lmdistill.pipeline import run_recipe
from lmdistill.progress import Progress
from lmdistill.recipe import (
    DataSpec,
    EvaluationSpec,
    GenerationSpec,
    ModelSpec,
    Recipe,
    ResponsesSpec,
    SourceSpec,
    load_recipe,
)
from small import small_overrides

PROMPTS, NEW = 7, 10
RESPONSES = ResponsesSpec(prompts=PROMPTS, prompt_tokens=5, max_new_tokens=NEW, samples=2, references=2, batch_size=3)
SPEC = EvaluationSpec(speed=None, bootstrap_samples=100, max_tokens=300, responses=RESPONSES)


@pytest.fixture(scope="module")
def tokenizer(tiny_llama_folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(ModelSpec(model=str(tiny_llama_folder)))


@pytest.fixture(scope="module")
def models(tiny_llama_folder: Path) -> list[Any]:
    """A teacher, a student and an untrained one. A sixteenth of all tokens end an answer, so that lengths differ."""
    made = [AutoModelForCausalLM.from_pretrained(tiny_llama_folder).eval() for _ in range(3)]
    torch.manual_seed(5)
    for model in made:
        model.config.eos_token_id = model.generation_config.eos_token_id = list(range(0, 49152, 16))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def packed(tokenizer: PreTrainedTokenizerBase, path: Path, limit: int = 20) -> Dataset:
    source = SourceSpec(path=str(path), limit=limit)
    documents, report = load_documents(source, seed=0, on_bad_rows="stop", progress=Progress())
    spec = DataSpec(train=[source], max_length=96)
    return build_dataset(documents, tokenizer, spec, seed=0, report=report, progress=Progress())


@pytest.fixture(scope="module")
def held(tokenizer: PreTrainedTokenizerBase, text_file: Path) -> Dataset:
    return packed(tokenizer, text_file)


def judged(models: Sequence[Any], tokenizer: PreTrainedTokenizerBase, held: Dataset, spec: EvaluationSpec = SPEC):  # type: ignore[no-untyped-def]
    roles: Any = ["teacher", "student", "sft"]
    subjects = [Subject(role, role, model) for role, model in zip(roles, models, strict=False)]
    return evaluate(subjects, tokenizer, {"held": held}, spec, training_counts_V=None, seed=0, progress=Progress())


@pytest.fixture(scope="module")
def found(models: list[Any], tokenizer: PreTrainedTokenizerBase, held: Dataset) -> Evaluation:
    return judged(models, tokenizer, held)


# -- prompts ----------------------------------------------------------------------------------------------------------


def test_plain_texts_give_their_beginnings(tokenizer: PreTrainedTokenizerBase, held: Dataset) -> None:
    rows = held_out_prompts(held, RESPONSES, tokenizer, 256, "held")
    assert len(rows) == PROMPTS
    texts = [tokenizer.decode(row.prompt_ids + row.answer_ids) for row in rows]
    whole = tokenizer.decode([token for row in held for token in row["input_ids"]])
    assert all(text in whole for text in texts)
    assert [len(row.prompt_ids) for row in rows] == [5] * PROMPTS
    assert {len(row.answer_ids) for row in rows} == {NEW}
    assert len(set(texts)) == PROMPTS  # documents of one packed row are told apart


def test_chats_and_prompts_give_their_own(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """The same prompts and answers from the packed data set as `prompt_rows` makes of the documents."""
    rows: list[dict[str, Any]] = [{"prompt": f"What is {n} and {n}?", "response": f"It is {2 * n}."} for n in range(6)]
    first = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day to you."}
    rows += [
        {"messages": [*first, {"role": "user", "content": f"And {n}?"}, {"role": "assistant", "content": f"Yes, {n}."}]}
        for n in range(6)
    ]
    for number, kind in enumerate((rows[:6], rows[6:])):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in kind), encoding="utf-8")
        documents, _ = load_documents(SourceSpec(path=str(path)), seed=0, on_bad_rows="stop", progress=Progress())
        spec = ResponsesSpec(prompts=100, max_new_tokens=6)
        ours = held_out_prompts(packed(tokenizer, path), spec, tokenizer, None, "held")
        theirs = prompt_rows(documents, tokenizer, GenerationSpec(max_new_tokens=6))
        assert len(ours) == 6
        assert {(*row.prompt_ids, -1, *row.answer_ids) for row in ours} == {
            (*row.prompt_ids, -1, *row.answer_ids) for row in theirs
        }


@pytest.mark.parametrize(("spec", "room"), [({"prompt_tokens": 90}, None), ({"max_new_tokens": 30}, 32)])
def test_prompts_that_cannot_be_answered_are_told(
    tokenizer: PreTrainedTokenizerBase, held: Dataset, spec: dict[str, int], room: int | None
) -> None:
    with pytest.raises(DataError, match=r"held-out held: none of 20 rows can be answered.*lower the two"):
        held_out_prompts(held, ResponsesSpec(**spec), tokenizer, room, "held")


def test_an_unknown_text_is_refused_by_name(
    models: list[Any], tokenizer: PreTrainedTokenizerBase, held: Dataset
) -> None:
    spec = SPEC.model_copy(update={"responses": ResponsesSpec(texts=["boolq"])})
    with pytest.raises(DataError, match="no held-out set is called 'boolq'; there are: held"):
        judged(models, tokenizer, held, spec)


def test_greedy_answers_are_asked_for_once() -> None:
    with pytest.raises(ValueError, match="3 greedy answers to one prompt are the same text"):
        ResponsesSpec(temperature=0, samples=3)


def test_the_missing_package_is_told_before_anything_is_scored(
    models: list[Any], tokenizer: PreTrainedTokenizerBase, held: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    monkeypatch.setattr(sys.modules["lmdistill.evaluation.evaluate"], "score_tokens", None)
    with pytest.raises(MissingExtra):
        judged(models, tokenizer, held)


# -- writing ----------------------------------------------------------------------------------------------------------


def write(model: Any, tokenizer: PreTrainedTokenizerBase, held: Dataset, spec: ResponsesSpec = RESPONSES, **kw: Any):  # type: ignore[no-untyped-def]
    rows = held_out_prompts(held, spec, tokenizer, 256, "held")
    ends = end_tokens(tokenizer, [model])
    return write_answers(model, tokenizer, rows, spec, end_ids=ends, **{"samples": 2, "seed": 0, **kw})


def by_prompt(answers: Any) -> list[tuple[int, tuple[int, ...]]]:
    return sorted(zip(answers.prompt_A.tolist(), map(tuple, answers.ids), strict=True))


def test_answers_hang_on_draws_and_not_on_batches(
    models: list[Any], tokenizer: PreTrainedTokenizerBase, held: Dataset
) -> None:
    answers = write(models[0], tokenizer, held)
    assert Counter(answers.prompt_A.tolist()) == dict.fromkeys(range(PROMPTS), 2)
    assert {True, False} == set(answers.finished)
    ends = end_tokens(tokenizer, [models[0]])
    for ids, finished in zip(answers.ids, answers.finished, strict=True):
        assert (ids[-1] in ends) == finished
        assert finished or len(ids) == NEW
    whole = RESPONSES.model_copy(update={"batch_size": 14})
    assert by_prompt(write(models[0], tokenizer, held, whole)) == by_prompt(answers)
    assert by_prompt(write(models[0], tokenizer, held, seed=2**32)) != by_prompt(answers)
    assert by_prompt(write(models[1], tokenizer, held)) != by_prompt(answers)


# -- figures ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_definition(models: list[Any], tokenizer: PreTrainedTokenizerBase, held: Dataset) -> dict[str, dict[str, float]]:
    """Every figure of each model from its answers, one text at a time, with all logits in float64."""
    rows = held_out_prompts(held, RESPONSES, tokenizer, 256, "held")
    answers = [write(model, tokenizer, held) for model in models]
    references = write(models[0], tokenizer, held, seed=2**32)
    rouge, figures = RougeL(), {}
    for role, model, written in zip(("teacher", "student", "sft"), models, answers, strict=True):
        near = [
            rouge.score(text, references.of(prompt))
            for text, prompt in zip(written.texts, written.prompt_A, strict=True)
        ]
        data = [
            rouge.score(text, [tokenizer.decode(rows[prompt].answer_ids, skip_special_tokens=True)])
            for text, prompt in zip(written.texts, written.prompt_A, strict=True)
        ]
        own = token_by_token(models[0], model, rows, written)
        on_teacher = token_by_token(models[0], model, rows, answers[0])
        grams = [[tuple(ids[i : i + 4]) for i in range(len(ids) - 3)] for ids in written.bare_ids]
        figures[role] = {
            "rouge_teacher": np.mean(near),
            "rouge_reference": np.mean(data),
            "own_nll": np.mean(own["q"]),
            "likelihood": np.mean(own["p"]),
            "coverage": np.mean(on_teacher["q"]),
            "forward_kl_own": np.mean(own["pq"]),
            "reverse_kl_own": np.mean(own["qp"]),
            "forward_kl_teacher": np.mean(on_teacher["pq"]),
            "length": np.mean([len(ids) for ids in written.bare_ids]),
            "unfinished": 1 - np.mean(written.finished),
            "repetition": np.mean([1 - len(set(own)) / len(own) for own in grams if own]),
        }
    return figures


@torch.no_grad()
def token_by_token(teacher: Any, model: Any, rows: Any, written: Any) -> dict[str, list[float]]:
    """At each token of some answers: minus log q and log p of the token, KL(p‖q) and KL(q‖p)."""
    columns: dict[str, list[float]] = {"q": [], "p": [], "pq": [], "qp": []}
    for prompt, ids in zip(written.prompt_A, written.ids, strict=True):
        asked = rows[prompt].prompt_ids
        whole = torch.tensor([asked + ids])
        p, q = (m(whole).logits[0].double().log_softmax(-1)[len(asked) - 1 : -1] for m in (teacher, model))
        for step, token in enumerate(ids):
            columns["q"].append(-float(q[step, token]))
            columns["p"].append(-float(p[step, token]))
            columns["pq"].append(float((p[step].exp() * (p[step] - q[step])).sum()))
            columns["qp"].append(float((q[step].exp() * (q[step] - p[step])).sum()))
    return columns


def of(found: Evaluation, role: Any) -> Any:
    model = found.scores(role)
    assert model is not None
    return model.responses["held"]


def test_every_figure_is_its_definition(found: Evaluation, by_definition: dict[str, dict[str, float]]) -> None:
    for role, figures in by_definition.items():
        scores = of(found, role)
        for name, expected in figures.items():
            interval = getattr(scores, name)
            if role == "teacher" and "_kl_" in name:
                assert interval is None
                continue
            assert interval.value == pytest.approx(expected, rel=1e-4, abs=1e-6), (role, name)
            assert interval.low <= interval.value <= interval.high
    assert by_definition["student"]["rouge_teacher"] > 0
    assert by_definition["student"]["length"] != by_definition["sft"]["length"]


def test_counts_and_curves(found: Evaluation) -> None:
    student, teacher = of(found, "student"), of(found, "teacher")
    assert (student.prompts, student.answers) == (PROMPTS, 2 * PROMPTS)
    assert student.excess_length == of(found, "sft").excess_length
    assert student.excess_length in [point.length for point in student.exposure]
    last = next(point for point in student.exposure if point.length == student.excess_length)
    assert student.excess_error == last.excess
    assert student.exposure[0].length == 1
    assert student.exposure[0].answers == 2 * PROMPTS
    assert teacher.exposure == []
    assert set(student.distinct) == {"1", "2", "4"}
    assert 0 < student.distinct["1"] <= student.distinct["4"] <= 1
    assert sum(bucket.answers for bucket in student.by_reference_length) == 2 * PROMPTS
    assert [len(generation.answers) for generation in found.responses] == [3] * RESPONSES.shown
    assert all(generation.text == "held" and generation.reference for generation in found.responses)


def test_differences_are_paired(found: Evaluation) -> None:
    student, sft = of(found, "student"), of(found, "sft")
    by_metric = {c.metric: c for c in found.comparisons if c.other == "sft" and hasattr(student, c.metric)}
    assert len(by_metric) == 12
    for metric, comparison in by_metric.items():
        left, right = getattr(student, metric), getattr(sft, metric)
        difference = comparison.difference
        assert difference.value == pytest.approx(left.value - right.value)
        assert difference.low <= difference.value <= difference.high
        aimless = ("excess_error", "own_nll", "length", "unfinished", "repetition")
        assert (comparison.better == "neither") == (metric in aimless)
    coverage = by_metric["coverage"].difference
    assert coverage.high - coverage.low < (sft.coverage.high - sft.coverage.low) + (
        student.coverage.high - student.coverage.low
    )


def test_a_student_that_is_its_teacher(models: list[Any], tokenizer: PreTrainedTokenizerBase, held: Dataset) -> None:
    """The same weights and draws give the same answers, so everything is the ceiling and no divergence is left."""
    found = judged([models[0], models[0]], tokenizer, held)
    student, teacher = of(found, "student"), of(found, "teacher")
    for name in ("forward_kl_own", "forward_kl_teacher", "reverse_kl_own"):
        assert getattr(student, name).value == getattr(student, name).high == 0.0
    for name in ("rouge_teacher", "rouge_reference", "coverage", "likelihood", "own_nll", "length", "distinct"):
        assert getattr(student, name) == getattr(teacher, name)
    assert student.exposure == []
    assert student.excess_error is None
    assert all(generation.answers["teacher"] == generation.answers["student"] for generation in found.responses)


def test_without_a_teacher_there_is_still_the_data(
    models: list[Any], tokenizer: PreTrainedTokenizerBase, held: Dataset
) -> None:
    subjects = [Subject("student", "one", models[1]), Subject("sft", "other", models[2])]
    found = evaluate(subjects, tokenizer, {"held": held}, SPEC, training_counts_V=None, seed=0, progress=Progress())
    scores = of(found, "student")
    assert scores.rouge_teacher is scores.coverage is scores.likelihood is None
    assert scores.rouge_reference.value >= 0
    assert {c.metric for c in found.comparisons} >= {"rouge_reference", "own_nll", "length"}


# -- a student with a smaller vocabulary ------------------------------------------------------------------------------


def test_a_teacher_is_narrowed_to_the_students_ids(models: list[Any]) -> None:
    teacher, kept = models[0], torch.arange(100, 40000, 7)
    ids = torch.tensor([[3, 5, 8, 2]])
    with torch.no_grad():
        whole = teacher(kept[ids]).logits
        with narrowed(teacher, kept):
            narrow = teacher(ids).logits
            assert teacher.config.vocab_size == len(kept)
        torch.testing.assert_close(narrow, whole[..., kept])
        with pytest.raises(KeyError), narrowed(teacher, kept):
            raise KeyError
        torch.testing.assert_close(teacher(kept[ids]).logits, whole, rtol=0, atol=0)
    assert teacher.config.vocab_size == 49152
    assert teacher.get_output_embeddings().weight is teacher.get_input_embeddings().weight


# -- files ------------------------------------------------------------------------------------------------------------


def test_results_survive_their_file_and_older_files_are_read(found: Evaluation) -> None:
    text = found.model_dump_json()
    assert Evaluation.model_validate_json(text).model_dump_json() == text
    old = json.loads(text)
    del old["responses"]
    for model in old["models"]:
        del model["responses"]
    for generation in old["generations"]:
        del generation["text"], generation["reference"]
    old["comparisons"] = [c for c in old["comparisons"] if c["metric"] in ("agreement", "forward_kl")]
    read = Evaluation.model_validate(old)
    assert read.responses == []
    assert all(isinstance(model, ModelScores) and model.responses == {} for model in read.models)


def small_recipe(tiny: Path, text: Path, folder: Path, *overrides: str) -> Recipe:
    responses = "{prompts: 6, prompt_tokens: 4, max_new_tokens: 8, batch_size: 6}"
    recipe = Path(__file__).parents[2] / "recipes" / "forward_kl.yaml"
    words = [*small_overrides(recipe, tiny, text), f"runs={folder}", "name=run", f"evaluation.responses={responses}"]
    return load_recipe(recipe, [*words, *overrides])


def test_a_recipe_asks_for_answers(tiny_llama_folder: Path, text_file: Path, tmp_path: Path) -> None:
    result = run_recipe(small_recipe(tiny_llama_folder, text_file, tmp_path, "student.vocabulary={minimum_count: 1}"))
    found = Evaluation.model_validate_json((result.folder / "evaluation.json").read_text(encoding="utf-8"))
    for role in ("teacher", "student", "none", "sft"):
        model = found.scores(role)  # type: ignore[arg-type]
        assert model is not None
        assert model.responses["held"].prompts == 6
    assert "Its own answers to 6 prompts of held" in result.summary
    assert '<section id="answers">' in result.report.read_text(encoding="utf-8")


def test_doctor_looks_before_training(
    tiny_llama_folder: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(tiny_llama_folder, text_file, tmp_path, "evaluation.responses.texts=[other]")
    findings = {finding.check: finding for finding in examine(recipe).findings}
    assert findings["responses"].severity == "error"
    assert "no held-out set is called 'other'; there are: held" in findings["responses"].message
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    recipe = small_recipe(tiny_llama_folder, text_file, tmp_path)
    findings = {finding.check: finding for finding in examine(recipe).findings}
    assert "lmdistill[eval]" in findings["responses"].message


@pytest.mark.slow
def test_a_real_teacher_tells_a_cut_student_from_itself(smollm2_folder: Path, tmp_path: Path) -> None:
    """SmolLM2 answers chats and ends them; with a third of its layers gone it does worse by every measure."""
    tokenizer = load_tokenizer(ModelSpec(model=str(smollm2_folder)))
    teacher, student = (AutoModelForCausalLM.from_pretrained(smollm2_folder).eval() for _ in range(2))
    student.model.layers = torch.nn.ModuleList([*student.model.layers[:10], *student.model.layers[20:]])
    for number, layer in enumerate(student.model.layers):
        layer.self_attn.layer_idx = number
    student.config.num_hidden_layers = len(student.model.layers)
    student.config.layer_types = None
    countries = ("France", "Italy", "Spain", "Germany", "Japan", "China", "Russia", "Egypt")
    questions = [f"What is the capital of {name}?" for name in countries]
    path = tmp_path / "chats.jsonl"
    rows = [{"prompt": question, "response": "It is a city."} for question in questions * 2]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    responses = ResponsesSpec(prompts=20, max_new_tokens=48, temperature=0.7)
    found = judged(
        [teacher, student], tokenizer, packed(tokenizer, path), SPEC.model_copy(update={"responses": responses})
    )
    best, worse = of(found, "teacher"), of(found, "student")
    assert best.prompts == 8  # duplicates are read once
    assert best.unfinished.value < 0.7
    assert worse.rouge_teacher.value < best.rouge_teacher.value
    assert worse.coverage.value > best.coverage.value
    assert worse.likelihood.value > best.likelihood.value
    assert worse.forward_kl_teacher.value > 0.1
    assert any("capital of" in generation.answers["teacher"] for generation in found.responses)
