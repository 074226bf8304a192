"""`lmdistill evaluate` with models behind an API: a real server on this machine, and in `make test-slow` llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from echo_server import EchoServer, prompt_of
from http_server import serving
from lmdistill.arguments import evaluation_spec, named_model
from lmdistill.cli import app
from lmdistill.errors import RecipeError
from lmdistill.evaluation import Evaluation
from lmdistill.evaluation.suites.choices import letter_prompt
from lmdistill.evaluation.suites.items import NLI_LABELS, Item
from lmdistill.io import read_json
from lmdistill.progress import Progress
from lmdistill.recipe import ApiSpec, ModelSpec
from lmdistill.stages.evaluate import evaluate_models


class OneOption(EchoServer):
    """Always answers with option B, with yes, or with the number 2, as the question wants it."""

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt, said = prompt_of(body), super().answer(body)
        text = "B" if "letter" in prompt else "yes"
        if "step by step" in prompt:
            text = "Answer: yes" if "one of:" in prompt else "The answer is 2."
        choice = said["choices"][0]
        choice |= {"text": text} if "prompt" in body else {"message": {"role": "assistant", "content": text}}
        return said


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMDISTILL_API_KEY", "key-for-the-echo-server")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Questions with options, of which the second is right in half of them; sums; instructions; yes or no."""
    rows: dict[str, list[dict[str, Any]]] = {
        "options": [
            {"question": f"Which is word {n}?", "options": ["one", "two", "three"], "answer": "AB"[n % 2]}
            for n in range(6)
        ],
        "sums": [{"question": f"What is {n} and 1?", "answer": n + 1} for n in range(3)],
        "orders": [{"instruction": f"Say yes {n} times.", "output": "yes"} for n in range(3)],
        "truths": [
            {"passage": f"The new railway station near the river has number {n}.", "question": "is it a station",
             "answer": True}
            for n in range(4)
        ],
    }  # fmt: skip
    found = {}
    for name, each in rows.items():
        found[name] = tmp_path / f"{name}.jsonl"
        found[name].write_text("".join(json.dumps(row) + "\n" for row in each), encoding="utf-8")
    return found


def words_for(files: dict[str, Path], url: str, *more: str) -> list[str]:
    changes = [f"suites.paths.{name}={path}" for name, path in files.items()]
    changes += ["suites.tasks.sets=[options]", "suites.reasoning.sets=[sums]", "suites.instruction.sets=[orders]"]
    changes += ["suites.instruction.seeds=2", "suites.robustness.sets=[truths]", "suites.robustness.unseen=[]"]
    changes += ["bootstrap_samples=100", "suites.robustness.max_new_tokens=8"]
    sets = [word for change in changes for word in ("--set", change)]
    return ["evaluate", "api:echo", "--base-url", url, "--quiet", *sets, *more]


def test_suites_of_text_run_on_a_model_behind_an_api(files: dict[str, Path], tmp_path: Path) -> None:
    out, ledger = tmp_path / "out.json", tmp_path / "ledger.sqlite"
    with serving(OneOption()) as server:
        words = words_for(files, server.url, "--suite", "tasks,instruction,reasoning,robustness")
        words += ["--output", str(out), "--ledger", str(ledger)]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
        calls = server.calls
        assert CliRunner().invoke(app, words).exit_code == 0
        assert server.calls == calls  # every answer was in the ledger
        assert {call.path.rsplit("/", 1)[1] for call in server.seen} == {"completions"}
        assert all("chat" in call.path for call in server.seen)
    found = Evaluation.model_validate(read_json(out))
    assert [model.label for model in found.models] == ["echo"]
    suites = {result.suite: result.sets[0].models[0].measures for result in found.suites}
    assert suites["tasks"]["acc"].interval.value == 0.5
    assert suites["tasks"]["unanswered"].interval.value == 0
    assert suites["instruction"]["rouge_l"].interval.value == 1
    assert suites["reasoning"]["pass@1"].interval.value == pytest.approx(1 / 3)
    assert suites["robustness"]["accuracy"].interval.value == 1
    assert suites["robustness"]["asr"].interval.value == 0


