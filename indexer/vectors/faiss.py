"""FAISS (Douze et al. 2024, arXiv 2401.08281): an immutable set of vectors, searched exactly or by inverted lists.

Inside FAISS a vector is known by its position 0 to n-1; `rows` says which row number lies at a position. So a filter
is a bitmap of n bits whatever the row numbers are.
"""

from __future__ import annotations

from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from indexer.vectors import Bits, Matrix, Rows

Positions = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]
Places = npt.NDArray[np.int32]
# Row numbers are looked up in a table unless it would have this many entries a row.
SPARSE = 8
# FAISS fetches more than this at once in several threads, which takes longer where the cores are busy.
FETCHED = 1000


def inner_products(vectors: Matrix, question: Matrix) -> Scores:
    """(n,) inner products of (n, d) contiguous vectors with a (d,) one, in this thread.

    NumPy would start the threads of its BLAS, which takes longer than the work where the cores are busy.
    """
    import faiss

    scores = np.empty(len(vectors), np.float32)
    if len(vectors):
        question = np.ascontiguousarray(question, np.float32)
        pointers = (faiss.swig_ptr(array) for array in (scores, question, vectors))
        faiss.fvec_inner_products_ny(*pointers, vectors.shape[1], len(vectors))
    return scores


class FaissIndex:
    """An IndexIDMap over IndexFlatIP ("exact") or IndexIVFScalarQuantizer ("approximate"), read only.

    `keep` is whatever memory the FAISS object looks into without owning it.
    """

    def __init__(self, index: Any, keep: object = None) -> None:
        import faiss

        self._index = index
        self._keep = keep
        self._inner: Any = faiss.downcast_index(index.index)
        self._lists = int(getattr(self._inner, "nlist", 0))
        self.rows: Rows = np.asarray(faiss.vector_to_array(index.id_map), np.int64)
        self.dimension = int(index.d)
        self._places: Places | None = None
        self._lock = Lock()
        self._can_fetch = self._lists == 0

    @staticmethod
    def exact(rows: Rows, vectors: Matrix) -> FaissIndex:
        """All of (n, d) unit vectors under increasing row numbers, compared one by one."""
        import faiss

        index = faiss.IndexIDMap(faiss.IndexFlatIP(vectors.shape[1]))
        if len(rows):
            index.add_with_ids(np.ascontiguousarray(vectors, np.float32), rows)
        return FaissIndex(index)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def raw(self) -> Any:
        """The FAISS object, for what writes, measures or compacts it."""
        return self._index

    @property
    def inner(self) -> Any:
        """The FAISS object below the row numbers."""
        return self._inner

    @property
    def is_exact(self) -> bool:
        """Whether every vector is compared with the question."""
        return self._lists == 0

    def positions(self, rows: Rows) -> Positions:
        """Where these increasing rows lie; those not held are left out."""
        if not len(self) or not len(rows):
            return np.empty(0, np.int64)
        first, last = int(self.rows[0]), int(self.rows[-1])
        rows = rows[np.searchsorted(rows, first) : np.searchsorted(rows, last, "right")]
        if last - first >= SPARSE * len(self):
            near = np.searchsorted(self.rows, rows)
            held: Positions = near[self.rows[near] == rows]
            return held
        if self._places is None:
            # Two threads may both make it; it is the same.
            places = np.full(last - first + 1, -1, np.int32)
            places[self.rows - first] = np.arange(len(self))
            self._places = places
        found: Positions = self._places[rows - first].astype(np.int64)
        return found[found >= 0]

    def nearest_among(self, question: Matrix, k: int, positions: Positions) -> tuple[Scores, Positions]:
        """Similarities and positions of the k best of these positions, each compared with the question, best first."""
        with self._lock:
            if not self._can_fetch:
                self._inner.make_direct_map(True)
                self._can_fetch = True
        if not len(positions):
            return np.empty(0, np.float32), positions
        starts = range(0, len(positions), FETCHED)
        blocks = (self._inner.reconstruct_batch(positions[start : start + FETCHED]) for start in starts)
        scores = np.concatenate([inner_products(block, question) for block in blocks])
        best = np.lexsort((positions, -scores))[:k]
        return scores[best], positions[best]

    def nearest(
        self, question: Matrix, k: int, bits: Bits | None = None, candidates: int | None = None
    ) -> tuple[Scores, Positions]:
        """Similarities and positions of the k best of the positions set in `bits` (`candidates` of them), best first.

        A filter spreads the neighbours over more lists: as many more are probed as the filter keeps fewer vectors,
        and all of them when that still finds too few.
        """
        candidates = len(self) if candidates is None else candidates
        k = min(k, candidates)
        if k <= 0:
            return np.empty(0, np.float32), np.empty(0, np.int64)
        if self.is_exact:
            return self._run(question, k, bits, 0)
        probes = min(self._lists, -(-int(self._inner.nprobe) * len(self) // candidates))
        scores, positions = self._run(question, k, bits, probes)
        if len(positions) < k and probes < self._lists:
            scores, positions = self._run(question, k, bits, self._lists)
        return scores, positions

    def _run(self, question: Matrix, k: int, bits: Bits | None, probes: int) -> tuple[Scores, Positions]:
        import faiss

        options: dict[str, Any] = {} if bits is None else {"sel": faiss.IDSelectorBitmap(bits)}
        if probes:
            parameters = faiss.SearchParametersIVF(nprobe=probes, **options)
        else:
            parameters = faiss.SearchParameters(**options) if options else None
        scores, positions = self._inner.search(question[None, :], k, params=parameters)
        found = positions[0] >= 0
        return scores[0][found], positions[0][found]
