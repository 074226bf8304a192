"""Requests and answers on the wire, keys, statuses, waits and prices: nothing here needs a server."""

from __future__ import annotations

import datetime
import gzip
import json
import math
import re
import traceback
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmdistill.errors import (
    BadAnswer,
    Broken,
    Busy,
    DataError,
    RecipeError,
    Refused,
    TeacherError,
    Unanswerable,
)
from lmdistill.recipe import ApiPrice, ApiSpec, load_recipe
from lmdistill.teachers.api_guard import BODY_LIMIT, BodyReader
from lmdistill.teachers.api_secret import Secret, read_secret
from lmdistill.teachers.api_status import error_of, wait_of
from lmdistill.teachers.api_types import Message, Request, Sampling, Usage
from lmdistill.teachers.api_wire import Identity, body_of, check_request, path_of, read_content, read_facts, request_key
from lmdistill.teachers.prices import PICO, Price, find_price

ME = Identity("m", "https://host/v1")
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


def ask(text: str = "hello", **fields: object) -> Request:
    return Request((Message("user", text),), **fields)  # type: ignore[arg-type]


def reply(text: str | None = "hi", finish: str = "stop", **choice: object) -> bytes:
    message = {"role": "assistant", "content": text}
    return json.dumps({"choices": [{"index": 0, "finish_reason": finish, "message": message, **choice}]}).encode()


def test_a_key_depends_on_all_that_the_answer_depends_on_and_on_nothing_else() -> None:
    base = ask()
    others = [
        ask("hello "),
        Request((Message("system", "hello"),)),
        Request((Message("user", "hel"), Message("user", "lo"))),
        ask(sample=1),
        ask(schema=SCHEMA),
        *(
            ask(sampling=Sampling(**change))  # type: ignore[arg-type]
            for change in (
                {"max_tokens": 5},
                {"temperature": 0.5},
                {"top_p": 0.9},
                {"stop": ("x",)},
                {"seed": 0},
                {"logprobs": 0},
                {"extra": {"top_k": 1}},
            )
        ),
    ]
    keys = [request_key(ME, request) for request in (base, *others)]
    teachers = [Identity("n", "https://host/v1"), Identity("m", "other"), Identity("m", "https://host/v1", "mine")]
    keys += [request_key(teacher, base) for teacher in teachers]
    assert len(set(keys)) == len(keys)
    same = [ask(tag="row 7"), ask(sampling=Sampling(temperature=1)), ask(sampling=Sampling(extra={}))]
    assert {request_key(ME, request) for request in same} == {keys[0]}
    # It must stay what it is: ledgers and recordings of earlier versions are looked up by it.
    assert keys[0] == "6195d229b8c1391f64b06ad15adde359a0fbb751f73a71f02201f0797dba18f0"


def test_the_body_of_a_chat_and_of_a_completion() -> None:
    sampling = Sampling(max_tokens=9, temperature=0.5, stop=("\n",), seed=3, logprobs=2, extra={"top_k": 4})
    chat = Request((Message("system", "s"), Message("user", "u")), sampling, sample=2, schema=SCHEMA)
    assert path_of(chat) == "/chat/completions"
    assert body_of(chat, "m", max_tokens_field="max_completion_tokens") == {
        "model": "m",
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
        "max_completion_tokens": 9,
        "temperature": 0.5,
        "top_p": 1.0,
        "stop": ["\n"],
        "seed": 5,
        "logprobs": True,
        "top_logprobs": 2,
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA}},
        "top_k": 4,
    }
    text = Request((Message("prompt", "once"),), sampling)
    assert path_of(text) == "/completions"
    assert body_of(text, "m", turn=1) == {
        "model": "m",
        "prompt": "once",
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 1.0,
        "stop": ["\n"],
        "seed": 3 + 1_000_003,
        "logprobs": 2,
        "top_k": 4,
    }


