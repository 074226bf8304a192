"""A teacher behind an API: where it is, how it is asked, and what it may cost."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from lmdistill.recipe.base import Count, NonNegative, Positive, Section, Share


class ApiLimits(Section):
    """What asking may cost in one run, its earlier and killed starts included; no call is sent that could exceed it."""

    calls: Count | None = None
    """Requests that are sent, failed ones and repetitions included."""
    tokens: Count | None = None
    """Tokens of prompts and answers together."""
    money: Positive | None = None
    """US dollars, by the table of prices."""
    minutes: Positive | None = None
    """Minutes of asking."""


class ApiPrice(Section):
    """What a model costs, in US dollars for a million tokens."""

    prompt: NonNegative
    """Tokens of the prompt."""
    output: NonNegative
    """Tokens of the answer, reasoning included."""
    cached: NonNegative | None = None
    """Tokens of the prompt that the server had in its cache; as `prompt` where absent."""


class ApiRetries(Section):
    """What happens where no usable answer comes."""

    attempts: Count = 6
    """Most calls of one request that break (server errors, timeouts, lost connections); then it is a failed record."""
    bad_answers: Annotated[int, Field(ge=0, le=10)] = 2
    """Further calls of one request whose answer came and could not be used."""
    first_wait_seconds: Positive = 0.5
    """Wait after the first broken call; it doubles with each further one, and half of it is drawn at random."""
    longest_wait_seconds: Positive = 60.0
    """Longest wait, also where a server asks for a longer one."""
    patience_seconds: Positive = 300.0
    """The run pauses (exit code 75) when no call has succeeded for so long."""
    failed_share: Share = 0.01
    """The run stops when more than this share of the requests, and more than ten, have failed."""


class LlamaCppSpec(Section):
    """The llama.cpp server that a run starts and stops (`api.serve: llamacpp`)."""

    context: Annotated[int, Field(ge=64)] = 2048
    """Most tokens of a prompt with its answer."""
    parallel: Annotated[int, Field(ge=1, le=256)] = 4
    """Answers that are written at a time."""
    threads: Count | None = None
    """Processor threads; all cores where absent."""


class ApiSpec(Section):
    """A teacher behind an OpenAI-compatible API, each answer of which is paid for once."""

    model: str
    """The model's name on the server. With `serve: llamacpp`: `smollm2-135m`, or a GGUF file as a path or
    `package:NAME/FILE`."""
    serve: Literal["llamacpp"] | None = None
    """The server that the run starts on this machine and stops at its end; none where `base_url` says where one is."""
    base_url: str | None = None
    """Address of the server, for example https://api.openai.com/v1 or http://127.0.0.1:8000/v1. Plain http is for this
    machine only."""
    revision: str | None = None
    """Which weights the server holds, where you know it. Answers are then shared between addresses that serve it;
    otherwise the address stands for the weights."""
    template: str = ""
    """Tells the server's chat template apart from others, where you change it: answers under another one are others."""
    key_variable: str | None = None
    """Environment variable that holds the key. Absent: LMDISTILL_API_KEY, and OPENAI_API_KEY for api.openai.com."""
    key_file: str | None = None
    """File that holds the key and nothing else."""
    ledger: str | None = None
    """File of the ledger; `ledger.sqlite` in the run's folder where absent. Runs that share it share its answers."""
    recording: str | None = None
    """Answers come from this file (`lmdistill ledger export`), and no server is asked."""
    requests: Annotated[int, Field(ge=1, le=1024)] = 16
    """Most requests that are under way at a time; fewer where the server asks to wait."""
    requests_per_minute: Positive | None = None
    """Most requests that are sent in a minute; where absent, what the server's refusals teach."""
    deadline_seconds: Positive = 300.0
    """Longest that one call may take, from the first byte sent to the last one read."""
    unfinished: Literal["fail", "keep"] = "fail"
    """What an answer is that was cut at its limit, filtered, or a call of tools: a failed record, or an answer that
    carries the reason as its flag (`finish`)."""
    retry_failed: bool = False
    """Ask again for what failed in an earlier run because its answers could not be used."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """How the server calls the limit of an answer; OpenAI's reasoning models know the second name alone."""
    limits: ApiLimits = Field(default_factory=ApiLimits)
    """What asking may cost."""
    prices: dict[str, ApiPrice] = Field(default_factory=dict)
    """Prices by the model's name; they go before the table that comes with lmdistill."""
    retries: ApiRetries = Field(default_factory=ApiRetries)
    """What happens where no usable answer comes."""
    llamacpp: LlamaCppSpec = Field(default_factory=LlamaCppSpec)
    """The server of `serve: llamacpp`."""

    # On the whole section: what is wrong with one field would be shown with its value, which may hold a password.
    @model_validator(mode="after")
    def _whence(self) -> ApiSpec:
        sources = [self.serve is not None, self.base_url is not None]
        if sum(sources) > 1:
            raise ValueError("serve starts a server, base_url names one: set one of them")
        if not any(sources) and self.recording is None:
            raise ValueError("nobody to ask: set base_url (https://api.openai.com/v1), serve: llamacpp, or recording")
        if self.base_url is not None:
            _check_address(self.base_url)
        if self.key_variable is not None and self.key_file is not None:
            raise ValueError("the key has two places: set key_variable or key_file")
        return self


def is_this_machine(host: str) -> bool:
    """Whether a host name or address can only be this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_address(base_url: str) -> None:
    """Refuse addresses to which a key must not go, without showing what may be secret in them. Raises ValueError."""
    parts = urlsplit(base_url)
    host = parts.hostname
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError("base_url must begin with https://, or http:// for this machine, and name a host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("base_url holds a user or password: put the key into a variable or file (key_variable)")
    if parts.query or parts.fragment:
        raise ValueError("base_url has a part behind ? or #, where keys do not belong; leave it away")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    if address is not None and (address.is_link_local or address.is_unspecified or address.is_multicast):
        raise ValueError(f"base_url: {host} is no address of a server to trust with a key")
    if parts.scheme == "http" and not is_this_machine(host):
        raise ValueError(
            f"base_url: plain http sends key and text readable to all on the way to {host}; use https, or tunnel it "
            "(ssh -L 8000:localhost:8000 ...) and name http://127.0.0.1:8000/v1"
        )
