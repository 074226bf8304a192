"""The real command, really stopped: by a signal, by kill -9, by a full disk, by bad input. Nothing good is lost."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmdistill.errors import EXIT_DONE, EXIT_FAILED, EXIT_INPUT, EXIT_INTERRUPTED
from small import small_overrides

RECIPE = Path(__file__).parent.parent / "recipes" / "forward_kl.yaml"
STEPS = 12


class Command:
    """`lmdistill run` of a small recipe in a process of its own."""

    def __init__(self, tiny: Path, text: Path, folder: Path) -> None:
        self.folder = folder
        self.overrides = [
            *small_overrides(RECIPE, tiny, text),
            f"runs={folder}",
            "name=run",
            f"training.max_steps={STEPS}",
            "training.save_steps=4",
            "training.logging_steps=1",
            "evaluation.baselines=[none]",
            "evaluation.speed=null",
        ]

    def line(self, *more: str) -> list[str]:
        options = [part for override in (*self.overrides, *more) for part in ("--set", override)]
        return [sys.executable, "-m", "lmdistill", "run", str(RECIPE), "--json", *options]

    def run(self, *more: str, before: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.line(*more), capture_output=True, text=True, timeout=120, check=False, preexec_fn=before
        )

    @contextmanager
    def started(self, *more: str) -> Iterator[subprocess.Popen[str]]:
        child = subprocess.Popen(self.line(*more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            yield child
        finally:
            child.kill()
            child.communicate()

    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "run" / "student" / "model.safetensors")


def until(child: subprocess.Popen[str], wanted: Callable[[dict[str, object]], bool]) -> None:
    """Read the command's events until one is wanted. Fails where the command ends before."""
    assert child.stderr is not None
    lines = []
    for line in child.stderr:
        lines.append(line)
        if line.startswith("{") and wanted(json.loads(line)):
            return
    pytest.fail("the command ended before it came that far:\n" + "".join(lines[-20:]))


def told(done: subprocess.CompletedProcess[str]) -> str:
    """The message of a failed command, after seeing that it is one and no traceback."""
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    assert answer["ok"] is False
    return str(answer["error"]["message"])


@pytest.fixture(scope="module")
def uninterrupted(
    tiny_llama_folder: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, torch.Tensor]:
    """The weights of a run that nobody stopped."""
    command = Command(tiny_llama_folder, text_file, tmp_path_factory.mktemp("whole"))
    done = command.run()
    assert done.returncode == EXIT_DONE, done.stderr
    return command.weights()


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def training(event: dict[str, object]) -> bool:
    return event.get("event") == "progress" and str(event.get("task")).startswith("train ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_with_75_and_the_same_command_ends_with_the_same_weights(
    number: signal.Signals,
    tiny_llama_folder: Path,
    text_file: Path,
    tmp_path: Path,
    uninterrupted: dict[str, torch.Tensor],
) -> None:
    command = Command(tiny_llama_folder, text_file, tmp_path)
    with command.started() as child:
        until(child, training)
        child.send_signal(number)
        out, _ = child.communicate(timeout=60)
        assert child.returncode == EXIT_INTERRUPTED
        assert "run the same command again" in json.loads(out.splitlines()[-1])["error"]["message"]
    again = command.run()
    assert again.returncode == EXIT_DONE, again.stderr
    assert "resumes from checkpoint" in again.stderr
    same(command.weights(), uninterrupted)


def killed_runs_end_the_same(
    command: Command, seeds: range, uninterrupted: dict[str, torch.Tensor], longest: float
) -> None:
    for seed in seeds:
        with command.started() as child:
            try:
                child.wait(timeout=random.Random(seed).uniform(2.0, longest))
            except subprocess.TimeoutExpired:
                os.kill(child.pid, signal.SIGKILL)
    done = command.run()
    assert done.returncode == EXIT_DONE, done.stderr
    same(command.weights(), uninterrupted)


@pytest.mark.recipes
def test_kills_at_random_instants_cost_nothing_but_time(
    tiny_llama_folder: Path, text_file: Path, tmp_path: Path, uninterrupted: dict[str, torch.Tensor]
) -> None:
    killed_runs_end_the_same(Command(tiny_llama_folder, text_file, tmp_path), range(2), uninterrupted, 10.0)


@pytest.mark.slow
def test_many_kills_at_random_instants_cost_nothing_but_time(
    tiny_llama_folder: Path, text_file: Path, tmp_path: Path, uninterrupted: dict[str, torch.Tensor]
) -> None:
    killed_runs_end_the_same(Command(tiny_llama_folder, text_file, tmp_path), range(100, 125), uninterrupted, 15.0)


