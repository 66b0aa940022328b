"""Keys and values of parts of prompts in a folder of this machine, those used longest ago deleted first.

A file is found by the hash of its key. Everything else that decides the numbers in it (the weights of the base model,
how they are computed, the generation of the index) is in the name of the folder, which its user chooses, so what is
found is right. Only this user may read them: they say what the documents say.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from array import array
from collections import OrderedDict
from pathlib import Path

from tuner.kept import Kept, Key

_LOG = logging.getLogger(__name__)
_ENDING = ".safetensors"


class KeptFiles:
    """Files in `folder`, up to `limit` bytes. Other folders beside it are deleted: they are of what was before.

    Whatever cannot be read or written is told in the log and not kept; an answer never fails for it. Not thread-safe.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.bytes = 0
        self._folder = folder
        self._limit = limit
        self._sizes: OrderedDict[str, int] = OrderedDict()
        try:
            self._open()
        except OSError as error:
            self._stop("be kept", error)

    def __len__(self) -> int:
        return len(self._sizes)

    def get(self, key: Key) -> Kept | None:
        """What is kept under this key."""
        name = _name(key)
        if name not in self._sizes:
            return None
        from safetensors import SafetensorError
        from safetensors.torch import load

        path = self._folder / name
        try:
            # Read whole, not mapped: a file that another process cuts short would end this one.
            tensors = load(path.read_bytes())
            kept = Kept(tensors["keys"], tensors["values"])
            os.utime(path)
        except (OSError, SafetensorError, KeyError) as error:
            _LOG.warning("%s, which holds what was read of a passage, cannot be used and is deleted: %s", path, error)
            self._delete(name)
            return None
        self._sizes.move_to_end(name)
        return kept

    def put(self, key: Key, kept: Kept) -> None:
        """Write it, unless it is there or larger than everything may be."""
        name = _name(key)
        if name in self._sizes or kept.bytes > self._limit:
            return
        from safetensors.torch import save

        path = self._folder / name
        fresh = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            # Not synchronised with the disk: after a crash it is read again from the passage.
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                size = file.write(save({"keys": kept.keys.contiguous(), "values": kept.values.contiguous()}))
            fresh.replace(path)
        except OSError as error:
            self._stop("be written", error)
            fresh.unlink(missing_ok=True)
            return
        self._sizes[name] = size
        self.bytes += size
        while self.bytes > self._limit:
            self._delete(next(iter(self._sizes)))

    def clear(self) -> None:
        """Delete everything."""
        for name in list(self._sizes):
            self._delete(name)

    def _open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for other in self._folder.parent.iterdir():
            if other != self._folder and other.is_dir():
                shutil.rmtree(other, ignore_errors=True)
        states = [(path.stat(), path.name) for path in self._folder.glob(f"*{_ENDING}")]
        for _, name, size in sorted((state.st_mtime_ns, name, state.st_size) for state, name in states):
            self._sizes[name] = size
            self.bytes += size
        while self.bytes > self._limit:
            self._delete(next(iter(self._sizes)))

    def _delete(self, name: str) -> None:
        self.bytes -= self._sizes.pop(name)
        try:
            (self._folder / name).unlink(missing_ok=True)
        except OSError as error:
            _LOG.warning("%s cannot be deleted: %s", self._folder / name, error)

    def _stop(self, what: str, error: OSError) -> None:
        _LOG.warning(
            "What was read of passages cannot %s in %s and is kept in memory only: %s", what, self._folder, error
        )
        self._limit = 0


def _name(key: Key) -> str:
    kind, weights, ids = key
    digest = hashlib.sha256(f"{kind} {weights} ".encode() + array("q", ids).tobytes())
    return digest.hexdigest()[:32] + _ENDING
