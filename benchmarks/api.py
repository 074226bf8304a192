"""A teacher behind an API against a server that echoes, with the ledger on.

    .venv/bin/python benchmarks/api.py [--json FILE] [--rows 10000] [--requests 32] [--delay 0.0]

    asked      requests a second, from the iterator of requests to the answers in order, each on the disk before it is
               given out; beside it the bare openai SDK (the same number at a time, nothing kept) in the same run
    memory     growth of this process between the first and the last thousand rows
    again      the same requests once more: answers a second out of the ledger, without a server
    lookups    answers found by key a second, in random order, checked against their hash

The server runs in a process of its own. Processor time is told beside wall time: on a machine that is busy with other
things, the first says what the code costs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from lmdistill.recipe import ApiLimits, ApiSpec
from lmdistill.teachers.api import ApiTeacher
from lmdistill.teachers.api_types import Message, Request, Sampling
from lmdistill.teachers.ledger import Ledger, reading

ECHO = Path(__file__).parents[1] / "tests" / "echo_server.py"
GOALS = {"asked": 300.0, "lookups": 20_000.0}
WORDS = "Explain in a few sentences why the sky looks blue at noon and red in the evening, and give one example. "


@contextmanager
def echo_server(delay: float) -> Iterator[str]:
    """The address of a server in a process of its own."""
    process = subprocess.Popen([sys.executable, str(ECHO), "0", str(delay)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def rows(count: int) -> Iterator[Request]:
    """Prompts of about 200 bytes."""
    for number in range(count):
        yield Request((Message("user", f"{WORDS}Question {number}. {WORDS}"),), Sampling(max_tokens=256))


def bare(url: str, count: int, at_a_time: int) -> float:
    """Requests a second of the SDK alone."""
    import httpx2
    import openai

    async def work() -> float:
        limits = httpx2.Limits(max_connections=at_a_time, max_keepalive_connections=at_a_time)
        http = httpx2.AsyncClient(limits=limits, trust_env=False)
        client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, http_client=http)
        coming = iter(rows(count))

        async def worker() -> None:
            for request in coming:
                messages = [{"role": "user", "content": request.messages[0].content}]
                await client.chat.completions.create(model="m", messages=messages, max_tokens=256)  # type: ignore[arg-type]

        start = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(at_a_time)))
        seconds = time.perf_counter() - start
        await client.close()
        return count / seconds

    return asyncio.run(work())


def ask(spec: ApiSpec, folder: Path, count: int) -> dict[str, float]:
    """Ask all and watch the memory."""
    process, memory = psutil.Process(), []
    with ApiTeacher(spec, folder=folder) as teacher:
        start, processor = time.perf_counter(), time.process_time()
        for number, answer in enumerate(teacher.answer(rows(count))):
            if answer.text is None or f"Question {number}. " not in answer.text:
                raise SystemExit(f"row {number}: {answer.error or answer.text}")
            if number % 100 == 99:
                memory.append(process.memory_info().rss)
        seconds, processor = time.perf_counter() - start, time.process_time() - processor
    tenth = max(1, len(memory) // 10)
    growth = max(memory[-tenth:]) - max(memory[tenth : 2 * tenth] or memory[:tenth])
    return {"per_second": count / seconds, "processor_ms": processor / count * 1e3, "growth_mib": growth / 2**20}


def lookups(folder: Path, repeats: int = 3) -> dict[str, float]:
    """Find every answer by its key, in random order; the best of some rounds."""
    path = folder / "ledger.sqlite"
    with reading(path) as connection:
        keys = [key.hex() for (key,) in connection.execute("SELECT key FROM answers")]
    random.Random(0).shuffle(keys)
    wall, processor = [], []
    with Ledger(path) as ledger:
        for _ in range(repeats):
            start, used = time.perf_counter(), time.process_time()
            for key in keys:
                if ledger.find(key) is None:
                    raise SystemExit(f"{key} is not found")
            wall.append(len(keys) / (time.perf_counter() - start))
            processor.append(len(keys) / (time.process_time() - used))
    return {"per_second": max(wall), "per_processor_second": max(processor)}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--delay", type=float, default=0.0)
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    found: list[dict[str, object]] = []
    print(f"{arguments.rows} rows, {arguments.requests} at a time, delay {arguments.delay} s; load before {load:.1f}")
    with tempfile.TemporaryDirectory() as name, echo_server(arguments.delay) as url:
        folder = Path(name)
        spec = ApiSpec(
            model="m", base_url=url, requests=arguments.requests, limits=ApiLimits(calls=10 * arguments.rows)
        )
        ask(spec, folder / "warm", 200)
        peer = bare(url, max(500, arguments.rows // 5), arguments.requests)
        asked = ask(spec, folder, arguments.rows)
        peer = (peer + bare(url, max(500, arguments.rows // 5), arguments.requests)) / 2
        again = ask(spec, folder, arguments.rows)
        looked = lookups(folder)
        size = (folder / "ledger.sqlite").stat().st_size / arguments.rows

    def row(case: str, value: float, unit: str, **more: object) -> None:
        goal = GOALS.get(case)
        found.append({"case": case, "ours": value, "limit": goal, "unit": unit, **more})
        print(f"{case:8} {value:12,.1f} {unit:24}" + (f" goal {goal:,.0f}" if goal else ""), flush=True)

    ratio = asked["per_second"] / peer
    row("asked", asked["per_second"], "requests/s", peer={"openai": peer}, ratios={"ours / openai": ratio})
    row("openai", peer, "requests/s, bare SDK")
    row("cost", asked["processor_ms"], "ms of processor/request")
    row("memory", asked["growth_mib"], "MiB growth")
    row("again", again["per_second"], "answers/s of the ledger")
    row("lookups", looked["per_second"], "answers/s by key", per_processor_second=looked["per_processor_second"])
    row("disk", size, "bytes/answer")
    if arguments.json:
        arguments.json.write_text(json.dumps({"load": load, "rows": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
