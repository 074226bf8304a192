"""A small HTTP/1.1 server on 127.0.0.1 for tests: one event loop in a thread, raw sockets, so that it can misbehave."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar


@dataclass(frozen=True)
class Call:
    """One request as it came."""

    number: int
    """From 1."""
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class HttpServer:
    """Reads requests and lets `respond` write whatever it likes."""

    def __init__(self) -> None:
        self.calls = 0
        self.address = ""
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://{self.address}/v1"

    async def respond(self, call: Call, writer: asyncio.StreamWriter) -> bool:
        """Answer a call; whether the connection stays."""
        raise NotImplementedError

    async def start(self, port: int = 0) -> asyncio.Server:
        server = await asyncio.start_server(self._connection, "127.0.0.1", port, limit=2**24)
        host, port = server.sockets[0].getsockname()[:2]
        self.address = f"{host}:{port}"
        return server

    async def stop(self, server: asyncio.Server) -> None:
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while (call := await self._read(reader)) is not None and await self.respond(call, writer):
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> Call | None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return None
        first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        method, path, _ = first.split(" ", 2)
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self.calls += 1
        return Call(self.calls, method, path, headers, body)


def response(status: int, body: bytes, headers: dict[str, str] | None = None, kind: str = "application/json") -> bytes:
    """A whole response."""
    lines = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


Server = TypeVar("Server", bound=HttpServer)


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """The server on a free port of this machine, for as long as the block lasts."""
    loop = asyncio.new_event_loop()
    listening = threading.Event()
    running: list[asyncio.Server] = []

    def work() -> None:
        running.append(loop.run_until_complete(server.start()))
        listening.set()
        loop.run_forever()
        loop.run_until_complete(server.stop(running[0]))
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    listening.wait()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
