"""FAISS files that are either the bytes that were written or not used at all.

FAISS files carry no checksum, and many damaged ones load and answer wrongly. So the SHA-256 of the bytes handed to the
disk is kept elsewhere, and a file is mapped, hashed through the mapping, and parsed from that same mapping: what was
hashed is what is parsed and searched. The vectors stay in the mapping (the page cache, shared between processes).
Guaranteed: a file that was changed, cut, swapped or lost before it was opened is never searched. Not guaranteed: that
somebody who overwrites the file in place while it is open goes unnoticed. Tandem never does; it replaces files by name.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from pathlib import Path
from threading import Lock

import numpy as np

from indexer.vectors.faiss import FaissIndex

READ_ONLY = 0o444
WRITE_BLOCK = 1 << 20
# Parsing changes limits that are global to FAISS.
_parsing = Lock()


def save(index: FaissIndex, path: Path) -> str:
    """Write the index durably and return the SHA-256 (hex) of what was written. The name must be new."""
    import faiss

    digest = hashlib.sha256()
    partial = path.with_suffix(".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.unlink(missing_ok=True)
    with partial.open("wb") as file:

        def write(block: bytes) -> None:
            digest.update(block)
            file.write(block)

        sink = faiss.PyCallbackIOWriter(write, WRITE_BLOCK)
        buffer = faiss.BufferedIOWriter(sink, WRITE_BLOCK)
        faiss.write_index(index.raw, buffer)
        # The buffer hands over its last block when it goes, and must go before its sink.
        del buffer
        file.flush()
        os.fchmod(file.fileno(), READ_ONLY)
        os.fsync(file.fileno())
    os.replace(partial, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return digest.hexdigest()


def load(path: Path, sha256: str, dimension: int) -> FaissIndex | None:
    """The saved index, or None when the file is missing or is not, byte for byte, the one that was written."""
    try:
        with path.open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):
        # An empty file cannot be mapped.
        return None
    if hashlib.sha256(mapping).hexdigest() != sha256:
        return None
    index = _parse(mapping)
    return index if index is not None and index.dimension == dimension else None


def _parse(mapping: mmap.mmap) -> FaissIndex | None:
    import faiss

    view = np.frombuffer(mapping, np.uint8)
    reader = faiss.ZeroCopyIOReader(faiss.swig_ptr(view), view.size)
    with _parsing:
        # No array and no loop in a file is larger than the file, so a nonsensical length ends in an error.
        faiss.set_deserialization_vector_byte_limit(view.size)
        faiss.set_deserialization_loop_limit(view.size)
        try:
            return FaissIndex(faiss.read_index(reader), keep=(view, reader))
        except RuntimeError:
            # FAISS reports what it cannot parse; a file of a FAISS with another format can be intact and unreadable.
            return None
