"""A store pushed to a hub by `datasets`: the real library against a small hub on this machine."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from store_helpers import fill, sequences, spec

from lmdistill.signals.store import SignalStore

COMMIT = "0" * 40


class Hub(ThreadingHTTPServer):
    """As much of the hub's protocol as publishing a data set takes: it keeps what is committed."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.blobs: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = self.found(self.path.split("?")[0], body)
        data = json.dumps(found).encode()
        self.send_response(404 if found is None else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_POST = do_HEAD = do_PUT = handle_any

    def found(self, path: str, body: bytes) -> Any:
        hub = self.server
        if "/preupload/" in path:
            kinds = {True: "lfs", False: "regular"}
            names = [item["path"] for item in json.loads(body)["files"]]
            return {
                "files": [
                    {"path": name, "uploadMode": kinds[name.endswith(".parquet")], "shouldIgnore": False}
                    for name in names
                ]
            }
        if path.endswith("/objects/batch"):
            objects = json.loads(body)["objects"]
            for item in objects:
                item["actions"] = {"upload": {"href": f"{hub.url}/blob/{item['oid']}"}}
            return {"transfer": "basic", "objects": objects}
        if path.startswith("/blob/"):
            hub.blobs[path.removeprefix("/blob/")] = body
            return {}
        if "/commit/" in path:
            for value in (json.loads(line) for line in body.splitlines()):
                name = value["value"].get("path")
                if value["key"] == "lfsFile":
                    hub.files[name] = hub.blobs[value["value"]["oid"]]
                if value["key"] == "file":
                    hub.files[name] = base64.b64decode(value["value"]["content"])
            return {"success": True, "commitOid": COMMIT, "commitUrl": f"{hub.url}/datasets/me/store/commit/{COMMIT}"}
        if "/tree/" in path:
            return [] if path.endswith("/data") else [{"type": "directory", "path": "data", "oid": COMMIT}]
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if path.endswith("/datasets/me/store") or "/revision/" in path:
            return {"id": "me/store", "sha": COMMIT, "siblings": [], "private": False, "tags": []}
        return None

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub()
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


PUSH = """
import datasets, sys
loaded = datasets.load_dataset("parquet", data_files=sys.argv[1], split="train", cache_dir=sys.argv[2])
loaded.push_to_hub("me/store", token="hf_none")
"""


def test_a_store_can_be_pushed_to_a_hub(hub: Hub, tmp_path: Path) -> None:
    fill(tmp_path / "store", spec("top_k"), sequences())
    settings = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    line = [sys.executable, "-c", PUSH, str(tmp_path / "store" / "*.parquet"), str(tmp_path / "cache")]
    done = subprocess.run(
        line, env={**os.environ, **settings}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (tmp_path / "pushed.parquet").write_bytes(hub.files["data/train-00000-of-00001.parquet"])
    pushed = pq.read_table(tmp_path / "pushed.parquet").to_pylist()
    assert [(row["key"], row["signal"]) for row in pushed] == [
        (row.key, row.signal) for row in SignalStore(tmp_path / "store").rows()
    ]
    assert b"dataset_info" in hub.files["README.md"]