@pytest.mark.parametrize(
    "request_",
    [
        Request(()),
        Request((Message("prompt", "a"), Message("user", "b"))),
        ask(sampling=Sampling(max_tokens=0)),
        ask(sample=-1),
        ask(schema={"type": "nonsense"}),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_sent(request_: Request) -> None:
    with pytest.raises(DataError):
        check_request(request_)


def test_an_answer_to_a_schema_is_checked() -> None:
    request = ask(schema=SCHEMA)
    assert read_content(request, reply('{"n": 3}')).text == '{"n": 3}'
    for wrong, why in (
        ('{"n": "3"}', "at n"),
        ("{}", "at the whole"),
        ("n = 3", "not JSON"),
        ('{"n": 3} ok', "not JSON"),
    ):
        with pytest.raises(BadAnswer, match=why):
            read_content(request, reply(wrong))
    # What was cut cannot keep to it, and is told as cut.
    assert "max_tokens" in str(read_content(request, reply('{"n": ', "length")).problem)


def test_a_schema_that_names_another_place_fetches_nothing() -> None:
    request = ask(schema={"$ref": "http://127.0.0.1:9/schema.json"})
    with pytest.raises(Exception, match=r"127\.0\.0\.1") as told:
        read_content(request, reply("{}"))
    assert "Connection" not in str(told.value)


def chat_logprobs(*tokens: tuple[str, float, list[float]]) -> dict[str, object]:
    entries = [
        {"token": text, "logprob": own, "top_logprobs": [{"token": f"t{i}", "logprob": p} for i, p in enumerate(top)]}
        for text, own, top in tokens
    ]
    return {"content": entries}


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (None, "no log-probabilities"),
        ({"content": []}, "no tokens"),
        (chat_logprobs(("a", 0.5, [-0.1, -3.0])), "above 0"),
        (chat_logprobs(("a", math.nan, [-0.1, -3.0])), "NaN"),
        (chat_logprobs(("a", -1.0, [-0.1])), "1 alternatives of 2"),
        (chat_logprobs(("a", -1.0, [-3.0, -0.1])), "not sorted"),
        (chat_logprobs(("a", -0.1, [-0.1, -0.2])), "more than 1"),
        ({"tokens": ["a"], "token_logprobs": []}, "not a list"),
    ],
)
def test_log_probabilities_that_cannot_be_are_no_answer(told: object, why: str) -> None:
    with pytest.raises(BadAnswer, match=why):
        read_content(ask(sampling=Sampling(logprobs=2)), reply("a", logprobs=told))


def test_log_probabilities_come_as_the_api_gives_them() -> None:
    told = chat_logprobs(("h", -0.3, [-0.3, -1.5]), ("i", -9999.0, [-0.1, -3.0]))
    found = read_content(ask(sampling=Sampling(logprobs=2)), reply("hi", logprobs=told))
    assert found.logprobs == told


def test_usage_counts_what_the_server_counts() -> None:
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 5},
    }
    value = {**json.loads(reply()), "usage": usage, "model": "m-1", "system_fingerprint": "f"}
    found = read_content(ask(), json.dumps(value).encode())
    assert (found.usage, found.model, found.fingerprint) == (Usage(10, 4, 5, 7), "m-1", "f")
    for wrong in (None, "many", {"prompt_tokens": -1}, {"prompt_tokens": 1e300}, {"prompt_tokens": True}):
        assert read_content(ask(), json.dumps({**value, "usage": wrong}).encode()).usage is None


def test_half_characters_become_replacement_characters() -> None:
    raw = reply("x").replace(b'"x"', b'"a\\ud83d b \\ud83d\\ude00"')
    assert read_content(ask(), raw).text == "a\ufffd b \U0001f600"


GOOD = reply("fine", logprobs=None)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_comes_is_an_answer_or_a_bad_one(data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(GOOD)))
    length = data.draw(st.integers(0, 12))
    raw = GOOD[:place] + data.draw(st.binary(max_size=8)) + GOOD[place + length :]
    read_facts(raw)
    told = ""
    try:
        read_content(ask(), raw).text.encode()
    except BadAnswer as error:
        told = str(error)
    assert told.isprintable()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "message", "content", "finish_reason", "usage", "text", "reasoning", "logprobs"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(JSON)
