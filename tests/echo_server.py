"""A teacher that answers with what it was asked, so that an answer beside the wrong question shows at once.

python tests/echo_server.py PORT [DELAY_SECONDS]     in a process of its own, for benchmarks/api.py
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from typing import Any

from http_server import Call, HttpServer, response


class EchoServer(HttpServer):
    """Chat and completions in OpenAI's format."""

    def __init__(self, delay: float = 0.0, key: str | None = None, keep: bool = True) -> None:
        super().__init__()
        self.delay = delay
        self.key = key
        """What `Authorization` must hold; None: anything."""
        self.model = "echo"
        self.asked: Counter[str] = Counter()
        """How often each prompt came."""
        self.seen: list[Call] = []
        self._keep = keep

    async def respond(self, call: Call, writer: asyncio.StreamWriter) -> bool:
        if self.key is not None and call.headers.get("authorization") != f"Bearer {self.key}":
            writer.write(response(401, b'{"error": {"message": "Incorrect API key", "code": "invalid_api_key"}}'))
            return True
        body = json.loads(call.body)
        if self._keep:
            self.asked[prompt_of(body)] += 1
            self.seen.append(call)
        if self.delay:
            await asyncio.sleep(self.delay)
        writer.write(response(200, json.dumps(self.answer(body)).encode()))
        return True

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = prompt_of(body)
        text = f"echo: {prompt}"
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        choice |= {"text": text} if "prompt" in body else {"message": {"role": "assistant", "content": text}}
        words = len(prompt.split())
        usage = {"prompt_tokens": words, "completion_tokens": words + 1, "total_tokens": 2 * words + 1}
        return {"id": "1", "object": "chat.completion", "model": self.model, "choices": [choice], "usage": usage}


def prompt_of(body: dict[str, Any]) -> str:
    """The text that was asked about."""
    return str(body["prompt"] if "prompt" in body else body["messages"][-1]["content"])


async def _serve(port: int, delay: float) -> None:
    echo = EchoServer(delay, keep=False)
    server = await echo.start(port)
    sys.stdout.write(echo.url + "\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0.0))
