"""`lmdistill label` and `lmdistill run` from a store: the real commands, killed at random instants."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmdistill.errors import EXIT_DONE, EXIT_FAILED, EXIT_INPUT, RecipeError
from lmdistill.recipe import load_recipe
from small import small_overrides

RECIPES = Path(__file__).parent.parent / "recipes"
RECIPE = RECIPES / "offline_top_k.yaml"


def command(name: str, tiny: Path, text: Path, folder: Path, *more: str) -> list[str]:
    overrides = [
        *small_overrides(RECIPE, tiny, text),
        f"runs={folder}",
        "name=run",
        "signals.shard_rows=2",
        "signals.batch_tokens=64",
        "signals.calibration_tokens=256",
        *more,
    ]
    options = [part for override in overrides for part in ("--set", override)]
    return [sys.executable, "-m", "lmdistill", name, str(RECIPE), "--json", *options]


def run(line: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(line, capture_output=True, text=True, timeout=600, check=False)


def bytes_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_label_then_run_trains_from_the_store(tiny_llama_folder: Path, text_file: Path, tmp_path: Path) -> None:
    labelled = run(command("label", tiny_llama_folder, text_file, tmp_path))
    assert labelled.returncode == EXIT_DONE, labelled.stderr
    store = tmp_path / "run" / "signals"
    assert json.loads(labelled.stdout)["store"] == str(store)
    before = bytes_of(store)
    done = run(command("run", tiny_llama_folder, text_file, tmp_path))
    assert done.returncode == EXIT_DONE, done.stderr + done.stdout
    assert bytes_of(store) == before
    stages = {
        stage["name"]: stage for stage in json.loads((tmp_path / "run" / "accounting.json").read_text())["stages"]
    }
    assert stages["label-distil"]["skipped"]
    assert stages["label-distil"]["tokens"] > 0
    stat = run([sys.executable, "-m", "lmdistill", "signals", "stat", str(store), "--json"])
    assert json.loads(stat.stdout)["rows"] > 5
    shown = run([sys.executable, "-m", "lmdistill", "signals", "head", str(store)])
    assert "positions" in shown.stdout
    model = ["--teacher", str(tiny_llama_folder)]
    checked = run([sys.executable, "-m", "lmdistill", "signals", "verify", str(store), *model, "--json"])
    assert checked.returncode == EXIT_DONE, checked.stderr
    assert json.loads(checked.stdout)["fidelity"]["KL(exact || stored), nats"] < 0.05
    damaged = store / "shard-00001.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-3])
    found = run([sys.executable, "-m", "lmdistill", "signals", "verify", str(store), "--json"])
    assert found.returncode == EXIT_FAILED
    assert "shard-00001.parquet (rows 2 to 3)" in json.loads(found.stdout)["problems"][0]
    again = run(command("run", tiny_llama_folder, text_file, tmp_path))
    assert again.returncode == EXIT_DONE, again.stderr
    assert bytes_of(store) == before


def shards_of(folder: Path) -> int:
    return len(list((folder / "run" / "signals").glob("shard-*.parquet")))


def killed_while_labelling(tiny: Path, text: Path, folder: Path, times: int, total: int) -> list[int]:
    """Kill labelling so many times, spread over its shards and, every third time, soon after its start.

    Instants are random; that they are counted from shards keeps them spread whatever else the machine does. Returns how
    many shards there were each time; shorter than `times` where a labelling ended before its instant.
    """
    found = []
    for number in range(times):
        draw = random.Random(number)
        child = subprocess.Popen(
            command("label", tiny, text, folder), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert child.stderr is not None
        for line in child.stderr:
            if json.loads(line).get("stage") == "label-distil":
                break
        there = shards_of(folder)
        share = 0 if number % 3 == 0 else draw.randint(0, 2 * (total - there) // (times - number))
        goal = min(there + share, total - 1)
        while child.poll() is None and shards_of(folder) < goal:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.05 if share else 2.0))
        if child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
            found.append(shards_of(folder))
        child.wait()
        child.stderr.close()
    return found


def finished_equals_uninterrupted(tiny: Path, text: Path, folder: Path, times: int) -> list[int]:
    """Label once undisturbed, and once killed so many times; returns the shards that there were at each kill."""
    whole, cut = folder / "whole", folder / "cut"
    assert run(command("label", tiny, text, whole)).returncode == EXIT_DONE
    found = killed_while_labelling(tiny, text, cut, times, shards_of(whole))
    done = run(command("label", tiny, text, cut))
    assert done.returncode == EXIT_DONE, done.stderr + done.stdout
    assert bytes_of(cut / "run" / "signals") == bytes_of(whole / "run" / "signals")
    return found


@pytest.mark.recipes
def test_killed_labelling_ends_at_the_same_bytes(tiny_llama_folder: Path, text_file: Path, tmp_path: Path) -> None:
    assert finished_equals_uninterrupted(tiny_llama_folder, text_file, tmp_path, 2)


@pytest.mark.slow
def test_labelling_killed_50_times_ends_at_the_same_bytes(tiny_llama_folder: Path, tmp_path: Path) -> None:
    from conftest import SENTENCES

    rows = [{"text": f"{SENTENCES[n % 6]} {SENTENCES[n % 5]} Item {n}."} for n in range(1000)]
    text = tmp_path / "many.jsonl"
    text.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = finished_equals_uninterrupted(tiny_llama_folder, text, tmp_path, 50)
    assert len(found) >= 45
    assert len(set(found)) >= 25  # at all stages of the work


def test_label_without_signals_and_another_teacher_are_wrong_input(
    tiny_llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    live = run(command("label", tiny_llama_folder, text_file, tmp_path, "signals.kind=live"))
    assert live.returncode == EXIT_INPUT
    assert "signals.kind" in json.loads(live.stdout)["error"]["message"]
    assert run(command("label", tiny_llama_folder, text_file, tmp_path)).returncode == EXIT_DONE
    other = run(command("run", tiny_llama_folder, text_file, tmp_path, "signals.k=5"))
    assert other.returncode == EXIT_INPUT  # the doctor says so before a student is built
    assert "another signal" in json.loads(other.stdout)["error"]["message"]
    assert not (tmp_path / "run" / "student-initial").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["signals.kind=sampled", "objective.divergence.kind=jsd"], "can estimate forward_kl only, not jsd"),
        (["signals.kind=token", "objective.divergence.kind=jsd"], "forward_kl and reverse_kl only"),
        (["objective.divergence.temperature=2"], "signals.temperature = 1.0"),
        (["objective.hidden_cosine.weight=1"], "signals.kind: live"),
        (["signals.kind=head_expectation"], "student.freeze_head"),
        (["student.vocabulary={minimum_count: 1}"], "student.vocabulary"),
        (["signals.resolution=0"], "resolution"),
    ],
)
def test_what_a_store_cannot_give_is_refused_by_the_recipe(overrides: list[str], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load_recipe(RECIPE, overrides)