def test_any_json_is_an_answer_or_a_bad_one(value: object) -> None:
    for whole in (value, {"choices": [value]}, {"choices": [{"message": value}]}):
        raw = json.dumps(whole).encode()
        read_facts(raw)
        try:
            read_content(ask(), raw)
        except BadAnswer:
            continue


@pytest.mark.parametrize(
    ("status", "headers", "said", "kind"),
    [
        (401, {}, "", Refused),
        (402, {}, "", Refused),
        (403, {}, "", Refused),
        (404, {}, '{"error": {"message": "no such model"}}', Refused),
        (301, {"location": "https://elsewhere"}, "", Refused),
        (400, {}, '{"error": {"code": "invalid_api_key", "message": "x"}}', Refused),
        (429, {}, '{"error": {"code": "insufficient_quota", "message": "x"}}', Refused),
        (403, {}, '{"error": {"code": "x", "message": "flagged by moderation"}}', Unanswerable),
        (400, {}, "context length", Unanswerable),
        (413, {}, "", Unanswerable),
        (422, {}, "[1, 2]", Unanswerable),
        (429, {}, "slow down", Busy),
        (529, {}, "", Busy),
        (503, {"retry-after": "3"}, "", Busy),
        (503, {}, "<html>", Broken),
        (500, {}, "[" * 100_000, Broken),
        (408, {}, "", Broken),
    ],
)
def test_the_status_says_how_to_ask_again(
    status: int, headers: dict[str, str], said: str, kind: type[TeacherError]
) -> None:
    error = error_of("https://host/v1", status, headers, said)
    assert type(error) is kind
    assert f"answered {status}" in str(error)
    assert len(str(error)) < 900


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-7"}, None),
        ({"retry-after": "1e400"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        # A date counts from the server's clock, whatever the one here says.
        ({"retry-after": "Wed, 01 Jan 2020 00:00:30 GMT", "date": "Wed, 01 Jan 2020 00:00:00 GMT"}, 30.0),
        ({"retry-after": "Wed, 01 Jan 2020 00:00:30 GMT", "date": "Wed, 01 Jan 2020 00:01:00 GMT"}, None),
        ({"retry-after": "Wed, 01 Jan 2020 00:00:30"}, None),
    ],
)
def test_how_long_a_server_asks_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    assert wait_of(headers) == seconds


def test_a_body_ends_at_its_limit_packed_or_not() -> None:
    plain = BodyReader("identity", 100)
    assert plain.take(b"a" * 60) + plain.take(b"b" * 60) + plain.take(b"c") == b"a" * 60 + b"b" * 40
    assert "longer than 100 bytes" in str(plain.problem)
    packed = gzip.compress(bytes(2**20))
    bomb = BodyReader("gzip", 1000)
    assert bomb.take(packed) == bytes(1000)
    assert bomb.problem
    for encoding, data in (("gzip", gzip.compress(b"fine")), ("deflate", zlib.compress(b"fine"))):
        reader = BodyReader(encoding)
        assert b"".join(reader.take(bytes([byte])) for byte in data) == b"fine"
        assert reader.problem is None
    assert BODY_LIMIT == 8 * 2**20


@pytest.mark.parametrize(
    "address",
    [
        "http://example.com/v1",
        "http://10.0.0.5:8000/v1",
        "ftp://example.com",
        "https://user:hidden-word@example.com/v1",
        "https://example.com/v1?key=hidden-word",
        "https://169.254.169.254/latest",
        "https://[fe80::1]/v1",
        "http://0.0.0.0:8000/v1",
        "example.com/v1",
    ],
)
def test_no_key_goes_to_such_an_address(address: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="base_url") as told:
        ApiSpec(model="m", base_url=address)
    assert "hidden-word" not in str(told.value)


def test_addresses_that_may_be_asked() -> None:
    for address in (
        "http://127.0.0.1:8000/v1",
        "http://localhost/v1",
        "http://[::1]:8000/v1",
        "https://example.com/v1",
    ):
        assert ApiSpec(model="m", base_url=address).base_url == address
    with pytest.raises(ValueError, match="nobody to ask"):
        ApiSpec(model="m")
    with pytest.raises(ValueError, match="set one of them"):
        ApiSpec(model="m", serve="llamacpp", base_url="https://example.com/v1")


