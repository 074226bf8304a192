"""What every call to a server goes through: the key is put in, and bodies end.

This module needs the extra `api`. Torch is not imported here.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator

import httpx2

from lmdistill.recipe import is_this_machine
from lmdistill.teachers.api_secret import Secret

BODY_LIMIT = 8 * 2**20
"""Bytes of an answer after decompression."""
CONNECT_SECONDS = 10.0
CUT = "lmdistill_cut"
"""Extension of a response that says why its body was not read to its end."""
_HEADERS_SENT = {b"host", b"content-type", b"content-length", b"accept", b"user-agent", b"connection"}
_HEADERS_FOR_OPENAI = {b"openai-organization", b"openai-project"}


class Guard(httpx2.AsyncBaseTransport):
    """Sends what is needed and nothing else, to one host, and reads no more than the limit."""

    def __init__(self, base_url: str, secret: Secret | None, most: int) -> None:
        """`most` connections at a time."""
        self._host = httpx2.URL(base_url).host
        self._secret = secret
        is_openai = self._host == "openai.com" or self._host.endswith(".openai.com")
        self._headers = _HEADERS_SENT | (_HEADERS_FOR_OPENAI if is_openai else set())
        self._encoding = b"identity" if is_this_machine(self._host) else b"gzip"
        limits = httpx2.Limits(max_connections=most, max_keepalive_connections=most)
        # Certificates take a tenth of a second to load, and plain http, which stays on this machine, has none.
        encrypted = httpx2.URL(base_url).scheme == "https"
        self._inner = httpx2.AsyncHTTPTransport(verify=encrypted, limits=limits, trust_env=False)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a copy with the key in it. Raises UnsupportedProtocol for another host."""
        if request.url.host != self._host:
            raise httpx2.UnsupportedProtocol(f"{request.url.host} is not the server that was named")
        headers = [(name, value) for name, value in request.headers.raw if name.lower() in self._headers]
        headers.append((b"accept-encoding", self._encoding))
        if self._secret is not None:
            headers.append((b"authorization", self._secret.header().encode()))
        # One deadline holds for the whole call; the connection alone has a shorter one.
        extensions = {**request.extensions, "timeout": {"connect": CONNECT_SECONDS}}
        sent = httpx2.Request(
            request.method, request.url, headers=headers, stream=request.stream, extensions=extensions
        )
        return _limited(await self._inner.handle_async_request(sent))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()


class BodyReader:
    """Decompresses a body piece by piece, and never holds more than the limit."""

    def __init__(self, encoding: str, limit: int = BODY_LIMIT) -> None:
        self.problem: str | None = None
        """Why reading ended early."""
        self._left = limit
        self._limit = limit
        self._inflate = zlib.decompressobj(47) if encoding in ("gzip", "x-gzip", "deflate") else None
        if self._inflate is None and encoding not in ("identity", ""):
            self.problem = f"the answer is encoded as {encoding[:20]!r}, which nobody asked for"

    def take(self, chunk: bytes) -> bytes:
        """What a piece adds."""
        if self.problem is not None:
            return b""
        if self._inflate is not None:
            try:
                chunk = self._inflate.decompress(chunk, self._left + 1)
            except zlib.error as error:
                self.problem = f"the answer's compression is broken ({error})"
                return b""
        if len(chunk) > self._left:
            self.problem = f"the answer is longer than {self._limit} bytes"
        chunk = chunk[: self._left]
        self._left -= len(chunk)
        return chunk


class _Limited(httpx2.AsyncByteStream):
    """A body that ends, decompressed, at the limit; why it did is left in `extensions`."""

    def __init__(self, inner: httpx2.AsyncByteStream, encoding: str) -> None:
        self.extensions: dict[str, object] = {}
        self._inner = inner
        self._encoding = encoding

    async def __aiter__(self) -> AsyncIterator[bytes]:
        reader = BodyReader(self._encoding)
        async for chunk in self._inner:
            if data := reader.take(chunk):
                yield data
            if reader.problem is not None:
                self.extensions[CUT] = reader.problem
                return

    async def aclose(self) -> None:
        await self._inner.aclose()


def _limited(response: httpx2.Response) -> httpx2.Response:
    """The same response with a body that ends."""
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    headers = [(name, value) for name, value in response.headers.raw if name.lower() != b"content-encoding"]
    stream = _Limited(response.stream, encoding)
    limited = httpx2.Response(response.status_code, headers=headers, stream=stream, extensions=response.extensions)
    stream.extensions = limited.extensions
    return limited
