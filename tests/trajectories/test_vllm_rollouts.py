"""A real vLLM for processors writes with weights that change (`make test-vllm` makes its environment)."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lmdistill.errors import ServerLost
from lmdistill.models import load_model, load_tokenizer
from lmdistill.recipe import GenerationSpec, ModelSpec
from lmdistill.trajectories.served import Patience, ServerWriter
from lmdistill.trajectories.types import Trajectory

VLLM = Path(__file__).parents[2] / ".venv-vllm" / "bin" / "python"
QUESTIONS = ["What is the capital of France?", "Hi", "Who wrote Hamlet?", "2+2=?"]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not VLLM.is_file(), reason="needs .venv-vllm (make test-vllm)")]


class Serving:
    """The writer, its server's process, and the student."""

    def __init__(self, student_folder: Path, folder: Path) -> None:
        spec = ModelSpec(model=str(student_folder))
        self.tokenizer = load_tokenizer(spec)
        self.student: Any = load_model(spec, dtype=torch.float32, device=torch.device("cpu"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.writer = self.make_writer(folder, GenerationSpec(max_new_tokens=24, temperature=0.0))
        with pytest.raises(ServerLost) as lost:  # nothing is there yet: the folder is written, the command is told
            self.writer.refresh(self.student, 0)
        told = shlex.split(str(lost.value).rpartition(": ")[2])
        assert told[:3] == ["VLLM_SERVER_DEV_MODE=1", "vllm", "serve"]
        # The command `vllm` asks for the metadata of a package of that name, which the build for processors has not.
        command = [str(VLLM), "-m", "vllm.entrypoints.openai.api_server", "--model", *told[3:]]
        command += ["--max-model-len", "512", "--max-num-seqs", "8"]
        settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        settings |= {"OMP_NUM_THREADS": "2", "VLLM_SERVER_DEV_MODE": "1"}
        self.log = folder.parent / "log.txt"
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **settings}, start_new_session=True
            )

    def make_writer(self, folder: Path, spec: GenerationSpec) -> ServerWriter:
        url = f"http://127.0.0.1:{self.port}/v1"
        patience = Patience(rounds=0, seconds=0)
        ends = [self.tokenizer.eos_token_id]
        return ServerWriter(
            spec, end_ids=ends, tokenizer=self.tokenizer, base_url=url, folder=folder, patience=patience
        )

    def wait(self) -> None:
        for _ in range(600):
            if self.process.poll() is not None:
                pytest.fail("vLLM ended: " + self.log.read_text()[-3000:])
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2):
                    return
            except OSError:
                time.sleep(1)
        pytest.fail("vLLM did not start in ten minutes: " + self.log.read_text()[-3000:])

    def kill(self) -> None:
        """The whole of it, at once: vLLM's engine is a process of its own."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=60)

    def prompts(self) -> list[list[int]]:
        chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
        return [self.tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for chat in chats]

    def write(self, writer: ServerWriter | None = None) -> list[Trajectory]:
        return (writer or self.writer).write(self.prompts(), seed=1, step=0, row_ids=QUESTIONS)

    @torch.no_grad()
    def off(self, texts: list[Trajectory]) -> float:
        """Mean difference in nats between what the server says of its texts and what the student says now."""
        found = []
        for one in texts:
            ids = torch.tensor([[*one.prompt_ids, *one.answer_ids]])
            logs = self.student(ids).logits[0, len(one.prompt_ids) - 1 : -1].log_softmax(-1)
            own = logs.gather(1, torch.tensor(one.answer_ids)[:, None])[:, 0]
            found.append((own - torch.tensor(one.logprobs)).abs())
        return float(torch.cat(found).mean())


@pytest.fixture(scope="module")
def serving(smollm2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    made = Serving(smollm2_folder, tmp_path_factory.mktemp("vllm") / "served")
    try:
        made.wait()
        yield made
    finally:
        made.kill()


def test_new_weights_give_new_text_and_their_own_log_probabilities(serving: Serving) -> None:
    serving.writer.refresh(serving.student, 0)
    first = serving.write()
    texts = [serving.tokenizer.decode(one.answer_ids) for one in first]
    assert "Shakespeare" in texts[2], texts
    assert serving.off(first) < 0.1  # bfloat16
    ended = [one for one in first if one.finished]
    assert ended
    assert all(one.answer_ids[-1] == serving.tokenizer.eos_token_id for one in ended)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in serving.student.parameters():
            parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
    assert serving.off(first) > 0.5
    serving.writer.refresh(serving.student, 1)
    second = serving.write()
    assert [one.answer_ids for one in second] != [one.answer_ids for one in first]
    assert serving.off(second) < 0.15


def test_sampled_text_is_the_student_s(serving: Serving) -> None:
    drawn = serving.make_writer(serving.writer.folder, GenerationSpec(max_new_tokens=16))
    drawn.refresh(serving.student, 2)
    texts = serving.write(drawn)
    assert len({tuple(one.answer_ids) for one in texts}) == len(texts)
    assert serving.off(texts) < 0.15
    assert texts[0].behaviour_logprobs == texts[0].logprobs
    drawn.close()


def test_a_server_that_is_killed_in_the_middle_pauses_the_run(serving: Serving) -> None:
    long = serving.make_writer(serving.writer.folder, GenerationSpec(max_new_tokens=400))
    killer = threading.Timer(2.0, serving.kill)
    killer.start()
    with pytest.raises(ServerLost, match="texts are missing"):
        long.write([[504, 3575, 282]] * 64, seed=0, step=3, row_ids=[f"row {i}" for i in range(64)])
    killer.join()