def test_a_folder_in_use_is_refused_and_left_alone(tiny_llama_folder: Path, text_file: Path, tmp_path: Path) -> None:
    command = Command(tiny_llama_folder, text_file, tmp_path)
    with command.started("training.max_steps=100000") as child:
        until(child, training)
        second = command.run()
        assert second.returncode == EXIT_INPUT
        message = told(second)
        assert f"in use by process {child.pid}" in message
        assert "another name" in message
        assert child.poll() is None


def test_a_full_disk_is_one_message_and_the_run_goes_on_when_there_is_room(
    tiny_llama_folder: Path, text_file: Path, tmp_path: Path, uninterrupted: dict[str, torch.Tensor]
) -> None:
    command = Command(tiny_llama_folder, text_file, tmp_path)

    def no_room() -> None:  # no file may grow beyond this: the weights do not fit, everything before them does
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    done = command.run(before=no_room)
    assert done.returncode == EXIT_FAILED
    message = told(done)
    assert "the disk is full" in message or "could not be written" in message
    assert "free" in message
    assert not (tmp_path / "run" / "student").exists()
    again = command.run()
    assert again.returncode == EXIT_DONE, again.stderr
    same(command.weights(), uninterrupted)


def test_a_bad_row_stops_the_run_with_its_line_or_is_counted(
    tiny_llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    lines = text_file.read_text().splitlines()
    bad.write_text("\n".join([*lines[:40], '{"text": "cut', *lines[40:]]) + "\n")
    command = Command(tiny_llama_folder, bad, tmp_path)
    done = command.run()
    assert done.returncode == EXIT_INPUT
    message = told(done)
    assert "bad.jsonl:41:" in message
    assert "on_bad_rows" in message
    skipped = command.run("data.on_bad_rows=skip")
    assert skipped.returncode == EXIT_DONE, skipped.stderr
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    assert next(iter(data["train"].values()))["bad"] == 1


@pytest.mark.parametrize(
    ("content", "override", "words"),
    [
        ("", "seed=0", ["nothing to read"]),
        ('{"text": ""}\n', "seed=0", ["nothing to read"]),
        ('{"prompt": "a"}\n', "seed=0", ["response"]),
        ('{"text": "' + "many words " * 200 + '"}\n', "data.truncation=error", ["data.max_length", "64"]),
    ],
    ids=["empty file", "empty rows", "no response", "too long"],
)
def test_data_that_cannot_be_trained_on_are_refused(
    content: str, override: str, words: list[str], tiny_llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(content)
    command = Command(tiny_llama_folder, text_file, tmp_path)
    done = command.run(f"data.train=[{{path: {file}}}]", override)
    assert done.returncode == EXIT_INPUT
    message = told(done)
    assert all(word in message for word in words), message
    assert not (tmp_path / "run" / "student-initial").exists()


def test_a_model_that_is_not_finite_is_refused_before_anything_is_built(
    tiny_llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in tiny_llama_folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    state = load_file(broken / "model.safetensors")
    state["model.norm.weight"][3] = float("nan")
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    command = Command(broken, text_file, tmp_path)
    refused = command.run()
    assert refused.returncode == EXIT_INPUT
    assert "NaN" in told(refused)
    assert not (tmp_path / "run" / "student-initial").exists()


def test_numbers_that_are_not_finite_stop_before_the_step(
    tiny_llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    command = Command(tiny_llama_folder, text_file, tmp_path)
    done = command.run("training.learning_rate=1e30", "training.max_grad_norm=0", "training.warmup_steps=0")
    assert done.returncode == EXIT_FAILED
    message = told(done)
    assert "step 2" in message
    assert "the step was not taken" in message
    assert not (tmp_path / "run" / "student").exists()


def test_a_traceback_is_shown_to_who_asks_for_it(tiny_llama_folder: Path, text_file: Path, tmp_path: Path) -> None:
    command = Command(tiny_llama_folder, tmp_path / "missing.jsonl", tmp_path)
    plain = command.run()
    assert plain.returncode == EXIT_INPUT
    assert "missing.jsonl" in told(plain)
    debug = subprocess.run([*command.line(), "--debug"], capture_output=True, text=True, timeout=120, check=False)
    assert debug.returncode == EXIT_INPUT
    assert "Traceback" in debug.stderr
