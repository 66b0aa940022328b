"""Nearest neighbours by inner product behind one protocol; FAISS is the default engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
Matrix = npt.NDArray[np.float32]
# Packed bits over positions, lowest bit of the first byte first; what FAISS calls a bitmap.
Bits = npt.NDArray[np.uint8]
# Row numbers to their (n, d) unit vectors, in that order.
Source = Callable[[Rows], Matrix]


class VectorIndex(Protocol):
    """Unit vectors under row numbers, never changed once made. n vectors, d dimensions, k results."""

    def __len__(self) -> int:
        """N."""

    def rows(self) -> Rows:
        """The row numbers held, in no particular order."""

    def changed(self, gone: Rows, rows: Rows, vectors: Matrix) -> VectorIndex:
        """An index without the rows `gone` and with (n, d) unit vectors under new row numbers; this one stays as it is.

        Rows in `gone` that are not held are passed over. The cost is that of the change, not of the index.
        """

    def search(self, question: Matrix, k: int, allowed: Rows | None = None) -> list[tuple[int, float]]:
        """The k rows with the largest cosine similarity to a (d,) unit vector, best first; fewer when n < k.

        With `allowed` only those rows are candidates (rows not held are passed over), so k of them are found
        where there are k; None allows every row, an empty array none. Sorted `allowed` rows are the fastest.
        """
