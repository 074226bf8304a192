"""What llama.cpp is asked, asked of a real vLLM: two lines of the recipe are others (`make test-vllm`)."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmdistill.errors import ServerLost
from lmdistill.recipe import ApiRetries, ApiSpec
from lmdistill.teachers.api import ApiTeacher
from lmdistill.teachers.api_types import Message, Request, Sampling
from vllm_server import VLLM, serving_vllm

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not VLLM.is_file(), reason="needs .venv-vllm (make test-vllm)")]

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


@pytest.fixture(scope="module")
def served(
    smollm2_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    log = tmp_path_factory.mktemp("vllm") / "log.txt"
    options = ("--max-model-len", "512", "--served-model-name", "smollm2-135m", "--api-key", "a-key-of-tests")
    with serving_vllm(smollm2_folder, log, *options) as server:
        yield server


def test_a_real_vllm_answers_in_all_the_ways_and_its_death_pauses_the_run(
    served: tuple[str, subprocess.Popen[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, process = served
    monkeypatch.setenv("LMDISTILL_API_KEY", "a-key-of-tests")
    requests = [
        Request((Message("user", "Say hello."),), Sampling(max_tokens=6, temperature=0.0)),
        Request((Message("prompt", "The capital of France is"),), Sampling(max_tokens=4, temperature=0.0)),
        Request((Message("user", "Say a number as JSON."),), Sampling(max_tokens=60, temperature=0.0), schema=SCHEMA),
        Request((Message("user", "Hello"),), Sampling(max_tokens=4, temperature=0.0, logprobs=3)),
        Request((Message("prompt", "One, two,"),), Sampling(max_tokens=3, temperature=0.0, logprobs=2)),
        *(Request((Message("user", "Tell me a story."),), Sampling(max_tokens=8, seed=5), sample=n) for n in range(3)),
    ]
    retries = ApiRetries(first_wait_seconds=0.1, patience_seconds=5.0)
    spec = ApiSpec(model="smollm2-135m", base_url=url, unfinished="keep", retries=retries)
    with ApiTeacher(spec, folder=tmp_path) as teacher:
        answers = list(teacher.answer(requests))
        assert [answer.error for answer in answers] == [None] * len(requests)
        chat, text, number, logprobs, more, *stories = answers
        assert chat.text
        assert " Paris" in str(text.text)
        assert '"n"' in str(number.text)
        assert logprobs.logprobs is not None
        assert len(logprobs.logprobs["content"]) == 4
        assert more.logprobs is not None
        assert len({story.text for story in stories}) > 1, "samples of one request are one text"
        assert {story.finish for story in stories} == {"length"}
        assert chat.model == "smollm2-135m"
        assert chat.usage.prompt > 0
        os.killpg(process.pid, signal.SIGKILL)
        with pytest.raises(ServerLost, match="in the ledger"):
            list(teacher.answer([*requests, Request((Message("user", "new"),))]))
    with ApiTeacher(spec, folder=tmp_path) as teacher:
        assert [answer.text for answer in teacher.answer(requests)] == [answer.text for answer in answers]
