"""Start a real llama.cpp server in this process, ask it some questions, and keep what it returns.

python ask_llamacpp.py MODEL.gguf ANSWERS.jsonl
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path

import xllamacpp

QUESTIONS = [
    "What is the capital of France?",
    "Name three fruits.",
    "Why is the sky blue?",
    "Write one sentence about a café in Málaga.",
    "What do bees make?",
    "Count from one to five.",
]


def main(model: str, path: str) -> None:
    settings = xllamacpp.CommonParams()
    settings.model.path = model
    settings.n_ctx, settings.n_parallel, settings.cpuparams.n_threads = 512, 1, 1
    server = xllamacpp.Server(settings)
    with Path(path).open("w", encoding="utf-8") as file:
        for question in QUESTIONS:
            messages = [{"role": "user", "content": question}]
            body = {"messages": messages, "max_tokens": 64, "temperature": 0, "logprobs": True, "top_logprobs": 20}
            request = urllib.request.Request(
                server.listening_address + "/v1/chat/completions",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=300) as answer:
                said = json.load(answer)["choices"][0]
            row = {"messages": messages, "answer": said["message"]["content"], "logprobs": said["logprobs"]}
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