def test_beside_a_model_with_weights_all_write(files: dict[str, Path], tiny_llama_folder: Path, tmp_path: Path) -> None:
    spec = evaluation_spec(
        ["bootstrap_samples=100", f"suites.paths.options={files['options']}", "suites.tasks.sets=[options]"], ["tasks"]
    )
    with serving(OneOption()) as server:
        found = evaluate_models(
            [ModelSpec(model=str(tiny_llama_folder))],
            teacher=ApiSpec(model="echo", base_url=server.url, ledger=str(tmp_path / "l.sqlite")),
            data={},
            spec=spec,
            max_length=64,
            seed=0,
            device="cpu",
            progress=Progress(),
        )
    assert [(model.role, model.efficiency) for model in found.models] == [("teacher", None), ("student", None)]
    (options,) = found.suites[0].sets
    teacher, student = options.models
    assert teacher.measures["acc"].interval.value == 0.5
    assert set(student.measures) == {"acc", "unanswered"}
    assert len(options.comparisons) == 2
    assert any("gives no likelihoods" in note for note in options.notes)
    assert any("server's template" in note for note in options.notes)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--suite", "calibration"], "needs the probabilities of given options"),
        (["--suite", "fidelity"], "needs the distributions of weights"),
        (["--suite", "efficiency"], "needs weights on this machine"),
        (["--suite", "tasks", "--set", "suites.tasks.hub=true"], "lm-eval for likelihoods"),
        (["--data", "text=OPTIONS", "--text", "question"], "held-out text"),
    ],
)
def test_what_needs_weights_is_refused_before_anything_is_asked(
    more: list[str], why: str, files: dict[str, Path]
) -> None:
    with serving(OneOption()) as server:
        words = [word.replace("OPTIONS", str(files["options"])) for word in more]
        result = CliRunner().invoke(app, words_for(files, server.url, *words, "--suite", "tasks"))
        assert server.calls == 0
    assert result.exit_code == 2
    assert why in " ".join(result.output.split())
    assert "echo is behind an API" in " ".join(result.output.split())


def test_an_address_is_wanted_and_must_be_safe() -> None:
    assert named_model("org/name", None) == ModelSpec(model="org/name")
    with pytest.raises(RecipeError, match="where is that server"):
        named_model("api:gpt", None)
    with pytest.raises(RecipeError, match="plain http"):
        named_model("api:gpt", "http://example.org/v1")


def test_prompts_for_letters_and_for_classes() -> None:
    options = letter_prompt(Item("1", "What is red?", options=("a car", "blood"), gold=1))
    assert "A. a car\nB. blood" in options
    assert options.endswith("Reply with the letter of the right answer, and nothing else.\nAnswer:")
    labels = letter_prompt(Item("2", "It rains.", passage="It is wet.", options=NLI_LABELS, gold=0))
    assert f"one of these words: {', '.join(NLI_LABELS)}" in labels
    assert "The statement is" not in labels
    truth = letter_prompt(Item("3", "is it wet", passage="It rains.", options=("no", "yes"), gold=1))
    assert truth.startswith("It rains.\nQuestion: is it wet?\nReply with one of these words: no, yes")


@pytest.mark.slow
def test_llamacpp_answers_the_suites_of_text(files: dict[str, Path], smollm2_gguf: Path, tmp_path: Path) -> None:
    spec = evaluation_spec(
        [
            *(f"suites.paths.{name}={path}" for name, path in files.items()), "suites.tasks.sets=[options]",
            "suites.reasoning.sets=[sums]", "suites.reasoning.max_new_tokens=48", "bootstrap_samples=100",
        ],
        ["tasks", "reasoning"],
    )  # fmt: skip
    found = evaluate_models(
        [ApiSpec(model="smollm2-135m", serve="llamacpp", ledger=str(tmp_path / "l.sqlite"))],
        teacher=None,
        data={},
        spec=spec,
        max_length=64,
        seed=0,
        device="cpu",
        progress=Progress(),
    )
    tasks, reasoning = (result.sets[0].models[0].measures for result in found.suites)
    assert tasks["unanswered"].interval.value < 1
    assert reasoning["tokens"].interval.value > 1
