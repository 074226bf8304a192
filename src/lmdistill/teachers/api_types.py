"""What is asked of a teacher behind an API, and what it answered. Torch is not imported here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

PROMPT = "prompt"
"""Role of the one message of a request for plain text completion, which no chat template touches."""


class Message(NamedTuple):
    """One turn."""

    role: str
    """`system`, `user`, `assistant`; or `prompt`, alone: a text to be continued (the completions endpoint)."""
    content: str


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn. Every field is part of the ledger's key."""

    max_tokens: int = 1024
    """Most tokens of an answer, its reasoning included."""
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    """Texts at which the answer ends."""
    seed: int | None = None
    """Sent as `seed + sample`, so that samples of one request differ."""
    logprobs: int | None = None
    """None: no log-probabilities; else so many likeliest tokens at each place, beside the answer's own."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the request's body, such as `{"reasoning_effort": "low"}` or `{"top_k": 40}`."""


@dataclass(frozen=True)
class Request:
    """One question to a teacher."""

    messages: tuple[Message, ...]
    sampling: Sampling = field(default_factory=Sampling)
    sample: int = 0
    """Which of several independent answers to the same question; part of the key."""
    schema: Mapping[str, Any] | None = None
    """JSON schema that the answer must keep to; it is asked for by `response_format` and checked."""
    tag: str = ""
    """Name of the row, for errors and records; no part of the key."""


@dataclass(frozen=True)
class Usage:
    """What one answer took, as the server counts."""

    prompt: int = 0
    """Tokens of the prompt, cached ones included."""
    cached: int = 0
    """Tokens of the prompt that the server had in its cache."""
    reasoning: int = 0
    """Tokens of the reasoning; part of `output`."""
    output: int = 0
    """Tokens that were written, reasoning included."""
    money: float | None = None
    """US dollars by the table of prices; None where it has no price for the model."""


@dataclass(frozen=True)
class Answer:
    """What became of one request: an answer, or why there is none."""

    request: Request
    text: str | None
    """The answer as it came, without the reasoning; None where there is none."""
    reasoning: str | None
    """The reasoning, where the server gives it apart."""
    finish: str
    """`stop`, or why it is not whole: `length`, `content_filter`, `tool_calls`; `failed` where no answer came."""
    usage: Usage
    logprobs: Mapping[str, Any] | None
    """Token log-probabilities in the API's own format, checked; `lmdistill.signals.api_text` reads it."""
    error: str | None
    """Why it does not count as an answer; None for a good one."""
    key: str
    """The ledger's key."""
    seconds: float
    """How long the call took that brought it."""
    paid: bool
    """Whether it was asked for now; False where it came from the ledger or a recording."""
    model: str = ""
    """The model's name as answered, which may differ from the name asked for."""
    fingerprint: str = ""
    """The server's `system_fingerprint`."""
    raw: str | None = None
    """What an unusable answer held, as it came."""

    @property
    def good(self) -> bool:
        """Whether it may be used."""
        return self.error is None
