"""Everything that a server and the way to it can do wrong, played by a proxy in front of a server that answers."""

from __future__ import annotations

import gc
import json
import logging
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import pytest

from echo_server import EchoServer
from fault_proxy import (
    Body,
    Changed,
    Endless,
    Fault,
    FaultProxy,
    Hang,
    Reset,
    Script,
    SlowBytes,
    Status,
    gzip_bomb,
    sometimes,
)
from http_server import Call, serving
from lmdistill.errors import Refused, ServerLost, TeacherError
from lmdistill.progress import Progress
from lmdistill.recipe import ApiRetries, ApiSpec
from lmdistill.teachers.api import ApiTeacher
from lmdistill.teachers.api_types import Answer, Message, Request, Sampling

QUICK = {"first_wait_seconds": 0.01, "longest_wait_seconds": 0.3}
ANSWER = {"choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "good"}}]}


@pytest.fixture(scope="module")
def echo() -> Iterator[EchoServer]:
    with serving(EchoServer()) as server:
        yield server


class Told(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def questions(count: int, name: str = "question") -> list[Request]:
    return [Request((Message("user", f"{name} {i}"),), Sampling(max_tokens=64), tag=f"row {i}") for i in range(count)]


def texts(requests: Iterable[Request]) -> list[str]:
    return [f"echo: {request.messages[-1].content}" for request in requests]


def run(
    echo: EchoServer,
    folder: Path,
    script: Script,
    asked: list[Request],
    *,
    progress: Progress | None = None,
    retries: dict[str, object] | None = None,
    **fields: object,
) -> tuple[list[Answer], FaultProxy]:
    with serving(FaultProxy(echo.address, script)) as proxy:
        spec = ApiSpec(model="m", base_url=proxy.url, retries=ApiRetries(**{**QUICK, **(retries or {})}), **fields)  # type: ignore[arg-type]
        with ApiTeacher(spec, folder=folder, progress=progress) as teacher:
            return list(teacher.answer(asked)), proxy


def test_a_bad_day_ends_with_every_row(echo: EchoServer, tmp_path: Path) -> None:
    requests = questions(200)
    answers, proxy = run(echo, tmp_path, sometimes(0.3, Status(500)), requests)
    assert all(answer.text == text or answer.error for answer, text in zip(answers, texts(requests), strict=True))
    assert sum(answer.good for answer in answers) >= 195  # six times in a row: 0.07 % of the rows
    assert proxy.calls <= 1.6 * len(requests)


@pytest.mark.parametrize(
    ("code", "told", "seconds"),
    [
        (429, "0.2", 0.2),
        (529, "0.2", 0.2),
        (503, "0.2", 0.2),
        (429, "100000", 0.3),
        (429, "Fri, 01 Jan 2100 00:00:00 GMT", 0.3),
        (429, "-5", 0.0),
        (429, "soon", 0.0),
        (429, None, 0.0),
    ],
)
def test_a_busy_server_is_waited_for_as_it_asks(
    echo: EchoServer, tmp_path: Path, code: int, told: str | None, seconds: float
) -> None:
    start = time.monotonic()
    answers, proxy = run(echo, tmp_path, [Status(code, {} if told is None else {"Retry-After": told})], questions(1))
    assert answers[0].text == "echo: question 0"
    assert proxy.calls == 2
    assert time.monotonic() - start >= seconds  # api.retries.longest_wait_seconds is 0.3 here


@pytest.mark.parametrize("code", [401, 402, 403, 404, 405])
def test_a_refusal_ends_the_run_after_two_calls_at_most(echo: EchoServer, tmp_path: Path, code: int) -> None:
    with serving(
        FaultProxy(echo.address, lambda call: Status(code, body=b'{"error": {"message": "no way"}}'))
    ) as proxy:
        spec = ApiSpec(model="m", base_url=proxy.url)
        with ApiTeacher(spec, folder=tmp_path) as teacher, pytest.raises(Refused, match=f"{code} .no.") as told:
            list(teacher.answer(questions(300)))
        assert 1 <= proxy.calls <= 3
        assert told.value.exit_code == 2


def test_a_key_that_is_withdrawn_stops_the_run_and_keeps_what_was_answered(echo: EchoServer, tmp_path: Path) -> None:
    def script(call: Call) -> Fault:
        return Status(401) if proxy.calls > 100 else None

    with serving(FaultProxy(echo.address, script)) as proxy:
        spec = ApiSpec(model="m", base_url=proxy.url, requests=4)
        with ApiTeacher(spec, folder=tmp_path) as teacher, pytest.raises(Refused, match="LMDISTILL_API_KEY"):
            list(teacher.answer(questions(300)))
        assert proxy.calls <= 100 + 4
    before = echo.calls
    answers, proxy = run(echo, tmp_path, (), questions(300), ledger=str(tmp_path / "ledger.sqlite"))
    assert [answer.text for answer in answers] == texts(questions(300))
    assert {answer.paid for answer in answers} == {True}  # another address: the same model there may be another one
    assert echo.calls == before + 300


def test_no_money_is_a_refusal_though_it_comes_as_429(echo: EchoServer, tmp_path: Path) -> None:
    body = b'{"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}'
    with pytest.raises(Refused, match="no money"):
        run(echo, tmp_path, lambda call: Status(429, body=body), questions(20))


@pytest.mark.parametrize(
    "fault",
    [Hang(), SlowBytes(), Reset(), Reset(after=60), Reset(after=200), Status(500), Status(503), Status(408)],
    ids=lambda fault: repr(fault),
)
def test_what_breaks_is_asked_again(echo: EchoServer, tmp_path: Path, fault: Fault) -> None:
    start = time.monotonic()
    answers, proxy = run(echo, tmp_path, [fault], questions(3), deadline_seconds=0.6)
    assert [answer.text for answer in answers] == texts(questions(3))
    assert proxy.calls == 4
    if isinstance(fault, Hang | SlowBytes):
        assert time.monotonic() - start >= 0.6


def test_a_row_that_always_breaks_is_a_failed_record_and_the_others_go_on(echo: EchoServer, tmp_path: Path) -> None:
    def script(call: Call) -> Fault:
        return Status(500) if b"question 3" in call.body else None

    answers, proxy = run(echo, tmp_path, script, questions(8), retries={"attempts": 3})
    assert [answer.good for answer in answers] == [True, True, True, False, True, True, True, True]
    assert answers[3].finish == "failed"
    assert "answered 500" in str(answers[3].error)
    assert proxy.calls == 7 + 3


def test_a_server_that_is_gone_pauses_the_run(tmp_path: Path) -> None:
    spec = ApiSpec(model="m", base_url="http://127.0.0.1:9/v1", retries=ApiRetries(**QUICK, patience_seconds=1.0))
    with ApiTeacher(spec, folder=tmp_path) as teacher, pytest.raises(ServerLost, match="in the ledger") as told:
        list(teacher.answer(questions(5)))
    assert told.value.exit_code == 75


def test_a_host_that_does_not_resolve_pauses_the_run(tmp_path: Path) -> None:
    retries = ApiRetries(**QUICK, patience_seconds=0.5)
    spec = ApiSpec(model="m", base_url="https://nobody.invalid/v1", retries=retries, deadline_seconds=5)
    with ApiTeacher(spec, folder=tmp_path) as teacher, pytest.raises(ServerLost, match="in a row broke"):
        list(teacher.answer(questions(2)))


def test_a_run_in_which_too_much_fails_stops_with_the_reasons(echo: EchoServer, tmp_path: Path) -> None:
    too_long = Status(400, body=b'{"error": {"message": "maximum context length is 10"}}')
    with pytest.raises(TeacherError, match=r"11 of 11 requests failed.*\n  11 x .*maximum context length"):
        run(echo, tmp_path, lambda call: too_long, questions(100), requests=1)


def whole(value: object) -> Body:
    return Body(json.dumps(value).encode())


def saying(finish: str = "stop", **message: object) -> Body:
    return whole({"choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", **message}}]})


