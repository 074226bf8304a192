"""The reference pages are what the code says, and their links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from lmdistill.methods import METHODS
from lmdistill.recipe import Recipe

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def make_docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "tools" / "make_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_pages_are_what_the_code_says(make_docs: ModuleType) -> None:
    assert list(make_docs.stale()) == [], "run make docs"


def test_a_stale_missing_or_left_over_page_is_found(make_docs: ModuleType, tmp_path: Path) -> None:
    for path, text in make_docs.pages().items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    assert list(make_docs.stale(tmp_path)) == []
    (tmp_path / "recipe.md").write_text("old")
    (tmp_path / "methods" / "taid.md").unlink()
    (tmp_path / "methods" / "gone.md").write_text("gone")
    assert list(make_docs.stale(tmp_path)) == ["recipe.md", "methods/taid.md", "methods/gone.md"]


def test_every_field_command_and_method_has_its_place(make_docs: ModuleType) -> None:
    pages = make_docs.pages()
    for name in Recipe.model_fields:
        assert f"| `{name}` |" in pages["recipe.md"]
    for place in ("student.depth", "data.train.N.fields", "objective.divergence", "stages.N", "evaluation.speed"):
        assert f"## `{place}`" in pages["recipe.md"]
    for command in ("run", "doctor", "evaluate", "methods", "new", "report", "version"):
        assert f"## `lmdistill {command}`" in pages["cli.md"]
    for method in METHODS.values():
        assert method.paper.link in pages["methods/README.md"]
        assert method.formula in pages[f"methods/{method.name}.md"]


def test_links_inside_the_pages_lead_somewhere(make_docs: ModuleType) -> None:
    for path, text in make_docs.pages().items():
        headings = {re.sub(r"[^\w-]", "", line.lstrip("# ").lower().replace(" ", "-")) for line in text.splitlines()}
        for link in re.findall(r"\]\(([^)]+)\)", text):
            if link.startswith("#"):
                assert link[1:] in headings, f"{path}: {link}"
            elif not link.startswith("https://"):
                assert (ROOT / "docs" / path).parent.joinpath(link).is_file(), f"{path}: {link}"
