"""A teacher of the student's tokenizer under its own chat template: in the data's text, the student's, and in runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lmdistill.data import Collator, Document, RowEncoder, prompt_rows
from lmdistill.doctor import examine
from lmdistill.errors import RecipeError
from lmdistill.models import load_model, load_tokenizer
from lmdistill.pipeline import run_recipe
from lmdistill.recipe import GenerationSpec, ModelSpec, ObjectiveSpec, Recipe, load_recipe
from lmdistill.teachers import LocalTeacher
from lmdistill.teachers.columns import context_columns, unsaid_of
from lmdistill.training.objective import Objective
from lmdistill.training.templates import TemplateCollator
from small import ROOT, small_overrides

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
COLON = (
    "{% for m in messages %}{% if m.role == 'user' %}Question: {{ m.content }}\n{% else %}Answer: {{ m.content }}"
    "<|endoftext|>{% endif %}{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}"
)
QUESTIONS = [
    ("What is the capital of France?", "The capital of France is Paris."),
    ("And of Italy?", "It is Rome, of course: the eternal city."),
    ("Why do rivers run to the sea?", "Because the sea lies lower than the hills from which they come."),
]
RECIPE = ROOT / "recipes" / "forward_kl.yaml"


@pytest.fixture(scope="module")
def folders(tiny_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One tiny model with two chat templates."""
    found = {}
    for name, template in (("student", CHATML), ("teacher", COLON)):
        folder = found[name] = tmp_path_factory.mktemp("templates") / name
        shutil.copytree(tiny_llama_folder, folder)
        tokenizer = load_tokenizer(ModelSpec(model=str(tiny_llama_folder)))
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
    return found


@pytest.fixture(scope="module")
def encoders(folders: dict[str, Path]) -> tuple[RowEncoder, RowEncoder]:
    student, teacher = (RowEncoder(load_tokenizer(ModelSpec(model=str(folder)))) for folder in folders.values())
    return student, teacher


@pytest.fixture(scope="module")
def model(tiny_llama_folder: Path) -> Any:
    return load_model(ModelSpec(model=str(tiny_llama_folder)), dtype=torch.float32, device=torch.device("cpu"))


def logprobs(model: Any, ids: list[int]) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return found


def kl(student_V: Tensor, teacher_V: Tensor) -> float:
    return float((teacher_V.exp() * (teacher_V - student_V)).sum())


def loss_of(model: Any, encoder: RowEncoder, batch: dict[str, Any]) -> float:
    vocabulary = len(encoder.tokenizer)
    spec = ObjectiveSpec.model_validate({"divergence": {"kind": "forward_kl", "weight": 1.0}})
    objective = Objective(spec, teacher=LocalTeacher(model, vocabulary), vocabulary_size=vocabulary, compiled=False)
    return float(objective(model, model, batch, 1.0).loss.detach())


def test_the_data_sets_text_equals_two_texts_compared_by_characters(
    encoders: tuple[RowEncoder, RowEncoder], model: Any
) -> None:
    student, teacher = encoders
    documents = [Document(prompt=q, response=a, origin=f"test:{n}") for n, (q, a) in enumerate(QUESTIONS)]
    documents.append(Document(text="A plain text is the same to both.", origin="test:plain"))
    rows = list(student.encode(documents))
    packed = [rows[:2], rows[2:]]  # two documents in each row
    columns = [
        {
            "input_ids": [i for row in part for i in row.ids_L.tolist()],
            "labels": [
                i if trained and at else -100
                for row in part
                for at, (i, trained) in enumerate(zip(row.ids_L.tolist(), row.trained_L.tolist(), strict=True))
            ],
            "position_ids": [at for row in part for at in range(len(row.ids_L))],
            "row_ids": [row.row_id for row in part],
        }
        for part in packed
    ]
    collate = TemplateCollator({document.id: document for document in documents}, student, teacher)
    found = loss_of(model, student, collate(columns))

    expected, plain = 0.0, rows[-1].ids_L.tolist()
    for question, answer in QUESTIONS:
        mine, theirs = (spans(encoder, question, answer) for encoder in encoders)
        ours, other = (logprobs(model, ids) for ids, _ in (mine, theirs))
        shared = mine[1].keys() & theirs[1].keys()
        assert len(shared) == len(student.tokenizer(answer)["input_ids"]) - 1  # all but the first word's token
        expected += sum(kl(ours[mine[1][span] - 1], other[theirs[1][span] - 1]) for span in shared)
    assert expected > 0.01
    assert found == pytest.approx(expected, rel=1e-4)
    # The same batch under the student's template: nothing is left of a model compared with itself.
    assert loss_of(model, student, Collator()(columns)) == pytest.approx(0.0, abs=1e-5)
    assert plain


