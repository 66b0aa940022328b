"""Folders that appear whole or not at all, and file hashes that are not computed twice.

Weights are hundreds of megabytes: a download or a conversion can be killed at any moment, and two processes may
start one at once. So a folder is built under a temporary name on the same filesystem, flushed to disk, and renamed
into place while a lock is held. The lock is `flock`: the kernel frees it when its holder dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

_BLOCK = 1 << 20


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock file `path` (created if missing); `waiting` is called once if another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is not None:
                waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def publish_folder(target: Path, build: Callable[[Path], None]) -> None:
    """Make `target` what `build(empty_folder)` writes. Whoever holds the lock of `target` may call this.

    Killed at any moment it leaves the old folder, nothing, or the whole new folder, and temporary folders that
    the next call removes.
    """
    for leftover in target.parent.glob(f".{target.name}.*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh = target.parent / f".{target.name}.{os.getpid()}.tmp"
    fresh.mkdir(parents=True)
    try:
        build(fresh)
        for path in sorted(fresh.rglob("*")):
            # Some libraries write for the owner alone; a container may serve as another user than it was built by.
            path.chmod(0o755 if path.is_dir() else 0o644)
            _flush(path)
        fresh.chmod(0o755)
        _flush(fresh)
        if target.exists():
            # A non-empty folder cannot be renamed over, so the damaged one steps aside first.
            target.rename(target.parent / f".{target.name}.old.tmp")
        fresh.rename(target)
        _flush(target.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(target.parent / f".{target.name}.old.tmp", ignore_errors=True)


def write_file(path: Path, data: bytes) -> None:
    """Replace one file atomically: readers see the old bytes or the new ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with fresh.open("wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    fresh.replace(path)


def file_sha256(path: Path) -> str:
    """Hex SHA-256 (64 characters) of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def folder_hashes(folder: Path, files: list[str], stamps: Path, *, verify: bool = False) -> dict[str, str]:
    """SHA-256 of each of `files` in `folder`, read again only where size or mtime changed since the last time.

    `stamps` is the folder that remembers them; `verify` reads every byte regardless. A read-only `stamps` only
    costs time. Missing files raise FileNotFoundError.
    """
    stamp = stamps / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]}.json"
    known = {} if verify else _read_stamp(stamp)
    seen: dict[str, list[object]] = {}
    for name in files:
        status = (folder / name).stat()
        mark: list[object] = [status.st_size, status.st_mtime_ns]
        old = known.get(name, [])
        seen[name] = [*mark, old[2] if old[:2] == mark else file_sha256(folder / name)]
    if seen != known:
        with contextlib.suppress(OSError):
            write_file(stamp, json.dumps(seen).encode())
    return {name: str(entry[2]) for name, entry in seen.items()}


def _read_stamp(stamp: Path) -> dict[str, list[object]]:
    try:
        entries = json.loads(stamp.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(entries, dict):
        return {}
    return {name: entry for name, entry in entries.items() if isinstance(entry, list) and len(entry) == 3}


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
