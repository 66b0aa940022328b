"""When and how the vector file is written again: exact below a size, approximate above it.

A new file is written when a share of its rows has come or gone, so the writing costs each changed row O(1) however
large the corpus is, and until then the changed rows are searched exactly beside the file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from indexer.derived import VECTOR_FOLDER
from indexer.store import Generation
from indexer.vectors import Rows, Source
from indexer.vectors.faiss import FaissIndex
from indexer.vectors.file import load, save
from indexer.vectors.inverted import TARGET_RECALL, build, compact

# Fewer changed rows than this never pay for a file.
REWRITE_ROWS = 1000
REWRITE_SHARE = 0.2
# Beside a fast approximate base an exact scan of many changed rows would be what takes the time.
APPROXIMATE_REWRITE_SHARE = 0.01
# Up to here an exact search of 384 dimensions takes about 5 ms (tests/benchmarks/vectors.py): nothing is approximated.
APPROXIMATE_ROWS = 30_000
# Lists trained for n rows are trained anew at this multiple of n, or when fewer than its inverse are left.
RETRAIN_GROWTH = 1.5

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class VectorFile:
    """The fields of a Generation that describe its file; `vector_recall` is 1 where search is exact."""

    vector_file: str
    vector_sha256: str
    vector_rows: int
    vector_kind: str
    vector_recall: float
    vector_trained: int
    vector_drift: int = 0


def needs_file(drift: int, rows: int) -> bool:
    """Whether so many rows came or went since the last file of `rows` rows that a new one pays."""
    share = REWRITE_SHARE if rows < APPROXIMATE_ROWS else APPROXIMATE_REWRITE_SHARE
    return drift > max(REWRITE_ROWS, share * rows)


def write_file(
    home: Path, generation: Generation, rows: Rows, source: Source, *, threshold: int = APPROXIMATE_ROWS
) -> VectorFile:
    """Write the file of a generation to come, whose increasing `rows` are given, and describe it.

    `generation` names its parent's file, which is compacted instead of built anew where that is possible; `threshold`
    is the number of rows from which search is approximate. Peak memory: see indexer.vectors.inverted.build.
    """
    name = f"{generation.number}.faiss"
    path = home / VECTOR_FOLDER / name
    if len(rows) < threshold:
        index = FaissIndex.exact(rows, source(rows))
        return VectorFile(name, save(index, path), len(rows), "exact", 1.0, 0)
    reused = _compacted(home, generation, rows, source)
    if reused is not None and generation.vector_recall is not None:
        kind, recall, trained = generation.vector_kind, generation.vector_recall, generation.vector_trained
        return VectorFile(name, save(reused, path), len(rows), kind, recall, trained)
    measured = build(rows, source, generation.dimension)
    kind = f"approximate: {measured.lists} lists, {measured.probes} probed, 8 bits a dimension"
    return VectorFile(name, save(measured.index, path), len(rows), kind, measured.recall, len(rows))


def _compacted(home: Path, generation: Generation, rows: Rows, source: Source) -> FaissIndex | None:
    """The parent's lists brought in step with the rows, or None when they must be trained anew."""
    trained = generation.vector_trained
    if not generation.vector_file or not generation.vector_sha256 or not trained:
        return None
    if not trained / RETRAIN_GROWTH <= len(rows) <= trained * RETRAIN_GROWTH:
        return None
    old = load(home / VECTOR_FOLDER / generation.vector_file, generation.vector_sha256, generation.dimension)
    if old is None or old.is_exact or not len(old):
        return None
    alive = np.flatnonzero(np.isin(old.rows, rows, assume_unique=True))
    added: Rows = np.setdiff1d(rows, old.rows, assume_unique=True)
    # Another embedder leaves none of the old rows: its lists would fit the new vectors badly.
    if len(alive) < len(rows) / RETRAIN_GROWTH or (len(added) and added[0] < old.rows[-1]):
        return None
    return compact(old, alive, added, source(added))


def describe(generation: Generation) -> str:
    """One line for people: how the generation's vectors are searched and with what recall."""
    if generation.vector_recall is None or generation.vector_trained == 0:
        return "Vector search: exact."
    worse = "" if generation.vector_recall >= TARGET_RECALL else f", below the target of {TARGET_RECALL}"
    return (
        f"Vector search: {generation.vector_kind}; recall@10 {generation.vector_recall:.3f} against exact search"
        f" over held-out stored vectors{worse}."
    )
