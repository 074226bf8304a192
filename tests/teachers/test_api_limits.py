"""Caps that are never exceeded, estimates, batch files and long runs."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from echo_server import EchoServer
from fault_proxy import Fault, FaultProxy, Hang, Status, sometimes
from http_server import Call, serving
from lmdistill.errors import BudgetSpent, DataError, RecipeError
from lmdistill.recipe import ApiLimits, ApiPrice, ApiRetries, ApiSpec
from lmdistill.teachers.api import ApiTeacher
from lmdistill.teachers.api_types import Answer, Message, Request, Sampling
from lmdistill.teachers.batch_files import read_batches, write_batches
from lmdistill.teachers.ledger import reading

PRICE = {"m": ApiPrice(prompt=1000, cached=100, output=2000)}
"""A tenth of a cent a token of the prompt, two for one of the answer."""


def questions(count: int, max_tokens: int = 16) -> list[Request]:
    sampling = Sampling(max_tokens=max_tokens)
    return [Request((Message("user", f"q {i}"),), sampling, tag=f"row {i}") for i in range(count)]


def until_spent(spec: ApiSpec, folder: Path, requests: list[Request], run: str = "run") -> tuple[list[Answer], str]:
    """The answers that come before the budget is spent, and what is said then; nothing where it never is."""
    found = []
    with ApiTeacher(spec, folder=folder, run=run) as teacher:
        try:
            for answer in teacher.answer(requests):
                found.append(answer)
        except BudgetSpent as error:
            return found, str(error)
    return found, ""


@pytest.mark.parametrize("fault", [None, Status(500), Status(429, {"Retry-After": "0"})], ids=["good", "500", "429"])
def test_37_calls_are_37_calls(tmp_path: Path, fault: Fault) -> None:
    script = sometimes(0.3, fault, seed=3)
    with serving(EchoServer()) as echo, serving(FaultProxy(echo.address, script)) as proxy:
        retries = ApiRetries(first_wait_seconds=0.01, longest_wait_seconds=0.05)
        spec = ApiSpec(model="m", base_url=proxy.url, limits=ApiLimits(calls=37), retries=retries)
        answers, said = until_spent(spec, tmp_path, questions(100))
        assert proxy.calls == 37
        assert "37 of 37 calls are used (api.limits.calls)" in said
        # Started again, it is still the same run.
        again, said = until_spent(spec, tmp_path, questions(100))
        assert proxy.calls <= 37
        assert said
        assert len(again) >= len(answers)
        # Another run has a budget of its own, and the answers of the first.
        until_spent(spec, tmp_path, questions(100), run="other")
        assert 37 < proxy.calls <= 74
        more = spec.model_copy(update={"limits": ApiLimits(calls=500)})
        last, said = until_spent(more, tmp_path, questions(100))
        assert (len(last), said) == (100, "")
        assert all(answer.good for answer in last)
        assert sum(echo.asked.values()) == 100


def test_tokens_and_money_are_never_more_than_allowed(tmp_path: Path) -> None:
    with serving(EchoServer()) as echo:
        for name, limits, word in (
            ("tokens", ApiLimits(tokens=1000), "tokens are used"),
            ("money", ApiLimits(money=1.5), "are spent"),
        ):
            spec = ApiSpec(model="m", base_url=echo.url, limits=limits, prices=PRICE)
            for _ in range(2):
                answers, said = until_spent(spec, tmp_path / name, questions(300))
                assert word in said
            with ApiTeacher(spec, folder=tmp_path / name) as teacher:
                spent = teacher.spent()
            assert 50 < len(answers) < 300
            assert sum(answer.usage.prompt + answer.usage.output for answer in answers) <= 1000
            assert spent.tokens <= 1000
            assert spent.money / 1e12 <= 1.5
            # q 7 is two tokens, its echo three: 8 thousandths of a dollar.
            assert answers[7].usage.money == pytest.approx(0.008)


def test_what_may_have_been_paid_is_counted(tmp_path: Path) -> None:
    """A call that hangs may be billed: its reservation stays, in this start of the run and in the next."""
    with serving(EchoServer()) as echo, serving(FaultProxy(echo.address, [Hang(), Status(500), None])) as proxy:
        retries = ApiRetries(first_wait_seconds=0.01)
        spec = ApiSpec(model="m", base_url=proxy.url, deadline_seconds=0.4, prices=PRICE, retries=retries)
        with ApiTeacher(spec, folder=tmp_path) as teacher:
            list(teacher.answer(questions(1)))
            spent = teacher.spent()
        with reading(tmp_path / "ledger.sqlite") as connection:
            rows = connection.execute("SELECT outcome, tokens, reserved_tokens FROM calls ORDER BY id").fetchall()
        assert [row[:2] for row in rows] == [("broken", None), ("broken", 0), ("answered", 5)]
        assert spent.tokens == rows[0][2] + 5
        with ApiTeacher(spec, folder=tmp_path) as teacher:
            assert (teacher.spent().calls, teacher.spent().tokens) == (3, spent.tokens)


def test_minutes_end_a_run_and_no_call_outlasts_them(tmp_path: Path) -> None:
    with serving(EchoServer(delay=0.05)) as echo:
        spec = ApiSpec(model="m", base_url=echo.url, requests=2, limits=ApiLimits(minutes=0.01))
        start = time.monotonic()
        answers, said = until_spent(spec, tmp_path, questions(1000))
        assert "minutes of asking are over" in said
        assert 0 < len(answers) < 1000
        assert time.monotonic() - start >= 0.6
        before = echo.calls
        assert until_spent(spec, tmp_path, questions(1000))[1]
        assert echo.calls <= before + 2


def test_a_cap_on_money_needs_a_price(tmp_path: Path) -> None:
    spec = ApiSpec(model="unheard-of", base_url="http://127.0.0.1:9/v1", limits=ApiLimits(money=1.0))
    with pytest.raises(RecipeError, match=r"api\.prices"):
        ApiTeacher(spec, folder=tmp_path)


def test_an_estimate_says_what_it_would_cost_and_asks_nothing(tmp_path: Path) -> None:
    with serving(EchoServer()) as echo:
        spec = ApiSpec(model="m", base_url=echo.url, prices=PRICE)
        with ApiTeacher(spec, folder=tmp_path) as teacher:
            blind = teacher.estimate([*questions(50), *questions(50)])
            assert (blind.requests, blind.stored, blind.calls, echo.calls) == (100, 50, 50, 0)
            assert (blind.output_tokens, blind.learned_from) == (50 * 16, 0)
            assert blind.sentence().startswith("100 requests, 50 of them in the ledger or asked twice: 50 calls, ")
            assert "800 of answers (if each is as long as it may be)" in blind.sentence()
            list(teacher.answer(questions(30)))
            taught = teacher.estimate(questions(130))
            assert (taught.stored, taught.calls, taught.learned_from) == (30, 100, 30)
            assert taught.output_tokens == pytest.approx(300)
            # The prompts of the later ones are longer by a digit, of which a learned ratio makes a little more.
            assert 200 <= taught.prompt_tokens <= 230
            assert taught.money == pytest.approx((taught.prompt_tokens * 1000 + 300 * 2000) / 1e6)
            assert taught.money_at_most is not None
            assert taught.money < taught.money_at_most
            assert "like 30 earlier ones" in taught.sentence()
            list(teacher.answer(questions(130)))
            assert "nothing is asked" in teacher.estimate(questions(130)).sentence()
            spent = teacher.spent()
        assert spent.money / 1e12 < taught.money_at_most


class Sometime(EchoServer):
    """Answers after a random time."""

    async def respond(self, call: Call, writer: object) -> bool:
        self.delay = random.random() * 0.004
        return await super().respond(call, writer)  # type: ignore[arg-type]


def test_thousands_of_rows_come_in_their_order_from_a_bounded_window(tmp_path: Path) -> None:
    """The full figure, 10,000 rows, is measured by benchmarks/api.py."""
    pulled = 0

    def rows(count: int) -> Iterator[Request]:
        nonlocal pulled
        for number in range(count):
            pulled += 1
            yield Request((Message("user", f"row {number} " + "word " * 50),), Sampling(max_tokens=8))

    process, seen = psutil.Process(), 0
    with serving(Sometime(keep=False)) as echo:
        spec = ApiSpec(model="m", base_url=echo.url, requests=8)
        with ApiTeacher(spec, folder=tmp_path) as teacher:
            for number, answer in enumerate(teacher.answer(rows(500))):
                assert answer.text is not None
                assert answer.text.startswith(f"echo: row {number} ")
                assert pulled - number <= 8 * spec.requests
                if number == 100:
                    seen = process.memory_info().rss
    assert process.memory_info().rss - seen < 30 * 2**20


def output_line(request: dict[str, object], body: dict[str, object], status: int = 200) -> str:
    response = {"status_code": status, "request_id": "r", "body": body}
    return json.dumps({"id": "x", "custom_id": request["custom_id"], "response": response, "error": None})


def test_a_batch_goes_out_and_comes_back_in_parts(tmp_path: Path) -> None:
    with serving(EchoServer()) as echo:
        spec = ApiSpec(model="m", base_url=echo.url, prices=PRICE)
        completions = [Request((Message("prompt", f"p {i}"),), Sampling(max_tokens=8)) for i in range(2)]
        requests = [*questions(10), *completions]
        with ApiTeacher(spec, folder=tmp_path) as teacher:
            list(teacher.answer(requests[:2]))
            assert echo.calls == 2
            files = write_batches(teacher, [*requests, *requests], tmp_path / "out", most_requests=5)
            assert [len(file.read_text().splitlines()) for file in files] == [5, 3, 2]
            asked = [json.loads(line) for file in files for line in file.read_text().splitlines()]
            assert {line["url"] for line in asked} == {"/v1/chat/completions", "/v1/completions"}
            assert asked[0]["body"]["messages"] == [{"role": "user", "content": "q 2"}]
            reserved = teacher.spent()
            assert reserved.calls == 12
            with pytest.raises(DataError, match="new folder"):
                write_batches(teacher, requests, tmp_path / "out")
            # Four answers, one refusal, one that expired; four are missing.
            good = [output_line(line, echo.answer(line["body"])) for line in asked[:4]]
            bad = output_line(asked[4], {"error": {"message": "no"}}, status=400)
            expired = {"id": "x", "custom_id": asked[5]["custom_id"], "response": None}
            errors = json.dumps({**expired, "error": {"code": "batch_expired", "message": "too late"}})
            strange = output_line({"custom_id": "?"}, {})
            (tmp_path / "output.jsonl").write_text("\n".join([*reversed(good), "{cut", strange]))
            (tmp_path / "errors.jsonl").write_text(f"{bad}\n\n{errors}\n")
            results = [tmp_path / "errors.jsonl", tmp_path / "output.jsonl"]
            outcome = read_batches(teacher, files, results)
            assert outcome.stored == 4
            assert {reason.split(":")[0] for reason in outcome.failed.values()} == {"status 400", "batch_expired"}
            assert len(outcome.missing) == 4
            assert len(outcome.unread) == 2
            assert outcome.sentence() == "4 answers stored, 2 failed, 4 missing, 2 lines unreadable"
        with ApiTeacher(spec, folder=tmp_path) as teacher:
            # Half the price: two tokens in, three out.
            with reading(tmp_path / "ledger.sqlite") as connection:
                money = connection.execute("SELECT money FROM answers WHERE tag = '' AND money > 0").fetchall()
            assert {row[0] for row in money} == {(2 * 10**9 + 3 * 2 * 10**9) // 2}
            assert len(write_batches(teacher, requests, tmp_path / "again")) == 2
            answers = list(teacher.answer(requests))
            assert [answer.text for answer in answers] == [f"echo: {r.messages[-1].content}" for r in requests]
            assert sum(answer.paid for answer in answers) == 6
        assert echo.calls == 8


def test_a_batch_that_is_too_dear_is_not_written(tmp_path: Path) -> None:
    spec = ApiSpec(model="m", base_url="http://127.0.0.1:9/v1", limits=ApiLimits(calls=5))
    with ApiTeacher(spec, folder=tmp_path) as teacher:
        with pytest.raises(BudgetSpent, match="0 of 5 calls are used, and 6 more are needed"):
            write_batches(teacher, questions(6), tmp_path / "out")
        assert not (tmp_path / "out").exists()
        assert len(write_batches(teacher, questions(5), tmp_path / "out")) == 1
        with pytest.raises(BudgetSpent):
            list(teacher.answer(questions(6)[5:]))