def test_a_password_in_a_recipe_is_not_shown(tmp_path: Path) -> None:
    recipe = (
        "teacher: {model: x}\ndata: {train: [{path: x}]}\napi: {model: m, base_url: 'https://u:hidden-word@h/v1'}\n"
    )
    file = tmp_path / "r.yaml"
    file.write_text(recipe)
    with pytest.raises(RecipeError, match="user or password") as told:
        load_recipe(file)
    shown = [repr(told.value), *traceback.format_exception(told.value)]
    assert not [text for text in shown if "hidden-word" in text]


def test_the_recipes_of_the_guide_are_recipes(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "api_teachers.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", guide, flags=re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        whole = f"teacher: {{model: x}}\ndata: {{train: [{{path: x}}]}}\n{block}"
        if "prices" in block:
            whole += "  model: my-model\n  base_url: https://example.com/v1\n"
        (tmp_path / "r.yaml").write_text(whole)
        assert load_recipe(tmp_path / "r.yaml").api is not None


def test_where_the_key_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LMDISTILL_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "openai")
    there, other = (
        ApiSpec(model="m", base_url="https://api.openai.com/v1"),
        ApiSpec(model="m", base_url="https://x.org"),
    )
    lookalike = ApiSpec(model="m", base_url="https://openai.com.evil.org/v1")
    found = read_secret(there)
    assert found is not None
    assert found.header() == "Bearer openai"
    assert read_secret(other) is None, "a key of OpenAI is nothing for others"
    assert read_secret(lookalike) is None
    monkeypatch.setenv("LMDISTILL_API_KEY", "ours\n")
    found = read_secret(other)
    assert found is not None
    assert found.header() == "Bearer ours"
    file = tmp_path / "key"
    file.write_text("from-file\n")
    found = read_secret(ApiSpec(model="m", base_url="https://x.org", key_file=str(file)))
    assert found is not None
    assert found.header() == "Bearer from-file"
    for content in ("two words", "", "ключ"):
        file.write_text(content)
        with pytest.raises(RecipeError, match="no key"):
            read_secret(ApiSpec(model="m", base_url="https://x.org", key_file=str(file)))
    with pytest.raises(RecipeError, match="not set"):
        read_secret(ApiSpec(model="m", base_url="https://x.org", key_variable="NO_SUCH_VARIABLE"))


def test_a_secret_is_not_shown_and_not_pickled() -> None:
    import pickle

    secret = Secret("sk/123")
    assert "123" not in f"{secret!r} {secret} {[secret]}"
    assert secret.scrub("a sk/123 b") == "a [key] b"
    assert secret.scrub_bytes(b"a sk\\/123 sk/123 b") == b"a [key] [key] b"
    with pytest.raises(TypeError):
        pickle.dumps(secret)


def test_money_is_exact_and_dated() -> None:
    mini = find_price("gpt-4o-mini-2024-07-18")
    assert mini is not None
    assert mini.of(Usage(prompt=1_000_000, cached=0, output=0)) == 15 * PICO // 100
    assert (
        mini.of(Usage(prompt=1000, cached=400, reasoning=50, output=200))
        == 600 * 150_000 + 400 * 75_000 + 200 * 600_000
    )
    assert mini.date == "2026-11-24"
    before, after = (find_price("mistral-large-4", None, datetime.date(2026, 10, day)) for day in (25, 29))
    assert before is not None
    assert after is not None
    assert (before.date, before.prompt, after.date, after.prompt) == ("2026-10-20", 1_360_000, "2026-10-29", 700_000)
    assert find_price("mistral-large-4", None, datetime.date(2026, 10, 1)) is None
    own = find_price("gpt-4o-mini", {"gpt-4o-mini": ApiPrice(prompt=0.0375, output=1)})
    assert own == Price(37_500, 37_500, 1_000_000, "recipe")
    assert find_price("unheard-of") is None
