"""The way to a server: the openai SDK with its own retries off, over a transport of ours that guards key and memory.

The SDK never has the key: the transport (`api_guard`) puts it into what leaves this machine. There are no redirects, no
cookies and no proxies from the environment.

What comes back is bytes, or one of the errors that say how to ask again (`lmdistill.errors`). Torch is not imported
here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Protocol

from lmdistill.errors import BadAnswer, Broken, MissingExtra, Refused, TeacherError
from lmdistill.teachers.api_secret import ScrubbedLogs, Secret
from lmdistill.teachers.api_status import error_of
from lmdistill.teachers.api_wire import shown


class Transport(Protocol):
    """Whatever brings answers: a server, or a recording."""

    paid: bool
    """Whether its answers cost something."""

    async def send(self, key: str, turn: int, path: str, body: Mapping[str, Any], deadline: float) -> bytes:
        """The body of the answer to a call, within `deadline` seconds. Raises the branches of TeacherError."""

    async def close(self) -> None:
        """Close what is open."""


class HttpTransport:
    """Asks a server; used by one event loop."""

    paid = True

    def __init__(self, base_url: str, secret: Secret | None, most: int) -> None:
        """`most` calls at a time. Raises MissingExtra without the openai package."""
        try:
            import httpx2
            import openai

            from lmdistill.teachers.api_guard import CUT, Guard
        except ImportError as error:
            raise MissingExtra("asking a server needs the openai package: pip install 'lmdistill[api]'") from error
        self.base_url = base_url.rstrip("/")
        self._secret = secret
        self._response = httpx2.Response
        self._errors = (openai.APIStatusError, openai.OpenAIError)
        self._unreached = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
        self._cut = CUT
        self._logs = ExitStack()
        if secret is not None:
            self._logs.enter_context(ScrubbedLogs(secret))
        guard = Guard(self.base_url, secret, most)
        http = httpx2.AsyncClient(transport=guard, follow_redirects=False, trust_env=False)
        self._client = openai.AsyncOpenAI(
            base_url=self.base_url, api_key="none", max_retries=0, http_client=http, timeout=None
        )

    async def send(self, key: str, turn: int, path: str, body: Mapping[str, Any], deadline: float) -> bytes:
        """See `Transport.send`."""
        status_error, any_error = self._errors
        try:
            async with asyncio.timeout(deadline):
                response = await self._client.post(path, cast_to=self._response, body=body)
        except TimeoutError:
            raise Broken(f"{self.base_url} took longer than {deadline:.0f} s (api.deadline_seconds)") from None
        except status_error as error:
            raise self._status(error.response.status_code, error.response.headers, error.response.content) from None
        except any_error as error:
            raise self._broken(error) from None
        if response.status_code >= 300:
            raise self._status(response.status_code, response.headers, response.content)
        raw = response.content if self._secret is None else self._secret.scrub_bytes(response.content)
        if cut := response.extensions.get(self._cut):
            raise BadAnswer(f"{cut}: {shown(raw)}", raw[:4096])
        return raw

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()
        self._logs.close()

    def _status(self, status: int, headers: Mapping[str, str], body: bytes) -> TeacherError:
        text = body.decode("utf-8", "replace")
        said = text if self._secret is None else self._secret.scrub(text)
        return error_of(self.base_url, status, headers, said)

    def _broken(self, error: Exception) -> Broken | Refused:
        cause = error.__cause__ or error
        reached = not isinstance(cause, self._unreached)
        said = str(cause)[:200] or type(cause).__name__
        said = said if self._secret is None else self._secret.scrub(said)
        if "CERTIFICATE_VERIFY_FAILED" in said:
            return Refused(f"{self.base_url} has a certificate that cannot be trusted ({said}); nothing was sent")
        return Broken(f"{self.base_url} cannot be asked ({type(cause).__name__}: {said})", reached=reached)
