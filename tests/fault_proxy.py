"""Stands in front of a real server and plays faults: each call gets the next one, `None` passes it on.

    with serving(EchoServer()) as echo, serving(FaultProxy(echo.address, [Status(500), None])) as proxy:
        ...

Users can put it before their own server:  python tests/fault_proxy.py 127.0.0.1:8000 [SHARE_OF_500s]
"""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from http_server import Call, HttpServer, response


@dataclass(frozen=True)
class Status:
    """An error."""

    code: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"error": {"message": "a fault"}}'


@dataclass(frozen=True)
class Body:
    """Status 200 with something that is no answer."""

    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    kind: str = "application/json"


@dataclass(frozen=True)
class Hang:
    """Nothing comes."""


@dataclass(frozen=True)
class SlowBytes:
    """The true answer, a byte at a time."""

    seconds: float = 1.0


@dataclass(frozen=True)
class Reset:
    """The connection ends before the answer, or after some bytes of it."""

    after: int = 0


@dataclass(frozen=True)
class Changed:
    """The true answer, with fields of its JSON replaced."""

    fields: dict[str, object]


@dataclass(frozen=True)
class Endless:
    """A body that does not end."""


Fault = Status | Body | Hang | SlowBytes | Reset | Changed | Endless | None
Script = Iterable[Fault] | Callable[[Call], Fault]


def gzip_bomb(megabytes: int = 512) -> Body:
    """Half a megabyte that unpacks to a thousand times as much."""
    return Body(gzip.compress(bytes(2**20) * megabytes, 9), {"Content-Encoding": "gzip"})


class FaultProxy(HttpServer):
    """Passes calls on to `upstream` (HOST:PORT), except where the script has a fault; after its end all pass."""

    def __init__(self, upstream: str, script: Script = ()) -> None:
        super().__init__()
        self.upstream = upstream
        self.seen: list[Call] = []
        self._fault = script if callable(script) else _in_order(script)

    async def respond(self, call: Call, writer: asyncio.StreamWriter) -> bool:
        self.seen.append(call)
        fault = self._fault(call)
        if isinstance(fault, Hang):
            await asyncio.sleep(3600)
        if isinstance(fault, Status):
            writer.write(response(fault.code, fault.body, fault.headers))
            return True
        if isinstance(fault, Body):
            writer.write(response(200, fault.body, fault.headers, fault.kind))
            return True
        if isinstance(fault, Endless):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000000000\r\n\r\n")
            while not writer.is_closing():
                writer.write(b" " * 65536)
                await writer.drain()
            return False
        if isinstance(fault, Reset) and fault.after == 0:
            writer.transport.abort()
            return False
        whole = await self._pass_on(call)
        if isinstance(fault, Reset):
            writer.write(whole[: fault.after])
            await writer.drain()
            writer.close()
            return False
        if isinstance(fault, SlowBytes):
            for place in range(len(whole)):
                writer.write(whole[place : place + 1])
                await writer.drain()
                await asyncio.sleep(fault.seconds)
            return False
        if isinstance(fault, Changed):
            value = json.loads(whole.partition(b"\r\n\r\n")[2])
            whole = response(200, json.dumps({**value, **fault.fields}).encode())
        writer.write(whole)
        return True

    async def _pass_on(self, call: Call) -> bytes:
        reader, writer = await asyncio.open_connection(*self.upstream.split(":"))
        headers = {name: value for name, value in call.headers.items() if name not in ("connection", "host")}
        headers |= {"host": self.upstream, "connection": "close", "content-length": str(len(call.body))}
        lines = [f"{call.method} {call.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + call.body)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.partition(b":")[2]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
        )
        body = await reader.readexactly(length)
        writer.close()
        head = head.replace(b"Connection: close\r\n", b"")
        return head + body


def _in_order(script: Iterable[Fault]) -> Callable[[Call], Fault]:
    coming = iter(script)
    return lambda call: next(coming, None)


def sometimes(share: float, fault: Fault, seed: int = 0) -> Callable[[Call], Fault]:
    """A fault for a random share of the calls."""
    draw = random.Random(seed)
    return lambda call: fault if draw.random() < share else None


async def _serve(upstream: str, share: float) -> None:
    proxy = FaultProxy(upstream, sometimes(share, Status(500)))
    server = await proxy.start()
    sys.stdout.write(proxy.url + "\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 0.3))
