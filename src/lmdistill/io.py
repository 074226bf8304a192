"""The one module that writes files. Torch is not imported here.

A file is written under a temporary name in its own folder, flushed to the disk, and renamed: whoever looks sees the old
content or the new one, never a part. A folder is sealed by a manifest of hashes that is written last. Errors of the
disk become `StorageError` with what was needed and what is free.
"""

from __future__ import annotations

import datetime
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lmdistill.errors import CorruptFile, RunFolderInUse, StorageError, UnsafePath

MANIFEST = "manifest.json"
READ_LIMIT = 512 * 2**20
"""Largest JSON file that is read."""

_TEMPORARY = ".lmdistill-tmp-"
_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,100}")
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG}


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, and be sure that it is on the disk. Raises StorageError."""
    _write(path, [data], len(data))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """`write_bytes` of UTF-8 lines that need not be in memory together; none of them may hold a line break."""
    _write(path, (line.encode("utf-8", errors="replace") + b"\n" for line in lines), 0)


def _write(path: Path, parts: Iterable[bytes], size: int) -> None:
    """Write parts as one file, whole or not at all."""
    temporary = path.with_name(f"{_TEMPORARY}{os.getpid()}-{path.name}")
    with _storage(path, size):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text; lone surrogates are replaced, since no file can hold them."""
    write_bytes(path, text.encode("utf-8", errors="replace"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON; NaN and infinities become the strings "NaN", "Infinity", "-Infinity", which JSON lacks."""
    write_text(path, json.dumps(_finite(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON. Raises CorruptFile where it is not, FileNotFoundError where nothing is."""
    size = path.stat().st_size
    if size > READ_LIMIT:
        raise CorruptFile(f"{path}: {size} bytes, more than the {READ_LIMIT} that are read; is it a file of ours?")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"{path}: not valid JSON ({error}); delete it to have it made again") from error


def append_line(path: Path, line: str) -> None:
    """Append one line to a log in one write; a cut last line, left by a kill, is closed first."""
    data = line.replace("\n", " ").encode("utf-8", errors="replace") + b"\n"
    with _storage(path, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    data = b"\n" + data
            file.write(data)


def hash_bytes(data: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(value: Any) -> str:
    """SHA-256 of the canonical JSON of a value: the order of keys does not matter."""
    text = json.dumps(_finite(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hash_bytes(text.encode("ascii"))


def safe_join(root: Path, *names: str) -> Path:
    """A path inside `root`. Raises UnsafePath for names that are not plain, and where a link leads outside."""
    for name in names:
        if not _NAME.fullmatch(name):
            raise UnsafePath(f"{name!r} cannot name a file; use 1 to 100 of A-Z a-z 0-9 . _ - and not . or ..")
    path = root.joinpath(*names)
    resolved, base = path.resolve(), root.resolve()
    if resolved != base and base not in resolved.parents:
        raise UnsafePath(f"{path} leads to {resolved}, outside {base}; remove the link")
    return path


@contextmanager
def write_folder(folder: Path) -> Iterator[Path]:
    """Fill a folder under a temporary name; it takes its place, flushed to the disk, when the block ends well.

    An older folder of that name is replaced. Nothing is left behind where the block fails.
    """
    temporary = folder.with_name(f"{_TEMPORARY}{os.getpid()}-{folder.name}")
    with _storage(folder, 0):
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    try:
        with _storage(folder, 0):
            yield temporary
            for path in sorted(temporary.rglob("*")):
                _sync_file(path) if path.is_file() else _sync_folder(path)
            _sync_folder(temporary)
            old = folder.with_name(f"{_TEMPORARY}{os.getpid()}-old-{folder.name}")
            if folder.exists():
                os.rename(folder, old)
            os.rename(temporary, folder)
            _sync_folder(folder.parent)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def write_file(path: Path, size: int = 0) -> Iterator[Path]:
    """Let somebody else's writer fill a file under a temporary name; it takes its place when the block ends well.

    `size` is what will be written, for the message where the disk is full. Raises StorageError.
    """
    temporary = path.with_name(f"{_TEMPORARY}{os.getpid()}-{path.name}")
    with _storage(path, size):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            _sync_file(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)


def seal_folder(folder: Path) -> None:
    """Flush and hash every file of a folder, then write its manifest, last."""
    files = {}
    with _storage(folder, 0):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.name != MANIFEST:
                _sync_file(path)
                files[path.relative_to(folder).as_posix()] = {"sha256": hash_file(path), "bytes": path.stat().st_size}
        _sync_folder(folder)
    write_json(folder / MANIFEST, {"files": files})


def verify_folder(folder: Path) -> None:
    """Check every file of a sealed folder against its manifest. Raises CorruptFile naming the first that differs."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise CorruptFile(f"{folder}: no {MANIFEST}: it was not finished")
    value = read_json(manifest)
    files = value.get("files") if isinstance(value, dict) else None
    if not isinstance(files, dict):
        raise CorruptFile(f"{manifest}: no table of files")
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise CorruptFile(f"{path}: missing")
        if not isinstance(expected, dict) or path.stat().st_size != expected.get("bytes"):
            raise CorruptFile(f"{path}: {path.stat().st_size} bytes, the manifest says {expected}")
        if hash_file(path) != expected.get("sha256"):
            raise CorruptFile(f"{path}: its content is not what was sealed")


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove temporary files and folders of processes that are gone; returns what was removed."""
    removed = []
    for path in folder.glob(f"**/{_TEMPORARY}*"):
        owner = re.match(rf"{re.escape(_TEMPORARY)}(\d+)-", path.name)
        if owner and not _alive(int(owner.group(1))):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            removed.append(path)
    return removed


class FileLock:
    """Ownership of a lock file by one process, for as long as it lives.

    The lock itself is the operating system's (flock), so that it ends with its process however that ends; the file's
    content only tells others who it is. Raises RunFolderInUse with process, host and start of the owner.
    """

    def __init__(self, path: Path, held: Path, advice: str) -> None:
        """`held` is what the lock stands for and `advice` what another process may do, both for the message."""
        self.path = path
        self._held = held
        self._advice = advice
        self._file: int | None = None

    def __enter__(self) -> Self:
        with _storage(self.path, 200):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = _owner(handle)
            os.close(handle)
            raise RunFolderInUse(f"{self._held} is in use by {owner}; {self._advice}") from error
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()} since {now}\n".encode(), 0)
        self._file = handle
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            os.ftruncate(self._file, 0)
            os.close(self._file)
            self._file = None


class RunLock(FileLock):
    """Ownership of a run folder; what dead processes left in it is removed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / ".lock", folder, "wait for it, stop it, or give this run another name")

    def __enter__(self) -> Self:
        super().__enter__()
        remove_leftovers(self.path.parent)
        return self


def _owner(handle: int) -> str:
    """Who holds the lock; a holder that has only just taken it gets a moment to write its name."""
    for _ in range(20):
        if name := os.pread(handle, 1000, 0).decode("utf-8", errors="replace").strip():
            return name
        time.sleep(0.05)
    return "another process"


def free_bytes(path: Path) -> int:
    """Free bytes of the disk that a path lies on, or will."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


@contextmanager
def _storage(path: Path, needed: int) -> Iterator[None]:
    """Turn errors of the disk into StorageError."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise StorageError(f"{path}: {_disk_message(path, needed, error)}") from error


def _disk_message(path: Path, needed: int, error: OSError) -> str:
    free = free_bytes(path)
    need = f"{needed} bytes were to be written and {free} are free" if needed else f"{free} bytes are free"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"the disk is full ({need}); free space and run again: what was written before is intact"
    if error.errno == errno.EROFS:
        return "the file system is read-only; choose another folder with `runs`"
    if error.errno == errno.EIO:
        return "the disk reported an I/O error; what was written before is intact, but look at this disk"
    return f"not allowed ({error.strerror}); check the rights of the folder or choose another with `runs`"


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    _sync_file(folder)


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _finite(value: Any) -> Any:
    """A copy in which NaN and infinities are strings and tuples are lists."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
