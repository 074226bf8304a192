"""The child process of `serve_llamacpp`: reads what to serve from its standard input, and ends when that closes.

    python -m lmdistill.teachers.llamacpp_child

The first line of its standard output is JSON, `{"address": ...}` or `{"error": ...}`.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any


def main() -> None:
    """Serve until standard input ends."""
    settings = json.loads(sys.stdin.buffer.readline())
    over = threading.Thread(target=_end_with_input, daemon=True)
    over.start()
    try:
        server = _serve(settings)
    except Exception as error:  # of the C++ library, of any kind: told in a line, since a traceback helps nobody
        _say({"error": f"{type(error).__name__}: {str(error)[:300]}"})
        os._exit(1)
    _say({"address": server.listening_address})
    over.join()


def _serve(settings: dict[str, Any]) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings["path"]
    params.model_alias = {settings["model"]}
    params.hostnames, params.port, params.api_keys = ["127.0.0.1"], 0, [settings["key"]]
    params.n_parallel = settings["parallel"]
    params.n_ctx = settings["context"] * settings["parallel"]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = settings["threads"] or cores
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.ui = params.endpoint_slots = params.endpoint_props = False
    params.cors_origins = ""
    params.verbosity = 1  # errors
    return xllamacpp.Server(params)


def _end_with_input() -> None:
    while sys.stdin.buffer.read(4096):
        pass
    os._exit(0)  # the server has threads of its own, which nothing else ends


def _say(value: dict[str, str]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