def spans(encoder: RowEncoder, question: str, answer: str) -> tuple[list[int], dict[tuple[int, int, int], int]]:
    """A conversation's ids as transformers renders it, and the places of its answer's tokens: (id, characters)."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    text = encoder.tokenizer.apply_chat_template(messages, tokenize=False)
    read = encoder.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    begin = text.rindex(answer)
    places = {
        (token, first - begin, end - begin): place
        for place, (token, (first, end)) in enumerate(zip(read["input_ids"], read["offset_mapping"], strict=True))
        if begin <= first and end <= begin + len(answer)
    }
    return list(read["input_ids"]), places


def test_the_students_text_is_read_after_the_teachers_own_prompt(
    encoders: tuple[RowEncoder, RowEncoder], model: Any
) -> None:
    student, teacher = encoders
    documents = [Document(prompt=q, response=a, origin=f"test:{n}") for n, (q, a) in enumerate(QUESTIONS)]
    rows = prompt_rows(documents, student.tokenizer, GenerationSpec(), teacher=teacher)
    end = student.tokenizer.convert_tokens_to_ids("<|im_end|>")
    unsaid = unsaid_of(student, teacher)
    assert unsaid.first
    assert unsaid.ends == {end}
    answers = [[*row.answer_ids[:-1], 57, 58, end] for row in rows]  # the student's own words
    batch = Collator()(
        [
            {
                "input_ids": [*row.prompt_ids, *answer],
                "labels": [-100] * len(row.prompt_ids) + answer,
                "position_ids": list(range(len(row.prompt_ids) + len(answer))),
                "row_ids": [row.row_id],
            }
            for row, answer in zip(rows, answers, strict=True)
        ]
    )
    lengths, contexts = [len(row.prompt_ids) for row in rows], [row.context_ids for row in rows]
    columns = context_columns(batch, lengths, contexts, unsaid=unsaid)
    expected = 0.0
    for row, answer, (question, _) in zip(rows, answers, QUESTIONS, strict=True):
        asked = teacher.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
        theirs = [*teacher.tokenizer(asked, add_special_tokens=False)["input_ids"], *answer]
        ours, other = logprobs(model, [*row.prompt_ids, *answer]), logprobs(model, theirs)
        for back in range(2, len(answer) + 1):  # from the end, whose marker is the student's own ...
            if back < len(answer):  # ... to the second word: the first would begin with a space there
                expected += kl(ours[-back - 1], other[-back - 1])
    assert expected > 0.01
    assert loss_of(model, student, batch | columns) == pytest.approx(expected, rel=1e-4)


def own_template(folders: dict[str, Path], text: Path, folder: Path, *more: str) -> Recipe:
    overrides = [
        *small_overrides(RECIPE, folders["teacher"], text),
        "student={start: pretrained, model: {model: " + str(folders["student"]) + "}}",
        "teaching.template=teacher",
        "data.truncation=drop",
        "data.max_length=96",
        "evaluation.baselines=[none]",
        "evaluation.prompts=[]",
        f"runs={folder}",
        "name=run",
        *more,
    ]
    return load_recipe(RECIPE, overrides)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "questions.jsonl"
    rows = [{"prompt": f"{n}: {q}", "response": a} for n in range(4) for q, a in QUESTIONS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.recipes
@pytest.mark.parametrize("source", ["dataset", "student"])
def test_a_run_reads_both_templates(
    source: str, folders: dict[str, Path], text_file: Path, questions: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    heard: list[dict[str, Any]] = []
    real = LocalTeacher.speak
    monkeypatch.setattr(LocalTeacher, "speak", lambda self, batch: (heard.append(dict(batch)), real(self, batch))[1])
    more = [f"trajectories.source={source}", f"data.train=[{{path: {questions}}}]"]
    result = run_recipe(own_template(folders, text_file, tmp_path, *more))
    assert result.steps == 2
    assert heard
    tokenizer = load_tokenizer(ModelSpec(model=str(folders["teacher"])))
    for batch in heard:
        mine, theirs = (tokenizer.batch_decode(batch[name]) for name in ("input_ids", "teacher_input_ids"))
        assert all("<|im_start|>user\n" in text and "Question" not in text for text in mine)
        assert all("Question: " in text and "Answer:" in text and "<|im_start|>" not in text for text in theirs)
        assert bool((batch["teacher_places"] >= 0).any())


def test_the_doctor_names_the_field(folders: dict[str, Path], text_file: Path, tmp_path: Path) -> None:
    for more, severity, words in (
        (["teaching.template=student"], "warning", "Set teaching.template: teacher"),
        ([], "ok", "each reads conversations under its own"),
        ([f"teacher.model={folders['student']}"], "note", "teaching.template changes nothing"),
    ):
        findings = examine(own_template(folders, text_file, tmp_path, *more)).findings
        (found,) = [each for each in findings if each.check == "chat template"]
        assert found.severity == severity
        assert words in f"{found.message} {found.fix}"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["student={start: teacher}"], "has the teacher's template already"),
        (["teaching.kind=mixed", "teaching.models={other: {model: m}}"], "one teacher"),
        (["signals.kind=top_k"], "use signals.kind: live"),
        (["trajectories.source=student", "objective.policy.weight=1"], "objective.policy needs the likelihood"),
        (["trajectories.source=teacher"], "writes after the student's prompts"),
        (["trajectories.source=student", "trajectories.teacher_mixing=0.2"], "writes after the student's prompts"),
        (["data.truncation=split"], "set data.truncation: drop or error"),
        (
            ["objective={cross_tokenizer: {kind: uld}, divergence: {weight: 0}, cross_entropy: {weight: 1}}"],
            "across tokenizers a teacher reads its own template anyway",
        ),
    ],
)
def test_where_it_cannot_be_it_is_refused(
    more: list[str], words: str, folders: dict[str, Path], text_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=words):
        own_template(folders, text_file, tmp_path, *more)
