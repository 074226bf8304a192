"""The key of an API: where it comes from, and that it is never shown.

It stands in one object whose repr hides it, is put into the header of a request by the transport that sends it, and is
cut out of whatever a server says. Torch is not imported here.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from lmdistill.errors import RecipeError
from lmdistill.recipe import ApiSpec

OWN_VARIABLE = "LMDISTILL_API_KEY"
OPENAI_VARIABLE = "OPENAI_API_KEY"
HIDDEN = "[key]"
_KEY_FILE_LIMIT = 16384
_USABLE = re.compile(r"[\x21-\x7e]+")


class Secret:
    """A key that no repr, log or pickle shows."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def __repr__(self) -> str:
        return f"Secret({HIDDEN})"

    def __reduce__(self) -> str:
        raise TypeError("a key is not pickled")

    def header(self) -> str:
        """The value of the header `Authorization`."""
        return f"Bearer {self._value}"

    def scrub(self, text: str) -> str:
        """A text without the key."""
        return text.replace(self._value, HIDDEN)

    def scrub_bytes(self, data: bytes) -> bytes:
        """Bytes without the key, also where JSON writes its slashes escaped."""
        for form in {self._value, self._value.replace("/", "\\/")}:
            data = data.replace(form.encode(), HIDDEN.encode())
        return data


class ScrubbedLogs(logging.Filter):
    """Cuts a key out of what the libraries log that speak to a server, for as long as the block lasts.

    They never log what is sent; at their finest level they log what comes, and a server may send the key back.
    """

    LOGGERS = ("httpcore2.connection", "httpcore2.http11", "httpcore2.http2", "httpx2", "openai._base_client")

    def __init__(self, secret: Secret) -> None:
        super().__init__()
        self._secret = secret

    def __enter__(self) -> Self:
        for name in self.LOGGERS:
            logging.getLogger(name).addFilter(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in self.LOGGERS:
            logging.getLogger(name).removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Scrub a record; all of them stay."""
        record.msg, record.args = self._secret.scrub(record.getMessage()), ()
        return True


def read_secret(spec: ApiSpec) -> Secret | None:
    """The key of a recipe's API from the environment or a file; None where there is none. Raises RecipeError.

    OPENAI_API_KEY goes to OpenAI alone unless the recipe names it: a key of one provider is nothing for another.
    """
    if spec.key_file is not None:
        return _from_file(Path(spec.key_file).expanduser())
    if spec.key_variable is not None:
        value = os.environ.get(spec.key_variable, "")
        if not value.strip():
            raise RecipeError(f"api.key_variable: the variable {spec.key_variable} is not set; export it")
        return _checked(value, f"the variable {spec.key_variable}")
    if value := os.environ.get(OWN_VARIABLE, ""):
        return _checked(value, f"the variable {OWN_VARIABLE}")
    host = urlsplit(spec.base_url or "").hostname or ""
    if (host == "openai.com" or host.endswith(".openai.com")) and (value := os.environ.get(OPENAI_VARIABLE, "")):
        return _checked(value, f"the variable {OPENAI_VARIABLE}")
    return None


def _from_file(path: Path) -> Secret:
    try:
        if path.stat().st_size > _KEY_FILE_LIMIT:
            raise RecipeError(
                f"api.key_file: {path} has more than {_KEY_FILE_LIMIT} bytes; it should hold the key alone"
            )
        value = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"api.key_file: {path} cannot be read ({type(error).__name__})") from None
    return _checked(value, f"the file {path}")


def _checked(value: str, where: str) -> Secret:
    """The key without the line break at its end. Raises RecipeError, which does not show it."""
    value = value.strip()
    if not _USABLE.fullmatch(value):
        raise RecipeError(f"{where} holds {len(value)} characters that are no key: ASCII without spaces is expected")
    return Secret(value)
