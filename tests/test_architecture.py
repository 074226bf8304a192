"""What STYLE and the design promise about the code as a whole, kept by tests."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "lmdistill"
FILES = sorted(SOURCE.rglob("*.py"))

LAYERS = [
    ["errors"],
    ["io", "packages", "yamltext"],
    ["recipe"],
    ["accounting", "progress", "run_folder"],
    ["models"],
    ["signals", "objectives", "data"],
    ["students", "teachers"],
    ["trajectories", "generation"],
    ["training", "evaluation", "report"],
    ["tasks"],
    ["doctor", "methods", "template"],
    ["export"],
    ["stages"],
    ["console", "pipeline", "display", "arguments"],
    ["planning"],
    ["study"],
    ["studio"],
    ["cli", "__main__"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# recipe asks methods for their fragments when it is called: methods are plain values and import errors alone.
ALLOWED_UP = {("recipe", "methods"), ("methods", "recipe")}


def module(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Everything of lmdistill and outside that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_only_downwards(path: Path) -> None:
    if path.name == "__init__.py" and path.parent == SOURCE:
        return
    own = module(path)
    assert own in LEVEL, f"{own} has no layer; give it one in this test and in docs/design/architecture.md"
    for name in imports(path):
        if name.startswith("lmdistill."):
            other = name.split(".")[1]
            if other != own and (own, other) not in ALLOWED_UP:
                assert LEVEL[other] <= LEVEL[own], f"{own} imports {other}, which lies above it"


def test_the_loss_engine_depends_on_torch_alone() -> None:
    import sys

    for path in [*(SOURCE / "objectives").rglob("*.py"), SOURCE / "signals" / "types.py"]:
        for name in imports(path):
            top = name.split(".")[0]
            if top == "lmdistill":
                assert name.split(".")[1] in ("objectives", "signals", "errors"), f"{path.name} imports {name}"
            else:
                assert top == "torch" or top in sys.stdlib_module_names, f"{path.name} imports {name}"


def test_files_are_written_by_one_module_and_no_code_is_read() -> None:
    forbidden = {
        r"\bimport pickle|from pickle": "pickle",
        r"torch\.(load|save)\(": "torch.load or torch.save",
        r"(?<![\w.])(eval|exec)\(": "eval or exec",
        r"trust_remote_code\"?\s*[:=]\s*True": "remote code",
        r"yaml\.load\((?!.*Loader=_)": "unsafe YAML",
        r"shell=True": "a shell",
        r"open\((?!os\.devnull)[^)]*[\"'](w|a|x)b?\+?[\"']|\.write_(text|bytes)\(": "writing outside io.py",
    }
    for path in FILES:
        if path.name == "io.py":
            continue
        text = path.read_text(encoding="utf-8")
        for pattern, what in forbidden.items():
            found = re.search(pattern, text)
            assert found is None, f"{path.relative_to(SOURCE)}: {what}: {found.group(0) if found else ''}"


def test_io_costs_no_torch() -> None:
    assert not {name for name in imports(SOURCE / "io.py") if name.split(".")[0] in ("torch", "transformers")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_everything_public_is_documented(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{path.name} has no docstring"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path.name}: {node.name} has no docstring"