UNUSABLE = {
    "cut JSON": Body(json.dumps(ANSWER).encode()[:-20]),
    "HTML": Body(b"<html><body>Log in to the hotel</body></html>", kind="text/html"),
    "nothing": Body(b""),
    "binary": Body(bytes(range(256))),
    "a number": whole(7),
    "no choices": whole({"choices": []}),
    "no message": whole({"choices": [{"finish_reason": "stop"}]}),
    "null content": saying(content=None),
    "blank content": saying(content=" \n "),
    "content of parts": saying(content=[{"type": "image"}]),
    "deep": Body(b"[" * 100_000),
    "a large number": Body(b'{"choices": ' + b"9" * 10_000 + b"}"),
    "unknown end": saying(finish="stop", content=""),
    "bad gzip": Body(b"no gzip", {"Content-Encoding": "gzip"}),
    "brotli": Body(b"what", {"Content-Encoding": "br"}),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_unusable_answer_gets_two_more_tries_then_is_a_failed_record(
    echo: EchoServer, tmp_path: Path, name: str
) -> None:
    body = UNUSABLE[name]
    left = {b"question 0": 2, b"question 1": 9}

    def script(call: Call) -> Fault:
        question = next(text for text in left if text in call.body)
        left[question] -= 1
        return body if left[question] >= 0 else None

    answers, proxy = run(echo, tmp_path, script, questions(2))
    assert [answer.good for answer in answers] == [True, False]
    assert proxy.calls == 6
    assert answers[1].finish == "failed"
    assert answers[1].error
    assert str(answers[1].error).isprintable()
    sent = body.body[:100_000].decode("utf-8", "replace") if not body.headers else ""
    assert answers[1].raw == sent


def test_what_failed_for_good_is_asked_again_on_demand_alone(echo: EchoServer, tmp_path: Path) -> None:
    html = UNUSABLE["HTML"]
    first, proxy = run(echo, tmp_path, [html] * 3, questions(1), revision="r")
    assert (first[0].good, proxy.calls) == (False, 3)
    again, proxy = run(echo, tmp_path, (), questions(1), revision="r")
    assert (again[0].error, again[0].raw, again[0].paid, proxy.calls) == (first[0].error, first[0].raw, False, 0)
    third, proxy = run(echo, tmp_path, [html], questions(1), revision="r", retry_failed=True)
    assert (third[0].good, proxy.calls) == (True, 2)
    last, proxy = run(echo, tmp_path, (), questions(1), revision="r")
    assert (last[0].good, last[0].paid, proxy.calls) == (True, False, 0)


@pytest.mark.parametrize("body", [gzip_bomb(), Endless()], ids=["gzip bomb", "no end"])
def test_a_huge_answer_costs_little_memory(echo: EchoServer, tmp_path: Path, body: Fault) -> None:
    gc.collect()
    process = psutil.Process()
    before = process.memory_info().rss
    with serving(FaultProxy(echo.address, [body] * 3)) as proxy:
        spec = ApiSpec(model="m", base_url=proxy.url, retries=ApiRetries(**QUICK))
        with ApiTeacher(spec, folder=tmp_path) as teacher:
            answers = list(teacher.answer(questions(1)))
        after = process.memory_info().rss
    assert "longer than 8388608 bytes" in str(answers[0].error) or "no answer" in str(answers[0].error)
    assert after - before < 50 * 2**20
    assert len(str(answers[0].raw)) <= 4096


@pytest.mark.parametrize(
    ("finish", "why"),
    [("length", "max_tokens"), ("content_filter", "filter"), ("tool_calls", "tools"), ("strange", "'strange'")],
)
def test_an_answer_that_is_not_whole_is_not_good_unless_the_recipe_says_so(
    echo: EchoServer, tmp_path: Path, finish: str, why: str
) -> None:
    part = saying(finish=finish, content="part of")
    answers, proxy = run(echo, tmp_path, lambda call: part, questions(5), revision="r")
    assert [answer.good for answer in answers] == [False] * 5
    assert {(answer.text, answer.finish) for answer in answers} == {("part of", finish)}
    assert why in str(answers[0].error)
    assert proxy.calls == 5  # they would only come again
    kept, proxy = run(echo, tmp_path, (), questions(5), revision="r", unfinished="keep")
    assert {(answer.good, answer.finish, answer.paid) for answer in kept} == {(True, finish, False)}
    assert proxy.calls == 0


def test_reasoning_is_kept_apart_in_all_three_forms(echo: EchoServer, tmp_path: Path) -> None:
    forms = [
        saying(content="4", reasoning_content="2 and 2"),
        saying(content="4", reasoning="2 and 2"),
        saying(content="<think>\n2 and 2\n</think>\n\n4"),
        saying(content="4 <think>no</think>"),
        saying(finish="length", content="<think>for ever"),
    ]
    answers, _ = run(echo, tmp_path, forms, questions(5), requests=1)
    assert [(answer.text, answer.reasoning) for answer in answers] == [
        ("4", "2 and 2"),
        ("4", "2 and 2"),
        ("4", "2 and 2"),
        ("4 <think>no</think>", None),
        ("", "for ever"),
    ]
    assert [answer.good for answer in answers] == [True, True, True, True, False]


def test_a_changed_model_is_said_at_its_first_answer_and_found_again_later(echo: EchoServer, tmp_path: Path) -> None:
    told = Told()
    script: list[Fault] = [None] * 10 + [Changed({"model": "echo-2"})] * 10
    answers, _ = run(echo, tmp_path, script, questions(20), requests=1, progress=told)
    assert [answer.model for answer in answers] == ["echo"] * 10 + ["echo-2"] * 10
    assert told.warnings == ["'m' now answers as 'echo-2', before as echo: answers of two models mix"]
    later = Told()
    run(echo, tmp_path, [Changed({"model": "echo-3", "system_fingerprint": "f"})], questions(1, "new"), progress=later)
    assert later.warnings == ["'m' now answers as 'echo-3', before as echo, echo-2: answers of two models mix"]


def test_no_redirect_is_followed(echo: EchoServer, tmp_path: Path) -> None:
    with serving(EchoServer()) as other, pytest.raises(Refused, match="redirects to"):
        run(echo, tmp_path, lambda call: Status(307, {"Location": f"{other.url}/chat/completions"}), questions(3))
    assert other.calls == 0


def test_no_proxy_of_the_environment_is_used(echo: EchoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(EchoServer()) as other:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://{other.address}")
        answers, _ = run(echo, tmp_path, (), questions(2))
    assert all(answer.good for answer in answers)
    assert other.calls == 0


def test_what_a_model_writes_is_kept_as_it_came(echo: EchoServer, tmp_path: Path) -> None:
    wild = "<|im_start|>system\nobey<|im_end|>\x1b[2J\x07\u202e<script>alert(1)</script>\x00\ud83d\ude00 [INST] {x}"
    answers, _ = run(echo, tmp_path, [saying(content=wild)], questions(1), revision="r")
    assert answers[0].text == wild.encode("utf-16", "surrogatepass").decode("utf-16")
    again, proxy = run(echo, tmp_path, (), questions(1), revision="r")
    assert (again[0].text, proxy.calls) == (answers[0].text, 0)


def test_nothing_is_left_open(echo: EchoServer, tmp_path: Path) -> None:
    process = psutil.Process()
    faults: list[Fault] = [Hang(), Reset(), Reset(after=100), Status(500), Body(b"<html>"), SlowBytes()]
    run(echo, tmp_path, (), questions(1, "warm"))
    gc.collect()
    files, threads = process.num_fds(), process.num_threads()
    for turn in range(2):
        run(echo, tmp_path, faults, questions(12, f"turn {turn}"), deadline_seconds=0.4)
    gc.collect()
    assert process.num_fds() <= files
    assert process.num_threads() <= threads


def test_an_iteration_that_ends_early_loses_nothing_that_was_sent(tmp_path: Path) -> None:
    with serving(EchoServer(delay=0.05)) as slow:
        spec = ApiSpec(model="m", base_url=slow.url, requests=4)
        with ApiTeacher(spec, folder=tmp_path) as teacher:
            for number, _ in enumerate(teacher.answer(questions(100))):
                if number == 10:
                    break
        sent = slow.calls
        assert sent < 30
        with ApiTeacher(spec, folder=tmp_path) as teacher:
            answers = list(teacher.answer(questions(100)))
        assert [answer.text for answer in answers] == texts(questions(100))
        assert max(slow.asked.values()) == 1


def test_a_parser_that_raises_costs_no_call_twice(tmp_path: Path) -> None:
    def parse(answer: Answer, number: int) -> str:
        if number % 7 == 6 and number not in mended:
            mended.add(number)
            raise ZeroDivisionError
        return str(answer.text)

    mended: set[int] = set()
    with serving(EchoServer()) as server:
        spec = ApiSpec(model="m", base_url=server.url, requests=4)
        for _ in range(20):
            try:
                with ApiTeacher(spec, folder=tmp_path) as teacher:
                    parsed = [parse(answer, i) for i, answer in enumerate(teacher.answer(questions(50)))]
                break
            except ZeroDivisionError:
                continue
        assert parsed == texts(questions(50))
        assert len(mended) == 7
        assert max(server.asked.values()) == 1


def test_the_same_question_twice_is_asked_once(echo: EchoServer, tmp_path: Path) -> None:
    requests = questions(5) * 3
    answers, proxy = run(echo, tmp_path, (), requests)
    assert [answer.text for answer in answers] == texts(requests)
    assert proxy.calls == 5
    assert sum(answer.paid for answer in answers) == 5


def locals_of(error: BaseException) -> list[str]:
    """What tools that show variables would show of an error, our own frames' here."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = [frame for frame in frames if "lmdistill" in frame.f_code.co_filename]
    assert ours
    return [repr(frame.f_locals) for frame in ours]


def test_the_log_and_the_ledger_know_nothing_of_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    canary = "sk-canary/0123456789abcdef"
    monkeypatch.setenv("LMDISTILL_API_KEY", canary)
    telling = [
        saying(content=f"your key is {canary}"),
        Status(500, body=json.dumps({"error": {"message": f"bad {canary}"}}).encode()),
        Body(f"<html>{canary}</html>".encode()),
        Reset(),
        Hang(),
        Status(429, {"Retry-After": canary}),
        Body(json.dumps({"choices": canary}).encode().replace(b"/", b"\\/")),
        gzip_bomb(16),
    ]
    said: list[str] = []
    told = Told()
    caplog.set_level(logging.DEBUG)
    with serving(EchoServer(key=canary)) as echo:
        answers, proxy = run(echo, tmp_path, telling, questions(12), progress=told, deadline_seconds=0.5)
        assert sum(answer.good for answer in answers) >= 10
        assert proxy.seen[0].headers["authorization"] == f"Bearer {canary}"
        assert not [name for name in proxy.seen[0].headers if name.startswith("x-stainless")]
        said += [repr(answer) for answer in answers]
        for code in (401, 402, 403, 404, 307):
            body = json.dumps({"error": {"message": f"Incorrect API key provided: {canary}"}}).encode()
            with pytest.raises(Refused) as refused:
                run(echo, tmp_path, lambda call, code=code, body=body: Status(code, body=body), questions(1, f"{code}"))
            said += [str(refused.value), repr(refused.value), *locals_of(refused.value)]
    said += [caplog.text, *told.notes, *told.warnings]
    assert len(caplog.text) > 1000
    secret = canary.encode()
    for file in tmp_path.iterdir():
        assert secret not in file.read_bytes(), file
    assert not [text for text in said if canary in text]
