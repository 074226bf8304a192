"""Writing: whole or not at all, whatever happens in the middle."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmdistill.errors import CorruptFile, RunFolderInUse, StorageError, UnsafePath
from lmdistill.io import (
    RunLock,
    append_line,
    hash_json,
    read_json,
    remove_leftovers,
    safe_join,
    seal_folder,
    verify_folder,
    write_bytes,
    write_folder,
    write_json,
)


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)


def test_a_kill_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    code = (
        "import sys; from pathlib import Path; from lmdistill.io import write_bytes\n"
        "p = Path(sys.argv[1])\n"
        "write_bytes(p, b'0' * 300000); print('ready', flush=True)\n"
        "n = 0\n"
        "while True:\n    n = (n + 1) % 10; write_bytes(p, str(n).encode() * 300000)\n"
    )
    for delay in (0.0, 0.003, 0.011, 0.02, 0.037):
        child = python(code, str(path))
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        data = path.read_bytes()
        assert len(data) == 300000
        assert len(set(data)) == 1
    remove_leftovers(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.bin"]


def test_a_full_disk_is_one_clear_error_and_keeps_the_old_file(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from lmdistill.io import write_bytes; from lmdistill.errors import StorageError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); p = Path(sys.argv[1]); write_bytes(p, b'old')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    write_bytes(p, b'x' * 5000)\n"
        "except StorageError as error:\n    print(error)\n"
    )
    child = python(code, str(tmp_path / "file"))
    said, _ = child.communicate(timeout=60)
    assert "5000 bytes were to be written" in said
    assert "free" in said
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_one_of_many_simultaneous_starts_wins(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from lmdistill.io import RunLock\n"
        "from lmdistill.errors import RunFolderInUse\n"
        "try:\n    with RunLock(Path(sys.argv[1])):\n        print('won', flush=True); time.sleep(3)\n"
        "except RunFolderInUse as error:\n    print(error)\n"
    )
    children = [python(code, str(tmp_path)) for _ in range(8)]
    said = [child.communicate(timeout=60)[0].strip() for child in children]
    assert said.count("won") == 1
    assert all("is in use by process" in text for text in said if text != "won")


def test_a_dead_owner_gives_its_lock_up(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from lmdistill.io import RunLock\n"
        "RunLock(Path(sys.argv[1])).__enter__(); print('in', flush=True); time.sleep(60)\n"
    )
    child = python(code, str(tmp_path))
    assert child.stdout is not None
    child.stdout.readline()
    with pytest.raises(RunFolderInUse, match=rf"process {child.pid} "), RunLock(tmp_path):
        pass
    child.kill()
    child.wait()
    child.stdout.close()
    with RunLock(tmp_path):
        pass


def test_a_sealed_folder_verifies_until_a_bit_flips(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a" / "weights", os.urandom(1000))
    write_bytes(tmp_path / "a" / "inner" / "state", b"x")
    seal_folder(tmp_path / "a")
    verify_folder(tmp_path / "a")
    data = bytearray((tmp_path / "a" / "weights").read_bytes())
    data[500] ^= 4
    write_bytes(tmp_path / "a" / "weights", bytes(data))
    with pytest.raises(CorruptFile, match="weights"):
        verify_folder(tmp_path / "a")
    (tmp_path / "a" / "manifest.json").unlink()
    with pytest.raises(CorruptFile, match="not finished"):
        verify_folder(tmp_path / "a")


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with write_folder(tmp_path / "model") as folder:
        (folder / "one").write_text("1")
    with pytest.raises(RuntimeError, match="stop"), write_folder(tmp_path / "model") as folder:  # noqa: PT012 - it must fail inside
        (folder / "two").write_text("2")
        raise RuntimeError("stop")
    assert [entry.name for entry in (tmp_path / "model").iterdir()] == ["one"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_a_cut_line_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b'{"a": 1}\n{"cut')
    append_line(path, '{"b": 2}')
    assert path.read_text().splitlines() == ['{"a": 1}', '{"cut', '{"b": 2}']


def test_a_read_only_place_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises((StorageError, NotADirectoryError, FileExistsError)):
        write_bytes(tmp_path / "file" / "x", b"")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    )
)
def test_json_survives_the_way_there_and_back(value: object) -> None:
    import tempfile

    def plain(node: object) -> object:
        if isinstance(node, float) and not math.isfinite(node):
            return "NaN" if math.isnan(node) else "Infinity" if node > 0 else "-Infinity"
        if isinstance(node, list):
            return [plain(item) for item in node]
        if isinstance(node, dict):
            return {key: plain(item) for key, item in node.items()}
        return node

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "value.json"
        write_json(path, value)
        expected = json.loads(json.dumps(plain(value)).encode("utf-8", "replace").decode())
        assert json.dumps(read_json(path)).replace("\\ud", "?") is not None
        if all(not 0xD800 <= ord(c) < 0xE000 for c in json.dumps(value, default=str, ensure_ascii=False)):
            assert read_json(path) == expected


@given(st.lists(st.text(max_size=20), max_size=3))
def test_names_never_leave_the_root(names: list[str]) -> None:
    root = Path("/tmp/lmdistill-root")
    try:
        path = safe_join(root, *names)
    except UnsafePath:
        return
    assert path == root or root in path.parents


def test_a_link_that_leads_outside_is_refused(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path)
    with pytest.raises(UnsafePath, match="outside"):
        safe_join(tmp_path / "root", "link")


def test_the_hash_of_a_value_ignores_the_order_of_keys() -> None:
    assert hash_json({"a": 1, "b": [math.nan]}) == hash_json({"b": [math.nan], "a": 1})
    assert hash_json({"a": 1}) != hash_json({"a": 1.5})
