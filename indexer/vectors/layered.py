"""The index of one generation: an immutable FAISS base, the vectors added since, and which of both are gone.

The next generation shares the base and the added vectors with this one, so it costs what changed and readers of this
one go on undisturbed. The added vectors are searched exactly; indexer.derived bounds how many there are.
"""

from __future__ import annotations

from threading import Lock

import numpy as np
import numpy.typing as npt

from indexer.vectors import Bits, Matrix, Rows
from indexer.vectors.faiss import FaissIndex, Scores, inner_products

Mask = npt.NDArray[np.bool_]
FIRST_TAIL = 256
# So few allowed rows are compared one by one, which is exact and faster than passing over all others in their lists.
FEW = 10_000


class _Tail:
    """Rows and vectors that only grow at the end; each reader looks at the first so many."""

    def __init__(self, dimension: int, capacity: int) -> None:
        self.rows: Rows = np.empty(capacity, np.int64)
        self.vectors: Matrix = np.empty((capacity, dimension), np.float32)
        self._used = 0
        self._lock = Lock()

    def extended(self, count: int, rows: Rows, vectors: Matrix) -> _Tail:
        """A tail with the first `count` entries of this one and then these: this one itself if nothing follows them."""
        total = count + len(rows)
        with self._lock:
            if self._used == count and total <= len(self.rows):
                tail = self
            else:
                tail = _Tail(self.vectors.shape[1], max(FIRST_TAIL, 2 * total))
                tail.rows[:count], tail.vectors[:count] = self.rows[:count], self.vectors[:count]
            tail.rows[count:total], tail.vectors[count:total] = rows, vectors
            tail._used = total
        return tail


class LayeredIndex:
    """A VectorIndex. Its scores are the cosines; those of an approximate base are of vectors rounded to 8 bits."""

    def __init__(self, base: FaissIndex) -> None:
        self.base = base
        self._base_alive: Mask | None = None
        self._base_bits: Bits | None = None
        self._base_count = len(base)
        self._tail = _Tail(base.dimension, 0)
        self._tail_alive: Mask = np.empty(0, np.bool_)
        self._tail_count = 0

    def __len__(self) -> int:
        return self._base_count + self._tail_count

    def rows(self) -> Rows:
        """The row numbers held."""
        base = self.base.rows if self._base_alive is None else self.base.rows[self._base_alive]
        return np.concatenate([base, self._tail.rows[: len(self._tail_alive)][self._tail_alive]])

    def changed(self, gone: Rows, rows: Rows, vectors: Matrix) -> LayeredIndex:
        """Another index on the same base, without some rows and with others."""
        gone = _increasing(gone)
        other = LayeredIndex(self.base)
        other._base_alive, other._base_bits, other._base_count = self._base_alive, self._base_bits, self._base_count
        dead = self.base.positions(gone)
        if len(dead):
            alive = np.ones(len(self.base), np.bool_) if self._base_alive is None else self._base_alive.copy()
            alive[dead] = False
            other._base_alive, other._base_bits = alive, np.packbits(alive, bitorder="little")
            other._base_count = int(np.count_nonzero(alive))
        count = len(self._tail_alive)
        other._tail = self._tail.extended(count, rows, vectors) if len(rows) else self._tail
        kept = self._tail_alive & ~_held(self._tail.rows[:count], gone)
        other._tail_alive = np.concatenate([kept, np.ones(len(rows), np.bool_)])
        other._tail_count = int(np.count_nonzero(other._tail_alive))
        return other

    def search(self, question: Matrix, k: int, allowed: Rows | None = None) -> list[tuple[int, float]]:
        """The k best rows among the allowed ones, best first; of equally similar ones the lower row first."""
        if k <= 0 or not len(self) or (allowed is not None and not len(allowed)):
            return []
        allowed = None if allowed is None else _increasing(allowed)
        scores, positions = self._search_base(question, k, allowed)
        rows = self.base.rows[positions]
        if self._tail_count:
            more_rows, more_scores = self._search_tail(question, k, allowed)
            rows, scores = np.concatenate([rows, more_rows]), np.concatenate([scores, more_scores])
        best = np.lexsort((rows, -scores))[:k]
        return list(zip(rows[best].tolist(), scores[best].tolist(), strict=True))

    def _search_base(self, question: Matrix, k: int, allowed: Rows | None) -> tuple[Scores, Rows]:
        if allowed is None:
            return self.base.nearest(question, k, self._base_bits, self._base_count)
        positions = self.base.positions(allowed)
        if self._base_alive is not None:
            positions = positions[self._base_alive[positions]]
        if len(positions) <= FEW:
            return self.base.nearest_among(question, k, positions)
        wanted = np.zeros(len(self.base), np.bool_)
        wanted[positions] = True
        return self.base.nearest(question, k, np.packbits(wanted, bitorder="little"), len(positions))

    def _search_tail(self, question: Matrix, k: int, allowed: Rows | None) -> tuple[Rows, Scores]:
        count = len(self._tail_alive)
        scores = inner_products(self._tail.vectors[:count], question)
        wanted = self._tail_alive if allowed is None else self._tail_alive & _held(self._tail.rows[:count], allowed)
        places = np.flatnonzero(wanted)
        if len(places) > k:
            places = places[np.argpartition(-scores[places], k - 1)[:k]]
        return self._tail.rows[places], scores[places]


def _increasing(rows: Rows) -> Rows:
    rows = np.asarray(rows, np.int64)
    return rows if len(rows) < 2 or bool(np.all(rows[1:] > rows[:-1])) else np.unique(rows)


def _held(rows: Rows, among: Rows) -> Mask:
    """Which of the rows are `among` (increasing) these."""
    if not len(among):
        return np.zeros(len(rows), np.bool_)
    places = np.minimum(np.searchsorted(among, rows), len(among) - 1)
    found: Mask = among[places] == rows
    return found
