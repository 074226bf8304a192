"""A small server with a real model behind vLLM's protocol for prompt log-probabilities, that can also misbehave."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch


class LogprobServer(ThreadingHTTPServer):
    """Completions with `prompt_logprobs`: at each place the k likeliest tokens and the text's own, as vLLM gives."""

    daemon_threads = True

    def __init__(self, model: Any) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model = model
        self.lock = threading.Lock()
        self.prompts: list[list[int]] = []
        self.fail_first = 0
        """So many requests are answered with 503."""
        self.refuse: int | None = None
        """The status that every request is answered with."""
        self.poison = False
        """Whether a log-probability is NaN."""
        self.together: threading.Barrier | None = None
        """Requests wait here for each other."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def logprobs(self, ids: list[int], k: int) -> list[Any]:
        with torch.no_grad(), self.lock:
            log_LV = self.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        found: list[Any] = [None]
        for place, own in enumerate(ids[1:]):
            values, best = log_LV[place].topk(k)
            entry = {str(int(i)): {"logprob": float(v)} for i, v in zip(best, values, strict=True)}
            entry[str(own)] = {"logprob": float("nan") if self.poison else float(log_LV[place, own])}
            found.append(entry)
        return found


@contextmanager
def serving(model: Any) -> Iterator[LogprobServer]:
    """The server on a free port of this machine, for as long as the block lasts."""
    server = LogprobServer(model)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: LogprobServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.prompts.append(body["prompt"])
            number = len(self.server.prompts)
        if self.server.refuse is not None:
            return self.answer(self.server.refuse, {"error": {"message": "no"}})
        if number <= self.server.fail_first:
            return self.answer(503, {"error": {"message": "busy"}})
        if self.server.together is not None:
            self.server.together.wait()
        told = self.server.logprobs(body["prompt"], body["prompt_logprobs"])
        choice = {"index": 0, "text": "x", "finish_reason": "length", "prompt_logprobs": told}
        whole = {"id": "1", "object": "text_completion", "created": 0, "model": "m", "choices": [choice]}
        return self.answer(200, whole)

    def answer(self, status: int, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass
