"""What the README and the guides tell a reader to type is typed here: code is executed, commands are run."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from click.exceptions import UsageError

from lmdistill import cli
from small import small_overrides

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
GENERATED = {ROOT / "docs" / "cli.md"}  # made from the command line itself; its usage lines are no examples


def python_blocks() -> list[tuple[str, str]]:
    """Every fenced block of Python, named by its page and place."""
    return [
        (f"{page.relative_to(ROOT)}:{text[: match.start()].count(chr(10)) + 1}", match.group(1))
        for page in PAGES
        for text in [page.read_text(encoding="utf-8")]
        for match in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    ]


def commands(program: str) -> list[tuple[str, list[str]]]:
    """Every line of an indented or fenced block that begins with this program, without its comment."""
    found = []
    for page in PAGES:
        if page in GENERATED:
            continue
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
            match = re.match(rf"^(?:    |\$ )?((?:\S*/bin/)?{program} .*)$", line)
            if match and (line.startswith((" ", "$")) or inside_fence(page, number)):
                found.append((f"{page.relative_to(ROOT)}:{number}", shlex.split(match.group(1), comments=True)))
    return found


def inside_fence(page: Path, number: int) -> bool:
    before = page.read_text(encoding="utf-8").splitlines()[: number - 1]
    return sum(line.startswith("```") for line in before) % 2 == 1


def test_there_are_examples_to_try() -> None:
    assert python_blocks()
    assert len(commands("lmdistill")) >= 6
    assert len(commands("make")) >= 2


@pytest.mark.parametrize("code", [pytest.param(code, id=place) for place, code in python_blocks()])
def test_python_in_the_pages_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "example", "exec"), {"__name__": "example"})


@pytest.mark.parametrize("words", [pytest.param(words, id=place) for place, words in commands("lmdistill")])
def test_every_command_in_the_pages_is_one_that_the_program_takes(words: list[str]) -> None:
    command = typer.main.get_command(cli.app)
    try:
        context = command.make_context("lmdistill", words[1:])
        name, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])  # type: ignore[attr-defined]
        assert found is not None
        found.make_context(name, rest)
    except UsageError as error:
        pytest.fail(f"lmdistill {' '.join(words[1:])}: {error.format_message()}")


@pytest.mark.parametrize("words", [pytest.param(words, id=place) for place, words in commands("make")])
def test_every_make_target_in_the_pages_exists(words: list[str]) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = [word for word in words[1:] if "=" not in word and not word.startswith("&")]
    assert asked
    assert asked[0] in targets


@pytest.mark.parametrize("words", [pytest.param(words, id=place) for place, words in commands("python")])
def test_every_script_in_the_pages_exists_and_takes_its_options(words: list[str]) -> None:
    script = next((word for word in words[1:] if word.endswith(".py")), None)
    if script is None:
        pytest.skip("no script")
    text = (ROOT / script).read_text(encoding="utf-8")
    for option in [word for word in words if word.startswith("--")]:
        assert f'"{option}"' in text, option


@pytest.mark.recipes
def test_a_newcomer_who_types_what_the_readme_says_gets_through(
    tiny_llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = readme[readme.index("## Use it") :]
    lines = [line.strip() for line in block.splitlines() if line.startswith("    lmdistill ")]
    assert [shlex.split(line, comments=True)[1] for line in lines][:4] == ["methods", "new", "doctor", "run"]
    shutil.copy(text_file, tmp_path / "texts.jsonl")
    for line in lines:
        words = shlex.split(line, comments=True)[1:]
        if words[0] in ("run", "label"):  # as it is written, but on a tiny teacher and for two steps
            overrides = small_overrides(tmp_path / words[1], tiny_llama_folder, tmp_path / "texts.jsonl")
            words += [part for override in overrides for part in ("--set", override)]
        if words[0] == "report":
            shutil.copytree(tmp_path / "runs" / "mine", tmp_path / "runs" / "other")
        if words[0] == "evaluate":
            words = [word.replace("path/to/student", "runs/mine/student") for word in words]
            words = [word.replace("path/to/teacher", str(tiny_llama_folder)) for word in words]
        done = subprocess.run(
            [sys.executable, "-m", "lmdistill", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        assert done.stdout.strip()
