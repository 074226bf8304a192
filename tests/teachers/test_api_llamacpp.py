"""The real SmolLM2 behind a real llama.cpp server: started by the run, asked, broken on purpose, stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fault_proxy import Body, Changed, Fault, FaultProxy, Hang, Reset, SlowBytes, Status
from http_server import serving
from lmdistill.errors import ModelError, Refused, ServerLost
from lmdistill.recipe import ApiRetries, ApiSpec, LlamaCppSpec
from lmdistill.teachers.api import ApiTeacher
from lmdistill.teachers.api_types import Answer, Message, Request, Sampling
from lmdistill.teachers.llamacpp import LlamaCppServer, find_gguf, serve_llamacpp

pytest.importorskip("xllamacpp")

MODEL = "smollm2-135m"
SMALL = LlamaCppSpec(context=256, parallel=2, threads=1)
GREEDY = Sampling(max_tokens=8, temperature=0.0)


@pytest.fixture(scope="module")
def server(smollm2_gguf: Path) -> Iterator[LlamaCppServer]:
    with serve_llamacpp(MODEL, SMALL) as running:
        yield running


@pytest.fixture
def key(server: LlamaCppServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMDISTILL_API_KEY", server.secret.header().removeprefix("Bearer "))


def spec_of(base_url: str, **fields: object) -> ApiSpec:
    fields = {"revision": "here", "requests": 2, **fields}
    return ApiSpec(model=MODEL, base_url=base_url, **fields)  # type: ignore[arg-type]


def capital(country: str, **fields: object) -> Request:
    return Request((Message("user", f"What is the capital of {country}?"),), GREEDY, tag=country, **fields)  # type: ignore[arg-type]


def get(url: str, secret: str | None = None) -> int:
    request = urllib.request.Request(url, headers={} if secret is None else {"Authorization": secret})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_it_listens_here_alone_and_wants_its_key(server: LlamaCppServer) -> None:
    connections = psutil.Process(server.process.pid).net_connections()
    assert {place.laddr.ip for place in connections if place.status == "LISTEN"} == {"127.0.0.1"}
    assert [get(server.base_url + "/models", secret) for secret in (None, "Bearer no", server.secret.header())] == [
        401,
        401,
        200,
    ]
    command = psutil.Process(server.process.pid).cmdline() + list(psutil.Process(server.process.pid).environ().values())
    assert not [word for word in command if server.secret.header()[7:] in word]


def test_a_real_model_answers_in_all_the_ways_that_are_asked_for(
    server: LlamaCppServer, key: None, tmp_path: Path
) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    requests = [
        capital("France"),
        Request((Message("prompt", "The capital of France is"),), GREEDY),
        Request((Message("user", "Say a number as JSON."),), Sampling(max_tokens=40, temperature=0.0), schema=schema),
        Request((Message("user", "Hello"),), Sampling(max_tokens=4, temperature=0.0, logprobs=3)),
        Request((Message("prompt", "One, two,"),), Sampling(max_tokens=3, temperature=0.0, logprobs=2)),
        Request((Message("user", "Tell me a story."),), Sampling(max_tokens=5)),
    ]
    with ApiTeacher(spec_of(server.base_url, unfinished="keep"), folder=tmp_path) as teacher:
        chat, text, number, logprobs, more, story = list(teacher.answer(requests))
    assert chat.text
    assert str(text.text).startswith(" Paris")
    assert isinstance(json.loads(str(number.text))["n"], int)
    assert logprobs.logprobs is not None
    assert len(logprobs.logprobs["content"]) == 4
    assert more.logprobs is not None
    assert (story.finish, story.good, story.usage.output) == ("length", True, 5)
    assert all(answer.usage.prompt > 0 for answer in (chat, text, number, logprobs, more, story))
    assert {answer.model for answer in (chat, text, number)} == {MODEL}


FAULTS: dict[str, list[Fault]] = {
    "busy": [Status(429, {"Retry-After": "0.1"}), Status(503, {"Retry-After": "-1"})],
    "broken": [Status(500), Reset(), Reset(after=90), Body(b'{"choices": [{"mess'), Body(b"<html>"), Body(b"{}")],
    "slow": [SlowBytes(1.0), Hang()],
}


@pytest.mark.parametrize("kind", ["busy", "broken", pytest.param("slow", marks=pytest.mark.slow)])
def test_faults_in_front_of_the_real_server_change_no_answer(
    server: LlamaCppServer, key: None, tmp_path: Path, kind: str
) -> None:
    requests = [capital(country) for country in ("France", "Italy", "Spain")]
    retries = ApiRetries(first_wait_seconds=0.01, longest_wait_seconds=0.2)
    with ApiTeacher(spec_of(server.base_url, unfinished="keep"), folder=tmp_path / "a") as teacher:
        true = [answer.text for answer in teacher.answer(requests)]
    deadline = 1.5 if kind == "slow" else 60.0
    with serving(FaultProxy(server.base_url.split("/")[2], FAULTS[kind])) as proxy:
        spec = spec_of(proxy.url, retries=retries, deadline_seconds=deadline, requests=1, unfinished="keep")
        with ApiTeacher(spec, folder=tmp_path / "b") as teacher:
            assert [answer.text for answer in teacher.answer(requests)] == true
        assert proxy.calls >= len(requests) + len(FAULTS[kind])


def test_a_wrong_key_and_a_changed_model(
    server: LlamaCppServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMDISTILL_API_KEY", "wrong")
    with ApiTeacher(spec_of(server.base_url), folder=tmp_path) as teacher, pytest.raises(Refused, match="401"):
        list(teacher.answer([capital("France")]))
    monkeypatch.setenv("LMDISTILL_API_KEY", server.secret.header().removeprefix("Bearer "))
    with serving(FaultProxy(server.base_url.split("/")[2], [None, Changed({"model": "smollm3"})])) as proxy:
        spec = spec_of(proxy.url, requests=1, unfinished="keep")
        with ApiTeacher(spec, folder=tmp_path) as teacher:
            answers = list(teacher.answer([capital("France"), capital("Italy")]))
    assert [answer.model for answer in answers] == [MODEL, "smollm3"]


def test_a_prompt_that_is_too_long_is_a_failed_record(server: LlamaCppServer, key: None, tmp_path: Path) -> None:
    requests = [Request((Message("user", "word " * 2000),), GREEDY), capital("France")]
    with ApiTeacher(spec_of(server.base_url, unfinished="keep"), folder=tmp_path) as teacher:
        long, short = teacher.answer(requests)
    assert "exceeds the available context size" in str(long.error)
    assert short.good


def test_a_recipe_starts_and_stops_the_server_when_it_needs_one(smollm2_gguf: Path, tmp_path: Path) -> None:
    spec = ApiSpec(model=MODEL, serve="llamacpp", llamacpp=SMALL, unfinished="keep")
    with ApiTeacher(spec, folder=tmp_path) as teacher:
        assert teacher._server is None
        answers = list(teacher.answer([capital("France")]))
        assert teacher._server is not None
        process = teacher._server.process
        assert process.poll() is None
        assert answers[0].usage.money == 0.0
    assert process.poll() is not None
    with ApiTeacher(spec, folder=tmp_path) as teacher:  # under another port and key it is the same teacher
        again = list(teacher.answer([capital("France")]))
        assert teacher._server is None
    assert (again[0].text, again[0].paid) == (answers[0].text, False)


@pytest.mark.slow
def test_a_server_that_is_killed_pauses_the_run_and_the_next_start_goes_on(smollm2_gguf: Path, tmp_path: Path) -> None:
    countries = ("France", "Italy", "Spain", "Germany", "Japan", "Egypt")
    spec = ApiSpec(model=MODEL, serve="llamacpp", llamacpp=SMALL, requests=1, unfinished="keep")
    found: list[Answer] = []

    def ask_and_kill(teacher: ApiTeacher) -> None:
        for answer in teacher.answer([capital(country) for country in countries]):
            found.append(answer)
            if len(found) == 2:
                assert teacher._server is not None
                os.kill(teacher._server.process.pid, signal.SIGKILL)

    with ApiTeacher(spec, folder=tmp_path) as teacher, pytest.raises(ServerLost, match="exit code -9"):
        ask_and_kill(teacher)
    assert 2 <= len(found) < 6
    with ApiTeacher(spec, folder=tmp_path) as teacher:
        answers = list(teacher.answer([capital(country) for country in countries]))
    assert all(answer.good for answer in answers)
    assert not any(answer.paid for answer in answers[: len(found)])


@pytest.mark.slow
def test_the_server_dies_with_the_process_that_started_it(smollm2_gguf: Path) -> None:
    script = (
        "import os, sys, time\n"
        "from lmdistill.recipe import LlamaCppSpec\n"
        "from lmdistill.teachers.llamacpp import serve_llamacpp\n"
        f"with serve_llamacpp({MODEL!r}, LlamaCppSpec(context=64, parallel=1, threads=1)) as server:\n"
        "    print(server.process.pid, flush=True)\n"
        "    time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(300):
        if not child.is_running() or child.status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.1)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_what_is_no_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no GGUF file"):
        find_gguf("gpt-4o")
    with pytest.raises(ModelError, match="not installed"):
        find_gguf("package:no_such_package/x.gguf")
    file = tmp_path / "x.gguf"
    file.write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="cannot serve"), serve_llamacpp(str(file)):
        pass
