"""The vector index of a generation, derived from SQLite: a checked file plus the rows that differ from it.

Whatever the file holds, the result is made equal to the visible rows; without a usable file it is built from the
stored vectors. So the file saves time and is never trusted.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np

from indexer.store import Snapshot
from indexer.vectors import Rows, VectorIndex
from indexer.vectors.faiss import FaissIndex
from indexer.vectors.file import load
from indexer.vectors.layered import LayeredIndex

log = logging.getLogger(__name__)

VECTOR_FOLDER = "vectors"


@dataclass(frozen=True, slots=True)
class _Held:
    """An index in memory; `file` is what its base was read from, `embedder` made its vectors."""

    file: str | None
    embedder: str
    index: LayeredIndex


def build(snapshot: Snapshot, home: Path) -> LayeredIndex:
    """The index of the snapshot's generation, from its file as far as that goes and from the stored vectors."""
    visible = snapshot.chunk_rows()
    base = _from_file(snapshot, home)
    if base is None:
        return LayeredIndex(FaissIndex.exact(visible, snapshot.vectors(visible)))
    added: Rows = np.setdiff1d(visible, base.rows, assume_unique=True)
    gone = np.setdiff1d(base.rows, visible, assume_unique=True)
    return LayeredIndex(base).changed(gone, added, snapshot.vectors(added))


def _from_file(snapshot: Snapshot, home: Path) -> FaissIndex | None:
    generation = snapshot.generation
    if not generation.vector_file or not generation.vector_sha256:
        return None
    path = home / VECTOR_FOLDER / generation.vector_file
    base = load(path, generation.vector_sha256, generation.dimension)
    if base is None:
        log.warning("the vector file %s is missing or damaged; rebuilt from the database", path.name)
    return base


class IndexCache:
    """The indexes of the last two generations asked for; a new one shares what it can with its parent's. Thread-safe.

    An index that was handed out is never changed: readers of an older generation keep theirs. Generation numbers
    are never used twice, not even after a rollback, so a number names one content.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._lock = Lock()
        self._held: dict[int, _Held] = {}

    def get(self, snapshot: Snapshot) -> VectorIndex:
        """The index of this snapshot's generation."""
        number = snapshot.generation.number
        # Without the lock first: who has an index does not wait while that of the next generation is read.
        held = self._held.get(number)
        if held is None:
            with self._lock:
                held = self._held.get(number)
                if held is None:
                    held = self._make(snapshot)
                    kept = sorted([*self._held, number])[-2:]
                    self._held = {key: value for key, value in self._held.items() if key in kept} | {number: held}
        return held.index

    def _make(self, snapshot: Snapshot) -> _Held:
        generation = snapshot.generation
        near = self._held.get(generation.parent) if generation.parent is not None else None
        if near is None or (near.file, near.embedder) != (generation.vector_file, generation.embedder):
            return _Held(generation.vector_file, generation.embedder, build(snapshot, self._home))
        gone, added = snapshot.changed_rows()
        index = near.index.changed(gone, added, snapshot.vectors(added))
        return _Held(generation.vector_file, generation.embedder, index)
