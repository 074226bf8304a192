"""From a request to the body of an HTTP call, and from what came back to an answer. Torch is not imported here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from lmdistill.errors import BadAnswer, DataError, MissingExtra
from lmdistill.io import hash_json
from lmdistill.teachers.api_types import PROMPT, Request, Usage

CHAT = "/chat/completions"
COMPLETIONS = "/completions"
SHOWN_BYTES = 200
"""So much of an unusable answer stands in an error."""
_OTHER_SEED = 1_000_003
"""Between the seeds of two tries at one answer: what was unusable would come again with the same one."""
_THINK = ("<think>", "</think>")
_UNFINISHED = {
    "length": "cut at its limit of tokens; raise max_tokens",
    "content_filter": "cut by the server's content filter",
    "tool_calls": "a call of tools where text was wanted",
    "function_call": "a call of tools where text was wanted",
}

MaxTokensField = Literal["max_tokens", "max_completion_tokens"]


@dataclass(frozen=True)
class Identity:
    """Whose answers they are: what stands for a teacher in the ledger's key."""

    model: str
    where: str
    """The revision of its weights, or the address of its server."""
    template: str = ""
    """Which chat template the server uses, where the recipe tells it."""


@dataclass(frozen=True)
class Content:
    """What one answer of the server says."""

    text: str
    reasoning: str | None
    finish: str
    problem: str | None
    """Why it is not whole; None where it is."""
    usage: Usage | None
    """None where the server does not say."""
    logprobs: Mapping[str, Any] | None
    model: str
    fingerprint: str


def request_key(identity: Identity, request: Request) -> str:
    """SHA-256 of everything that the answer depends on; the row's name and this program's version are no part of it."""
    sampling = request.sampling
    return hash_json(
        {
            "model": identity.model,
            "where": identity.where,
            "template": identity.template,
            "messages": [list(message) for message in request.messages],
            "sampling": {
                "max_tokens": sampling.max_tokens,
                "temperature": float(sampling.temperature),
                "top_p": float(sampling.top_p),
                "stop": list(sampling.stop),
                "seed": sampling.seed,
                "logprobs": sampling.logprobs,
                "extra": dict(sampling.extra),
            },
            "schema": request.schema,
            "sample": request.sample,
        }
    )


def check_request(request: Request) -> None:
    """Raises DataError for a request that cannot be asked."""
    is_completion(request)
    if request.schema is not None:
        _validator(json.dumps(request.schema, sort_keys=True))
    if request.sampling.max_tokens < 1 or request.sample < 0:
        raise DataError(
            f"{request.tag or 'a request'}: max_tokens {request.sampling.max_tokens} and sample {request.sample}; at "
            "least 1 and 0 are needed"
        )


def is_completion(request: Request) -> bool:
    """Whether it is a text to be continued. Raises DataError for roles that do not go together."""
    if not request.messages:
        raise DataError(f"{request.tag or 'a request'}: no messages; give at least one")
    prompts = sum(message.role == PROMPT for message in request.messages)
    if prompts and len(request.messages) > 1:
        raise DataError(f"{request.tag or 'a request'}: the role {PROMPT!r} stands alone; use system, user, assistant")
    return prompts == 1


def path_of(request: Request) -> str:
    """The endpoint, below the server's address."""
    return COMPLETIONS if is_completion(request) else CHAT


