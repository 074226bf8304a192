"""The studio's web server: on 127.0.0.1 alone, answering nobody but pages that it served itself.

Gradio brings many more addresses than the studio uses (files, uploads, a proxy, its API); those are not reachable.
"""

from __future__ import annotations

import os
import socket
import threading
import webbrowser
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmdistill.errors import DataError, MissingExtra

if TYPE_CHECKING:
    from starlette.applications import Starlette

HOST = "127.0.0.1"
POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; manifest-src 'self'; worker-src 'self' "
    "blob:; base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy: nothing from elsewhere, nothing to elsewhere. Gradio's scripts need inline and eval."""

_PAGES = {"/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", "/pwa_icon"}
_API = {"queue/join", "queue/data", "cancel", "reset", "startup-events", "theme.css", "app_id", "token", "user",
        "login_check", "run/predict"}  # fmt: skip
_FOLDERS = ("/assets/", "/static/", "/svelte/", "/gradio_api/heartbeat/")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Guard:
    """Refuses requests for other addresses than the studio's, and requests that another site's page makes.

    A page elsewhere can make a browser ask 127.0.0.1: by its Origin it is told apart, and by the Host one whose name
    was turned to 127.0.0.1 afterwards (DNS rebinding).
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], port: int) -> None:
        self.app = app
        self._hosts = {f"{name}:{port}".encode() for name in (HOST, "localhost")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # the studio speaks no other protocol
        headers = dict(scope["headers"])
        origin = headers.get(b"origin")
        if headers.get(b"host") not in self._hosts:
            await _refuse(send, 421, b"ask 127.0.0.1 with its port")
        elif origin is not None and origin.partition(b"://")[2] not in self._hosts:
            await _refuse(send, 403, b"not from another site")
        elif not reachable(scope["path"]):
            await _refuse(send, 404, b"not here")
        else:
            await self.app(scope, receive, _with_policy(send))


def reachable(path: str) -> bool:
    """Whether an address is one that the studio's page uses."""
    if ".." in path or "\\" in path:
        return False
    bare = path.rstrip("/") or "/"
    return bare in _PAGES or bare.removeprefix("/gradio_api/") in _API or path.startswith(_FOLDERS)


def _with_policy(send: Send) -> Send:
    async def sent(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [
                *message.get("headers", ()),
                (b"content-security-policy", POLICY.encode()),
                (b"x-content-type-options", b"nosniff"),
                (b"referrer-policy", b"no-referrer"),
            ]
        await send(message)

    return sent


async def _refuse(send: Send, status: int, text: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})


def launch(
    runs: Path, port: int | None = None, open_browser: bool = False, told: Callable[[str], None] = lambda url: None
) -> None:
    """Serve the studio over a folder of runs until Ctrl-C; `told` hears of its address once it can be opened.

    Without `port` a free one is taken. Raises MissingExtra without gradio, DataError for a folder that is not there or
    a port that is taken.
    """
    if not runs.is_dir():
        raise DataError(f"{runs}: no such folder; give the folder of your runs, as in: lmdistill studio runs")
    _be_quiet()
    try:
        import uvicorn

        from lmdistill.studio.app import application
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"the studio needs the gradio package ({error.name} is missing): pip install 'lmdistill[studio]'"
        ) from error
    with closing(_listening(port)) as listener:
        number = listener.getsockname()[1]
        app: Starlette = application(runs)
        config = uvicorn.Config(Guard(app, number), log_level="critical", lifespan="on", timeout_graceful_shutdown=1)
        address = f"http://{HOST}:{number}/"
        told(address)
        if open_browser:
            threading.Timer(1.0, webbrowser.open, [address]).start()
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:
            return


def _be_quiet() -> None:
    """Neither gradio nor the hub's client speaks to the outside; to be set before they are imported."""
    for name, value in {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
    }.items():
        os.environ[name] = value


def _listening(port: int | None) -> socket.socket:
    """A socket that listens; the system chooses a free port where none is given, so that nobody can come between."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port or 0))
        listener.listen(128)
    except (OSError, OverflowError) as error:
        listener.close()
        raise DataError(f"port {port} of {HOST} cannot be had ({error}); leave --port out") from error
    return listener
