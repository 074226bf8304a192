"""What a server's refusal means: to stop, to wait, to back off, or to give this one request up.

| status | remedy |
|---|---|
| 401, 402, 403, 404, 405, redirects; 429 for lack of money; 400 for a wrong key | Refused: the run stops |
| 429, 529; 503 that says how long | Busy: wait as told |
| 408, 409, 425, other 5xx | Broken: back off |
| other 4xx, and 403 for the content | Unanswerable: a failed record |
"""

from __future__ import annotations

import datetime
import email.utils
import json
import math
from collections.abc import Mapping

from lmdistill.errors import Broken, Busy, Refused, TeacherError, Unanswerable

_NO_MONEY = ("insufficient_quota", "billing", "credit", "payment", "insufficient_balance", "arrearage")
_WRONG_KEY = ("invalid_api_key", "api key not valid", "api_key_invalid", "invalid authentication")
_CONTENT = ("moderation", "content_policy", "content policy", "flagged", "safety")
_LATER = (408, 409, 425)
_ADVICE = {
    401: "put the server's key into LMDISTILL_API_KEY, or name its variable or file (api.key_variable, api.key_file)",
    402: "the account has no money; add some",
    403: "the key may not use this model or endpoint",
    404: "is api.model a name that it serves, and does api.base_url end as its manual says (often in /v1)?",
    405: "does api.base_url end as the server's manual says (often in /v1)?",
}


def error_of(base_url: str, status: int, headers: Mapping[str, str], said: str) -> TeacherError:
    """The error for an answer that is none. `said` is its body, without the key."""
    code, message = _reason(said)
    what = f"{base_url} answered {status}" + (f" ({ascii(message)[1:-1][:300]})" if message else "")
    hint = f"{code} {message}".lower()
    if 300 <= status < 400:
        target = ascii(headers.get("location", ""))[:200]
        return Refused(f"{what}: it redirects to {target}, where no key is sent; set api.base_url to its new address")
    if status == 400 and any(word in hint for word in _WRONG_KEY):
        return Refused(f"{what}; {_ADVICE[401]}")
    if status == 429 and any(word in code.lower() for word in _NO_MONEY):
        return Refused(f"{what}; {_ADVICE[402]}")
    if status == 403 and any(word in hint for word in _CONTENT):
        return Unanswerable(f"{what}")
    if status in _ADVICE:
        return Refused(f"{what}; {_ADVICE[status]}")
    wait = wait_of(headers)
    if status in (429, 529) or (status == 503 and wait is not None):
        return Busy(what, wait)
    if status >= 500 or status in _LATER:
        return Broken(what, billed=False)
    return Unanswerable(what)


def wait_of(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait (`Retry-After` in seconds or as a date, `Retry-After-Ms`).

    A date counts from the server's own time where it tells it, since clocks differ. None where nothing usable is said:
    a negative number, a date long past, text.
    """
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        told = headers.get(name, "").strip()
        if not told:
            continue
        try:
            seconds = float(told) * unit
        except ValueError:
            seconds = _until(told, headers.get("date", ""))
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    return None


def _until(date: str, server_time: str) -> float:
    """Seconds until a date; NaN where it is none."""
    try:
        then = email.utils.parsedate_to_datetime(date)
    except ValueError:
        return math.nan
    try:
        present = email.utils.parsedate_to_datetime(server_time)
    except ValueError:
        present = datetime.datetime.now(datetime.UTC)
    if then.tzinfo is None or present.tzinfo is None:
        return math.nan
    return (then - present).total_seconds()


def _reason(said: str) -> tuple[str, str]:
    """Code and message of an error's body, in the formats of OpenAI, of llama.cpp and of plain text."""
    try:
        value = json.loads(said)
    except (ValueError, RecursionError):
        return "", " ".join(said.split())[:300]
    error = value.get("error", value) if isinstance(value, Mapping) else value
    if not isinstance(error, Mapping):
        return "", str(error)[:300]
    code = " ".join(str(error.get(name) or "") for name in ("code", "type"))
    return code[:200], str(error.get("message") or error.get("detail") or "")[:300]