def body_of(
    request: Request, model: str, turn: int = 0, max_tokens_field: MaxTokensField = "max_tokens"
) -> dict[str, Any]:
    """The body of the call; `turn` counts the tries at a usable answer, each with another seed."""
    sampling = request.sampling
    body: dict[str, Any] = {"model": model}
    if is_completion(request):
        body["prompt"] = whole(request.messages[0].content)
        body["max_tokens"] = sampling.max_tokens
    else:
        body["messages"] = [{"role": message.role, "content": whole(message.content)} for message in request.messages]
        body[max_tokens_field] = sampling.max_tokens
    body |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.seed is not None:
        body["seed"] = (sampling.seed + request.sample + turn * _OTHER_SEED) % 2**31
    if sampling.logprobs is not None:
        asked = {"logprobs": True, "top_logprobs": sampling.logprobs}
        body |= {"logprobs": sampling.logprobs} if is_completion(request) else asked
    if request.schema is not None:
        named = {"name": "answer", "strict": True, "schema": dict(request.schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": named}
    return {**body, **sampling.extra}


def call_text(path: str, body: Mapping[str, Any]) -> str:
    """A call as the ledger keeps it: JSON of its endpoint and body."""
    return json.dumps({"path": path, "body": body}, ensure_ascii=False, separators=(",", ":"))


def read_content(request: Request, raw: bytes) -> Content:
    """What a body says. Raises BadAnswer where it is no answer, or not the one that was asked for."""
    try:
        value = json.loads(raw)
        choice = value["choices"][0]
    except (ValueError, RecursionError, KeyError, IndexError, TypeError) as error:
        raise BadAnswer(f"no answer in what came ({type(error).__name__}): {shown(raw)}", raw) from None
    if not isinstance(choice, Mapping):
        raise BadAnswer(f"no answer in what came: {shown(raw)}", raw)
    text, reasoning, refusal = _texts(choice, raw)
    finish = choice.get("finish_reason")
    finish = finish if isinstance(finish, str) and finish else "stop"
    problem = _UNFINISHED.get(finish)
    if refusal and not text:
        finish, problem = "content_filter", f"the model refused: {refusal[:SHOWN_BYTES]!r}"
    if problem is None and finish not in ("stop", "eos", "end_turn", "stop_sequence"):
        problem = f"it ended with {finish[:40]!r}, which is no end of an answer"
    if not text.strip() and problem is None:
        raise BadAnswer(f"the answer is empty: {shown(raw)}", raw)
    if request.schema is not None and problem is None:
        _check_schema(text, request.schema, raw)
    return Content(
        text=text,
        reasoning=reasoning,
        finish=finish,
        problem=problem,
        usage=_usage(value.get("usage")),
        logprobs=_logprobs(request, choice.get("logprobs"), raw, needed=problem is None),
        model=_name(value.get("model")),
        fingerprint=_name(value.get("system_fingerprint")),
    )


def read_facts(raw: bytes) -> tuple[Usage | None, str, str, str]:
    """What a body says of itself, be it an answer or not: usage, end, model, fingerprint; empty where nothing."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, Mapping):
        return None, "", "", ""
    choices = value.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    finish = _name(first.get("finish_reason")) if isinstance(first, Mapping) else ""
    return _usage(value.get("usage")), finish, _name(value.get("model")), _name(value.get("system_fingerprint"))


def shown(raw: bytes) -> str:
    """The beginning of what came, escaped, for an error."""
    cut = "" if len(raw) <= SHOWN_BYTES else f" … ({len(raw)} bytes)"
    return ascii(raw[:SHOWN_BYTES].decode("utf-8", "replace")) + cut


def _texts(choice: Mapping[str, Any], raw: bytes) -> tuple[str, str | None, str]:
    """Answer, reasoning and refusal of a choice."""
    message = choice.get("message")
    if not isinstance(message, Mapping):
        text = choice.get("text")
        if not isinstance(text, str):
            raise BadAnswer(f"neither message nor text in what came: {shown(raw)}", raw)
        return whole(text), None, ""
    content, refusal = message.get("content"), message.get("refusal")
    if not isinstance(content, str | None):
        raise BadAnswer(f"the answer is no text: {shown(raw)}", raw)
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    text = whole(content or "")
    if isinstance(reasoning, str):
        return text, whole(reasoning), refusal if isinstance(refusal, str) else ""
    return *_apart(text), refusal if isinstance(refusal, str) else ""


def _apart(text: str) -> tuple[str, str | None]:
    """Answer and reasoning, where the server leaves the reasoning in front of the answer."""
    begin, end = _THINK
    if not text.lstrip().startswith(begin):
        return text, None
    reasoning, closed, answer = text.lstrip().removeprefix(begin).partition(end)
    return (answer.lstrip() if closed else ""), reasoning.strip()


def whole(text: str) -> str:
    """Text that every file can hold: half characters, which JSON can write, become replacement characters."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _check_schema(text: str, schema: Mapping[str, Any], raw: bytes) -> None:
    from jsonschema import ValidationError

    try:
        _validator(json.dumps(schema, sort_keys=True)).validate(json.loads(text))
    except ValidationError as error:
        place = "/".join(map(str, error.absolute_path)) or "the whole"
        raise BadAnswer(f"the answer breaks its schema at {place}: {ascii(error.message)[:SHOWN_BYTES]}", raw) from None
    except (ValueError, RecursionError) as error:
        raise BadAnswer(f"the answer is not JSON ({type(error).__name__}): {shown(text.encode())}", raw) from None


@lru_cache(64)
def _validator(schema: str) -> Any:
    """What checks answers against a schema. Raises DataError where the schema is none."""
    try:
        from jsonschema import SchemaError, validators
        from referencing import Registry
    except ImportError as error:
        raise MissingExtra("checking schemas needs the jsonschema package: pip install 'lmdistill[api]'") from error
    value = json.loads(schema)
    kind = validators.validator_for(value, default=validators.Draft202012Validator)
    try:
        kind.check_schema(value)
    except SchemaError as error:
        raise DataError(f"a request's schema is no JSON schema: {error.message}") from None
    return kind(value, registry=Registry())  # an empty registry: nothing that a schema names is fetched


def _logprobs(request: Request, value: Any, raw: bytes, needed: bool) -> Mapping[str, Any] | None:
    """The log-probabilities that were asked for, checked; an answer that is not whole may have none."""
    if request.sampling.logprobs is None:
        return None
    from lmdistill.signals.api_text import check_logprobs  # lazily: it costs torch, which plain answers do not need

    try:
        check_logprobs(value, request.sampling.logprobs)
    except DataError as error:
        if not needed:
            return None
        raise BadAnswer(f"the answer's log-probabilities cannot be used: {error}", raw) from None
    return dict(value)


def _usage(value: Any) -> Usage | None:
    if not isinstance(value, Mapping) or _count(value.get("prompt_tokens")) is None:
        return None
    prompt_details = value.get("prompt_tokens_details")
    output_details = value.get("completion_tokens_details")
    prompt, output = _count(value.get("prompt_tokens")) or 0, _count(value.get("completion_tokens")) or 0
    cached = _count(prompt_details.get("cached_tokens")) if isinstance(prompt_details, Mapping) else None
    reasoning = _count(output_details.get("reasoning_tokens")) if isinstance(output_details, Mapping) else None
    return Usage(prompt=prompt, cached=min(cached or 0, prompt), reasoning=min(reasoning or 0, output), output=output)


def _count(value: Any) -> int | None:
    """A number of tokens; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return int(value) if 0 <= value < 2**40 else None


def _name(value: Any) -> str:
    return whole(value)[:200] if isinstance(value, str) else ""
