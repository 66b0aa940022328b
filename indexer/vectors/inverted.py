"""Approximate search: inverted lists over 8-bit codes, built in a stream, tuned and measured against exact search.

Jegou, Douze & Schmid 2011 (inverted lists), FAISS IndexIVFScalarQuantizer with QT_8bit: d bytes a vector instead of
4 d. Chosen over HNSW by measurement (tests/benchmarks/vectors.py): a build that takes minutes instead of an hour,
filters that lose no neighbours, and a rewrite that needs no second build.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from indexer.vectors import Matrix, Rows, Source
from indexer.vectors.faiss import FaissIndex

K = 10
TARGET_RECALL = 0.95
# Tuning aims higher than the promise, because the vectors it is tuned on are a sample.
TUNED_RECALL = 0.96
HELD_OUT = 512
TRAIN_PER_LIST = 40
TRAIN_ROUNDS = 10
READ_ROWS = 50_000
SEED = 20_260


@dataclass(frozen=True, slots=True)
class Measured:
    """An approximate index and its recall@10 against exact search over `questions` stored vectors not trained on."""

    index: FaissIndex
    recall: float
    lists: int
    probes: int
    questions: int


def build(rows: Rows, source: Source, dimension: int) -> Measured:
    """Train and fill the lists for increasing row numbers (n of them, n >= 1,000).

    Peak memory: the training sample (TRAIN_PER_LIST x lists vectors of 4 d bytes), n d bytes of codes and one batch.
    """
    import faiss

    random = np.random.default_rng(SEED)
    # 4 sqrt(n) lists balance the cost of choosing lists and of reading them (FAISS's own guideline: 4 to 16 sqrt(n)).
    lists = max(1, round(4 * math.sqrt(len(rows))))
    order = random.permutation(len(rows))
    held_out, sample = np.sort(order[:HELD_OUT]), np.sort(order[HELD_OUT : HELD_OUT + TRAIN_PER_LIST * lists])
    quantizer = faiss.IndexFlatIP(dimension)
    inner = faiss.IndexIVFScalarQuantizer(
        quantizer, dimension, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT, False
    )
    inner.cp.niter, inner.cp.seed, inner.cp.spherical = TRAIN_ROUNDS, SEED, True
    inner.cp.min_points_per_centroid = 1
    inner.train(source(rows[sample]))
    index = faiss.IndexIDMap(inner)
    truth = _Truth(source(rows[held_out]), held_out)
    for start, batch in _batches(rows, source):
        index.add_with_ids(batch, rows[start : start + len(batch)])
        truth.see(start, batch)
    return _tune(FaissIndex(index, keep=(inner, quantizer)), truth)


def compact(old: FaissIndex, alive: Rows, rows: Rows, vectors: Matrix) -> FaissIndex:
    """The lists of `old` with only the positions `alive` (increasing), and (m, d) vectors under greater row numbers.

    Nothing is trained and no stored vector is read, so the cost is that of copying the codes.
    """
    import faiss

    source = old.inner
    inner = faiss.IndexIVFScalarQuantizer(
        source.quantizer, old.dimension, source.nlist, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT, False
    )
    inner.sq, inner.is_trained, inner.nprobe = source.sq, True, source.nprobe
    index = faiss.IndexIDMap(inner)
    moved = np.full(len(old), -1, np.int64)
    moved[alive] = np.arange(len(alive))
    for number in range(source.nlist):
        _copy_list(source.invlists, inner.invlists, number, moved)
    inner.ntotal = len(alive)
    if len(rows):
        inner.add(np.ascontiguousarray(vectors, np.float32))
    faiss.copy_array_to_vector(np.concatenate([old.rows[alive], rows]), index.id_map)
    index.ntotal = inner.ntotal
    return FaissIndex(index, keep=(inner, old))


def _copy_list(source: Any, target: Any, number: int, moved: Rows) -> None:
    import faiss

    size = source.list_size(number)
    if not size:
        return
    ids = moved[faiss.rev_swig_ptr(source.get_ids(number), size)]
    codes = faiss.rev_swig_ptr(source.get_codes(number), size * source.code_size).reshape(size, -1)
    kept = ids >= 0
    ids, codes = np.ascontiguousarray(ids[kept]), np.ascontiguousarray(codes[kept])
    if len(ids):
        target.add_entries(number, len(ids), faiss.swig_ptr(ids), faiss.swig_ptr(codes))


class _Truth:
    """The exact K nearest neighbours of held-out stored vectors, other than themselves, found in a stream."""

    def __init__(self, questions: Matrix, positions: Rows) -> None:
        self.questions = questions
        self.positions = positions
        self._scores = np.full((len(questions), K), -np.inf, np.float32)
        self.neighbours = np.full((len(questions), K), -1, np.int64)

    def see(self, start: int, vectors: Matrix) -> None:
        """Take in (m, d) vectors at positions start, start + 1, ..."""
        scores = self.questions @ vectors.T
        own = (self.positions >= start) & (self.positions < start + len(vectors))
        scores[own, self.positions[own] - start] = -np.inf
        best = np.argpartition(-scores, min(K, scores.shape[1]) - 1, axis=1)[:, :K]
        all_scores = np.concatenate([self._scores, np.take_along_axis(scores, best, 1)], axis=1)
        places = np.concatenate([self.neighbours, best + start], axis=1)
        kept = np.argsort(-all_scores, axis=1, kind="stable")[:, :K]
        self._scores = np.take_along_axis(all_scores, kept, 1)
        self.neighbours = np.take_along_axis(places, kept, 1)

    def recalls(self, inner: Any, probes: int, part: slice) -> float:
        """Mean recall@K of the approximate search over a part of the questions, themselves left out."""
        import faiss

        parameters = faiss.SearchParametersIVF(nprobe=probes)
        _, found = inner.search(np.ascontiguousarray(self.questions[part]), K + 1, params=parameters)
        hits = []
        for row, own, right in zip(found, self.positions[part], self.neighbours[part], strict=True):
            right = right[right >= 0]
            hits.append(np.isin(right, row[row != own][:K]).mean() if len(right) else 1.0)
        return float(np.mean(hits))


def _tune(index: FaissIndex, truth: _Truth) -> Measured:
    """Set the smallest number of probes that reaches the target on one half; measure on the other half."""
    half = len(truth.questions) // 2
    first, second = slice(0, None, 2), slice(1, None, 2)
    lists = int(index.inner.nlist)
    probes = next((n for n in _ladder(lists) if truth.recalls(index.inner, n, first) >= TUNED_RECALL), lists)
    index.inner.nprobe = probes
    recall = truth.recalls(index.inner, probes, second)
    return Measured(index, recall, lists, probes, half)


def _ladder(lists: int) -> Iterator[int]:
    """1, 2, 3, 4, 6, 8, 12, 16, ... up to the number of lists."""
    step = 1
    while step < lists:
        yield step
        if step > 1 and step * 3 // 2 < lists:
            yield step * 3 // 2
        step *= 2
    yield lists


def _batches(rows: Rows, source: Source) -> Iterator[tuple[int, Matrix]]:
    for start in range(0, len(rows), READ_ROWS):
        yield start, np.ascontiguousarray(source(rows[start : start + READ_ROWS]), np.float32)
